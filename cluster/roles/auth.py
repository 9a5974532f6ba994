"""Chooses who may talk to Ray. Left to itself, Ray would write a token into the home folder."""

import os
import secrets


def choose_ray_auth(address: str | None) -> None:
    """Set Ray's authentication mode and token in the environment. Ray reads them when it is imported.

    Args:
        address: an existing cluster, whose mode and token the environment must hold; without a mode there,
            authentication is off. None for a cluster that this process starts: it gets a new token that only
            its processes know.
    """
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
