"""What TaskEnv takes over from a task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from longview.actors.environment import Diverged, TaskEnv
from longview.actors.task import Action, ActionError
from longview.replay.episode import ArraySpec, TaskSpec

SPEC = TaskSpec(
    name="walk",
    observation={
        "place": ArraySpec((2,), low=-9.0, high=9.0),
        "picture": ArraySpec((1, 1, 3), "uint8", 0, 255),
    },
    action=ArraySpec((2,), low=-1.0, high=1.0),
    control_hz=5.0,
    max_steps=4,
    context_lengths=(1,),
    demonstrations=1,
)
RIGHT, STAY = np.array((1, 0), np.float32), np.zeros(2, np.float32)


class Walk(TaskEnv):
    """Go to the right for two steps; up is forbidden, down diverges."""

    seen: Any = None
    """What is observed instead."""
    end = "success"

    def start(self, rng: np.random.Generator) -> None:
        self.place, self.drawn, self.hidden = np.zeros(2), rng.random(), self.memory_rng.random()

    def advance(self, action: Action) -> None:
        self.place += action
        if action[1] < 0:
            raise Diverged("down")

    def observe(self) -> Mapping[str, ArrayLike]:
        return (
            {"place": self.place, "picture": np.zeros((1, 1, 3), np.uint8)}
            if self.seen is None
            else self.seen
        )

    def outcome(self) -> str | None:
        return "wrong" if self.place[1] > 0 else self.end if self.place[0] >= 2 else None


class Drawn(Walk):
    def render(self) -> Any:
        return np.zeros((1, 1, 3), np.uint8)


@pytest.fixture
def walk() -> Walk:
    walk = Walk(SPEC)
    walk.reset(seed=0)
    return walk


def test_an_episode_that_is_decided_terminates(walk: Walk) -> None:
    assert walk.step(RIGHT)[1:] == (0.0, False, False, {})
    assert walk.step(RIGHT)[1:] == (1.0, True, False, {"outcome": "success"})
    walk.reset()
    assert walk.step(RIGHT[::-1])[1:] == (0.0, True, False, {"outcome": "wrong"})


def test_an_episode_that_goes_on_is_cut_off_as_failure(walk: Walk) -> None:
    for _ in range(2):
        ends = [walk.step(STAY)[1:] for _ in range(SPEC.max_steps)]
        assert ends == [(0.0, False, False, {})] * 3 + [(0.0, False, True, {"outcome": "failure"})]
        walk.reset()


def test_a_decision_at_the_time_limit_is_no_failure(walk: Walk) -> None:
    ends = [walk.step(action)[2:] for action in (STAY, STAY, RIGHT, RIGHT)]
    assert ends[-1] == (True, False, {"outcome": "success"})


def test_a_simulator_that_diverges_ends_as_invalid(walk: Walk) -> None:
    assert walk.step(-RIGHT[::-1])[1:] == (0.0, True, False, {"outcome": "invalid"})


def test_a_refused_action_changes_nothing(walk: Walk) -> None:
    with pytest.raises(ActionError, match=r"task walk: action\[0\] must be in \[-1, 1\], not 1.5"):
        walk.step(1.5 * RIGHT)
    assert (walk.steps, walk.place.tolist()) == (0, [0.0, 0.0])


def test_observations_are_copies_in_the_specs_dtypes(walk: Walk) -> None:
    first = walk.reset(seed=0)[0]
    second = walk.step(RIGHT)[0]
    assert (first["place"].tolist(), second["place"].tolist()) == ([0, 0], [1, 0])
    assert (second["place"].dtype, second["picture"].dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("place", np.zeros(3), r"observation place must be float32 \(2,\), not float32 \(3,\)"),
        (
            "picture",
            np.zeros((1, 1, 3)),
            r"observation picture must be uint8 \(1, 1, 3\), not float64 \(1, 1, 3\)",
        ),
        ("place", None, "place is not among what is observed"),
    ],
)
def test_an_observation_that_does_not_fit_the_spec_is_named(
    walk: Walk, key: str, value: Any, message: str
) -> None:
    seen = {**walk.observe(), key: value}
    walk.seen = {name: array for name, array in seen.items() if array is not None}
    with pytest.raises(ValueError, match=f"task walk: {message}"):
        walk.step(STAY)


def test_an_unknown_outcome_is_named(walk: Walk) -> None:
    walk.end = "won"
    walk.step(RIGHT)
    with pytest.raises(ValueError, match=r"task walk: outcome must be one of success, .* not 'won'"):
        walk.step(RIGHT)


def test_what_is_remembered_is_drawn_from_a_stream_of_its_own(walk: Walk) -> None:
    def drawn(**seed: int) -> tuple[float, float]:
        walk.reset(**seed)
        return walk.drawn, walk.hidden

    first, goes_on = drawn(seed=3), drawn()
    assert drawn(seed=3) == first
    assert drawn() == goes_on
    assert len({*first, *goes_on}) == 4


def test_spaces_and_metadata_follow_from_spec_and_class() -> None:
    assert Walk(SPEC).metadata == {"render_modes": [], "render_fps": 5.0}
    assert Drawn(SPEC).metadata["render_modes"] == ["rgb_array"]
    wider = Walk(replace(SPEC, action=ArraySpec((3,), low=-2.0, high=2.0)))
    assert wider.action_space.shape == (3,)
    assert set(wider.observation_space.spaces) == set(SPEC.observation)
