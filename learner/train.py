"""The training loop."""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from learner import checkpoint, curriculum, ranks
from learner.config import LearnerConfig
from learner.normalize import Range
from learner.policy import DiffusionPolicy, policy_from_bytes, policy_to_bytes
from learner.windows import Batch, build
from replay.episode import Segment, TaskSpec

Draw = Callable[[int, int, int, int], list[Segment]]
"""(step, before, after, count) -> `count` segments with `before` steps before and `after` steps after their
now. Given the same store contents, a function of the step (and of the rank), so that a resumed run draws
the same. Called from another thread, some steps ahead."""

AHEAD = 3
"""Batches prepared in advance."""


@dataclass(frozen=True)
class Progress:
    """How training stands; losses, wait and gradient are those since the last report."""

    step: int
    """Steps done, those before a resume included."""
    samples: int
    """Windows trained on in all, over all ranks."""
    loss: float
    loss_by_context: Mapping[int, float]
    """By the task's own context lengths: each counts the steps up to it, above the next shorter one."""
    learning_rate: float
    gradient_norm: float
    """Largest, before clipping."""
    data_wait_s: float
    """Time that the loop stood still for want of a batch."""
    out_of_range: float
    """Share of the newest batch's observed values outside of the normaliser's ranges."""


class TrainingDiverged(ArithmeticError):
    """Loss or gradient are not finite. Nothing of it was published or saved."""


