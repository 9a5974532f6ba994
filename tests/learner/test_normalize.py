import numpy as np
import pytest
import torch

from actors.task import load_task
from learner.normalize import Normalizer, join, measure, out_of_range
from replay.episode import Episode

SPEC = load_task("return_point").spec


def test_data_spans_minus_one_to_one_and_comes_back(returning: list[Episode]) -> None:
    ranges = measure(iter(returning), SPEC)
    normalizer = Normalizer(2)
    normalizer.fit(ranges["observation.position"])
    positions = np.concatenate([episode.arrays["observation.position"] for episode in returning])
    normal = normalizer(torch.from_numpy(positions))
    torch.testing.assert_close(normal.amin(0), -torch.ones(2))
    torch.testing.assert_close(normal.amax(0), torch.ones(2))
    torch.testing.assert_close(normalizer.invert(normal), torch.from_numpy(positions))


def test_expert_actions_count_as_actions(returning: list[Episode]) -> None:
    first = returning[0]
    wild = np.full_like(first.arrays["action"], 7.0)
    episode = Episode(first.meta, first.outcome, {**first.arrays, "expert_action": wild})
    assert measure([episode], SPEC)["action"][1].tolist() == [7.0, 7.0]


def test_invalid_episodes_do_not_widen_the_ranges(returning: list[Episode]) -> None:
    first = returning[0]
    wild = {name: array + 100 for name, array in first.arrays.items()}
    diverged = Episode(first.meta, "invalid", wild)
    low, high = measure([diverged, first], SPEC)["observation.position"]
    positions = first.arrays["observation.position"]
    assert (low.tolist(), high.tolist()) == (positions.min(axis=0).tolist(), positions.max(axis=0).tolist())
    with pytest.raises(ValueError, match="no episodes"):
        measure([diverged], SPEC)


def test_constant_dimensions_are_centred_and_not_stretched() -> None:
    normalizer = Normalizer(2)
    normalizer.fit((np.array([5.0, 0.0], np.float32), np.array([5.0, 4.0], np.float32)))
    assert normalizer(torch.tensor([[5.0, 1.0], [5.5, 4.0]])).tolist() == [[0.0, -0.5], [0.5, 1.0]]


def test_values_outside_are_counted() -> None:
    assert int(out_of_range(torch.tensor([[-1.0, 1.0], [1.2, -3.0]]))) == 2


def test_ranges_join_in_order() -> None:
    one, two = np.ones(1, np.float32), np.full(2, 2, np.float32)
    low, high = join({"a": (one, two[:1]), "b": (two, two + 1)}, ["b", "a"])
    assert (low.tolist(), high.tolist()) == ([2, 2, 1], [3, 3, 2])


def test_no_episodes_are_an_error() -> None:
    with pytest.raises(ValueError, match="return_point: no episodes"):
        measure([], SPEC)
