"""Calls: what fits a policy's task, what is converted as an import does it, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from longview.cluster.serving.calls import MOST_FRAMES, CallError, Form, read_call
from longview.replay.datasets.convert import as_rgb
from longview.replay.episode import ArraySpec, TaskSpec

SPEC = TaskSpec(
    name="fold",
    observation={
        "state": ArraySpec((3,)),
        "front": ArraySpec((24, 32, 3), "uint8", 0, 255),
        "gripper": ArraySpec((), "uint8", 0, 1),
    },
    action=ArraySpec((2,)),
    control_hz=30.0,
    max_steps=100,
    context_lengths=(1, 8),
    demonstrations=10,
)
FORM = Form(SPEC, longest=8)
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
PLAIN = {"state": np.zeros(3, np.float32), "front": PICTURE, "gripper": 1}
FRAMES = {
    "state": np.zeros((4, 3), np.float32),
    "front": np.stack([PICTURE] * 4),
    "gripper": np.ones(4, np.uint8),
}


def test_a_plain_observation_is_one_frame() -> None:
    call = read_call(PLAIN | {"prompt": "fold it"}, FORM)
    assert (call.count, call.single, call.T_o, call.reset) == (1, True, 8, False)
    assert (call.skipped, call.executed, call.controller, call.outcome) == (None,) * 4
    for key, spec in SPEC.observation.items():
        assert (call.frames[key].shape, call.frames[key].dtype) == ((1, *spec.shape), spec.dtype)
    np.testing.assert_array_equal(call.frames["front"][0], PICTURE)


def test_all_that_memory_needs_is_read() -> None:
    executed = np.arange(8, dtype=np.float64).reshape(4, 2)
    more = {"executed": executed, "controller": np.array([0, 2, 2, 1]), "skipped": 0}
    call = read_call({"frames": FRAMES, "T_o": 3, "reset": False, "outcome": "success"} | more, FORM)
    assert (call.count, call.single, call.T_o, call.skipped, call.outcome) == (4, False, 3, 0, "success")
    assert call.executed is not None
    assert call.controller is not None
    np.testing.assert_array_equal(call.executed, executed.astype(np.float32))
    assert call.controller.tolist() == [0, 2, 2, 1]


def test_names_are_those_of_the_robot() -> None:
    names = {"observation/state": "state", "images/cam_high": "front"}
    arrays = {
        "observation/state": np.arange(3),
        "images": {"cam_high": PICTURE.transpose(2, 0, 1)},
        "gripper": 0,
    }
    call = read_call(arrays, replace(FORM, names=names))
    assert call.frames["state"].tolist() == [[0, 1, 2]]
    np.testing.assert_array_equal(call.frames["front"][0], PICTURE)
    with pytest.raises(CallError, match="images/cam_high is missing; the call holds state, front, gripper"):
        read_call(PLAIN, replace(FORM, names={"images/cam_high": "front"}))


def test_pictures_are_resized_where_that_is_wanted() -> None:
    large = np.repeat(np.repeat(PICTURE, 2, 0), 2, 1)
    with pytest.raises(CallError, match="shows 64x48 pixels, expected 32x24: serve with --resize"):
        read_call(PLAIN | {"front": large}, FORM)
    call = read_call(PLAIN | {"front": large}, replace(FORM, resize=True))
    np.testing.assert_array_equal(call.frames["front"], as_rgb("", large[None], "HWC", (32, 24)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.zeros(4)}, r"observation state is float64\[4\], expected float32\[3\]"),
        ({"state": np.full(3, np.nan)}, "state holds values that float32 cannot hold"),
        ({"state": np.full(3, 1e300)}, "state holds values that float32 cannot hold"),
        ({"state": [0.0, 0.0, 0.0]}, r"observation state is a list, expected float32\[3\]"),
        ({"state": None}, "observation state is missing"),
        ({"gripper": np.nan}, "gripper holds more than whole numbers of 0 to 255"),
        ({"front": PICTURE / 255}, "front has the shape of pictures, but holds more than whole numbers"),
        ({"front": np.zeros((24, 32))}, r"front is float64\[24, 32\], expected uint8\[24, 32, 3\]"),
        ({"gripper": 0.5}, "gripper holds more than whole numbers of 0 to 255"),
        ({"gripper": -1}, "gripper holds more than whole numbers of 0 to 255"),
        ({"T_o": 9}, r"T_o is a whole number in 1..8, not 9"),
        ({"T_o": 0}, r"T_o is a whole number in 1..8, not 0"),
        ({"T_o": 2.0}, r"T_o is a whole number in 1..8, not 2.0"),
        ({"skipped": -1}, "skipped is a whole number in"),
        ({"skipped": 2**62}, "skipped is a whole number in"),
        ({"reset": 1}, "reset is true or false, not a int"),
        ({"outcome": "fine"}, "outcome is one of success, wrong, failure, invalid, not 'fine'"),
        ({"outcome": np.zeros(2)}, "outcome is one of"),
        ({"executed": np.zeros(2)}, r"executed is float64\[2\], expected float32\[n, 2\]"),
        ({"executed": np.zeros((1, 3))}, r"executed is float64\[1, 3\], expected float32\[n, 2\]"),
        ({"executed": np.full((1, 2), np.inf)}, "executed holds values that float32 cannot hold"),
        ({"executed": "none"}, "executed is a str"),
        ({"controller": np.zeros(1)}, "give these as well"),
        ({"executed": np.zeros((1, 2)), "controller": np.full(1, 3)}, "for each of 1 executed actions"),
        ({"executed": np.zeros((1, 2)), "controller": np.zeros(2)}, "for each of 1 executed actions"),
        ({"frames": PICTURE}, r"frames is a map of arrays, not uint8\[24, 32, 3\]"),
        ({"frames": FRAMES | {"state": np.zeros((3, 3))}}, "not {'state': 3, 'front': 4"),
        ({"frames": {key: rows[:0] for key, rows in FRAMES.items()}}, "one frame or more"),
        ({"frames": FRAMES | {"state": 1.0}}, r"state is a float, expected float32\[3\] for each frame"),
        ({"frames": PLAIN}, r"gripper is a int, expected uint8\[\] for each frame"),
        ({"frames": FRAMES | {"front": np.zeros((4, 0, 9, 3), "u1")}}, "front shows pictures without pixels"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError, match=message):
        read_call(PLAIN | changes, FORM)


def test_frames_that_are_too_old_are_counted_and_not_converted() -> None:
    state = np.arange(12.0).reshape(4, 3)
    state[:2] = np.nan
    call = read_call({"frames": FRAMES | {"state": state}}, FORM, newest=2)
    assert (call.count, {len(rows) for rows in call.frames.values()}) == (4, {2})
    np.testing.assert_array_equal(call.frames["state"], state[2:])
    with pytest.raises(CallError, match=r"not \{'state': 3, 'front': 4"):
        read_call({"frames": FRAMES | {"state": state[1:]}}, FORM, newest=2)


def test_a_call_of_too_many_or_too_large_frames_is_refused_before_it_is_converted() -> None:
    small = {"state": np.full((3000, 3), np.nan), "front": np.zeros((3000, 1, 1, 3), np.uint8)}
    frames = small | {"gripper": np.zeros(3000)}
    large = r"take at most 1000000 bytes in the policy's shapes, not 6951000: send several calls"
    with pytest.raises(CallError, match=large):
        read_call({"frames": frames}, replace(FORM, resize=True), most_bytes=1_000_000)
    frames = FRAMES | {"gripper": np.zeros(MOST_FRAMES + 1)}
    with pytest.raises(CallError, match="a call holds at most 16384 frames, not 16385: send several"):
        read_call({"frames": frames}, FORM)


@pytest.mark.parametrize("key", SPEC.observation)
def test_a_missing_observation_is_named(key: str) -> None:
    held = {name: value for name, value in PLAIN.items() if name != key}
    with pytest.raises(CallError, match=f"observation {key} is missing; the call holds {', '.join(held)}"):
        read_call(held | {"reset": True}, FORM)


def test_names_that_mean_nothing_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="the policy has no observation sate; it has state, front, gripper"):
        Form(SPEC, 8, {"observation/state": "sate"})
    with pytest.raises(ValueError, match="front would name two observations of the policy: map each"):
        Form(SPEC, 8, {"front": "state"})
    with pytest.raises(ValueError, match="a, b all name state: an observation has one name"):
        Form(SPEC, 8, {"a": "state", "b": "state"})
    swapped = Form(SPEC, 8, {"front": "state", "state": "front"})
    assert swapped.wire_names == {"front": "state", "state": "front", "gripper": "gripper"}
    with pytest.raises(ValueError, match="calls use reset for something else"):
        Form(SPEC, 8, {"reset": "gripper"})