def train(
    config: LearnerConfig,
    spec: TaskSpec,
    *,
    seed: int,
    draw: Draw,
    ranges: Callable[[], Mapping[str, Range]],
    publish: Callable[[int, bytes], None],
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    checkpoints: Path,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
) -> DiffusionPolicy:
    """Train, from the newest checkpoint if there is one, until `config.steps` or until told to stop.

    The randomness of a step follows from (seed, rank, step) alone, so a resumed run goes on bit for bit
    on CPU. With more than one rank, each has called `ranks.join` before.

    Args:
        draw: this rank's windows.
        ranges: of the normaliser (`normalize.measure`); asked once, on rank 0, by a run that starts afresh.
        publish: takes version and bytes of the averaged policy; rank 0 only, as is `report`.
        should_stop: asked after every step; one rank that says so stops all.
        checkpoints: directory; used by rank 0 only.

    Returns:
        The averaged policy, which is also the one published and saved last.

    Raises:
        TrainingDiverged: the loss is not finite any more.
        ValueError: the checkpoint found is of another policy configuration or task.
    """
    torch.set_float32_matmul_precision("high")
    found = _start(config, spec, seed, ranges, checkpoints) if rank == 0 else None
    start = ranks.from_first(found, world, device)
    average = policy_from_bytes(start.policy, device)
    policy = deepcopy(average).train()
    weights, gradients = flatten(policy)
    averaged_weights, _ = flatten(average)
    optimizer = torch.optim.AdamW([weights], betas=config.betas, weight_decay=config.weight_decay, fused=True)
    if start.training:
        _restore(start.training, weights, optimizer)

    def prepare(step: int) -> Batch:
        longest = policy.horizon.context
        shortest = min(spec.context_lengths[0], longest)
        length = curriculum.length(config.curriculum, seed, step, config.steps, longest, shortest)
        segments = draw(step, length - 1, policy.horizon.after, config.batch_size)
        return build(segments, policy.horizon, length)

    step, lap = start.step, Lap()
    if rank == 0 and start.training:
        publish(step, start.policy)
    for batch in lap.timed(prepared(prepare, range(step, config.steps))):
        torch.manual_seed(_stream(seed, rank, step))
        noise_BTA = torch.randn(batch.action_BTA.shape, device=device)
        step_B = torch.randint(config.policy.diffusion_steps, (batch.size,), device=device)
        loss = policy.loss(batch, noise_BTA, step_B).mean()
        gradients.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        ranks.average(gradients, world)
        norm = nn.utils.clip_grad_norm_(weights, config.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.step()
        averaged_weights.data.lerp_(weights.data, 1 - ema_decay(config, step))
        lap.add(batch.length, loss.detach(), norm)

        step += 1
        last = ranks.any_of(should_stop(), world, device) or step == config.steps
        publishing = last or step % config.publish_every == 0
        saving = last or step % config.checkpoint_every == 0
        if publishing or saving or step % config.report_every == 0:
            samples, rate = step * world * config.batch_size, optimizer.param_groups[0]["lr"]
            progress = lap.finish(step, samples, rate, policy.out_of_range(batch), spec.context_lengths)
            if rank == 0:
                report(progress)
        if rank == 0 and (publishing or saving):
            data = policy_to_bytes(average)
            if publishing:
                publish(step, data)
            if saving:
                training = {"weights": weights.data, **optimizer.state_dict()["state"][0]}
                checkpoint.save(checkpoints, step, data, training, asdict(config), config.keep_checkpoints)
        if last:
            break
    return average


def learning_rate(config: LearnerConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / (config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(config: LearnerConfig, step: int) -> float:
    """Weight of the past in the average of the weights, as Diffusion Policy has it."""
    return float(min(config.ema_max, 1 - (1 + step) ** -config.ema_power))


def flatten(module: nn.Module) -> tuple[nn.Parameter, Tensor]:
    """One vector that all parameters become views of, and the one of their gradients: one operation each
    for optimizer, average, clipping and the exchange between ranks, instead of one a parameter."""
    parameters = list(module.parameters())
    weights = nn.Parameter(torch.cat([parameter.data.flatten() for parameter in parameters]))
    gradients = weights.grad = torch.zeros_like(weights)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, value, gradient in zip(
        parameters, torch.split(weights.data, sizes), torch.split(gradients, sizes), strict=True
    ):
        parameter.data, parameter.grad = value.view_as(parameter), gradient.view_as(parameter)
    return weights, gradients


def prepared(prepare: Callable[[int], Batch], steps: range) -> Generator[Batch, None, None]:
    """The batches of these steps in order, made in another thread, `AHEAD` of their use."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting = deque(pool.submit(prepare, step) for step in steps[:AHEAD])
        try:
            for step in steps:
                batch = waiting.popleft().result()
                if step + AHEAD in steps:
                    waiting.append(pool.submit(prepare, step + AHEAD))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


class Lap:
    """What happened since the last report. Losses stay on their device until then: reading one waits."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._losses, self._norms = defaultdict[int, list[Tensor]](list), list[Tensor]()
        self._wait_s = 0.0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time spent waiting for them counts."""
        while True:
            start = perf_counter()
            batch = next(batches, None)
            self._wait_s += perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, length: int, loss: Tensor, norm: Tensor) -> None:
        """One step of context length `length`."""
        self._losses[length].append(loss)
        self._norms.append(norm)

    def finish(
        self, step: int, samples: int, rate: float, out_of_range: float, grid: Sequence[int]
    ) -> Progress:
        """The report, after which a new lap begins.

        Raises:
            TrainingDiverged: a loss or a gradient was not finite.
        """
        losses = {length: torch.stack(some).tolist() for length, some in self._losses.items()}
        norm, wait_s = max(torch.stack(self._norms).tolist()), self._wait_s
        by_context = defaultdict[int, list[float]](list)
        for length, some in losses.items():
            by_context[min((g for g in grid if g >= length), default=length)] += some
        mean = fmean(chain.from_iterable(losses.values()))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"loss {mean} and gradient norm {norm} in the steps up to {step}: the data may hold extreme "
                f"values, or the learning rate ({rate:.2g} now) is too high"
            )
        self._clear()
        return Progress(
            step,
            samples,
            mean,
            {g: fmean(some) for g, some in sorted(by_context.items())},
            rate,
            norm,
            wait_s,
            out_of_range,
        )


def _start(
    config: LearnerConfig,
    spec: TaskSpec,
    seed: int,
    ranges: Callable[[], Mapping[str, Range]],
    checkpoints: Path,
) -> checkpoint.Checkpoint:
    """The newest checkpoint, or the untrained policy as one."""
    found = checkpoint.latest(checkpoints)
    if found is None:
        torch.manual_seed(seed)
        policy = DiffusionPolicy(config.policy, spec)
        policy.fit(ranges())
        return checkpoint.Checkpoint(0, policy_to_bytes(policy), {}, {})
    policy = policy_from_bytes(found.policy)
    for what, saved, asked in (("policy", policy.config, config.policy), ("task", policy.spec, spec)):
        if saved != asked:
            raise ValueError(
                f"checkpoint {found.step} in {checkpoints} has another {what}: {saved}, not {asked}"
            )
    return found


def _restore(training: dict[str, Tensor], weights: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    moments = {name: tensor for name, tensor in training.items() if name != "weights"}
    groups = optimizer.state_dict()["param_groups"]
    weights.data.copy_(training["weights"])
    optimizer.load_state_dict({"state": {0: moments}, "param_groups": groups})


def _stream(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0])
