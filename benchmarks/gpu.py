"""Measure a GPU within ten minutes: does it compute what the CPU does, and how fast does it train and act?

It needs neither Ray nor an installed longview: `PYTHONPATH=. python benchmarks/gpu.py`. Policies see a state
and two cameras. Losses and actions are compared at size `tiny`. Speeds are those of size `paper` at the
longest context. Where time runs out, the last measurements are left out; the results name them.
"""

import json
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import Row, finish, parser, results
from numpy.typing import NDArray
from policies import LONGEST, SPECS, Acting, Training, drawer, peak, recorded
from torch import Tensor

from longview.learner.config import CurriculumConfig, LearnerConfig, PolicyConfig
from longview.learner.flat import flatten
from longview.learner.policies.diffusion.config import (
    DiTConfig,
    MLPConfig,
    UNetCrossConfig,
    UNetFilmConfig,
)
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policies.recurrent.config import RecurrentConfig
from longview.learner.policy import Policy, mean_loss
from longview.learner.recipe import Recipe
from longview.learner.session import PolicySession
from longview.learner.transfer import pack, send
from longview.learner.windows import Batch

KINDS: dict[str, type[PolicyConfig]] = {
    "unet_cross": UNetCrossConfig,
    "unet_film": UNetFilmConfig,
    "dit": DiTConfig,
    "mlp": MLPConfig,
    "recurrent": RecurrentConfig,
}
"""Configs of the kinds of policies. Entry points would need an installed package."""
MAIN = "unet_cross"
"""Kind that is measured in every way."""
LIMIT_S = 420
"""Time after which nothing new is measured, so that what was begun ends within ten minutes."""
ROBOTS = (1, 16, 64)
"""Robots that one decision is for."""
STEPS = 10
"""Training steps of one sample, between which nobody waits for the device."""
TARGETS = {
    "loss_difference": "<= 1e-3",
    "loss_difference_bfloat16": "<= 5e-2",
    "gradient_difference": "<= 1e-2",
    "action_difference": "<= 1e-2",
}

Measurement = tuple[str, Callable[[], list[Row]]]
"""Name of a measurement, and the function that takes it."""


def main() -> None:
    started = perf_counter()
    options = parser(__doc__ or "")
    options.add_argument("--device", default="cuda", help="cpu: try the script itself; use --quick with it")
    chosen = options.parse_args()
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("this machine has no GPU that torch can use: nothing is measured")
        return
    torch.set_num_threads(1)
    where, rows, left_out = described(device, chosen.quick), list[Row](), list[str]()
    for name, measure in measurements(device, chosen.quick):
        if perf_counter() - started > LIMIT_S:
            left_out.append(name)
            continue
        try:
            rows += measure()
        except Exception as error:  # such as too little memory: the other measurements are worth having
            print(f"{name}: {error}", file=sys.stderr)
            left_out.append(f"{name}: {type(error).__name__}")
        if chosen.json is not None:  # what is measured survives whatever comes
            chosen.json.write_text(json.dumps(results({**where, "left_out": left_out}, rows, {})) + "\n")
    found = results({**where, "left_out": left_out}, rows, ratios(rows))
    finish(found, TARGETS, chosen.json)


def measurements(device: torch.device, quick: bool) -> Iterator[Measurement]:
    """Yield the measurements, the most important ones first."""
    size = "tiny" if quick else "paper"
    for kind in KINDS:
        yield f"agreement, {kind}", partial(agreement, kind, device)
    for kind in (MAIN,) if quick else KINDS:
        for precision in ("float32", "bfloat16"):
            yield f"training, {kind}, {precision}", partial(training, kind, size, precision, False, device)
    for robots in ROBOTS[:1] if quick else ROBOTS:
        yield f"acting, {robots} robots", partial(acting, MAIN, size, robots, device)
    if not quick:
        for precision in ("float32", "bfloat16"):
            yield f"compiled, {precision}", partial(training, MAIN, size, precision, True, device)
        for kind in (kind for kind in KINDS if kind != MAIN):
            yield f"acting, {kind}", partial(acting, kind, size, ROBOTS[1], device)


def described(device: torch.device, quick: bool) -> dict[str, Any]:
    """Describe the machine, without packages that it may not have."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "quick": quick}


# Agreement


def agreement(kind: str, device: torch.device) -> list[Row]:
    """Compare loss, gradient and actions of one policy with those of the CPU.

    Each difference is divided by the size of what is compared; actions lie in [-1, 1] as they are.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    config = LearnerConfig(
        KINDS[kind](context_length=8), batch_size=16, windows_per_segment=4,
        curriculum=CurriculumConfig("fixed"),
    )  # fmt: skip
    spec = SPECS["images"]
    recipe = Recipe(config, spec, seed=0, rank=0, world=1, draw=drawer(spec, 100))
    batch, at_home = recipe.batch(0), config.policy.make(spec).eval()
    away = deepcopy(at_home).to(device)
    loss, gradient = loss_of(at_home, batch, "float32")
    rows = []
    for precision in ("float32", "bfloat16"):
        other_loss, other_gradient = loss_of(away, batch, precision)
        name = "" if precision == "float32" else f"_{precision}"
        away_by = abs(other_loss - loss) / abs(loss)
        rows.append(Row(f"loss_difference{name}", kind, "", [away_by]))
        bent = float((other_gradient - gradient).norm() / gradient.norm())
        rows.append(Row(f"gradient_difference{name}", kind, "", [bent]))
    apart = np.abs(actions_of(away) - actions_of(at_home)).max()
    torch.set_float32_matmul_precision("high")  # as the training loop does
    torch.backends.cudnn.allow_tf32 = True
    return [*rows, Row("action_difference", kind, "", [float(apart)])]


