"""Process of one rank in test_ranks.py. Usage: two_ranks.py ADDRESS RANK WORLD OUT"""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from conftest import TINY, TINY_TRAINING, collect, cut, drawer
from safetensors.torch import save_file

from longview.actors.task import load_task
from longview.learner import ranks
from longview.learner.config import AdaptersConfig, Horizon
from longview.learner.flat import flatten
from longview.learner.laps import Lap, TakenStep, TrainingDiverged, TrainingProgress
from longview.learner.normalize import measure
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import mean_loss, policy_to_bytes, window_losses
from longview.learner.train import train
from longview.learner.validation import validate
from longview.learner.windows import build
from longview.replay.episode import Segment

TASK = load_task("return_point")
EPISODES = [collect(TASK, seed, noise=0.1) for seed in range(8)]
STATISTICS = measure(EPISODES, TASK.spec)


def gradients(rank: int, world: int) -> torch.Tensor:
    """Compute the gradient of 8 windows without dropout. Each rank has its share of the windows."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(TINY, TASK.spec).eval()
    policy.fit(STATISTICS)
    weights = flatten(policy)
    noise_BTA, noise_step_B = torch.randn(8, policy.horizon.positions, 2), torch.randint(20, (8,))
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    # The windows lie near the start and the end of episodes, so that the masks differ from rank to rank.
    segments = [
        cut(episode, i if i % 2 else episode.length - 2 * i - 1, 7, 13) for i, episode in enumerate(EPISODES)
    ]
    now_GJ = np.array([[segment.now] for segment in segments[mine]])
    batch = build(segments[mine], TASK.spec, policy.horizon, 8, now_GJ)
    tokens = policy.batch_tokens(batch, torch.Generator())
    error_BT = policy.denoising_error(batch, tokens, noise_BTA[mine], noise_step_B[mine])
    weights.backward(mean_loss(error_BT, torch.from_numpy(batch.target_BT)))
    gradient = weights.vector.grad
    assert gradient is not None
    ranks.average(gradient, world)
    return gradient


def trained(rank: int, world: int, folder: Path, stop_after: int | None = None, **settings: object) -> bytes:
    """Train on this rank's own windows, and return the averaged policy. The last rank stops all."""
    asked = itertools.count(1)
    published: list[int] = []

    def report(progress: TrainingProgress) -> None:
        published.append(progress.step)
        assert progress.samples == progress.step * TINY_TRAINING.batch_size

    policy = train(
        replace(TINY_TRAINING, policy=replace(TINY, dropout=0.2), **settings),
        TASK.spec,
        seed=3,
        draw=drawer(EPISODES, seed=10 + rank),
        statistics=lambda: STATISTICS,
        publish=lambda version, data: published.append(version),
        report=report,
        validation=EPISODES[:1],
        should_stop=lambda: next(asked) == stop_after and rank == world - 1,
        checkpoints=folder,
        rank=rank,
        world=world,
    )
    assert bool(published) == (rank == 0)
    return policy_to_bytes(policy)


def reported(rank: int, world: int, folder: Path) -> list[float]:
    """Report the mean loss, and the losses now and a step later. Only rank 1 has a target later."""
    lap = Lap(Horizon(context=1, past=0, future=2, execute=1), folder, rank, world, "cpu")
    target_BT = torch.tensor([[True, rank == 1]])
    error_BT = target_BT * torch.tensor(1.0 + 2 * rank)
    lap.add(
        TakenStep(1, 1, ("some",)), error_BT, target_BT, window_losses(error_BT, target_BT), torch.tensor(0.5)
    )
    progress = lap.finish(step=1, samples=2, rate=0.1, out_of_range=0.0, grid=(1,))
    return [progress.loss, *progress.loss_by_position.values()]


def validated(rank: int, world: int) -> list[list[float]]:
    """Validate an untrained policy on three episodes, which the ranks share out."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(TINY, TASK.spec).eval()
    policy.fit(STATISTICS)
    found = validate(policy, EPISODES[:3], 5, rank, world)
    return [list(found[name].values()) for name in ("validation_loss_by_context", "action_error_by_context")]


def diverged(rank: int, world: int, folder: Path) -> str:
    """Train until the last rank draws a bad episode at its fifth step, and return the error message."""

    def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
        bad = step == 4 and rank == world - 1
        episode = EPISODES[7] if bad else EPISODES[rank]
        segments = drawer([episode], seed=rank)(step, before, after, count)
        for segment in segments if bad else ():
            segment.arrays["expert_action"][:] = np.inf
        return segments

    try:
        train(
            TINY_TRAINING,
            TASK.spec,
            seed=3,
            draw=draw,
            statistics=lambda: STATISTICS,
            publish=lambda version, data: None,
            report=lambda progress: None,
            should_stop=lambda: False,
            checkpoints=folder,
            rank=rank,
            world=world,
        )
    except TrainingDiverged as error:
        return str(error)
    return "it did not diverge"


def main(address: str, rank: int, world: int, out: Path) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        together_or_alone(0, 1, out)
    ranks.join(address, rank, world, "cpu", timeout_s=60)
    together_or_alone(rank, world, out)
    (out / f"straight-{rank}").write_bytes(trained(rank, world, out / "straight"))
    trained(rank, world, out / "resumed", stop_after=13)
    (out / f"resumed-{rank}").write_bytes(trained(rank, world, out / "resumed"))
    base, adapters = str(out / "straight" / "step-000000024"), AdaptersConfig(rank=2)
    start = {"start_from": base if rank == 0 else "only rank 0 reads it", "adapters": adapters}
    trained(rank, world, out / "adapted", stop_after=13, **start)
    (out / f"adapted-{rank}").write_bytes(trained(rank, world, out / "adapted", **start))
    parts = ranks.from_all(f"rank {rank} says {'so ' * rank}".encode(), world, "cpu")
    (out / f"said-{rank}").write_bytes(b"|".join(parts))
    (out / f"reported-{rank}").write_text(json.dumps(reported(rank, world, out)))
    (out / f"diverged-{rank}").write_text(diverged(rank, world, out / "diverged"))
    dist.destroy_process_group()


def together_or_alone(rank: int, world: int, out: Path) -> None:
    """Write what must be the same whether several ranks share the work or one does it."""
    save_file({"gradients": gradients(rank, world)}, out / f"gradients-{rank}-of-{world}")
    (out / f"validated-{rank}-of-{world}").write_text(json.dumps(validated(rank, world)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
