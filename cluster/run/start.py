"""The trained policy that a run begins from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from longview.cluster.run.config import ConfigError, RunConfig, task_of
from longview.cluster.run.folder import Run
from longview.learner.files import policy_file, steps

if TYPE_CHECKING:
    from longview.learner.start import Fit


def found_start(config: RunConfig, run: Run | None) -> RunConfig:
    """Return a config with the absolute path of the file that `learner.start_from` names.

    Args:
        config: the run's config.
        run: the run to go on with; None for a new one. A run with checkpoints does not begin again.

    Raises:
        ConfigError: no policy is found, or nothing of it fits.
    """
    if _begun(config, run):
        return config
    try:
        file = policy_file(Path(str(config.learner.start_from))).absolute()
    except FileNotFoundError as error:
        raise ConfigError(f"learner.start_from: {error}") from None
    config = replace(config, learner=replace(config.learner, start_from=str(file)))
    fit = _fit(config)
    if not fit.share:
        raise ConfigError(f"learner.start_from: nothing of {file} fits; {'; '.join(fit.lines[1:])}")
    return config


def start_lines(config: RunConfig, run: Run) -> Sequence[str]:
    """Say what a run takes from the policy that it begins from; nothing once it has checkpoints.

    Raises:
        ConfigError: the policy's file is gone, or is none.
    """
    if _begun(config, run):
        return ()
    return [f"training begins from {config.learner.start_from}", *_fit(config).lines]


def _begun(config: RunConfig, run: Run | None) -> bool:
    """Tell whether no policy is asked for, or a run has trained already."""
    return config.learner.start_from is None or (run is not None and bool(steps(run.checkpoints)))


def _fit(config: RunConfig) -> "Fit":
    """Compare the policy of `learner.start_from` with an untrained one of the run."""
    from longview.learner.policy import load_policy
    from longview.learner.start import take

    path = str(config.learner.start_from)
    try:
        return take(config.learner.policy.make(task_of(config).spec), load_policy(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"learner.start_from {path}: {error}") from None
