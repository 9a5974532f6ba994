"""Work of one learner rank, in any process: nothing here needs Ray."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longview.cluster.run.config import RunConfig, task_of
from longview.cluster.run.ending import RunFailed, ending
from longview.replay.episode import Episode, TaskSpec
from longview.replay.errors import CodecError, UnknownEpisode
from longview.replay.limiter import Limiter
from longview.replay.stats import Count
from longview.replay.store import EpisodeStore, StoreAddress

if TYPE_CHECKING:
    from longview.learner.laps import TrainingProgress

log = logging.getLogger(__name__)

MEASURED_EPISODES = 2_000
"""Most episodes to measure statistics on. Each takes 0.6 ms from a Redis nearby, and up to 30 ms from a far
one: within a minute."""
MEASURED_BYTES = 4 << 30
"""Most bytes of episodes, decoded, to measure statistics on: half a minute of pictures at 150 MB/s."""
RECORDED = ("demo", "import", "human")
"""Sources of recorded episodes that may be held out."""
FEWEST_MEASURED = 16
"""Episodes to measure statistics on, however large they are: fewer would tell little of the data's ranges."""


def train_rank(
    config: RunConfig,
    checkpoints: Path,
    store: StoreAddress,
    demonstrations: "Demonstrations",
    *,
    publish: Callable[[int, memoryview], object],
    send: Callable[[bytes], None],
    should_stop: Callable[[], bool],
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
) -> int:
    """Train from the newest checkpoint until the last step, or until stopped.

    Args:
        config: the run's config.
        checkpoints: folder of the checkpoints, on a disk that every later rank 0 reaches.
        store: store of the episodes to train on.
        demonstrations: what the demonstrations are for.
        publish: takes version and bytes of the weights; called on rank 0 only, from another thread.
        send: sends an encoded report to the metrics hub.
        should_stop: tells whether to save and return; called after every step.
        rank: number of this rank, from 0; the ranks have joined.
        world: G, number of ranks.
        device: device to train on.

    Returns:
        The last published version.

    Raises:
        RankLost: another rank is gone or too late. Every other error is the training's own.
    """
    from longview.learner.files import steps
    from longview.learner.normalize import measure
    from longview.learner.reporter import LearnerReporter
    from longview.learner.train import train

    episodes = store.connect(replace(config.replay, cache_bytes=config.replay.cache(world)))
    spec = task_of(config).spec
    selection = config.learner.selection(spec.name)
    seed = config.seed if config.learner.seed is None else config.learner.seed
    batch_size, resumed_at = config.learner.batch_size, max(steps(checkpoints), default=0)
    episodes.limiter = limiter = limiter_of(config, spec, resumed_at, should_stop)
    reporter = LearnerReporter(f"rank-{rank}", batch_size, resumed_at, send)
    episodes.hold_out(demonstrations.held_out)

    def report(progress: "TrainingProgress") -> None:
        reporter.report(progress, limiter.waited_seconds)
        if config.learner.priority_power:
            episodes.prioritize(priorities(progress.loss_by_episode, config.learner.priority_power))

    def end() -> None:
        limiter.cancelled = lambda: True  # failed training may leave a draw that still waits for data
        episodes.close()

    with ending(end):
        train(
            config.learner,
            spec,
            seed=seed,
            draw=lambda step, before, after, count: episodes.sample(
                selection, count, before, after, np.random.default_rng((seed, rank, step))
            ),
            statistics=lambda: measure(whole(episodes, demonstrations.measured, spec.name), spec),
            validation=[
                episode
                for episode in whole(episodes, demonstrations.held_out, spec.name)
                if episode.outcome != "invalid"
            ],
            publish=publish,
            report=report,
            should_stop=should_stop,
            first_version=config.first_version,
            checkpoints=checkpoints,
            rank=rank,
            world=world,
            device=device,
        )
    return max(steps(checkpoints), default=0)


def priorities(losses: Mapping[str, float], power: float) -> dict[str, float]:
    """Return the priority of each episode by its recent loss.

    Args:
        losses: mean loss by id.
        power: power of the loss relative to the mean of all. Prioritized replay (arXiv 1511.05952) has 0.6.
    """
    mean = sum(losses.values()) / len(losses)
    return {id: (loss / mean) ** power if mean > 0 else 1.0 for id, loss in losses.items()}


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations, the imported ones included, by what they are for. All ranks get the same."""

    held_out: list[str]
    """Ids of the episodes to validate on, which are never drawn."""
    drawn: int
    """Number of the others."""
    measured: list[str]
    """Ids of the others that the normaliser's statistics are measured on."""


