"""Policies in a folder, of which the newest one acts: a run's, or one of checkpoints."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from longview.learner.files import policy_file

if TYPE_CHECKING:
    from longview.learner.policy import Policy


class Weights:
    """Newest policy at a path."""

    def __init__(self, path: Path, device: str) -> None:
        """Read the newest policy.

        Args:
            path: a policy's file, a checkpoint's folder, a folder of checkpoints, or a run by its folder or
                name, as for `policy_file`.
            device: device of the policies.

        Raises:
            FileNotFoundError: there is no policy, or it was removed while it was read.
            ValueError: the file holds no policy.
        """
        self._path, self._device = path, device
        self.file = policy_file(path)
        """File of the newest policy."""
        self.version, self.policy = self._read(self.file)

    def look(self) -> bool:
        """Look for a newer policy, and tell whether there is one.

        Raises:
            FileNotFoundError: there is no policy any more, or it was removed while it was read.
            ValueError: the newer file holds no policy, or one for another task or horizon. It is not read
                again.
        """
        file = policy_file(self._path)
        if file == self.file:
            return False
        version, policy = self._read(file)
        for name in ("spec", "horizon"):
            ours, theirs = getattr(self.policy, name), getattr(policy, name)
            if ours != theirs:
                raise ValueError(f"{file} is for another task or horizon: {theirs}, not {ours}")
        self.version, self.policy = version, policy
        return True

    def _read(self, file: Path) -> "tuple[int, Policy]":
        from longview.learner.policy import policy_from_bytes

        data = file.read_bytes()
        self.file = file
        return version_of(file), policy_from_bytes(data, self._device)


def version_of(file: Path) -> int:
    """Return the version of a checkpoint's policy, which its folder is named after; 0 for any other file."""
    found = re.fullmatch(r"step-(\d{9})", file.absolute().parent.name)
    return int(found[1]) if found else 0
