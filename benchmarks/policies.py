"""Measure how fast policies train and decide, by architecture, context length and size.

Policies see a state alone, or a state and images. A robot waits for a decision in the middle of an episode:
the frames since the last decision are encoded as tokens, and actions are denoised. Each figure is the time of
one call, which decides for a batch of robots.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import Row, finish, interleaved, machine, parser, ratio, results, seconds
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from longview.actors.config import ActorsConfig
from longview.learner.compiled import compile_policy
from longview.learner.config import CurriculumConfig, LearnerConfig, architectures, policy_config
from longview.learner.flat import flatten
from longview.learner.policies.diffusion.config import SHARED
from longview.learner.policies.diffusion.denoisers.denoiser import Context
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import Policy, mean_loss
from longview.learner.recipe import DrawSegments, Recipe
from longview.learner.session import PolicySession
from longview.learner.transfer import pack, send
from longview.learner.windows import Batch
from longview.replay.episode import (
    ACTION,
    BY_EXPERT,
    CONTROLLER,
    OBSERVATION_PREFIX,
    ArraySpec,
    EpisodeMeta,
    Segment,
    TaskSpec,
)

LENGTHS = (1, 2, 8, 20, 48, 80)
"""Context lengths T_o that are measured."""
LONGEST = LENGTHS[-1]
MAIN = "unet_cross"
"""Architecture whose ratios have targets."""
STEPS = 200
"""Steps of the episode that is trained on."""
MEASURED = (1, 16, 64, 256)
"""Context lengths T_o at which the memory of training is measured."""
STATE, IMAGE = ArraySpec((19,)), ArraySpec((84, 84, 3), "uint8", 0, 255)
SPECS = {
    kind: TaskSpec(kind, observation, ArraySpec((7,), low=-1.0, high=1.0), 20.0, STEPS, LENGTHS, 50)
    for kind, observation in {
        "state": {"state": STATE},
        "images": {"state": STATE, "front": IMAGE, "wrist": IMAGE},
    }.items()
}
WINDOWS = {"state": 64, "images": 16}
"""Windows per training step, by kind of observation."""
ROBOTS = ActorsConfig().simulators
"""Robots that an actor decides for in one call."""
TABLED = {"decision": "ms", "training": "windows/s", "training_memory": "MiB"}
"""Measures that are tabled over context lengths, with their units."""
TARGETS = {
    "decision_80_over_2_state": "<= 1.25",
    "decision_80_over_2_images": "<= 1.25",
    "cached_over_reencoding": ">= 0.8",
    "shared_over_separate_frames": ">= 5",
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of decisions and training")
    options.add_argument(
        "--table", type=Path, metavar="FILE", help="decisions, training and memory as Markdown"
    )
    chosen = options.parse_args()
    device, quick = torch.device(chosen.device), chosen.quick
    if quick and chosen.plot:
        options.error("--plot needs all architectures, but --quick measures only one")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # as the training loop does
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    where = machine(device=name, torch_threads=torch.get_num_threads(), quick=quick)
    rows, ratios = decisions(device, quick)
    encoded, shares = encoding(device)
    ratios |= shares
    shared, ratios["shared_over_separate_frames"] = sharing(device, quick)
    rows += [*encoded, *trainings(device, quick), *shared, *memories(device, quick)]
    if not quick:
        mapped, ratios["film_map_over_slice"] = film_maps(device)
        rows += [*mapped, *sizes(device)]
    if chosen.plot:
        plot(rows, chosen.plot)
    if chosen.table:
        chosen.table.write_text(table(rows))
    finish(results(where, rows, ratios), TARGETS, chosen.json)


# Deciding


def decisions(device: torch.device, quick: bool) -> tuple[list[Row], dict[str, float]]:
    """Measure how long decisions take at every context length.

    Each ratio is the larger one of the two batch sizes, for size `small`.
    """
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    policies = [
        (architecture, "small") for architecture in ((MAIN,) if quick else architectures("diffusion"))
    ]
    for (architecture, size), kind, robots in product([*policies, (MAIN, "tiny")], SPECS, (1, 64)):
        many_images = (kind, robots) == ("images", 64)
        if quick and many_images:
            continue
        acting = Acting(make_policy(architecture, size, kind, device), robots)
        sides = {f"T_o {T_o}": partial(acting.decide, T_o) for T_o in ((2, LONGEST) if quick else LENGTHS)}
        samples = interleaved(sides, rounds=3 if many_images else 15)
        case = f"{architecture}, {size}, {kind}, batch {robots}"
        rows += [Row("decision", f"{case}, {side}", "ms", times) for side, times in samples.items()]
        pairs = zip(samples[f"T_o {LONGEST}"], samples["T_o 2"], strict=True)
        rows.append(Row("decision_80_over_2", case, "", [longest / short for longest, short in pairs]))
        if (architecture, size) == (MAIN, "small"):
            name = f"decision_80_over_2_{kind}"
            ratios[name] = max(ratios.get(name, 0.0), rows[-1].value)
    return rows, ratios


def encoding(device: torch.device) -> tuple[list[Row], dict[str, float]]:
    """Measure the time for tokens per decision at the longest context, with kept tokens and with new ones.

    Each ratio divides the gain in time by the gain in frames: 1 means that ten times as many frames take ten
    times as long. The ratio with a target is the one for an actor's robots.
    """
    policy = TimedEncoder(policy_config(size="small"), SPECS["images"]).to(device)
    rows, ratios = [], {}
    for name, robots in (("cached_over_reencoding", ROBOTS), ("cached_over_reencoding_one_robot", 1)):
        acting = Acting(policy, robots)
        sides = {"kept": partial(policy.time, acting), "made anew": partial(policy.time, acting, anew=True)}
        samples = interleaved(sides, rounds=15 if robots == 1 else 3)
        case = f"{MAIN}, small, images, batch {robots}, T_o {LONGEST}"
        rows += [Row("encoding", f"{case}, tokens {side}", "ms", times) for side, times in samples.items()]
        ratios[name] = ratio(samples["made anew"], samples["kept"]) * policy.horizon.execute / LONGEST
    return rows, ratios


class TimedEncoder(DiffusionPolicy):
    """A policy that adds up the time it spends on making tokens."""

    milliseconds = 0.0

    def tokens(self, *arguments: Any) -> Tensor:
        started = perf_counter()
        token_FE = super().tokens(*arguments)
        token_FE.sum().item()  # waits for a GPU
        self.milliseconds += 1000 * (perf_counter() - started)
        return token_FE

    def time(self, acting: "Acting", anew: bool = False) -> float:
        """Return the milliseconds that one decision at the longest context spends on tokens."""
        if anew:
            acting.session.load(0, self)  # loading weights drops all tokens
        self.milliseconds = 0.0
        acting.decide(LONGEST)
        return self.milliseconds


class Acting:
    """A session that decides for a batch of robots in the middle of their episodes."""

    def __init__(self, policy: Policy, robots: int) -> None:
        execute = policy.horizon.execute
        self.session, self.robots = PolicySession(policy, robots), robots
        self.frames = recorded(policy.spec, execute)
        self.executed = np.zeros((execute, *policy.spec.action.shape), np.float32)
        self.rngs = np.random.default_rng(0).spawn(robots)
        self.act(1, self.executed[1:], begin=True)
        for _ in range(LONGEST // execute):
            self.decide(1)

    def decide(self, T_o: int) -> float:
        """Make one decision and return the milliseconds that it took."""
        return 1000 * seconds(lambda: self.act(T_o, self.executed, begin=False))

    def act(self, T_o: int, executed: NDArray[np.float32], begin: bool) -> None:
        robots = self.robots
        frames, past, reset = [self.frames] * robots, [executed] * robots, np.full(robots, begin)
        self.session.act(range(robots), frames, past, reset, T_o, self.rngs)


# Training


def trainings(device: torch.device, quick: bool) -> list[Row]:
    """Measure how fast policies train at every context length."""
    rows = []
    for architecture, kind in product((MAIN,) if quick else architectures("diffusion"), SPECS):
        config = LearnerConfig(
            policy_config(architecture=architecture, size="small"), batch_size=WINDOWS[kind]
        )
        lengths = (2, LONGEST) if quick else LENGTHS
        sides = {f"T_o {T_o}": Training(config, kind, T_o, device).rate for T_o in lengths}
        samples = interleaved(sides, rounds=3 if kind == "images" else 7)
        case = f"{architecture}, small, {kind}, batch {config.batch_size}"
        rows += [Row("training", f"{case}, {side}", "windows/s", rates) for side, rates in samples.items()]
    return rows


def sharing(device: torch.device, quick: bool) -> tuple[list[Row], float]:
    """Measure how fast policies train if windows of one segment share their frames, and if they do not."""
    config = LearnerConfig(policy_config(size="small"), batch_size=WINDOWS["images"])
    shared, separate = (Training(config, "images", LONGEST, device, apart=apart) for apart in (False, True))
    samples = interleaved({"shared": shared.rate, "separate": separate.rate}, rounds=3 if quick else 7)
    case = f"{MAIN}, small, images, batch {config.batch_size}, T_o {LONGEST}"
    rows = [Row("sharing", f"{case}, frames {side}", "windows/s", rates) for side, rates in samples.items()]
    return rows, ratio(samples["shared"], samples["separate"])


class Training:
    """Training steps at one context length, each on a new batch."""

    def __init__(
        self,
        config: LearnerConfig,
        kind: str,
        T_o: int,
        device: torch.device,
        apart: bool = False,
        episode_steps: int = STEPS,
    ) -> None:
        config = replace(config, curriculum=CurriculumConfig("lengths", lengths={T_o: 1.0}))
        draw = drawer(SPECS[kind], episode_steps)
        few_shapes = config.compile or device.type != "cpu"
        self.recipe = Recipe(config, SPECS[kind], 0, rank=0, world=1, draw=draw, few_shapes=few_shapes)
        self.apart, self.taken, self.device = apart, 0, device
        self.policy = config.policy.make(SPECS[kind]).to(device)
        self.weights = flatten(self.policy)
        self.optimizer = torch.optim.AdamW([self.weights.vector], fused=True)
        if config.compile:
            compile_policy(self.policy, [(self.recipe, range(1))])
        self.rate()

    def rate(self) -> float:
        """Take the next step and return its windows per second."""
        batch = self.batch()
        return batch.size / seconds(lambda: self.finish(batch))

    def batch(self) -> Batch[Tensor]:
        """Return the next batch, packed for the device."""
        self.taken += 1
        batch = self.recipe.batch(self.taken)
        return pack(one_by_one(batch) if self.apart else batch, self.device)

    def step(self, packed: Batch[Tensor]) -> None:
        """Take one training step, as the training loop does."""
        batch = send(packed, self.device)
        error_BT = self.recipe.error(self.policy, batch, self.taken)
        self.weights.backward(mean_loss(error_BT, batch.target_BT))
        nn.utils.clip_grad_norm_(self.weights.vector, 1.0)
        self.optimizer.step()

    def finish(self, packed: Batch[Tensor]) -> None:
        """Take one training step, and wait for a GPU to end it."""
        self.step(packed)
        self.weights.vector[0].item()

    def flops(self) -> float:
        """Return the floating-point operations of a step per window; compiled code is not counted."""
        batch = self.batch()
        with FlopCounterMode(display=False) as counter:
            self.step(batch)
        return float(counter.get_total_flops()) / batch.size

    def memory(self) -> float:
        """Return the MiB of GPU memory that a step takes, weights and optimizer included."""
        torch.cuda.reset_peak_memory_stats()
        self.step(self.batch())
        return torch.cuda.max_memory_allocated() / 2**20


def one_by_one(batch: Batch[NDArray[Any]]) -> Batch[NDArray[Any]]:
    """Return a batch with the same windows in which each has its own copy of its frames."""
    seen_BS = batch.seen_BS
    frame_F = batch.frame_BS[seen_BS]
    return replace(
        batch,
        observation={key: values[frame_F] for key, values in batch.observation.items()},
        segment_F=batch.segment_F[frame_F],
        frame_BS=(np.cumsum(seen_BS) - 1).clip(0).reshape(seen_BS.shape),
    )


def film_maps(device: torch.device) -> tuple[list[Row], float]:
    """Measure unet_film's linear map of the context at size `paper`, forward and backward, beside
    `functional.linear` of a slice of its weights. The ratio is that at the longest context."""
    batch, token_size = WINDOWS["state"], policy_config(architecture="unet_film", size="paper").token_size
    conditioning = make_policy("unet_film", "paper", "state", device).denoiser.conditioning
    weight_LR = conditioning.of_context.weight

    def milliseconds(T_o: int, sliced: bool) -> float:
        token_BSE = torch.randn(batch, T_o, token_size, device=device, requires_grad=True)
        context = Context(token_BSE, torch.ones(batch, T_o, dtype=torch.bool, device=device))
        weight_LR.grad = None

        def call() -> None:
            if sliced:
                all_BL = functional.linear(token_BSE.flatten(1), weight_LR[:, -T_o * token_size :])
            else:
                all_BL = conditioning.map_context(context)
            all_BL.sum().backward()
            weight_LR.grad[0, 0].item()  # waits for a GPU

        return 1000 * seconds(call)

    rows = []
    for T_o in (LENGTHS[-2], LONGEST):
        sides = {side: partial(milliseconds, T_o, side == "a slice") for side in ("as it is", "a slice")}
        samples = interleaved(sides, rounds=7)
        case = f"unet_film, paper, batch {batch}, T_o {T_o} of {LONGEST}"
        rows += [Row("film_map", f"{case}, {side}", "ms", times) for side, times in samples.items()]
    return rows, ratio(samples["as it is"], samples["a slice"])


# Memory


def memories(device: torch.device, quick: bool) -> list[Row]:
    """Measure the memory of training at growing context lengths, weights and optimizer included."""
    rows = []
    for kind, T_o in product(SPECS, MEASURED[:1] if quick else MEASURED):
        # Each length gets a new process. In an old one, memory freed earlier is reused without being counted.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            peak = process.submit(training_memory, kind, T_o, device).result()
        case = f"{MAIN}, tiny, {kind}, batch {WINDOWS[kind]}, T_o {T_o}"
        rows.append(Row("training_memory", case, "MiB", [peak]))
    return rows


def training_memory(kind: str, T_o: int, device: torch.device) -> float:
    """Return the MiB that training takes; without a GPU, the MiB by which the process grows."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    policy = policy_config(architecture=MAIN, context_length=T_o)
    config = LearnerConfig(policy, batch_size=WINDOWS[kind])
    training = Training(config, kind, T_o, device, episode_steps=4 * MEASURED[-1])
    if device.type == "cuda":
        return training.memory()
    for _ in range(2):
        training.rate()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """Return this process' memory in MiB: `VmRSS` is what it holds now, `VmHWM` the most it ever held."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


# Sizes


def sizes(device: torch.device) -> list[Row]:
    """Measure each size on this machine: decisions for one robot, and training.

    On a GPU training is measured in reduced precision and compiled as well.
    """
    plain = LearnerConfig(batch_size=WINDOWS["images"])
    reduced = replace(plain, precision="bfloat16")
    variants = (plain, reduced, replace(reduced, compile=True)) if device.type == "cuda" else (plain,)
    rows = []
    for kind, size in product(SPECS, SHARED):
        acting = Acting(make_policy(MAIN, size, kind, device), robots=1)
        times = [acting.decide(LONGEST) for _ in range(7)]
        rows.append(Row("size_decision", f"{MAIN}, {size}, {kind}, batch 1, T_o {LONGEST}", "ms", times))
        for variant in variants:
            rows += size_training(
                replace(variant, policy=policy_config(architecture=MAIN, size=size)), kind, device
            )
    return rows


def size_training(config: LearnerConfig, kind: str, device: torch.device) -> list[Row]:
    """Measure training at the longest context; on a GPU also its memory and its share of the peak speed."""
    case = f"{MAIN}, {config.policy.size}, {kind}, batch {config.batch_size}, T_o {LONGEST}"
    case += f", {config.precision}{', compiled' if config.compile else ''}"
    training = Training(config, kind, LONGEST, device)
    rates = [training.rate() for _ in range(3)]
    rows = [Row("size_training", case, "windows/s", rates)]
    if device.type == "cuda":
        rows.append(Row("size_memory", case, "MiB", [training.memory()]))
        plain = Training(replace(config, compile=False), kind, LONGEST, device)
        share = 100 * plain.flops() / peak(device, getattr(torch, config.precision))
        rows.append(Row("size_share_of_peak", case, "%", [share * rate for rate in rates]))
    return rows


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix multiplication."""
    matrix = torch.randn(8192, 8192, device=device, dtype=dtype)

    def multiply() -> None:
        (matrix @ matrix)[0, 0].item()  # waits for a GPU

    return 2 * 8192**3 / min(seconds(multiply) for _ in range(9))


