"""Training loop of a policy, on one rank or several.

Legend (docs/notation.md): B windows, T action positions.
"""

import ctypes
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longview.learner import checkpoint, ranks
from longview.learner.adapters import trained_weights
from longview.learner.compiled import compile_policy
from longview.learner.config import AdaptersConfig, LearnerConfig
from longview.learner.files import START
from longview.learner.flat import FlatWeights
from longview.learner.keypoints import KeypointMemory
from longview.learner.laps import Lap, TakenStep, TrainingProgress
from longview.learner.normalize import Statistics
from longview.learner.policy import Policy, load_policy, policy_from_bytes, policy_to_bytes, window_losses
from longview.learner.recipe import DrawSegments, Recipe
from longview.learner.snapshots import Publish, writing
from longview.learner.start import fit_scales, take
from longview.learner.transfer import pack, send
from longview.learner.validation import validate
from longview.learner.windows import Batch
from longview.replay.episode import Episode, TaskSpec, difference

log = logging.getLogger(__name__)

AVERAGE = "average"
"""Name of the vector of averaged adapters in a checkpoint."""
ASK_EVERY = 10
"""Steps after which the ranks ask each other whether to stop. To ask, each waits for its device."""


def train(
    config: LearnerConfig,
    spec: TaskSpec,
    *,
    seed: int,
    draw: DrawSegments,
    statistics: Callable[[], Mapping[str, Statistics]],
    publish: Publish,
    report: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
    checkpoints: Path,
    first_version: int | None = None,
    validation: Sequence[Episode] = (),
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
) -> Policy:
    """Train until `config.steps` or `should_stop`, from the newest checkpoint if there is one.

    The randomness of a step follows from (seed, rank, step) alone, so a resumed run ends bit for bit the same
    on CPU. With more than one rank, each rank calls `ranks.join` first.

    Args:
        config: settings of policy and training.
        spec: task that the policy is for.
        seed: seed of the run.
        draw: draws this rank's segments.
        statistics: measures the data, or a sample of it (`normalize.measure`); called once, on rank 0, by a
            run without checkpoint.
        publish: takes version and bytes of the averaged policy; called on rank 0 only, from another thread.
        report: takes the progress; called on rank 0 only.
        should_stop: called after every step. If one rank answers true, all ranks stop: one rank at once,
            several after at most `ASK_EVERY` steps.
        checkpoints: folder of the checkpoints; used by rank 0 only.
        first_version: step at which a policy is published besides every `config.publish_every` steps.
        validation: episodes that are never drawn, the same on every rank. The ranks together validate every
            published policy on them.
        rank: this rank.
        world: number of ranks.
        device: device to train on.

    Returns:
        The averaged policy, which is also published and saved last.

    Raises:
        TrainingDiverged: the loss is not finite; a file beside the checkpoints describes the step.
        RuntimeError: the network is to be compiled, and no C++ compiler is installed.
        ValueError: the config does not fit the task; the checkpoint is of another policy configuration, task
            or adapters; or `start_from` is no policy.
        FileNotFoundError: there is no policy at `start_from`.
    """
    where = torch.device(device)
    recipe = Recipe(config, spec, seed, rank, world, draw, few_shapes=config.compile or where.type != "cpu")
    torch.set_float32_matmul_precision("high")
    found = _start(config, spec, seed, statistics, checkpoints) if rank == 0 else None
    start = ranks.from_first(found, world, device)
    model = _Model.of(config, start, seed, device)
    if config.compile:
        encoding, later = parts_of(config, range(start.step, config.steps))
        compile_policy(model.policy, [(recipe, encoding), (model.later(recipe), later)])

    step, stopping, lap = start.step, False, Lap(model.policy.horizon, checkpoints, rank, world, device)
    validating = ranks.any_of(bool(validation), world, device)
    if rank == 0 and step:
        publish(step, memoryview(start.policy))
    batches = model.batches(recipe, range(step, config.steps), where)
    snapshots = nullcontext() if rank else writing(config, start.policy, publish, checkpoints, start.base)
    # Nothing in a step waits for the device, so that the host prepares the next step while it computes.
    with snapshots as out:
        for batch in lap.timed(send(packed, where) for packed in batches):
            error_BT, loss_B, norm = model.learn(recipe, batch, step)

            step += 1
            taken = TakenStep(step, recipe.context_length(step - 1), batch.episodes)
            lap.add(taken, error_BT, batch.target_BT, loss_B, norm)
            stopping |= should_stop()
            asking = world == 1 or step % ASK_EVERY == 0
            last = step == config.steps or (asking and ranks.any_of(stopping, world, device))
            publishing = last or step % config.publish_every == 0 or step == first_version
            saving = last or step % config.checkpoint_every == 0
            reporting = publishing or saving or step % config.report_every == 0
            if reporting:
                samples, rate = step * config.batch_size, learning_rate(config, step - 1)
                unusual = model.policy.out_of_range(batch)
                progress = lap.finish(step, samples, rate, unusual, spec.context_lengths)
                release_memory()
            if out is not None and (publishing or saving):
                out.take(step, model.averaged.vector, model.training() if saving else {}, publishing)
            if publishing:
                model.averaged.merge()
            if publishing and validating:
                progress = replace(progress, **validate(model.average, validation, seed, rank, world, device))
            if rank == 0 and reporting:
                report(progress)
            if last:
                break
    return model.average


