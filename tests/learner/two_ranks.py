"""One rank of test_ranks.py, as a plain process: two_ranks.py ADDRESS RANK WORLD OUT"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import TINY, TINY_TRAINING, collect, cut, drawer
from safetensors.torch import save_file

from actors.task import load_task
from learner import ranks
from learner.normalize import measure
from learner.policy import DiffusionPolicy, policy_to_bytes
from learner.train import flatten, train
from learner.windows import build

TASK = load_task("return_point")
EPISODES = [collect(TASK, seed, noise=0.1) for seed in range(8)]
RANGES = measure(EPISODES, TASK.spec)


def gradients(rank: int, world: int) -> torch.Tensor:
    """Of 8 windows, of which each rank has its share; without dropout."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(TINY, TASK.spec).eval()
    policy.fit(RANGES)
    _, gradient = flatten(policy)
    noise_BTA, step_B = torch.randn(8, policy.horizon.positions, 2), torch.randint(20, (8,))
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    # Near the start and the end of episodes, so that the masks differ from rank to rank.
    segments = [
        cut(episode, i if i % 2 else episode.length - 2 * i - 1, 7, 13) for i, episode in enumerate(EPISODES)
    ]
    batch = build(segments[mine], policy.horizon, 8)
    policy.loss(batch, noise_BTA[mine], step_B[mine]).mean().backward()  # type: ignore[no-untyped-call]
    ranks.average(gradient, world)
    return gradient


def trained(rank: int, world: int, folder: Path, stop_after: int | None = None) -> bytes:
    """The averaged policy of a training, each rank with windows of its own. The last rank says stop."""
    asked = itertools.count(1)
    published: list[int] = []
    policy = train(
        replace(TINY_TRAINING, policy=replace(TINY, dropout=0.2)),
        TASK.spec,
        seed=3,
        draw=drawer(EPISODES, seed=10 + rank),
        ranges=lambda: RANGES,
        publish=lambda version, data: published.append(version),
        report=lambda progress: published.append(progress.step),
        should_stop=lambda: next(asked) == stop_after and rank == world - 1,
        checkpoints=folder,
        rank=rank,
        world=world,
    )
    assert bool(published) == (rank == 0)
    return policy_to_bytes(policy)


def main(address: str, rank: int, world: int, out: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        ranks.join(address, rank, world, "cpu", timeout_s=60)
    save_file({"gradients": gradients(rank, world)}, out / f"gradients-{rank}-of-{world}")
    if world > 1:
        (out / f"straight-{rank}").write_bytes(trained(rank, world, out / "straight"))
        trained(rank, world, out / "resumed", stop_after=13)
        (out / f"resumed-{rank}").write_bytes(trained(rank, world, out / "resumed"))
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
