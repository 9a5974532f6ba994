"""Settings of a training, chosen from the data and the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from longview.cluster.run.config import ConfigError

REACH_SECONDS: Final = 4.0
"""Time that the longest context reaches back, where episodes are long enough."""
LONGEST: Final = {"state": 64, "cameras on a CPU": 16, "cameras on a GPU": 64}
"""Longest context that is chosen, by what an observation costs."""
CHUNK_SECONDS: Final = 0.8
"""Time that the actions of one decision last."""
CHUNK: Final = (4, 48)
"""Fewest and most actions that are executed before the next decision."""
PASSES: Final = 20
"""Times that training draws each step of the data, on average."""
STEPS: Final = {"CPU": (2_000, 8_000), "GPU": (5_000, 50_000)}
"""Fewest and most training steps that are chosen."""
BATCH: Final = 64
"""Windows of a training step."""
HELD_OUT: Final = (2, 32)
"""Fewest and most episodes that are held out; in between a tenth."""
HELD_OUT_BYTES: Final = 1 << 30
"""Bytes of held-out episodes, which stay in memory, where pictures are large."""
FEWEST: Final = 2 * HELD_OUT[0] + 1
"""Fewest episodes to train on: fewer than half of them may be held out."""

FOLLOWED: Final = ("learner.steps", "learner.policy.context_length", "learner.policy.execute")
"""Settings that other ones are chosen to fit."""


@dataclass(frozen=True)
class Facts:
    """Facts about the data and the machine that the settings follow from."""

    control_hz: float
    """Control steps per second."""
    lengths: Sequence[int]
    """Length of each episode, in steps."""
    cameras: int
    """Number of cameras."""
    step_bytes: int
    """Bytes of a step's arrays."""
    gpu: bool
    """Whether training runs on a GPU."""


@dataclass(frozen=True)
class Setting:
    """A setting, with the reason for its value."""

    key: str
    """Dotted key of the config."""
    value: Any
    """Value of the key."""
    reason: str
    """Reason for the value, as the end of a line."""


def settings_for(facts: Facts, given: Mapping[str, Any]) -> list[Setting]:
    """Choose the settings of a training that a person has not given.

    Args:
        facts: the data and the machine.
        given: what the person has set, by dotted key. The other settings are chosen to fit it.

    Returns:
        The chosen settings; none has a given key.

    Raises:
        ConfigError: a given value that others follow from is no whole number above 0.
    """
    for key, value in given.items():
        if key in FOLLOWED and not _is_length(value):
            raise ConfigError(f"{key} must be a whole number above 0, not {value!r}")
    typical, total = int(median(facts.lengths)), sum(facts.lengths)
    device = "GPU" if facts.gpu else "CPU"
    lengths, why = _grid(facts, typical)
    longest = given.get("learner.policy.context_length")
    if longest is not None:
        powers = (1 << power for power in range(longest.bit_length()))
        lengths, why = sorted({*powers, longest}), "powers of two, up to the longest context as given"
    wanted = given.get("evaluation.context_lengths")
    if wanted is not None:
        if not (isinstance(wanted, list) and wanted and all(map(_is_length, wanted))):
            raise ConfigError(f"evaluation.context_lengths must list whole numbers above 0, not {wanted!r}")
        lengths = sorted(set(wanted))
    execute = _chunk(facts, typical)
    execute = given.get("learner.policy.execute", execute)
    past = min(2, max(lengths) - 1)
    future = execute + 2 + -(execute + 2 + past) % 4
    fewest, most = STEPS[device]
    steps = _within(round(PASSES * total / BATCH, -2), fewest, most)
    steps = given.get("learner.steps", steps)
    affordable = HELD_OUT_BYTES * len(facts.lengths) // max(1, total * facts.step_bytes)
    held_out = _within(min(len(facts.lengths) // 10, affordable), *HELD_OUT)
    chosen = [
        Setting("evaluation.context_lengths", lengths, why),
        Setting("learner.policy.context_length", max(lengths), "the longest of these"),
        Setting(
            "learner.policy.execute",
            execute,
            f"{execute / facts.control_hz:.2g} s of actions at {facts.control_hz:g} Hz, and no more than a "
            f"quarter of a typical episode",
        ),
        Setting("learner.policy.future_actions", future, "a few more than are executed"),
        Setting(
            "learner.steps",
            steps,
            f"draws each of {total:,} recorded steps {steps * BATCH / total:.2g} times",
        ),
        Setting("learner.warmup", min(100, steps // 10), "a tenth of the steps, at most 100"),
        Setting("learner.publish_every", max(1, steps // 8), "validates eight times"),
        Setting("learner.checkpoint_every", max(1, min(1_000, steps // 8)), "an interruption costs little"),
        Setting(
            "learner.validation_episodes",
            held_out,
            f"a tenth of {len(facts.lengths):,} episodes, {HELD_OUT[0]} to {HELD_OUT[1]}, at most "
            f"{HELD_OUT_BYTES >> 30} GiB",
        ),
    ]
    if facts.gpu:
        chosen.append(Setting("learner.policy.size", "small", "training runs on a GPU"))
    else:
        chosen += [
            Setting("learner.policy.architecture", "mlp", "it learns fastest on a CPU"),
            Setting("learner.policy.token_size", 64, "enough for such a network"),
        ]
        if facts.cameras:
            chosen += [
                Setting("learner.encoder_steps", steps // 2, "single frames first: a CPU encodes few frames"),
                Setting("learner.policy.camera_stages", 2, "twice as fast on a CPU"),
            ]
    return [setting for setting in chosen if setting.key not in given]


def _is_length(value: Any) -> bool:
    """Tell whether a value is a whole number above 0; for Python, true is one as well."""
    return type(value) is int and value > 0


def _grid(facts: Facts, typical: int) -> tuple[list[int], str]:
    """Choose the T_o grid: powers of two, as far back as is affordable and as most episodes reach."""
    kind = f"cameras on a {'GPU' if facts.gpu else 'CPU'}" if facts.cameras else "state"
    limits = {
        f"{REACH_SECONDS:g} s at {facts.control_hz:g} Hz": round(REACH_SECONDS * facts.control_hz),
        f"half of a typical episode of {typical:,} steps": typical // 2,
        f"the most for {kind}": LONGEST[kind],
    }
    why = min(limits, key=lambda name: limits[name])
    longest = max(1, limits[why])
    powers = [1 << power for power in range(longest.bit_length())]
    # A last length that hardly exceeds the one before would cost a validation and tell nothing.
    if longest >= 1.5 * powers[-1]:
        powers.append(longest)
    return powers, f"powers of two, and the longest is bounded by {why}"


def _chunk(facts: Facts, typical: int) -> int:
    """Choose T_a, the actions of one decision that are executed, a multiple of 4."""
    most = min(CHUNK_SECONDS * facts.control_hz, typical / 4)
    return _within(4 * int(most / 4), *CHUNK)


def _within(value: float, fewest: int, most: int) -> int:
    return int(min(max(value, fewest), most))


def device() -> str:
    """Choose the device for a policy: a GPU, if PyTorch finds one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
