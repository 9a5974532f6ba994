"""The frame of a run's driver: its log, its view, its ending and its exit code."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from longview.cluster.run.config import public_config
from longview.cluster.run.copies import copying
from longview.cluster.run.ending import RunFailed, ending
from longview.cluster.run.log import LogFile
from longview.cluster.run.progress import RunProgress
from longview.cluster.run.services import ServiceError
from longview.cluster.run.start import start_lines
from longview.cluster.views import summary
from longview.cluster.views.terminal import console, watching
from longview.monitoring.mirrors import MirroredRun, Mirrors, mirrors_of
from longview.replay.errors import DatasetError, StoreError

log = logging.getLogger(__name__)


def conduct(
    progress: RunProgress, command: str, work: Callable[[Callable[[RunProgress], None]], None]
) -> int:
    """Do the work of a run, show it, copy and mirror its results if it should, and write down how it ended.

    Args:
        progress: the run's progress; its folder is locked.
        command: command of `longview` that goes on with such a run.
        work: the work; takes the function that shows progress.

    Returns:
        The exit code: 0 finished, 1 failed, 130 interrupted.

    Raises:
        ConfigError: the policy that the run begins from is gone.
    """
    run, code = progress.run, 0
    run.write_state()
    file = LogFile(run.path / "log.txt")
    logging.basicConfig(handlers=[file], format="%(asctime)s %(name)s %(message)s", level="INFO")
    for line in start_lines(progress.config, run):
        log.info("%s", line)
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    with copying(run, progress.config.copy_to) as progress.copies, _mirroring(progress) as progress.mirrors:
        try:
            with summary.concluding(progress), watching() as show:
                work(show)
        except KeyboardInterrupt:
            code = 130
        except (RunFailed, DatasetError, StoreError, ServiceError, OSError) as error:
            code = 1
            log.error("%s", error)
            print(f"longview: {error}", file=sys.stderr)
    summary.show(run, summary.summarize(progress, progress.phase))
    if code != 0:
        print(f"go on with it by: longview {command} --resume {run.typed}", file=sys.stderr)
    return code


@contextmanager
def _mirroring(progress: RunProgress) -> Iterator[Mirrors | None]:
    """Mirror the hub's figures until the context ends, if the config wants it."""
    names, run = progress.config.monitoring.mirrors, progress.run
    if not names:
        yield None
        return
    facts = MirroredRun(
        run.name, run.origin.owner.id, progress.spec.name, run.path, public_config(progress.config)
    )
    mirrors = mirrors_of(names, facts)
    with ending(mirrors.close):
        yield mirrors


def ignore_interrupts() -> None:
    """Ignore Ctrl-C and SIGTERM while everything is saved and stopped, which takes bounded time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
