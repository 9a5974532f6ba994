"""Where checkpoints and policies lie. Importable without torch."""

import os
import re
from pathlib import Path
from typing import Final

POLICY: Final = "policy.safetensors"
"""The averaged policy of a checkpoint."""
TRAINING: Final = "training.safetensors"
"""Raw weights and the optimizer's moments of a checkpoint."""
STATE: Final = "state.json"
"""Step, config and checksums of a checkpoint."""

_NAME = re.compile(r"step-\d{9}")


def folders(directory: Path) -> list[Path]:
    """List the folders of the finished checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if _NAME.fullmatch(path.name))


def steps(directory: Path) -> list[int]:
    """List the steps of the finished checkpoints, ascending."""
    return [int(folder.name.removeprefix("step-")) for folder in folders(directory)]


def policy_file(path: Path) -> Path:
    """Find the file of a policy.

    Args:
        path: the file itself; a checkpoint's folder; a run's folder or name, of which the newest checkpoint
            is taken. Runs lie in the folder that LONGVIEW_RUNS names, by default `runs`.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return path
    run = path if path.exists() else Path(os.environ.get("LONGVIEW_RUNS", "runs")) / path
    for folder in (path, *reversed(folders(path)), *reversed(folders(run / "checkpoints"))):
        if (folder / POLICY).is_file():
            return folder / POLICY
    raise FileNotFoundError(
        f"{path} holds no policy: expected a file, a checkpoint's folder with {POLICY} in it, or a run"
    )
