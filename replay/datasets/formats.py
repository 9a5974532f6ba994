"""Which format a path holds, and its reader; which formats can be written, and their writers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from longview.replay.datasets import lerobot, lerobot_writer, robomimic, zarr
from longview.replay.datasets.source import Columns, DatasetReader, Source, source_of
from longview.replay.episode import TaskSpec
from longview.replay.errors import DatasetError

HDF5: Final = b"\x89HDF\r\n\x1a\n"

READERS: Final[Mapping[str, Callable[[Path], DatasetReader]]] = {
    "robomimic": robomimic.RobomimicReader,
    "lerobot": lerobot.LerobotReader,
    "zarr": zarr.ZarrReader,
}
WRITERS: Final[Mapping[str, Callable[..., None]]] = {
    "robomimic": robomimic.write,
    "lerobot": lerobot_writer.write,
}


def recognise(path: Path) -> str:
    """The format that a path holds.

    Raises:
        DatasetError: none that is known, or nothing at all.
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
    """The data set at a path as episodes of a task; `columns` by format, the rest as for `source_of`.

    Raises:
        DatasetError: it is no data set of a known format, it is damaged, or does not fit the task.
    """
    format = recognise(path)
    return source_of(READERS[format](path), task, known, (columns or {}).get(format), **options)