# Parts


def make_policy(architecture: str, size: str, kind: str, device: torch.device) -> Policy:
    """Make an untrained policy: its speed does not depend on its weights."""
    return policy_config(architecture=architecture, size=size).make(SPECS[kind]).to(device)


Curves = dict[str, dict[int, float]]
"""Medians by context length, for each case without its context length."""


def curves(rows: list[Row], measure: str) -> Curves:
    """Return the curves of one measure."""
    found: Curves = {}
    for row in rows:
        case, _, length = row.case.rpartition(", T_o ")
        if row.measure == measure and length.isdigit():
            found.setdefault(case, {})[int(length)] = row.value
    return found


def table(rows: list[Row]) -> str:
    """Format everything that is measured over context lengths as Markdown tables."""
    parts = []
    for measure, unit in TABLED.items():
        found = curves(rows, measure)
        lengths = sorted({length for curve in found.values() for length in curve})
        parts.append(f"| {measure.replace('_', ' ')}, {unit} | {' | '.join(f'T_o {n}' for n in lengths)} |")
        parts.append(f"|---|{'---:|' * len(lengths)}")
        for case, curve in found.items():
            shown = (f"{curve[n]:,.{1 if curve[n] < 20 else 0}f}" if n in curve else "" for n in lengths)
            parts.append(f"| {case} | {' | '.join(shown)} |")
        parts.append("")
    return "\n".join(parts)


