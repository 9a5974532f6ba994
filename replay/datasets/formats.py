"""Formats of data sets: recognition by path, readers and writers by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from longview.replay.datasets import lerobot, lerobot_writer, robomimic, zarr
from longview.replay.datasets.plan import source_of
from longview.replay.datasets.source import Columns, DatasetReader, Source
from longview.replay.episode import TaskSpec
from longview.replay.errors import DatasetError

HDF5: Final = b"\x89HDF\r\n\x1a\n"
"""First bytes of every HDF5 file."""

READERS: Final[Mapping[str, Callable[[Path], DatasetReader]]] = {
    "robomimic": robomimic.RobomimicReader,
    "lerobot": lerobot.LerobotReader,
    "zarr": zarr.ZarrReader,
}
"""Readers by format, made from a path."""
WRITERS: Final[Mapping[str, Callable[..., None]]] = {
    "robomimic": robomimic.write,
    "lerobot": lerobot_writer.write,
}
"""Writers by format: functions of a path, a task spec, episodes and whether pictures must be lossless."""


def recognise(path: Path) -> str:
    """Return the name of the format of a file or folder.

    Raises:
        DatasetError: the path does not exist, or its format is unknown.
    """
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(HDF5)) == HDF5:
                return "robomimic"
    elif (path / "meta" / "info.json").exists():
        return "lerobot"
    elif (path / ".zgroup").exists():
        return "zarr"
    raise DatasetError(
        f"{path} is no data set of a known format: expected an HDF5 file (robomimic), a folder with "
        "meta/info.json (LeRobotDataset v3), or one with .zgroup (a replay buffer in zarr, format 2)"
    )


def open_source(
    path: Path,
    task: str,
    known: TaskSpec | None = None,
    columns: Mapping[str, Columns] | None = None,
    **options: Any,
) -> Source:
    """Open the data set at a path as a source of a task's episodes.

    Args:
        path: file or folder.
        task: name of the task.
        known: spec of the task; None: make it from the data.
        columns: by format, the origin of arrays that the data set holds under another name or in another
            form.
        options: `hz`, `mask` and `choice` of `source_of`.

    Raises:
        DatasetError: the format is unknown, the data set is damaged, or it does not fit the task.
    """
    format = recognise(path)
    return source_of(READERS[format](path), task, known, (columns or {}).get(format), **options)