def loss_of(policy: Policy, batch: Batch[NDArray[Any]], precision: str) -> tuple[float, Tensor]:
    """Return the loss and its gradient. All noise is drawn on the CPU, so that every device gets the same."""
    generator, device = torch.Generator().manual_seed(0), policy.device
    there = send(pack(batch, device), device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        if isinstance(policy, DiffusionPolicy):
            noise_BTA = torch.randn(batch.action_BTA.shape, generator=generator)
            noise_step_B = torch.randint(policy.config.diffusion_steps, (batch.size,), generator=generator)
            token_BSE = policy.batch_tokens(there, generator)
            error_BT = policy.denoising_error(there, token_BSE, noise_BTA.to(device), noise_step_B.to(device))
        else:
            error_BT = policy.error(there, generator)
    loss = mean_loss(error_BT, there.target_BT)
    weights = flatten(policy)
    weights.backward(loss)
    return loss.item(), weights.dense(weights.gradient).cpu()


def actions_of(policy: Policy) -> NDArray[np.float32]:
    """Return the actions of a few decisions for two robots."""
    horizon, shape = policy.horizon, policy.spec.action.shape
    session, rngs, actions = PolicySession(policy, 2), np.random.default_rng(0).spawn(2), []
    for decision in range(3):
        count = horizon.execute if decision else 1
        frames, executed = recorded(policy.spec, count), np.zeros((count - 1, *shape), np.float32)
        reset = np.full(2, decision == 0)
        actions.append(session.act((0, 1), [frames] * 2, [executed] * 2, reset, horizon.context, rngs))
    return np.stack(actions)


# Speed


def training(kind: str, size: str, precision: Any, compiled: bool, device: torch.device) -> list[Row]:
    """Measure training steps, for which nobody waits until the last one.

    Launching a step is the host's part of it. Where it takes as long as the step, the GPU waits for the host.
    """
    torch.backends.cudnn.allow_tf32 = True  # as in a process that only trains; acting switches it off
    config = LearnerConfig(KINDS[kind](size=size), batch_size=64, precision=precision, compile=compiled)
    case = f"{kind}, {size}, batch {config.batch_size}, T_o {LONGEST}, {precision}"
    case += ", compiled" if compiled else ""
    run = Training(config, "images", LONGEST, device)
    batches = [run.batch() for _ in range(2 if device.type == "cpu" else STEPS)]

    rates, launches = [], []
    for _ in range(1 if device.type == "cpu" else 3):
        started = perf_counter()
        for batch in batches:
            run.step(batch)
        launches.append(1000 * (perf_counter() - started) / len(batches))
        run.weights.vector[0].item()  # waits for a GPU
        rates.append(len(batches) / (perf_counter() - started))
    rows = [Row("training", case, "steps/s", rates), Row("launching_a_step", case, "ms", launches)]
    if device.type == "cuda":
        rows.append(Row("memory", case, "MiB", [run.memory()]))
    if device.type == "cuda" and not compiled:
        share = 100 * run.flops() * config.batch_size / peak(device, getattr(torch, precision))
        rows.append(Row("share_of_peak", case, "%", [share * rate for rate in rates]))
    return rows


def acting(kind: str, size: str, robots: int, device: torch.device) -> list[Row]:
    """Measure decisions of one call for a number of robots, at the longest context."""
    act = Acting(KINDS[kind](size=size).make(SPECS["images"]).to(device), robots)
    times = [act.decide(LONGEST) for _ in range(3 if device.type == "cpu" else 20)]
    return [Row("decision", f"{kind}, {size}, {robots} robots, T_o {LONGEST}", "ms", times)]


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return the gains of half the precision, of compiling, and of deciding for many robots at once."""
    value = {(row.measure, row.case): row.value for row in rows}
    found = {}
    for (measure, case), rate in value.items():
        if measure == "training" and "float32" in case:
            reduced = value.get((measure, case.replace("float32", "bfloat16")))
            if reduced is not None:
                found[f"bfloat16 over float32, {case}"] = reduced / rate
        if measure == "training" and f"{case}, compiled" in {each for _, each in value}:
            found[f"compiled over plain, {case}"] = value[measure, f"{case}, compiled"] / rate
        if measure == "decision" and ", 1 robots" in case:
            most = value.get((measure, case.replace(", 1 robots", f", {ROBOTS[-1]} robots")))
            if most is not None:
                found[f"decision for {ROBOTS[-1]} over 1, {case}"] = most / rate
    return found


if __name__ == "__main__":
    main()
