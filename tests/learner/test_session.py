from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longview.learner.config import LearnerConfig, architectures, policy_config
from longview.learner.normalize import Statistics, measure
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.replay.episode import OBSERVATION_PREFIX, ArraySpec, Episode, TaskSpec

Array = NDArray[Any]


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    """Return a generator for each of the slots of one call."""
    return np.random.default_rng(seed).spawn(count)


class Play:
    """Player of recorded episodes that feeds them to a session, some steps at a time, as an actor does."""

    def __init__(self, session: PolicySession, episodes: list[Episode]) -> None:
        self.session, self.episodes = session, episodes
        self.step = [0] * len(episodes)

    def act(
        self,
        slots: list[int],
        counts: list[int],
        fresh: list[bool],
        T_o: int,
        seed: int = 0,
        decided: list[Array] | None = None,
    ) -> Array:
        frames, executed = [], []
        for slot, count, new in zip(slots, counts, fresh, strict=True):
            start = 0 if new else self.step[slot]
            self.step[slot] = start + count
            frames.append(self.frames(slot, start, start + count))
            executed.append(self.episodes[slot].arrays["action"][max(start - 1, 0) : start + count - 1])
        noise = rngs(len(slots), seed)
        return self.session.act(slots, frames, executed, np.array(fresh), T_o, noise, decided=decided)

    def frames(self, slot: int, start: int, end: int) -> dict[str, Array]:
        arrays = self.episodes[slot].arrays
        return {
            name.removeprefix(OBSERVATION_PREFIX): array[start:end]
            for name, array in arrays.items()
            if name.startswith(OBSERVATION_PREFIX)
        }

    def history(self, slot: int) -> dict[str, Array]:
        """Return the frames that a slot has seen so far."""
        return self.frames(slot, 0, self.step[slot])


def samples(
    policy: DiffusionPolicy,
    histories: list[dict[str, Array]],
    T_o: int,
    noise: Array,
    decided: Array | None = None,
) -> Array:
    """Sample straight from the policy: encode every frame of every context, and zeros for missing frames."""
    known = [min(T_o, len(next(iter(history.values())))) for history in histories]
    length = max(known)
    frames = {
        key: np.zeros((len(known), length, *array.shape), array.dtype)
        for key, array in policy.spec.observation.items()
    }
    for row, history in enumerate(histories):
        for key, array in history.items():
            frames[key][row, length - known[row] :] = array[-known[row] :]
    seen_BS = np.arange(-length, 0) >= -np.array(known)[:, None]
    with torch.inference_mode():
        token_FE = policy.tokens({key: array.reshape(-1, *array.shape[2:]) for key, array in frames.items()})
        return policy.denoise(policy.sampling(), token_FE.view(*seen_BS.shape, -1), seen_BS, noise, decided)


def expected(policy: DiffusionPolicy, histories: list[dict[str, Array]], T_o: int, seed: int = 0) -> Array:
    """Decide without a session."""
    horizon = policy.horizon
    noise = np.array([rng.standard_normal((horizon.positions, 2)) for rng in rngs(len(histories), seed)])
    now = slice(horizon.past, horizon.past + horizon.execute)
    clipped: Array = np.clip(samples(policy, histories, T_o, noise)[:, now], -1, 1)
    return clipped


def shaken(policy: DiffusionPolicy) -> DiffusionPolicy:
    """Copy a policy, with other weights, none of them zero, as if it had been trained."""
    other = policy_from_bytes(policy_to_bytes(policy))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return other


@contextmanager
def encoded(policy: DiffusionPolicy) -> Iterator[list[int]]:
    """Record the number of frames in each call of the policy's encoder."""
    counts: list[int] = []
    hook = policy.encoder.register_forward_hook(
        lambda module, arguments, token_FE: counts.append(len(token_FE))
    )
    yield counts
    hook.remove()


def repeated(episode: Episode, times: int) -> Episode:
    return replace(
        episode, arrays={name: np.concatenate((rows,) * times) for name, rows in episode.arrays.items()}
    )


@pytest.fixture
def play(policy: DiffusionPolicy, returning: list[Episode]) -> Play:
    return Play(PolicySession(policy, slots=3), returning[:3])


