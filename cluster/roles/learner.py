"""One rank of the learner as a Ray actor."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import ray

from longview.cluster.roles.ray import Handle
from longview.cluster.roles.reporting import send
from longview.cluster.run.config import RunConfig, task_of
from longview.replay.episode import Episode
from longview.replay.errors import CodecError, UnknownEpisode
from longview.replay.limiter import Limiter
from longview.replay.store import EpisodeStore, StoreAddress

log = logging.getLogger(__name__)


class LearnerRank:
    """One of G learner ranks; `stop` answers while `train` runs."""

    def __init__(self, rank: int, world: int, threads: int, use_gpu: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        self._rank, self._world = rank, world
        self._device = "cuda" if use_gpu else "cpu"
        self._stop = threading.Event()

    def address(self) -> str:
        """Where the ranks meet, if this is rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def train(
        self,
        config: RunConfig,
        address: str,
        checkpoints: Path,
        store: StoreAddress,
        board: Handle,
    ) -> int:
        """Train from the newest checkpoint on, until the last step or until stopped.

        Args:
            config: the run's.
            address: rank 0's.
            checkpoints: their folder, which every rank 0 to come must reach.
            store: has the episodes to train on.
            board: takes the weights.

        Returns:
            The last published version.
        """
        from torch import distributed

        from longview.learner import ranks
        from longview.learner.checkpoint import steps
        from longview.learner.normalize import measure
        from longview.learner.reporter import LearnerReporter
        from longview.learner.train import train

        episodes = store.connect(config.replay)
        episodes.limiter = limiter = limiter_of(config, self._stop.is_set)
        spec = task_of(config).spec
        selection = config.learner.selection(spec.name)
        reporter = LearnerReporter(
            f"rank-{self._rank}",
            config.learner.batch_size * config.learners,
            max(steps(checkpoints), default=0),
            send,
        )
        unseen = held_out(episodes, config.learner.validation_episodes)
        episodes.hold_out(unseen)
        seen = [id for source in ("demo", "import") for id in episodes.ids(source) if id not in unseen]
        validated = unseen if self._rank == 0 else []
        if self._world > 1:
            ranks.join(address, self._rank, self._world, self._device)
        try:
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
                statistics=lambda: measure(whole(episodes, seen, spec.name), spec),
                validation=[e for e in whole(episodes, validated, spec.name) if e.outcome != "invalid"],
                publish=board.publish.remote,
                report=lambda progress: reporter.report(progress, limiter.waited_seconds),
                should_stop=self._stop.is_set,
                checkpoints=checkpoints,
                rank=self._rank,
                world=self._world,
                device=self._device,
            )
        finally:
            # Training that failed may have left a draw that waits.
            limiter.cancelled = lambda: True
            episodes.close()
            if self._world > 1:
                distributed.destroy_process_group()
        return max(steps(checkpoints), default=0)

    def stop(self) -> None:
        """Have `train` save and return."""
        self._stop.set()


def held_out(store: EpisodeStore, count: int) -> list[str]:
    """Ids of the episodes to validate on: the last `count` demonstrations, as an expert has given so many
    more, and the last imported ones, unless that were half of them."""
    if not count:
        return []
    imported = store.ids("import")
    return store.ids("demo")[-count:] + (imported[-count:] if len(imported) > 2 * count else [])


def whole(store: EpisodeStore, ids: Iterable[str], task: str) -> Iterator[Episode]:
    """Those of these episodes that are there, undamaged, and of this task."""
    for id in ids:
        try:
            episode = store.read(id)
        except (UnknownEpisode, CodecError) as error:
            log.warning("episode %s is left out: %s", id, error)
            continue
        if episode.meta.task == task:
            yield episode


def limiter_of(config: RunConfig, cancelled: Callable[[], bool]) -> Limiter:
    """When a learner rank may draw; what all of them may draw is theirs in equal parts."""
    together, ranks = config.replay.samples_per_insert, config.learners
    return Limiter(
        samples_per_insert=None if together is None else together / ranks,
        minimum_steps=config.replay.minimum_steps,
        timeout_seconds=config.replay.limiter_seconds,
        cancelled=cancelled,
    )
