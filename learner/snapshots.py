"""Snapshots of a training in the host's memory, which a thread publishes and saves while training goes on."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from longview.learner import checkpoint
from longview.learner.adapters import AdaptedWeights, adapter_parts, trained_weights
from longview.learner.config import LearnerConfig
from longview.learner.policy import policy_from_bytes, policy_parts
from longview.learner.tensors import joined

Publish = Callable[[int, memoryview], object]
"""Function that takes version and bytes of a policy."""


class Snapshots:
    """Publishing and saving of the averaged policy in another thread."""

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        config: LearnerConfig,
        policy: bytes,
        publish: Publish,
        checkpoints: Path,
        base: Mapping[str, Tensor],
    ) -> None:
        """See `writing` for the arguments; `thread` is the thread that writes."""
        self._thread, self._config = thread, config
        self._publish, self._checkpoints = publish, checkpoints
        self._policy = policy_from_bytes(policy)
        self._average, self._base = trained_weights(self._policy, config.adapters, base), base
        self._copies: dict[str, Tensor] = {}
        """Copies of the vectors of a training by name. Each snapshot uses their memory again, because fresh
        memory takes longer than the copy."""
        self._last: Future[None] | None = None

    def take(self, step: int, average: Tensor, training: Mapping[str, Tensor], publishing: bool) -> None:
        """Copy vectors to the host, and start to publish and save them.

        Args:
            step: training steps done.
            average: vector of the averaged weights.
            training: vectors of the weights and of the optimizer, to save a checkpoint; empty to save none.
            publishing: whether to publish.

        Raises:
            Exception: the snapshot before could not be published or saved.
        """
        self.wait()
        self._average.vector.data.copy_(average)
        for name, vector in training.items():
            if name not in self._copies:
                self._copies[name] = torch.empty_like(vector, device="cpu", pin_memory=vector.is_cuda)
            self._copies[name].copy_(vector)
        self._last = self._thread.submit(self._write, step, bool(training), publishing)

    def wait(self) -> None:
        """Wait until the last snapshot is published and saved.

        Raises:
            Exception: it could not be published or saved.
        """
        if self._last is not None:
            self._last.result()

    def _write(self, step: int, saving: bool, publishing: bool) -> None:
        self._average.merge()
        policy = joined(policy_parts(self._policy))
        # What is published is saved already: a training that dies now does not go on to other weights of this
        # version, which would be refused.
        if saving:
            # Checkpoints hold vectors without the gaps of the layout in memory.
            vectors = {name: self._average.dense(x) if x.dim() else x for name, x in self._copies.items()}
            training = checkpoint.with_base(vectors, self._base)
            config, keep = asdict(self._config), self._config.keep_checkpoints
            adapter = (
                joined(adapter_parts(self._policy, self._average))
                if isinstance(self._average, AdaptedWeights)
                else None
            )
            checkpoint.save(self._checkpoints, step, policy, training, config, keep, adapter)
        if publishing:
            self._publish(step, policy)


@contextmanager
def writing(
    config: LearnerConfig,
    policy: bytes,
    publish: Publish,
    checkpoints: Path,
    base: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[Snapshots]:
    """Publish and save snapshots in a thread. The context ends when the last one is written.

    Args:
        config: settings of the training.
        policy: bytes of the policy that is trained.
        publish: takes version and bytes of the averaged policy.
        checkpoints: folder of the checkpoints.
        base: weights of the base that adapters change, by name.

    Raises:
        Exception: a snapshot could not be published or saved. The next one raises it, or the context's end.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="snapshots") as thread:
        snapshots = Snapshots(thread, config, policy, publish, checkpoints, base)
        yield snapshots
        snapshots.wait()
