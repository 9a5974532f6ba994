from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
import torch

from longview.actors.task import load_task
from longview.learner.config import Normalization
from longview.learner.normalize import Normalizer, Statistics, measure
from longview.replay.episode import Episode, TaskSpec

SPEC = load_task("return_point").spec


def statistics(*columns: tuple[float, float, float, float]) -> Statistics:
    """Make statistics from low, high, mean and std of each dimension."""
    return Statistics(*np.array(columns, np.float32).T)


def test_statistics_are_those_of_all_steps(returning: list[Episode]) -> None:
    measured = measure(returning, SPEC)["observation.position"]
    positions = np.concatenate([episode.arrays["observation.position"] for episode in returning])
    np.testing.assert_array_equal((measured.low, measured.high), (positions.min(0), positions.max(0)))
    np.testing.assert_allclose(measured.mean, positions.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(measured.std, positions.std(0, dtype=np.float64), rtol=1e-6)


def test_statistics_far_from_zero_are_exact(returning: list[Episode]) -> None:
    name = "observation.position"
    far = [replace(each, arrays={**each.arrays, name: each.arrays[name] + 1000}) for each in returning]
    near, measured = measure(returning, SPEC)[name], measure(far, SPEC)[name]
    np.testing.assert_allclose(measured.std, near.std, rtol=1e-3)


def test_episodes_are_read_once(returning: list[Episode]) -> None:
    def once() -> Iterator[Episode]:
        yield from returning

    assert measure(once(), SPEC).keys() == {"observation.position", "action"}


def test_images_are_left_out(looking: list[Episode], looking_spec: TaskSpec) -> None:
    assert measure(looking, looking_spec).keys() == {"observation.position", "action"}


def test_expert_actions_count_as_actions(returning: list[Episode]) -> None:
    first = returning[0]
    right = np.ones_like(first.arrays["action"])
    episode = replace(first, arrays={**first.arrays, "action": 0 * right, "expert_action": right})
    measured = measure([episode], SPEC)["action"]
    assert (measured.low.tolist(), measured.high.tolist()) == ([0, 0], [1, 1])
    assert measured.mean.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["action", "expert_action"])
def test_an_action_out_of_the_tasks_range_is_refused(returning: list[Episode], name: str) -> None:
    first = returning[0]
    wild = first.arrays[name].copy()
    wild[3, 1] = -1.25
    episode = replace(first, arrays={**first.arrays, name: wild})
    with pytest.raises(
        ValueError, match=rf"demo\.return_point\.0: {name} holds -1\.25, outside .* \[-1, 1\]"
    ):
        measure([*returning[1:], episode], SPEC)


def test_invalid_episodes_do_not_widen_the_range(returning: list[Episode]) -> None:
    first = returning[0]
    wild = {name: array + 100 for name, array in first.arrays.items()}
    diverged = Episode(first.meta, "invalid", wild)
    with_it, without = measure([diverged, first], SPEC), measure([first], SPEC)
    for name, measured in without.items():
        np.testing.assert_equal(asdict(with_it[name]), asdict(measured))
    with pytest.raises(ValueError, match="no episodes"):
        measure([diverged], SPEC)


def test_no_episodes_are_an_error() -> None:
    with pytest.raises(ValueError, match="return_point: no episodes"):
        measure([], SPEC)


@pytest.mark.parametrize("kind", get_args(Normalization))
def test_each_kind_brings_the_data_to_its_scale_and_back(
    returning: list[Episode], kind: Normalization
) -> None:
    positions = np.concatenate([episode.arrays["observation.position"] for episode in returning])
    normalizer = Normalizer(2)
    normalizer.fit([(measure(returning, SPEC)["observation.position"], kind)])
    normal = normalizer(torch.from_numpy(positions))
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normalizer.invert(normal), torch.from_numpy(positions))
    match kind:
        case "min_max":
            torch.testing.assert_close(normal.amin(0), -torch.ones(2))
            torch.testing.assert_close(normal.amax(0), torch.ones(2))
        case "mean_std":
            torch.testing.assert_close(normal.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
            torch.testing.assert_close(normal.std(0), torch.ones(2), rtol=0, atol=1e-3)
        case "identity":
            assert torch.equal(normal, torch.from_numpy(positions))
    torch.testing.assert_close(normalizer.low, normal.amin(0).clamp(max=-1))
    torch.testing.assert_close(normalizer.high, normal.amax(0).clamp(min=1))
    assert int(normalizer.out_of_range(normal)) == 0


def test_parts_stand_in_their_order_each_of_its_kind() -> None:
    normalizer = Normalizer(4)
    gripper, quaternion = statistics((0, 4, 3, 0.5)), statistics((-1, 1, 0, 0.7), (0.9, 1, 0.95, 0.1))
    normalizer.fit([(gripper, "mean_std"), (quaternion, "identity"), (gripper, "min_max")])
    assert normalizer(torch.tensor([[4, 0.25, 0.75, 4]])).tolist() == [[2, 0.25, 0.75, 1]]
    assert normalizer.low.tolist() == [-6, -1, -1, -1]
    assert normalizer.high.tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize(("kind", "expected"), [("min_max", 0.5), ("mean_std", 0.5), ("identity", 5.5)])
def test_constant_dimensions_are_not_stretched(kind: Normalization, expected: float) -> None:
    normalizer = Normalizer(1)
    normalizer.fit([(statistics((5, 5, 5, 0)), kind)])
    assert normalizer(torch.tensor([[5.5]])).tolist() == [[expected]]
    assert normalizer.invert(torch.tensor([[expected]])).tolist() == [[5.5]]


def test_values_outside_are_counted() -> None:
    normalizer = Normalizer(2)
    assert int(normalizer.out_of_range(torch.tensor([[-1.0, 1.0], [1.2, -3.0]]))) == 2
    normalizer.fit([(statistics((-4, 2, 0, 1), (-4, 2, 0, 1)), "mean_std")])
    assert int(normalizer.out_of_range(torch.tensor([[-4.0, 2.0], [2.2, -5.0]]))) == 2