@pytest.mark.parametrize("architecture", architectures("diffusion"))
@pytest.mark.parametrize("cameras", [False, True])
def test_decisions_are_those_of_encoding_all_that_was_seen(
    policy: DiffusionPolicy,
    returning: list[Episode],
    looking: list[Episode],
    looking_spec: TaskSpec,
    architecture: str,
    cameras: bool,
) -> None:
    """Decisions agree for histories of any length, after resets, and with new weights within an episode."""
    config = policy_config(policy.config, architecture=architecture, context_length=24)
    made = DiffusionPolicy(config, looking_spec if cameras else policy.spec)
    made.fit(measure(looking, made.spec))
    policies = {0: shaken(made), 250: shaken(shaken(made))}
    play = Play(PolicySession(policies[0], slots=3), looking[:3] if cameras else returning[:3])
    for slots, counts, fresh, T_o, new_weights in (
        ([0, 1, 2], [1, 1, 4], [True, True, True], 24, False),
        ([0, 2], [8, 8], [False, False], 24, False),
        ([2, 0, 1], [8, 3, 2], [False, False, True], 8, False),
        ([0, 1, 2], [8, 8, 8], [False, False, False], 1, False),
        ([0, 1, 2], [2, 8, 8], [False, False, False], 24, False),
        ([0, 1], [2, 8], [False, False], 4, True),
        ([1, 2, 0], [1, 1, 1], [False, True, False], 24, False),
        ([2, 0], [8, 8], [False, False], 24, False),
    ):
        if new_weights:
            play.session.load(250, policies[250])
        acting = policies[play.session.version]
        actions = play.act(slots, counts, fresh, T_o)
        histories = [play.history(slot) for slot in slots]
        np.testing.assert_allclose(actions, expected(acting, histories, T_o), rtol=0, atol=1e-5)
        assert np.abs(actions - expected(shaken(acting), histories, T_o)).max() > 1e-2
    assert play.session.version == 250


def test_histories_of_different_length_decide_as_each_alone(play: Play, policy: DiffusionPolicy) -> None:
    play.act([0, 1, 2], [1, 1, 20], [True] * 3, 64)
    actions = play.act([2, 0, 1], [8, 2, 1], [False, False, True], 64)
    for slot, rng, action in zip([2, 0, 1], rngs(3), actions, strict=True):
        noise = rng.standard_normal((1, policy.horizon.positions, 2))
        alone = samples(policy, [play.history(slot)], 64, noise)[0, 2:10].clip(-1, 1)
        np.testing.assert_allclose(action, alone, rtol=0, atol=1e-4)


def test_history_is_as_long_as_the_longest_context(play: Play, policy: DiffusionPolicy) -> None:
    play.episodes = [repeated(episode, 4) for episode in play.episodes]
    with encoded(policy) as counts:
        play.act([0], [1], [True], 64)
        for _ in range(11):
            actions = play.act([0], [8], [False], 64)
        assert counts == [1] + 11 * [8]
        np.testing.assert_allclose(actions, expected(policy, [play.history(0)], 64), rtol=0, atol=1e-5)
        counts.clear()
        actions = play.act([0], [100], [True], 64)
        assert counts == [64], "frames that are older than any context were encoded"
    np.testing.assert_allclose(actions, expected(policy, [play.history(0)], 64), rtol=0, atol=1e-5)


def test_every_frame_is_encoded_once_and_all_slots_together(play: Play, policy: DiffusionPolicy) -> None:
    with encoded(policy) as counts:
        play.act([0, 1, 2], [1, 2, 3], [True] * 3, 1)
        play.act([0, 2], [8, 4], [False] * 2, 64)
        play.act([0, 1], [3, 9], [True, False], 16)
    assert counts == [6, 12, 12]