def plot(rows: list[Row], file: Path) -> None:
    """Plot decisions for one robot and training over context lengths, one line per architecture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels: Any = figure.subplots(2, 2, sharex=True)
    for measure, line in zip(("decision", "training"), panels, strict=True):
        for kind, axes in zip(SPECS, line, strict=True):
            batch = 1 if measure == "decision" else WINDOWS[kind]
            for architecture in architectures("diffusion"):
                curve = curves(rows, measure)[f"{architecture}, small, {kind}, batch {batch}"]
                axes.plot(list(curve), list(curve.values()), marker="o", label=architecture)
            axes.set(title=f"{measure} from {kind}, batch {batch}", ylabel=TABLED[measure])
            axes.set_ylim(0, 1.08 * axes.dataLim.ymax)
            axes.grid(alpha=0.3)
    for axes in panels[1]:
        axes.set_xlabel("context length T_o")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(file, dpi=120)


def recorded(spec: TaskSpec, steps: int) -> dict[str, NDArray[Any]]:
    """Return random observations of consecutive steps, by key."""
    rng = np.random.default_rng(0)
    return {
        key: rng.integers(256, size=(steps, *array.shape), dtype=np.uint8)
        if array.dtype == "uint8"
        else rng.standard_normal((steps, *array.shape), np.float32)
        for key, array in spec.observation.items()
    }


def drawer(spec: TaskSpec, length: int) -> DrawSegments:
    """Return a function that draws segments from one random episode of `length` steps, as a store would."""
    meta = EpisodeMeta("demo.0", spec.name, seed=0, source="demo")
    arrays = {OBSERVATION_PREFIX + key: rows for key, rows in recorded(spec, length).items()}
    arrays[ACTION] = np.random.default_rng(1).uniform(-1, 1, (length, *spec.action.shape)).astype(np.float32)
    arrays[CONTROLLER] = np.full(length, BY_EXPERT)

    def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
        segments = []
        for now in np.random.default_rng(step).integers(length, size=count).tolist():
            start, end = max(0, now - before), now + after + 1
            held = {name: rows[start:end] for name, rows in arrays.items()}
            segments.append(Segment(meta, length, start, now, 1 / length, held))
        return segments

    return draw


if __name__ == "__main__":
    main()