def share_out(store: EpisodeStore, spec: TaskSpec, validation_episodes: int) -> Demonstrations:
    """Choose the demonstrations to validate on, and a sample of the others to measure statistics on.

    From now on `store` does not count those to validate on as steps to draw, as the ranks' own stores do not.
    The driver tells by its store whether the ranks wait.
    """
    unseen = held_out(store, validation_episodes)
    store.hold_out(unseen)
    seen = [id for source in ("demo", "import") for id in store.ids(source) if id not in unseen]
    counts = store.stats().stored
    stored = counts.get("demo", Count()) + counts.get("import", Count())
    return _demonstrations(spec, unseen, seen, stored.steps / max(1, stored.episodes))


def share_out_recorded(
    store: EpisodeStore, spec: TaskSpec, validation_episodes: int, held_out: Collection[str] | None = None
) -> Demonstrations:
    """Choose the recorded episodes to validate on, evenly over all of them, and share out the others.

    Args:
        store: store of the episodes.
        spec: their task.
        validation_episodes: number of episodes to validate on.
        held_out: ids of the episodes that the run held out before: it has trained on others, and the
            store may have grown since. None chooses them.

    Raises:
        RunFailed: too few episodes would be left to train on.
    """
    records = [
        record
        for record in store.records(task=spec.name)
        if record.meta.source in RECORDED and record.outcome != "invalid"
    ]
    ids = [record.meta.id for record in records]
    steps = sum(record.length for record in records) / max(1, len(records))
    if held_out is not None:
        unseen = [id for id in ids if id in held_out]
        return _demonstrations(spec, unseen, [id for id in ids if id not in held_out], steps)
    if not len(records) > 2 * validation_episodes:
        raise RunFailed(
            f"{len(records)} episodes of {spec.name} are too few to hold out {validation_episodes} of them: "
            f"give at least {2 * validation_episodes + 1}, or set learner.validation_episodes"
        )
    places = {
        (2 * number + 1) * len(ids) // (2 * validation_episodes) for number in range(validation_episodes)
    }
    unseen = [ids[place] for place in sorted(places)]
    seen = [id for place, id in enumerate(ids) if place not in places]
    return _demonstrations(spec, unseen, seen, steps)


def _demonstrations(
    spec: TaskSpec, unseen: list[str], seen: list[str], episode_steps: float
) -> Demonstrations:
    """Choose, of the episodes to train on, those to measure statistics on."""
    step_bytes = sum(array.bytes for array in spec.arrays().values())
    return Demonstrations(unseen, len(seen), sampled(seen, step_bytes * episode_steps))


def sampled(ids: Sequence[str], episode_bytes: float) -> list[str]:
    """Choose episodes to measure statistics on: all, or as many as are read within a minute, evenly spaced.

    Args:
        ids: ids of episodes, in their order.
        episode_bytes: mean size of their arrays.
    """
    affordable = int(MEASURED_BYTES / max(1.0, episode_bytes))
    count = min(len(ids), MEASURED_EPISODES, max(FEWEST_MEASURED, affordable))
    return [ids[index * len(ids) // count] for index in range(count)]


def held_out(store: EpisodeStore, count: int) -> list[str]:
    """List the ids of the episodes to validate on.

    Held out are the last `count` demonstrations, which the expert has given in addition, and the last `count`
    imported episodes, unless those would be half of the imported ones or more.
    """
    if not count:
        return []
    imported = store.ids("import")
    return store.ids("demo")[-count:] + (imported[-count:] if len(imported) > 2 * count else [])


def whole(store: EpisodeStore, ids: Iterable[str], task: str) -> Iterator[Episode]:
    """Read the episodes that exist, are undamaged, and belong to the task."""
    for id in ids:
        try:
            episode = store.read(id)
        except (UnknownEpisode, CodecError) as error:
            log.warning("episode %s is left out: %s", id, error)
            continue
        if episode.meta.task == task:
            yield episode


def limiter_of(config: RunConfig, spec: TaskSpec, step: int, cancelled: Callable[[], bool]) -> Limiter:
    """Make the limiter of one learner rank, which gets an equal part of what all ranks may draw.

    Args:
        config: the run's config.
        spec: spec of the run's task.
        step: training step that the rank begins at; the draws of the steps before count.
        cancelled: tells whether to lift all limits.
    """
    together, ranks = config.replay.samples_per_insert, config.learners
    draws = config.learner.segments(spec, ranks)
    # Actors collect nothing before the first version, so waiting for them would never end. Later steps may
    # draw before that version's last one.
    alone = config.first_version + config.learner.drawn_ahead if config.collect.source is not None else 0
    return Limiter(
        samples_per_insert=None if together is None else together / ranks,
        minimum_steps=config.replay.minimum_steps,
        timeout_seconds=config.replay.limiter_seconds,
        cancelled=cancelled,
        free=alone * draws,
        drawn=step * draws,
    )
