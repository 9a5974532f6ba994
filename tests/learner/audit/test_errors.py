"""Tests of what the audit's networks see, and of the errors that they make."""

import numpy as np
import pytest
import torch

from longview.learner.audit import errors
from longview.learner.audit.errors import train_auditors
from longview.learner.audit.recordings import Recording, normalised, record, stride_of
from longview.learner.audit.regressor import Regressor
from longview.learner.audit.views import Looks, View
from longview.replay.episode import ArraySpec, Episode, EpisodeMeta, TaskSpec

FRAMES = 20


def network() -> Regressor:
    torch.manual_seed(0)
    return Regressor(3, 2, positions=4, longest=16, time=10.0)


def test_nothing_older_than_the_view_reaches_the_prediction() -> None:
    frame_GSD, action_GSA, now_GJ = torch.randn(1, FRAMES, 3), torch.randn(1, FRAMES, 2), torch.tensor([[15]])
    looks = Looks.through(View(4), now_GJ)
    before = network()(frame_GSD, frame_GSD, action_GSA, looks)
    changed_GSD = frame_GSD.clone()
    changed_GSD[:, :12] += 1  # now 15 and T_o 4 see 12 to 15
    changed_GSD[:, 16:] += 1
    assert torch.equal(network()(changed_GSD, changed_GSD, action_GSA, looks), before)
    changed_GSD[:, 12] += 1
    assert not torch.equal(network()(changed_GSD, changed_GSD, action_GSA, looks), before)


def test_past_actions_alone_hide_the_frames_and_the_present_action() -> None:
    frame_GSD, action_GSA, now_GJ = torch.randn(1, FRAMES, 3), torch.randn(1, FRAMES, 2), torch.tensor([[15]])
    looks = Looks.through(View(4, sees="actions"), now_GJ)
    before = network()(frame_GSD, frame_GSD, action_GSA, looks)
    changed_GSD, changed_GSA = frame_GSD.clone(), action_GSA.clone()
    changed_GSD[:, :15] += 1
    changed_GSA[:, 15:] += 1
    assert torch.equal(network()(changed_GSD, changed_GSD, changed_GSA, looks), before)
    changed_GSA[:, 14] += 1
    assert not torch.equal(network()(changed_GSD, changed_GSD, changed_GSA, looks), before)


def test_time_is_told_only_where_the_view_tells_it() -> None:
    frame_GSD, action_GSA = torch.zeros(1, FRAMES, 3), torch.zeros(1, FRAMES, 2)
    early, late = torch.tensor([[3]]), torch.tensor([[9]])
    for told in (False, True):
        same = [
            network()(frame_GSD, frame_GSD, action_GSA, Looks.through(View(1, time=told), now_GJ))
            for now_GJ in (early, late)
        ]
        assert torch.equal(*same) is not told


@pytest.mark.parametrize(("length", "now", "ages"), [(4, 9, [1, 2, 3]), (9, 3, [1, 2, 3])])
def test_a_reversed_past_swaps_the_ages_of_what_is_seen(length: int, now: int, ages: list[int]) -> None:
    looks = Looks.through(View(length, history="reversed"), torch.tensor([[now]]))
    age_GJS, seen_GJS = looks.ages(FRAMES)
    assert age_GJS[seen_GJS].tolist() == ages  # the oldest frame comes first, and is the youngest
    assert torch.nonzero(seen_GJS[0, 0]).flatten().tolist() == list(range(now - len(ages), now))


def test_long_episodes_are_thinned_and_their_actions_are_not() -> None:
    spec = TaskSpec(
        "drawer",
        {"state": ArraySpec((2,)), "camera": ArraySpec((50, 48, 3), dtype="uint8")},
        ArraySpec((1,)),
        control_hz=30.0,
        max_steps=600,
        context_lengths=(1,),
        demonstrations=2,
    )
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            EpisodeMeta(f"e{number}", "drawer", number, "import"),
            "success",
            {
                "observation.state": rng.normal(size=(600, 2)).astype(np.float32),
                "observation.camera": rng.integers(0, 255, (600, 50, 48, 3)).astype(np.uint8),
                "action": np.arange(600, dtype=np.float32)[:, None],
            },
        )
        for number in range(2)
    ]
    stride = stride_of([600, 600])
    assert stride == 3
    recordings = record(episodes, spec, stride)
    assert recordings[0].frame_SD.shape == (200, 2 + 32)
    assert (recordings[0].frame_SD[:, :2] == episodes[0].arrays["observation.state"][::3]).all()
    made = normalised(recordings, [0], stride, spec.control_hz)
    action_GJTA, exists_GJT = made.targets(torch.tensor([[10, 199], [10, 199]]))
    scale = (action_GJTA[0, 0, 1, 0] - action_GJTA[0, 0, 0, 0]).item()
    assert scale == pytest.approx(3 / np.arange(600).std(), rel=1e-3)  # 0.1 s are three steps
    assert exists_GJT[0, 0].all()
    assert exists_GJT[0, 1].tolist() == [True] + 7 * [False]  # 597, 600, ...


def test_only_episodes_that_are_trained_on_set_the_scale() -> None:
    ones, tens = (
        Recording(
            np.tile(value * np.arange(4, dtype=np.float32)[:, None], (1, 1)), np.zeros((4, 1), np.float32)
        )
        for value in (1, 10)
    )
    made = normalised([ones, tens], [0], 1, 10.0)
    assert made.frame_GSD[0].std(unbiased=False) == pytest.approx(1)
    assert made.frame_GSD[1].abs().max() == 5  # clipped
    assert (made.action_GSA == 0).all()  # a dimension that never changes tells nothing


def remembering(episodes: int, steps: int = 24) -> list[Recording]:
    """Make episodes whose action at the end is what their first frames showed."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(episodes):
        side = rng.choice((-1.0, 1.0))
        frames, actions = rng.normal(size=(steps, 2)) / 10, np.zeros((steps, 1))
        frames[:3, 0], actions[16:, 0] = side, side
        frames[:, 1] = np.arange(steps) / steps
        made.append(Recording(frames.astype(np.float32), actions.astype(np.float32)))
    return made


def test_held_out_errors_fall_where_the_past_tells_the_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every episode is predicted, by a network that has not seen it, and equally for equal seeds."""
    for name, value in {"STEPS": 150, "SEGMENTS": 8, "WINDOWS": 16}.items():
        monkeypatch.setattr(errors, name, value)
    calls = []
    auditors = train_auditors(
        remembering(32), [1, 4, 16, 24], 1, 10.0, seed=0, threads=2, progress=lambda: calls.append(1)
    )
    assert len(calls) == 4 * 150
    assert sorted(np.concatenate([held_out for _, _, held_out in auditors.trained])) == list(range(32))
    short, long = (auditors.errors(View(length))[:, 16] for length in (4, 24))
    assert np.isfinite(short).all()
    assert long.mean() < 0.3 * short.mean()
    other = auditors.errors(View(24, history="other"))[:, 16]
    assert other.mean() > short.mean()
