"""Calls of a robot, checked against the policy's task and brought into its form.

Legend (docs/notation.md): F frames, A action dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from longview.replay.datasets.convert import as_float32, as_rgb, layout_of, picture_shape
from longview.replay.episode import BY_PERSON, OUTCOMES, Array, ArraySpec, TaskSpec
from longview.replay.errors import DatasetError

KEYS: Final = ("frames", "executed", "skipped", "controller", "T_o", "delay", "reset", "outcome")
"""Keys of a call that are no observations."""
MOST_SKIPPED: Final = 1 << 20
"""Most steps without a frame before a call."""
MOST_FRAMES: Final = 1 << 14
"""Most frames of a call: minutes at any control rate."""


class CallError(ValueError):
    """A call that does not fit the policy; the message names what was expected and what came."""


@dataclass(frozen=True)
class Form:
    """What the calls for one policy look like."""

    spec: TaskSpec
    """Task of the policy."""
    longest: int
    """Longest context length of the policy."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of observations in the task, by the robot's names for them; others have the same name."""
    resize: bool = False
    """Whether pictures of another size are resized."""
    max_delay: int = 0
    """Most actions under way that the policy continues."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.names.values()) - self.spec.observation.keys()):
            known = ", ".join(self.spec.observation)
            raise ValueError(f"the policy has no observation {', '.join(unknown)}; it has {known}")
        ours = list(self.names.values())
        if twice := sorted({key for key in ours if ours.count(key) > 1}):
            theirs = ", ".join(name for name, key in self.names.items() if key in twice)
            raise ValueError(f"{theirs} all name {', '.join(twice)}: an observation has one name")
        if len(self.wire_names) < len(self.spec.observation):
            hidden = ", ".join(key for key in self.names if key in self.spec.observation and key not in ours)
            raise ValueError(
                f"{hidden} would name two observations of the policy: map each to a name of its own"
            )
        if taken := sorted(self.wire_names.keys() & set(KEYS)):
            raise ValueError(f"calls use {', '.join(taken)} for something else: rename the observation")

    @property
    def wire_names(self) -> dict[str, str]:
        """Names of all observations in the task, by the names that calls use."""
        renamed = {ours: theirs for theirs, ours in self.names.items()}
        return {renamed.get(key, key): key for key in self.spec.observation}


@dataclass(frozen=True)
class Call:
    """One call of a robot, which asks for actions from its newest frame on."""

    frames: Mapping[str, Array]
    """Newest frames (F, ...) by key, oldest first; the last one is now."""
    count: int
    """Number of new frames, those included that are too old for `frames`."""
    single: bool
    """Whether the call holds the present observation alone, as a plain client's."""
    skipped: int | None
    """Steps without a frame before the first new frame; None where the robot does not say."""
    executed: NDArray[np.float32] | None
    """Actions (n, A) executed since the last call; None where the robot does not say."""
    controller: NDArray[np.uint8] | None
    """Who was in control of each executed action (n,); None: the policy."""
    T_o: int
    """Context length to decide with."""
    delay: int | None
    """Sent actions that are executed from the newest frame on, until the answer comes into force; None where
    the robot does not say."""
    reset: bool
    """Whether an episode begins with the first new frame."""
    outcome: str | None
    """How the episode ended with the newest frame; None while it goes on."""


def read_call(
    message: dict[str, Any], form: Form, newest: int = MOST_FRAMES, most_bytes: int = 64 << 20
) -> Call:
    """Check a decoded message, and bring its arrays into the form that the policy was trained with.

    Args:
        message: what `wire.decode` returned. Keys of no meaning here, such as `prompt`, are left out.
        form: what calls look like.
        newest: number of newest frames to convert. Older ones are only counted.
        most_bytes: most bytes of all converted frames: a message of some bytes can hold pictures of a pixel
            each, which resizing makes large.

    Raises:
        CallError: an observation is missing or does not fit the task, another key has no valid value, or the
            frames are too many or too large.
    """
    single = "frames" not in message
    held = message if single else message["frames"]
    if not isinstance(held, dict):
        raise CallError(f"frames is a map of arrays, not {_shown(held)}")
    names, specs = form.wire_names, form.spec.observation
    given = {name: _given(name, held, specs[key], single=single) for name, key in names.items()}
    counts = {name: len(rows) for name, rows in given.items()}
    if max(counts.values()) > MOST_FRAMES:
        raise CallError(
            f"a call holds at most {MOST_FRAMES} frames, not {max(counts.values())}: send several"
        )
    size = sum(min(counts[name], newest) * specs[key].bytes for name, key in names.items())
    if size > most_bytes:
        raise CallError(
            f"the frames of a call take at most {most_bytes} bytes in the policy's shapes, not {size}: "
            "send several calls"
        )
    frames = {
        key: _frames(name, given[name][-newest:], specs[key], single=single, resize=form.resize)
        for name, key in names.items()
    }
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise CallError(f"frames must hold one frame or more, and every observation in each, not {counts}")
    executed, controller = message.get("executed"), message.get("controller")
    if executed is not None:
        executed = _numbers("executed", executed, (None, *form.spec.action.shape))
    if controller is not None:
        if executed is None:
            raise CallError("controller says who was in control of executed actions: give these as well")
        controller = _controller(controller, len(executed))
    return Call(
        frames=frames,
        count=max(counts.values()),
        single=single,
        skipped=_whole(message, "skipped", 0, MOST_SKIPPED),
        executed=executed,
        controller=controller,
        T_o=_whole(message, "T_o", 1, form.longest) or form.longest,
        delay=_whole(message, "delay", 0, form.max_delay),
        reset=_flag(message),
        outcome=_outcome(message),
    )


