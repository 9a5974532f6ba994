"""One rank of the learner as a Ray actor."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from longview.cluster.roles.ray import Handle
from longview.cluster.roles.reporting import send
from longview.cluster.run.config import RunConfig, task_of
from longview.cluster.run.ending import ending
from longview.cluster.run.preflight import Torch, refuse_torch
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
FEWEST_MEASURED = 16
"""Episodes to measure statistics on, however large they are: fewer would tell little of the data's ranges."""


class LearnerRank:
    """One of G learner ranks. `stop` can be called while `train` runs."""

    def __init__(self, rank: int, world: int, threads: int, use_gpu: bool) -> None:
        """
        Args:
            rank: number of this rank, from 0.
            world: G, number of ranks.
            threads: CPU threads of torch.
            use_gpu: train on the GPU that Ray assigned, else on the CPU.
        """
        import torch

        torch.set_num_threads(threads)
        self._rank, self._world = rank, world
        self._device = "cuda" if use_gpu else "cpu"
        self._stop = threading.Event()

    def address(self) -> str:
        """Choose the address at which the ranks meet; rank 0 is asked."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def train(
        self,
        config: RunConfig,
        address: str,
        checkpoints: Path,
        store: StoreAddress,
        demonstrations: "Demonstrations",
        board: Handle,
        late_seconds: float,
    ) -> int:
        """Train from the newest checkpoint until the last step, or until stopped.

        Args:
            config: the run's config.
            address: address at which the ranks meet, from rank 0.
            checkpoints: folder of the checkpoints, on a disk that every later rank 0 reaches.
            store: store of the episodes to train on.
            demonstrations: what the demonstrations are for.
            board: handle on the weight board, which takes the weights.
            late_seconds: how long this rank waits for the others.

        Returns:
            The last published version.

        Raises:
            ConfigError: PyTorch cannot use the GPU.
            RankLost: another rank is gone or too late. Every other error is the training's own.
        """
        from torch import distributed

        from longview.learner import ranks
        from longview.learner.files import steps
        from longview.learner.normalize import measure
        from longview.learner.reporter import LearnerReporter
        from longview.learner.train import train

        if self._device == "cuda":
            refuse_torch(torch_here(), alone=False)
        cache_bytes = config.replay.cache(self._world)
        episodes = store.connect(replace(config.replay, cache_bytes=cache_bytes))
        episodes.limiter = limiter = limiter_of(config, self._stop.is_set)
        spec = task_of(config).spec
        selection = config.learner.selection(spec.name)
        reporter = LearnerReporter(
            f"rank-{self._rank}",
            config.learner.batch_size,
            max(steps(checkpoints), default=0),
            send,
        )
        episodes.hold_out(demonstrations.held_out)
        if self._world > 1:
            ranks.join(address, self._rank, self._world, self._device, late_seconds)

        def report(progress: "TrainingProgress") -> None:
            reporter.report(progress, limiter.waited_seconds)
            if config.learner.priority_power:
                episodes.prioritize(priorities(progress.loss_by_episode, config.learner.priority_power))

        def end() -> None:
            limiter.cancelled = lambda: True  # failed training may leave a draw that still waits for data
            episodes.close()
            if self._world > 1:
                distributed.destroy_process_group()

        with ending(end):
            train(
                config.learner,
                spec,
                seed=config.seed,
                draw=lambda step, before, after, count: episodes.sample(
                    selection,
                    count,
                    before,
                    after,
                    np.random.default_rng((config.seed, self._rank, step)),
                ),
                statistics=lambda: measure(whole(episodes, demonstrations.measured, spec.name), spec),
                validation=[
                    episode
                    for episode in whole(episodes, demonstrations.held_out, spec.name)
                    if episode.outcome != "invalid"
                ],
                # Ray copies an array straight into its shared memory, and hands it out without another copy.
                publish=lambda version, data: board.publish.remote(version, np.frombuffer(data, np.uint8)),
                report=report,
                should_stop=self._stop.is_set,
                checkpoints=checkpoints,
                rank=self._rank,
                world=self._world,
                device=self._device,
            )
        return max(steps(checkpoints), default=0)

    def stop(self) -> None:
        """Make `train` save and return."""
        self._stop.set()


def priorities(losses: Mapping[str, float], power: float) -> dict[str, float]:
    """Return the priority of each episode by its recent loss.

    Args:
        losses: mean loss by id.
        power: power of the loss relative to the mean of all. Prioritized replay (arXiv 1511.05952) has 0.6.
    """
    mean = sum(losses.values()) / len(losses)
    return {id: (loss / mean) ** power if mean > 0 else 1.0 for id, loss in losses.items()}


def torch_here() -> Torch:
    """Describe the PyTorch of this process; on a Ray cluster, of the node that it is on."""
    import torch

    node, usable = ray.util.get_node_ip_address(), torch.cuda.is_available()
    return Torch(node, torch.__version__, torch.version.cuda, usable)


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
    """Choose the demonstrations to validate on, and a sample of the others to measure statistics on."""
    unseen = held_out(store, validation_episodes)
    seen = [id for source in ("demo", "import") for id in store.ids(source) if id not in unseen]
    counts = store.stats().stored
    stored = counts.get("demo", Count()) + counts.get("import", Count())
    step_bytes = sum(np.zeros(array.shape, array.dtype).nbytes for array in spec.arrays().values())
    measured = sampled(seen, step_bytes * stored.steps / max(1, stored.episodes))
    return Demonstrations(unseen, len(seen), measured)


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


def limiter_of(config: RunConfig, cancelled: Callable[[], bool]) -> Limiter:
    """Make the limiter of one learner rank, which gets an equal part of what all ranks may draw."""
    together, ranks = config.replay.samples_per_insert, config.learners
    return Limiter(
        samples_per_insert=None if together is None else together / ranks,
        minimum_steps=config.replay.minimum_steps,
        timeout_seconds=config.replay.limiter_seconds,
        cancelled=cancelled,
    )
