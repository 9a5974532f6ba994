"""What would stop a run after minutes is found before anything has started."""

from pathlib import Path

from actors.task import load_task
from cluster.config import ConfigError, RunConfig


def refuse_untrainable(config: RunConfig) -> None:
    """Is there anything to learn from, and can a policy take it in?

    Raises:
        ConfigError: no.
    """
    task = load_task(config.task, config.actors.cameras)
    if config.demonstrations is not None:
        if not Path(config.demonstrations).is_dir():
            raise ConfigError(f"demonstrations: there is no folder {config.demonstrations}")
    elif task.expert is None:
        raise ConfigError(
            f"task {config.task} has no expert: give a folder of human demonstrations, a zarr replay buffer, "
            "as demonstrations=PATH"
        )
    images = [key for key, array in task.spec.observation.items() if array.dtype == "uint8"]
    if images:
        raise ConfigError(f"policies take float32 observations, and {', '.join(images)} are uint8")


def refuse_unsimulated(config: RunConfig) -> None:
    """Can this machine simulate the task, and render it if that is asked for?

    Raises:
        SimulatorError: no; it says what is missing.
    """
    env = load_task(config.task, config.actors.cameras).make()
    env.reset(seed=0)
    env.close()