def as_first(call: Call) -> Call:
    """Return a call as the first one of an episode that begins with its first frame.

    A robot that does not know of the new episode sends the actions before that frame, too: they are left out.
    """
    executed, controller = call.executed, call.controller
    if executed is not None:
        earlier = max(0, len(executed) - (call.count - 1))
        executed = executed[earlier:]
        controller = None if controller is None else controller[earlier:]
    return replace(call, skipped=0, executed=executed, controller=controller)


def _look_up(held: Mapping[str, Any], name: str) -> Any:
    """Find an observation; `images/front` may also lie in the map `images`. None if it is missing."""
    if name in held:
        return held[name]
    above, _, below = name.partition("/")
    return _look_up(held[above], below) if isinstance(held.get(above), dict) else None


def _given(name: str, held: Mapping[str, Any], spec: ArraySpec, *, single: bool) -> Array:
    """Return an observation as frames (F, ...), as they came."""
    value = _look_up(held, name)
    if value is None:
        came = ", ".join(str(key) for key in held if key not in KEYS) or "none"
        raise CallError(f"observation {name} is missing; the call holds {came:.500}")
    rows = np.asarray(value) if isinstance(value, np.ndarray | bool | int | float) else None
    if rows is None or not (single or rows.ndim):
        raise CallError(f"observation {name} is {_shown(value)}, expected {_expected(spec, single)}")
    return rows[None] if single else rows


def _frames(name: str, rows: Array, spec: ArraySpec, *, single: bool, resize: bool) -> Array:
    """Convert frames (F, ...) of an observation to the form of its spec."""
    expected, came = _expected(spec, single), _shown(rows[0] if single else rows)
    try:
        rows = _pictures(name, rows, spec, resize) if spec.is_image else _values(name, rows, spec)
    except DatasetError as error:
        raise CallError(f"observation {error}; expected {expected}") from None
    if rows.shape[1:] != spec.shape or rows.dtype != spec.dtype:
        raise CallError(f"observation {name} is {came}, expected {expected}")
    return rows


def _expected(spec: ArraySpec, single: bool) -> str:
    return f"{spec.dtype}{list(spec.shape)}" + ("" if single else " for each frame")


def _pictures(name: str, rows: Array, spec: ArraySpec, resize: bool) -> Array:
    """Convert pictures as an import of data does. What has no layout of pictures stays as it is."""
    layout = layout_of(rows.shape[1:], rows.dtype)
    if not layout:
        return rows
    height, width, _ = picture_shape(rows.shape[1:], layout, None)
    if not height or not width:
        raise CallError(f"observation {name} shows pictures without pixels, {list(rows.shape)}")
    same = (height, width) == spec.shape[:2]
    if not same and not resize:
        raise CallError(
            f"observation {name} shows {width}x{height} pixels, expected {spec.shape[1]}x{spec.shape[0]}: "
            "serve with --resize to have pictures resized"
        )
    return as_rgb(name, rows, layout, None if same else (spec.shape[1], spec.shape[0]))


def _values(name: str, rows: Array, spec: ArraySpec) -> Array:
    """Convert numbers to the dtype of the spec."""
    if spec.dtype == "float32":
        return as_float32(name, rows)[0]
    with np.errstate(invalid="ignore"):
        converted = rows.astype(np.uint8)
    if not np.array_equal(converted, rows):
        raise CallError(f"observation {name} holds more than whole numbers of 0 to 255")
    return converted


def _numbers(name: str, value: Any, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Check an array of finite numbers; None stands for any size of an axis."""
    fits = isinstance(value, np.ndarray) and len(value.shape) == len(shape)
    if not fits or any(side not in (None, found) for side, found in zip(shape, value.shape, strict=True)):
        sides = ", ".join("n" if side is None else str(side) for side in shape)
        raise CallError(f"{name} is {_shown(value)}, expected float32[{sides}]")
    try:
        return as_float32(name, value)[0]
    except DatasetError as error:
        raise CallError(str(error)) from None


def _controller(value: Any, count: int) -> NDArray[np.uint8]:
    numbers = _numbers("controller", value, (None,))
    if len(numbers) != count or not np.isin(numbers, range(int(BY_PERSON) + 1)).all():
        raise CallError(
            f"controller says for each of {count} executed actions who was in control: 0 the policy, "
            "1 an expert, 2 a person"
        )
    return numbers.astype(np.uint8)


def _whole(message: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = message.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise CallError(f"{name} is a whole number in {low}..{high}, not {value!r:.40}")
    return value


def _flag(message: Mapping[str, Any]) -> bool:
    value = message.get("reset", False)
    if not isinstance(value, bool):
        raise CallError(f"reset is true or false, not {_shown(value)}")
    return value


def _outcome(message: Mapping[str, Any]) -> str | None:
    value = message.get("outcome")
    if value is None or (isinstance(value, str) and value in OUTCOMES):
        return value
    raise CallError(f"outcome is one of {', '.join(OUTCOMES)}, not {value!r:.40}")


def _shown(value: Any) -> str:
    """Describe a value of a message."""
    return (
        f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    )