def test_many_frames_are_encoded_in_pieces(
    play: Play, policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longview.learner.memory.ENCODED_AT_ONCE", 5)
    with encoded(policy) as counts:
        actions = play.act([0, 2], [5, 7], [True] * 2, 64)
    assert counts == [5, 5, 2]
    histories = [play.history(slot) for slot in (0, 2)]
    np.testing.assert_allclose(actions, expected(policy, histories, 64), rtol=0, atol=1e-5)


def test_new_weights_encode_anew_what_is_needed_when_it_is(play: Play, policy: DiffusionPolicy) -> None:
    play.act([0, 1], [20, 30], [True, True], 64)
    newer = shaken(policy)
    with encoded(policy) as old, encoded(newer) as counts:
        play.session.load(250, newer)
        assert counts == []
        play.act([0], [2], [False], 8)
        play.act([0], [2], [False], 16)
        play.act([0], [1], [False], 64)
        play.act([0, 1], [1, 4], [False, False], 6)
        assert counts == [8, 8, 9, 7]
        assert old == []


def test_weights_that_diverged_leave_nothing_behind(play: Play, policy: DiffusionPolicy) -> None:
    broken = shaken(policy)
    with torch.no_grad():
        broken.encoder.layers[0].weight.fill_(float("nan"))
    play.session.load(250, broken)
    assert np.isnan(play.act([0, 1], [20, 20], [True, True], 16)).all()
    play.session.load(251, policy)
    actions = play.act([0, 1], [3, 3], [True, False], 16)
    np.testing.assert_allclose(
        actions, expected(policy, [play.history(0), play.history(1)], 16), rtol=0, atol=1e-5
    )


def test_actions_are_those_of_the_generator_and_within_the_range(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    low, high = np.full(2, -3, np.float32), np.full(2, 3, np.float32)
    policy.actions.fit([(Statistics(low, high, 0 * low, high), "min_max")])
    one, same, other = (
        Play(PolicySession(policy, 1), returning).act([0], [4], [True], 8, seed) for seed in (1, 1, 2)
    )
    assert one.dtype == np.float32
    assert (one == same).all()
    assert (one != other).any()
    assert np.abs(one).max() == 1


def test_without_limits_actions_stay_within_the_measured_range_and_a_margin(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    free = DiffusionPolicy(policy.config, replace(policy.spec, action=ArraySpec((2,))))
    free.load_state_dict(policy.state_dict())
    low, high = np.array([1, 10], np.float32), np.array([3, 30], np.float32)
    free.actions.fit([(Statistics(low, high, low, high), "min_max")])
    np.testing.assert_allclose(free.action_bounds(), ([0.8, 8], [3.2, 32]), rtol=1e-6)
    np.testing.assert_allclose(free.action_bounds(margin=0.0), (low, high), rtol=1e-6)
    back = policy_from_bytes(policy_to_bytes(free))
    np.testing.assert_array_equal(back.action_bounds(), free.action_bounds())
    session, (low_A, high_A) = PolicySession(free, 1), free.action_bounds()
    free.actions.centre += 100  # every sample leaves the range that the session knows
    actions = Play(session, returning).act([0], [4], [True], 8)
    np.testing.assert_array_equal(actions, np.broadcast_to(high_A, actions.shape))
    assert (low_A < high_A).all()


def test_what_does_not_fit_is_refused(play: Play, policy: DiffusionPolicy) -> None:
    frames, act = {"position": np.zeros((3, 2), np.float32)}, play.session.act
    with pytest.raises(ValueError, match=r"T_o must be in 1\.\.64 for this policy, not 65"):
        act([0], [frames], [np.zeros((0, 2), np.float32)], np.array([True]), 65, rngs(1))
    with pytest.raises(ValueError, match="slot 1: 5 executed actions do not fit 3 new frames"):
        act([1], [frames], [np.zeros((5, 2), np.float32)], np.array([False]), 8, rngs(1))
    with pytest.raises(ValueError, match=r"slot 1: executed actions are \[3\], expected \[2\]"):
        act([1], [frames], [np.zeros((3, 3), np.float32)], np.array([False]), 8, rngs(1))
    shorter = DiffusionPolicy(type(policy.config)(context_length=8), policy.spec)
    with pytest.raises(ValueError, match=r"version 7 does not fit the session: .*context=8"):
        play.session.load(7, shorter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": [0, 0]}, r"slots must not be repeated: \[0, 0\]"),
        ({"slots": [0, 3]}, r"slots must be some of 0\.\.2, not \[0, 3\]"),
        ({"slots": [0, -1]}, r"slots must be some of 0\.\.2, not \[0, -1\]"),
        ({"slots": []}, r"slots must be some of 0\.\.2, not \[\]"),
        ({"new_frames": {"position": np.zeros((1, 2), "f4")}}, "new_frames must have an entry .* not a dict"),
        ({"reset": np.array(True)}, r"reset must have an entry for each of 2 slots, not bool\[\]"),
        ({"rngs": np.random.default_rng(0)}, "rngs must have an entry for each of 2 slots, not a Generator"),
        ({"rngs": rngs(1)}, "rngs must have an entry for each of 2 slots, not 1 entries"),
        ({"rngs": [*rngs(1), 0]}, "slot 1: rng is a int, expected a generator"),
        ({"skipped": [1]}, "skipped must have an entry for each of 2 slots, not 1 entries"),
        ({"new_frames": [{"position": [[0.0, 0.0]]}] * 2}, r"slot 0: position is a list, expected float32\["),
        ({"new_frames": [[0.0]] * 2}, "slot 0: new frames are a list, expected arrays by key"),
        ({"new_frames": [{"position": np.array(0, "f4")}] * 2}, r"slot 0: position is float32\[\], expected"),
        ({"executed": [[[0.0, 0.0]]] * 2}, "slot 0: executed actions are a list, expected an array"),
        ({"skipped": [0, -1]}, "slot 1: skipped must be a number of steps, not -1"),
        ({"skipped": [0, 2], "executed": [np.zeros((1, 2), "f4"), np.zeros((1, 2), "f4")]},
         "slot 1: 1 executed actions do not fit 1 new frames after 2 skipped"),
        ({"decided": []}, "decided must have an entry for each of 2 slots, not 0 entries"),
        ({"decided": [np.zeros((0, 2), "f4"), np.zeros(2, "f4")]},
         r"slot 1: decided actions are float32\[2\], expected float32\[n, 2\]"),
        ({"decided": [np.zeros((0, 2), "f4"), np.zeros((1, 2), "f4")]},
         r"slot 1: 1 actions are decided already, .* at most 0 \(learner\.policy\.max_delay\)"),
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_kind_are_refused_and_nothing_remembered(
    play: Play, policy: DiffusionPolicy, change: dict[str, Any], message: str
) -> None:
    play.act([0, 1], [3, 3], [True, True], 8)
    arguments: dict[str, Any] = {
        "slots": [0, 1],
        "new_frames": [{"position": np.ones((1, 2), np.float32)}] * 2,
        "executed": [np.zeros((1, 2), np.float32)] * 2,
        "reset": np.zeros(2, np.bool_),
        "T_o": 8,
        "rngs": rngs(2),
    }
    with pytest.raises(ValueError, match=message):
        play.session.act(**arguments | change)
    actions = play.act([0, 1], [4, 4], [False, False], 8)
    histories = [play.history(0), play.history(1)]
    np.testing.assert_allclose(actions, expected(policy, histories, 8), rtol=0, atol=1e-5)


# Frames that were lost


@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_skipped_steps_are_masked(
    policy: DiffusionPolicy, returning: list[Episode], architecture: str
) -> None:
    """Decisions are those of the policy on a window with the same holes, also with new weights."""
    config = policy_config(policy.config, architecture=architecture, context_length=24)
    made = DiffusionPolicy(config, policy.spec)
    made.fit(measure(returning, made.spec))
    policies = [shaken(made), shaken(shaken(made))]
    rows = repeated(returning[0], 4).arrays
    session, step, seen = PolicySession(policies[0], slots=2), 0, np.zeros(0, np.bool_)
    for skipped, count, T_o, acting in (
        *((2, 3, 24, 0), (0, 8, 24, 0), (5, 1, 24, 0), (1, 2, 8, 0), (0, 2, 4, 1), (7, 1, 24, 1)),
        *((40, 2, 24, 1), (0, 6, 16, 1)),
    ):
        if policies[acting] is not session._policy:
            session.load(acting, policies[acting])
        start, step = step + skipped, step + skipped + count
        seen = np.concatenate((seen, np.zeros(skipped, np.bool_), np.ones(count, np.bool_)))
        frames = {"position": rows["observation.position"][start:step]}
        executed = rows["action"][max(0, start - skipped - 1) : step - 1] if count > 1 else rows["action"][:0]
        fresh = np.array([step == skipped + count])
        (action,) = session.act([1], [frames], [executed], fresh, T_o, rngs(1), skipped=[skipped])
        window = slice(max(0, step - T_o), step)
        with torch.inference_mode():
            token_FE = policies[acting].tokens({"position": rows["observation.position"][window]})
            past_BPA = np.full((1, policies[acting].horizon.past, 2), np.nan, np.float32)
            (whole,) = policies[acting].sample(token_FE[None], seen[None, window], past_BPA, rngs(1))
        np.testing.assert_allclose(action, whole[2:10].clip(-1, 1), rtol=0, atol=1e-5)
    assert seen.sum() == 25


def test_what_was_executed_at_skipped_steps_does_not_count(policy: DiffusionPolicy) -> None:
    policy.config = replace(policy.config, candidates=5)
    frames = {"position": np.zeros((1, 2), np.float32)}

    def act(executed: Array) -> Array:
        session = PolicySession(policy, 1)
        for skipped in (0, 3):
            fresh, told = np.array([skipped == 0]), executed if skipped else executed[:0]
            actions = session.act([0], [frames], [told], fresh, 8, rngs(1), skipped=[skipped])
        return actions

    unknown = act(np.zeros((0, 2), np.float32))
    np.testing.assert_array_equal(act(np.full((4, 2), 0.9, np.float32)), unknown)
    np.testing.assert_array_equal(act(np.full((3, 2), -0.9, np.float32)), unknown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left_image": None}, r"left_image is missing, expected uint8\[4, 40, 44, 3\]"),
        ({"position": np.zeros((4, 3), "f4")}, r"position is float32\[4, 3\], expected float32\[4, 2\]"),
        ({"position": np.zeros((3, 2), "f4")}, r"position is float32\[3, 2\], expected float32\[4, 2\]"),
        ({"position": np.zeros((4, 2))}, r"position is float64\[4, 2\], expected float32\[4, 2\]"),
        ({"right_image": np.zeros((4, 40, 44, 3), "f4")}, r"right_image is float32.*, expected uint8"),
        ({"position": np.array([[0, 0], [0, 0], [0, np.nan], [0, 0]], "f4")},
         r"position is not finite in new frame 2 of 4"),
    ],
)  # fmt: skip
def test_a_frame_that_is_not_as_the_task_says_is_refused_and_nothing_remembered(
    policy: DiffusionPolicy,
    looking: list[Episode],
    looking_spec: TaskSpec,
    change: dict[str, Array | None],
    message: str,
) -> None:
    seeing = DiffusionPolicy(replace(policy.config, context_length=8), looking_spec)
    seeing.fit(measure(looking, looking_spec))
    play = Play(PolicySession(seeing, slots=2), looking[:2])
    play.act([0, 1], [3, 3], [True, True], 8)
    good = [play.frames(slot, 3, 7) for slot in (0, 1)]
    bad = {key: array for key, array in {**good[1], **change}.items() if array is not None}
    executed = [episode.arrays["action"][2:6] for episode in play.episodes]
    with pytest.raises(ValueError, match=f"^slot 1: {message}"):
        play.session.act([0, 1], [good[0], bad], executed, np.zeros(2, np.bool_), 8, rngs(2))
    actions = play.act([0, 1], [4, 4], [False, False], 8)
    histories = [play.history(0), play.history(1)]
    np.testing.assert_allclose(actions, expected(seeing, histories, 8), rtol=0, atol=1e-5)


# Actions that are decided already


def test_decided_actions_are_continued(policy: DiffusionPolicy, returning: list[Episode]) -> None:
    """Slots of one call may have any numbers of decided actions, right after a reset, too."""
    made = DiffusionPolicy(policy_config(policy.config, max_delay=4), policy.spec)
    made.fit(measure(returning, made.spec))
    made = shaken(made)
    play, rng = Play(PolicySession(made, slots=3), returning[:3]), np.random.default_rng(0)
    for counts, fresh in (([1, 2, 3], [True] * 3), ([4, 4, 4], [False, True, False])):
        decided = [rng.uniform(-1, 1, (count, 2)).astype(np.float32) for count in (0, 3, 4)]
        actions = play.act([0, 1, 2], counts, fresh, 16, decided=decided)
        known = np.full((3, 2 + 4, 2), np.nan, np.float32)
        for row, ahead in enumerate(decided):
            known[row, 2 : 2 + len(ahead)] = ahead
            assert (actions[row, : len(ahead)] == ahead).all()
        noise = np.array([each.standard_normal((made.horizon.positions, 2)) for each in rngs(3)])
        histories = [play.history(slot) for slot in range(3)]
        held, free = (
            samples(made, histories, 16, noise, told)[:, 2:10].clip(-1, 1) for told in (known, None)
        )
        np.testing.assert_allclose(actions, held, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actions[0], free[0], rtol=0, atol=1e-5)
        assert np.abs(actions[1:, 4:] - free[1:, 4:]).max() > 1e-3


# Self-verification


@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_samples_of_one_context_are_those_of_a_context_each(
    policy: DiffusionPolicy, returning: list[Episode], architecture: str
) -> None:
    made = DiffusionPolicy(policy_config(policy.config, architecture=architecture), policy.spec)
    made = shaken(made)
    token_BSE = torch.randn(3, 12, made.config.token_size, generator=torch.Generator().manual_seed(0))
    seen_BS = np.arange(12) >= np.array([[0], [11], [5]])
    noise_RTA = np.random.default_rng(0).standard_normal((12, made.horizon.positions, 2))
    with torch.inference_mode():
        sampling = made.sampling()
        together = made.denoise(sampling, token_BSE, seen_BS, noise_RTA)
        four_BSE, four_BS = token_BSE.repeat_interleave(4, dim=0), seen_BS.repeat(4, axis=0)
        alone = made.denoise(sampling, four_BSE, four_BS, noise_RTA)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[4]).max() > 1e-2


@pytest.mark.parametrize(("T_o", "past"), [(16, 2), (2, 1), (1, 0)])
def test_the_candidate_whose_past_is_closest_to_the_executed_actions_is_chosen(
    tiny: LearnerConfig, arguments: dict[str, Any], returning: list[Episode], T_o: int, past: int
) -> None:
    config = replace(tiny, policy=replace(tiny.policy, candidates=5))
    policy = train(config, **arguments)
    rows = [episode.arrays[name] for episode in returning for name in ("action", "expert_action")]
    half_range = np.ptp(np.concatenate(rows), axis=0) / 2
    play, chosen = Play(PolicySession(policy, 2), returning[:2]), set()
    for number in range(6):
        actions = play.act([0, 1], [6, 1] if number == 0 else [4, 3], [number == 0] * 2, T_o, seed=number)
        noise = np.concatenate(
            [rng.standard_normal((5, policy.horizon.positions, 2)) for rng in rngs(2, seed=number)]
        )
        histories = [play.history(0), play.history(1)]
        candidates = samples(policy, histories, T_o, noise).reshape(2, 5, -1, 2)
        for slot in (0, 1):
            now, known = play.step[slot] - 1, min(past, play.step[slot] - 1)
            executed = play.episodes[slot].arrays["action"][now - known : now]
            past_actions = candidates[slot, :, 2 - known : 2]
            errors = (((past_actions - executed) / half_range) ** 2).sum(axis=(1, 2))
            closest = errors.argmin()
            np.testing.assert_allclose(actions[slot], candidates[slot, closest, 2:10].clip(-1, 1), atol=1e-5)
            assert np.ptp(errors) > 1e-3 if known else closest == 0
            chosen.add(closest)
    assert chosen > {0} if past else chosen == {0}


def test_one_candidate_is_the_sample_as_it_is(play: Play, policy: DiffusionPolicy) -> None:
    actions = play.act([0, 1], [9, 9], [True, True], 64)
    assert (actions == expected(policy, [play.history(0), play.history(1)], 64)).all()


def test_actions_that_the_caller_does_not_pass_do_not_count(policy: DiffusionPolicy) -> None:
    policy.config = replace(policy.config, candidates=5)
    frames = {"position": np.zeros((3, 2), np.float32)}

    def act(executed: Array) -> Array:
        session = PolicySession(policy, 1)
        return session.act([0], [frames], [executed], np.array([True]), 8, rngs(1))

    noise = rngs(1)[0].standard_normal((5, policy.horizon.positions, 2))
    candidates = samples(policy, [frames] * 5, 8, noise)
    for executed, closest in ((candidates[3, :2], 3), (candidates[4, :2], 4), (candidates[4, :0], 0)):
        np.testing.assert_allclose(act(executed)[0], candidates[closest, 2:10].clip(-1, 1), rtol=0, atol=1e-5)


def test_a_control_shows_the_history_in_reverse_order(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    """What a policy decides is what it would decide after the reversed episode."""
    reversed_play = Play(PolicySession(policy, 3, history="reversed"), returning[:3])
    reversed_play.act([0, 1], [1, 1], [True, True], 8)
    found = reversed_play.act([0, 1], [12, 4], [False, False], 8)
    shown = []
    for slot, length in ((0, 13), (1, 5)):
        first = max(0, length - 8)
        order = [*range(length - 2, first - 1, -1), length - 1]
        shown.append({key: rows[order] for key, rows in reversed_play.history(slot).items()})
    np.testing.assert_allclose(found, expected(policy, shown, 8), rtol=0, atol=1e-5)
