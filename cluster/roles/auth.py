"""Who may talk to Ray. Without being told, Ray would write a token into the home folder."""

import os
import secrets


def choose_ray_auth(address: str | None) -> None:
    """Settle it; to be called before Ray is imported, which is when Ray reads it.

    Args:
        address: an existing cluster, whose own mode and token have to be in the environment (none is taken
            for none); None for a cluster of our own, which gets a token that only its processes know.
    """
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
