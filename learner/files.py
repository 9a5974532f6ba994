"""Files and folders of checkpoints and policies. Importable without torch."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

POLICY: Final = "policy.safetensors"
"""File of a checkpoint's averaged policy."""
ADAPTER: Final = "adapter.safetensors"
"""File of a checkpoint's averaged adapter, if adapters are trained."""
TRAINING: Final = "training.safetensors"
"""File of a checkpoint's raw weights and optimizer moments."""
STATE: Final = "state.json"
"""File of a checkpoint's step, config and checksums."""
START: Final = "start.json"
"""File beside the checkpoints: what a training took from the policy that it began from."""

_NAME = re.compile(r"step-\d{9}")


def folders(directory: Path) -> list[Path]:
    """List the folders of the finished checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if _NAME.fullmatch(path.name))


def steps(directory: Path) -> list[int]:
    """List the steps of the finished checkpoints, ascending."""
    return [int(folder.name.removeprefix("step-")) for folder in folders(directory)]


@dataclass(frozen=True)
class Contents:
    """Contents of a checkpoint, undecoded."""

    step: int
    """Training steps done."""
    config: dict[str, Any]
    """Settings of the training."""
    policy: bytes
    """Contents of `POLICY`."""
    training: bytes
    """Contents of `TRAINING`."""


def newest(directory: Path) -> Contents | None:
    """Return the contents of the newest undamaged checkpoint. Damaged ones are skipped with a warning."""
    for path in reversed(folders(directory)):
        try:
            return contents(path)
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged and was skipped: %s", path, error)
    return None


def contents(path: Path) -> Contents:
    """Read one checkpoint from its folder.

    Raises:
        OSError, ValueError, KeyError: the checkpoint is incomplete or damaged.
    """
    state = json.loads((path / STATE).read_bytes())
    files = {name: (path / name).read_bytes() for name in (POLICY, TRAINING)}
    for name, data in files.items():
        if checksum([data]) != state["sha256"][name]:
            raise ValueError(f"{name} does not match its checksum ({len(data)} bytes)")
    return Contents(state["step"], state["config"], files[POLICY], files[TRAINING])


def checksum(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of the parts of a file, in hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def policy_file(path: Path) -> Path:
    """Find the file of a policy.

    Args:
        path: the file itself, a checkpoint's folder, or a run by its folder or name. A run stands for its
            newest checkpoint. Runs lie in the folder that LONGVIEW_RUNS names, by default `runs`.

    Raises:
        FileNotFoundError: no policy is found.
    """
    return _found(path, POLICY, "policy")


def adapter_file(path: Path) -> Path:
    """Find the file of an adapter; arguments as for `policy_file`.

    Raises:
        FileNotFoundError: no adapter is found.
    """
    return _found(path, ADAPTER, "adapter")


def _found(path: Path, name: str, kind: str) -> Path:
    """Find a file of this name in a checkpoint's folder or a run, unless the path is a file."""
    if path.is_file():
        return path
    # A run may have the name of a folder that holds no policy, such as that of its data set.
    runs = path, Path(os.environ.get("LONGVIEW_RUNS", "runs")) / path
    checkpoints = [folders(path), *(folders(run / "checkpoints") for run in runs)]
    for folder in (path, *(folder for found in checkpoints for folder in reversed(found))):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{path} holds no {kind}: expected a file, a checkpoint's folder with {name} in it, or a run"
    )
