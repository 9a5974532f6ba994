"""Formats of data sets: recognition by path, readers and writers by name.

A package adds a format by an entry point that names a `Format`:

    [project.entry-points."longview.formats"]
    bags = "my_package.bags:format"
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from longview.replay.datasets import lerobot, lerobot_writer, robomimic, zarr
from longview.replay.datasets.plan import source_of
from longview.replay.datasets.source import Columns, DatasetReader, Source
from longview.replay.episode import TaskSpec
from longview.replay.errors import DatasetError

ENTRY_POINTS: Final = "longview.formats"
"""Group of the entry points of formats."""


@dataclass(frozen=True)
class Format:
    """A format of data sets."""

    expected: str
    """What a data set of the format is, as the end of "expected ..."."""
    recognises: Callable[[Path], bool]
    """Function that tells whether an existing path holds a data set of the format."""
    reader: Callable[[Path], DatasetReader]
    """Function that makes the reader of a path."""
    write: Callable[..., None] | None = None
    """Function of a path, a task spec, episodes and whether pictures must be lossless; None: no export."""


BUILT_IN: Final[Mapping[str, Format]] = {
    "robomimic": Format(
        "an HDF5 file (robomimic)", robomimic.recognises, robomimic.RobomimicReader, robomimic.write
    ),
    "lerobot": Format(
        "a folder with meta/info.json (LeRobotDataset v2 or v3)",
        lerobot.recognises,
        lerobot.LerobotReader,
        lerobot_writer.write,
    ),
    "zarr": Format(
        "a folder or zip file with .zgroup (a replay buffer in zarr, format 2)",
        zarr.recognises,
        zarr.ZarrReader,
    ),
}
"""Formats that come with Longview, by name."""


def formats() -> dict[str, Format]:
    """Return all formats by name: those of `BUILT_IN`, and those that other packages add."""
    return {**BUILT_IN, **{entry.name: entry.load() for entry in entry_points(group=ENTRY_POINTS)}}


def writers() -> dict[str, Callable[..., None]]:
    """Return the writers of all formats that can be exported, by name."""
    return {name: format.write for name, format in formats().items() if format.write is not None}


def recognise(path: Path) -> str:
    """Return the name of the format of a file or folder.

    Raises:
        DatasetError: the path does not exist, or its format is unknown.
    """
    if not path.exists():
        # Such as lerobot/pusht, the name of a data set on a hub.
        named = path.absolute().parent.parent == Path.cwd() and not path.parent.exists()
        hint = ": data sets are read from this machine, so download a hub's data set first" if named else ""
        raise DatasetError(f"there is no file or folder {path}{hint}")
    known = formats()
    for name, format in known.items():
        if format.recognises(path):
            return name
    expected = ", or ".join(format.expected for format in known.values())
    raise DatasetError(f"{path} is no data set of a known format: expected {expected}")


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
    return source_of(formats()[format].reader(path), task, known, (columns or {}).get(format), **options)
