"""What would stop a run after minutes is found before anything has started."""

from pathlib import Path

from cluster.config import ConfigError, RunConfig, task_of


def refuse_untrainable(config: RunConfig) -> None:
    """Is there anything to learn from?

    Raises:
        ConfigError: no.
    """
    task = task_of(config)
    if config.demonstrations is not None:
        if not Path(config.demonstrations).exists():
            raise ConfigError(f"demonstrations: there is no file or folder {config.demonstrations}")
    elif task.expert is None:
        raise ConfigError(
            f"task {config.task} has no expert: give human demonstrations, in a format that `longview store "
            "import` reads, as demonstrations=PATH"
        )


def refuse_unsimulated(config: RunConfig) -> None:
    """Can this machine simulate the task, and render it if that is asked for?

    Raises:
        SimulatorError: no; it says what is missing.
    """
    env = task_of(config).make()
    env.reset(seed=0)
    env.close()
