"""One rank of the learner as a Ray actor."""

import socket
import threading
from pathlib import Path

import numpy as np
import ray

from longview.cluster.roles.rank import Demonstrations, train_rank
from longview.cluster.roles.ray import Handle
from longview.cluster.roles.reporting import send
from longview.cluster.run.config import RunConfig
from longview.cluster.run.ending import ending
from longview.cluster.run.preflight import Torch, refuse_torch
from longview.replay.store import StoreAddress


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
        import torch._dynamo  # the first optimizer would import it, which takes seconds

        from longview.learner import train  # noqa: F401 - ready before there is anything to train on

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
        demonstrations: Demonstrations,
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

        if self._device == "cuda":
            refuse_torch(torch_here(), alone=False)
        if self._world > 1:
            ranks.join(address, self._rank, self._world, self._device, late_seconds)

        def end() -> None:
            if self._world > 1:
                distributed.destroy_process_group()

        with ending(end):
            return train_rank(
                config,
                checkpoints,
                store,
                demonstrations,
                # Ray copies an array straight into its shared memory, and hands it out without another copy.
                publish=lambda version, data: board.publish.remote(version, np.frombuffer(data, np.uint8)),
                send=send,
                should_stop=self._stop.is_set,
                rank=self._rank,
                world=self._world,
                device=self._device,
            )

    def stop(self) -> None:
        """Make `train` save and return."""
        self._stop.set()


def torch_here() -> Torch:
    """Describe the PyTorch of this process; on a Ray cluster, of the node that it is on."""
    import torch

    node, usable = ray.util.get_node_ip_address(), torch.cuda.is_available()
    return Torch(node, torch.__version__, torch.version.cuda, usable)
