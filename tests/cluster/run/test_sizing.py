"""Settings that are chosen from the data and the machine."""

from dataclasses import replace
from typing import Any

import pytest

from longview.cluster.run.config import ConfigError, described, read_config
from longview.cluster.run.sizing import BATCH, Facts, settings_for
from longview.replay.episode import ArraySpec, TaskSpec

STATE = Facts(control_hz=10, lengths=[120] * 200, cameras=0, step_bytes=40, gpu=False)


def values(facts: Facts, **given: Any) -> dict[str, Any]:
    dotted = {key.replace("__", "."): value for key, value in given.items()}
    return {setting.key: setting.value for setting in settings_for(facts, dotted)}


@pytest.mark.parametrize(
    ("facts", "grid"),
    [
        (STATE, [1, 2, 4, 8, 16, 32]),  # 40 hardly exceeds 32
        (replace(STATE, control_hz=50), [1, 2, 4, 8, 16, 32, 60]),  # half an episode
        (replace(STATE, control_hz=50, lengths=[900] * 9), [1, 2, 4, 8, 16, 32, 64]),
        (replace(STATE, control_hz=50, cameras=2), [1, 2, 4, 8, 16]),
        (replace(STATE, control_hz=50, lengths=[900], cameras=2, gpu=True), [1, 2, 4, 8, 16, 32, 64]),
        (replace(STATE, lengths=[3, 3, 3]), [1]),
    ],
)
def test_the_grid_reaches_as_far_as_episodes_and_machine_allow(facts: Facts, grid: list[int]) -> None:
    chosen = values(facts)
    assert chosen["evaluation.context_lengths"] == grid
    assert chosen["learner.policy.context_length"] == grid[-1]


@pytest.mark.parametrize(("hz", "length", "execute"), [(10, 120, 8), (50, 400, 40), (50, 40, 8), (2, 5, 4)])
def test_a_chunk_lasts_less_than_a_second(hz: float, length: int, execute: int) -> None:
    assert values(replace(STATE, control_hz=hz, lengths=[length] * 9))["learner.policy.execute"] == execute


def test_training_draws_the_data_a_bounded_number_of_times() -> None:
    assert values(replace(STATE, lengths=[120] * 100))["learner.steps"] == round(20 * 12_000 / BATCH, -2)
    assert values(replace(STATE, lengths=[10] * 6))["learner.steps"] == 2_000
    assert values(replace(STATE, lengths=[1000] * 500))["learner.steps"] == 8_000


def test_held_out_episodes_fit_into_memory() -> None:
    assert values(STATE)["learner.validation_episodes"] == 20
    large = replace(STATE, cameras=2, step_bytes=2 * 640 * 480 * 3)
    assert values(large)["learner.validation_episodes"] == 4


def test_what_is_given_is_not_chosen_and_the_rest_fits_it() -> None:
    chosen = values(STATE, learner__steps=40, learner__policy__context_length=12)
    assert "learner.steps" not in chosen
    assert "learner.policy.context_length" not in chosen
    assert chosen["evaluation.context_lengths"] == [1, 2, 4, 8, 12]
    assert chosen["learner.warmup"] < 40
    assert values(STATE, evaluation__context_lengths=[1, 8])["learner.policy.context_length"] == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learner__steps", "many"),
        ("learner__policy__execute", 0),
        ("learner__policy__context_length", True),
        ("evaluation__context_lengths", 8),
        ("evaluation__context_lengths", [0, 4]),
        ("evaluation__context_lengths", [True, 4]),
    ],
)
def test_a_given_value_that_others_follow_from_is_a_number(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.replace("__", ".")):
        values(STATE, **{key: value})


@pytest.mark.parametrize("cameras", [0, 2])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("lengths", [[2] * 5, [120] * 200, [2_000] * 900])
@pytest.mark.parametrize("hz", [1, 10, 30, 200])
def test_every_choice_is_a_valid_config(cameras: int, gpu: bool, lengths: list[int], hz: float) -> None:
    """The policy, its horizon and the training accept what is chosen."""
    pictures = {f"camera_{index}": ArraySpec((96, 96, 3), "uint8", 0, 255) for index in range(cameras)}
    settings = settings_for(Facts(hz, lengths, cameras, 40, gpu), {})
    grid = next(setting.value for setting in settings if setting.key == "evaluation.context_lengths")
    state = {"state": ArraySpec((3,))}
    spec = TaskSpec("arm", state | pictures, ArraySpec((7,)), hz, max(lengths), tuple(grid), len(lengths))
    overrides = [f"{setting.key}={setting.value}" for setting in settings]
    read_config(None, overrides, task="arm", data={"spec": described(spec)})
    assert all(setting.reason for setting in settings)