@dataclass(frozen=True)
class _Model:
    """Policy in training and its average, which acts. The weights of each are one vector."""

    config: LearnerConfig
    policy: Policy
    average: Policy
    weights: FlatWeights
    averaged: FlatWeights
    optimizer: torch.optim.AdamW

    @staticmethod
    def of(config: LearnerConfig, start: checkpoint.Checkpoint, seed: int, device: str) -> "_Model":
        """Make the model of a checkpoint. The first values of adapters follow from the seed."""
        average = policy_from_bytes(start.policy, device)
        policy = deepcopy(average).train()
        weights, averaged = (
            trained_weights(module, config.adapters, start.base, seed) for module in (policy, average)
        )
        if AVERAGE in start.training:
            averaged.vector.data.copy_(averaged.spread(start.training[AVERAGE]))
        optimizer = _optimizer(config, weights, start.training)
        return _Model(config, policy, average, weights, averaged, optimizer)

    def batches(
        self, recipe: Recipe, steps: range, device: torch.device
    ) -> Generator[Batch[Tensor], None, None]:
        """Yield the batches of these steps. Once the encoder is trained, it is set."""
        encoding, later = parts_of(self.config, steps)
        yield from prepared(recipe, encoding, device)
        if self.config.encoder_steps:
            self._set_encoder()
        yield from prepared(self.later(recipe), later, device)

    def later(self, recipe: Recipe) -> Recipe:
        """Return the recipe of the steps after the encoder's own: the cameras' networks are those of the
        average now, and what they see in a frame is computed once."""
        frozen = self.config.encoder_steps and self.policy.cameras
        return recipe.with_keypoints(KeypointMemory(self.average)) if frozen else recipe

    def learn(self, recipe: Recipe, batch: Batch[Tensor], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Take a training step, and return the error (B, T), the loss (B,) and the norm of the gradient."""
        error_BT = recipe.error(self.policy, batch, step)
        loss_B = window_losses(error_BT, batch.target_BT)
        self.weights.backward(loss_B.mean())
        ranks.average(self.weights.gradient, recipe.world)
        norm = nn.utils.clip_grad_norm_(self.weights.vector, self.config.clip)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, step)
        self.optimizer.step()
        self.weights.merge()
        if 0 < self.config.encoder_steps <= step:
            self._set_encoder()
        self.averaged.vector.data.lerp_(self.weights.vector.data, 1 - ema_decay(self.config, step))
        return error_BT, loss_B, norm

    def training(self) -> dict[str, Tensor]:
        """Return the vectors of weights and moments; with adapters also of their average, which cannot be
        told from the averaged policy."""
        adapted = {AVERAGE: self.averaged.vector.data} if self.config.adapters.rank else {}
        return {"weights": self.weights.vector.data, **adapted, **self.optimizer.state_dict()["state"][0]}

    def _set_encoder(self) -> None:
        """Set the networks of the cameras, or an encoder without cameras, to their average. Momentum would
        still move them."""
        encoder = self.policy.encoder
        place = self.weights.span(encoder.cameras if self.policy.cameras else encoder)
        self.weights.vector.data[place] = self.averaged.vector.data[place]


def release_memory() -> None:
    """Return free memory of the C heap to the system.

    The tensors of a step leave gaps in glibc's heap. Before version 2.38 glibc hardly fills them again, so a
    training on a CPU would grow by gigabytes.
    """
    with suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def parts_of(config: LearnerConfig, steps: range) -> tuple[range, range]:
    """Split training steps into those that train the encoder first, and all later ones."""
    encoding = max(0, config.encoder_steps - steps.start)
    return steps[:encoding], steps[encoding:]


def learning_rate(config: LearnerConfig, step: int) -> float:
    """Return the learning rate of a step: in each part of the training a linear warm-up, then a cosine to
    zero."""
    part = config.part(step)
    place = step - part.start
    if place < config.warmup:
        return config.learning_rate * (place + 1) / config.warmup
    progress = (place - config.warmup) / (len(part) - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(config: LearnerConfig, step: int) -> float:
    """Return the decay of the weights' average at a step, as in Diffusion Policy, arXiv 2303.04137."""
    place = step - config.part(step).start
    return float(min(config.ema_max, 1 - (1 + place) ** -config.ema_power))


def prepared(recipe: Recipe, steps: range, device: torch.device) -> Generator[Batch[Tensor], None, None]:
    """Yield the batches of these steps in order, packed for a device.

    Each of `config.loaders` threads prepares one batch, ahead of the step that is taken. Decoding and copying
    release the interpreter, so threads use several cores.
    """
    ahead = recipe.config.loaders

    def prepare(step: int) -> Batch[Tensor]:
        return pack(recipe.batch(step), device)

    with ThreadPoolExecutor(ahead, thread_name_prefix="batches") as pool:
        waiting = deque(pool.submit(prepare, step) for step in steps[:ahead])
        try:
            for step in steps:
                batch = waiting.popleft().result()
                if step + ahead in steps:
                    waiting.append(pool.submit(prepare, step + ahead))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def _start(
    config: LearnerConfig,
    spec: TaskSpec,
    seed: int,
    statistics: Callable[[], Mapping[str, Statistics]],
    checkpoints: Path,
) -> checkpoint.Checkpoint:
    """Return the newest checkpoint, or that of an untrained policy at step 0."""
    found = checkpoint.latest(checkpoints)
    if found is None:
        torch.manual_seed(seed)
        policy = config.policy.make(spec)
        if config.start_from is not None:
            return _from_base(policy, config.start_from, config, statistics(), checkpoints)
        policy.fit(statistics())
        return checkpoint.Checkpoint(0, policy_to_bytes(policy), {}, {})
    policy = policy_from_bytes(found.policy)
    adapters = found.config.get("adapters") or _plain(AdaptersConfig())
    saved = {"adapters": adapters, "policy": asdict(policy.config)}
    wanted = {"adapters": _plain(config.adapters), "policy": asdict(config.policy)}
    if differing := difference(
        {"learner": saved, "task": policy.spec.to_dict()}, {"learner": wanted, "task": spec.to_dict()}
    ):
        name, was, now = differing
        raise ValueError(
            f"training cannot continue from {checkpoints}: {name} is {was} in the checkpoint and {now} now"
        )
    return found


def _from_base(
    policy: Policy,
    path: str,
    config: LearnerConfig,
    statistics: Mapping[str, Statistics],
    checkpoints: Path,
) -> checkpoint.Checkpoint:
    """Return the checkpoint at step 0 of a policy that takes what fits from a trained one.

    What was taken, and what was not, is written beside the checkpoints.
    """
    base = load_policy(path)
    fit, anew = take(policy, base), fit_scales(policy, statistics, base)
    for line in fit.lines:
        log.info("from %s: %s", path, line)
    checkpoints.mkdir(parents=True, exist_ok=True)
    about = {"from": path, "lines": fit.lines, **asdict(fit), "scaled_anew": anew}
    (checkpoints / START).write_text(json.dumps(about, indent=2) + "\n")
    parameters = dict(policy.named_parameters())
    kept = {name: parameters[name].data for name in fit.taken} if config.adapters.rank else {}
    return checkpoint.Checkpoint(0, policy_to_bytes(policy), {}, {}, kept)


def _plain(config: AdaptersConfig) -> dict[str, Any]:
    """Return settings as a checkpoint keeps them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _optimizer(config: LearnerConfig, weights: FlatWeights, training: dict[str, Tensor]) -> torch.optim.AdamW:
    """Make the optimizer, and restore weights and moments from a checkpoint if it has any."""
    optimizer = torch.optim.AdamW(
        [weights.vector], betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    if training:
        state = {name: weights.spread(x) if x.dim() else x for name, x in training.items() if name != AVERAGE}
        weights.vector.data.copy_(state.pop("weights"))
        weights.merge()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})
    return optimizer
