"""Policies, or adapters of one, in a run's folder or in one of checkpoints: the newest one acts."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from longview.learner.files import adapter_file, policy_file

if TYPE_CHECKING:
    from longview.learner.policy import Policy


CALLED: Final = ("observation", "action", "control_hz")
"""Parts of a task that calls depend on."""


class Weights:
    """Newest policy at a path."""

    def __init__(self, path: Path, device: str, base: "Policy | None" = None) -> None:
        """Read the newest policy.

        Args:
            path: a policy's file, a checkpoint's folder, a folder of checkpoints, or a run by its folder or
                name, as for `policy_file`.
            device: device of the policies.
            base: policy that the path holds adapters of, instead of policies.

        Raises:
            FileNotFoundError: there is no policy, or it was removed while it was read.
            ValueError: the file holds no policy, or an adapter that does not fit the base or its calls.
        """
        self._path, self._device, self._base = path, device, base
        self.file = self._newest()
        """File of the newest policy."""
        self.version, self.policy = self._read(self.file)
        if base is not None:
            for name in CALLED:
                self._must_equal(name, getattr(base.spec, name), getattr(self.policy.spec, name))
            self._must_equal("horizon", base.horizon, self.policy.horizon)

    def look(self) -> bool:
        """Look for a newer policy, and tell whether there is one.

        Raises:
            FileNotFoundError: there is no policy any more, or it was removed while it was read.
            ValueError: the newer file holds no policy, or one for another task or horizon. It is not read
                again.
        """
        file = self._newest()
        if file == self.file:
            return False
        version, policy = self._read(file)
        for name in ("spec", "horizon"):
            self._must_equal(name, getattr(self.policy, name), getattr(policy, name))
        self.version, self.policy = version, policy
        return True

    def _newest(self) -> Path:
        return policy_file(self._path) if self._base is None else adapter_file(self._path)

    def _read(self, file: Path) -> "tuple[int, Policy]":
        data = file.read_bytes()
        self.file = file
        if self._base is None:
            from longview.learner.policy import policy_from_bytes

            return version_of(file), policy_from_bytes(data, self._device)
        from longview.learner.adapters import adapted

        return version_of(file), adapted(self._base, data)

    def _must_equal(self, name: str, ours: Any, theirs: Any) -> None:
        if ours != theirs:
            raise ValueError(
                f"{self.file} is for another task or horizon: its {name} is {theirs}, not {ours}"
            )


def version_of(file: Path) -> int:
    """Return the version of a checkpoint's policy, which its folder is named after; 0 for any other file."""
    found = re.fullmatch(r"step-(\d{9})", file.absolute().parent.name)
    return int(found[1]) if found else 0
