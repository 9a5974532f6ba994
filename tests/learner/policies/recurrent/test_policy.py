"""Tests of recurrent policies: loss, states, and acting with states."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longview.actors.task import load_task
from longview.learner import memory
from longview.learner.config import LearnerConfig, policy_config
from longview.learner.normalize import measure
from longview.learner.policies.recurrent.policy import MixturePolicy
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.learner.windows import Batch, build
from longview.replay.episode import ACTION, Episode, Segment

Cut = Callable[[Episode, int, int, int], Segment]


def made(returning: list[Episode], **settings: Any) -> MixturePolicy:
    torch.manual_seed(0)
    spec = load_task("return_point").spec
    config = policy_config(kind="recurrent", token_size=8, hidden=12, **settings)
    policy = config.make(spec)
    assert isinstance(policy, MixturePolicy)
    policy.fit(measure(returning, spec))
    return policy.eval()


def rngs(count: int) -> list[np.random.Generator]:
    """Return a generator for each row."""
    return np.random.default_rng(1).spawn(count)


@pytest.fixture(params=["gru", "linear"])
def policy(returning: list[Episode], request: pytest.FixtureRequest) -> MixturePolicy:
    return made(returning, components=4, cell=request.param)


def windows(
    policy: MixturePolicy, episode: Episode, cut: Cut, nows: tuple[int, ...], context_length: int
) -> Batch:
    segments = [cut(episode, now, context_length - 1, policy.horizon.after) for now in nows]
    return build(segments, policy.spec, policy.horizon, context_length, np.array([[now] for now in nows]))


def test_states_skip_what_was_not_seen(policy: MixturePolicy, returning: list[Episode], cut: Cut) -> None:
    """States are the same whether all steps run at once, as in training, or one by one, as in acting."""
    batch = windows(policy, returning[0], cut, (0, 2, 20), 8)
    assert batch.seen_BS.sum(axis=1).tolist() == [1, 3, 8]
    with torch.inference_mode():
        token_BSE = policy.batch_tokens(batch, torch.Generator())
        together = policy.states_after(token_BSE, torch.from_numpy(batch.seen_BS))
        for row, seen in enumerate(batch.seen_BS.sum(axis=1)):
            state_1U = policy.initial_state(1)
            for token_E in token_BSE[row, -seen:]:
                state_1U = policy.advance(state_1U, token_E[None])
            torch.testing.assert_close(together[row], state_1U[0], rtol=0, atol=1e-6)
        one, other = (
            policy.sample(token_BSE, batch.seen_BS, np.zeros((3, 2, 2), np.float32), rngs(3))
            for _ in range(2)
        )
        direct = policy.decide(together, rngs(3))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, direct, rtol=0, atol=1e-5)


def test_steps_that_are_missing_in_between_are_skipped(
    policy: MixturePolicy, returning: list[Episode], cut: Cut
) -> None:
    batch = windows(policy, returning[0], cut, (20, 30), 8)
    seen = batch.seen_BS.copy()
    seen[0, [0, 3, 4]] = seen[1, [6]] = False
    with torch.inference_mode():
        token_BSE = policy.batch_tokens(batch, torch.Generator())
        together = policy.states_after(token_BSE, torch.from_numpy(seen))
        for row in range(2):
            state_1U = policy.initial_state(1)
            for token_E in token_BSE[row, seen[row]]:
                state_1U = policy.advance(state_1U, token_E[None])
            torch.testing.assert_close(together[row], state_1U[0], rtol=0, atol=1e-6)


def test_one_component_is_regression(returning: list[Episode], cut: Cut) -> None:
    policy = made(returning, components=1)
    batch = windows(policy, returning[0], cut, (0, 20, returning[0].length - 1), 8)
    with torch.inference_mode():
        error_BT = policy.error(batch, torch.Generator())
        token_BSE = policy.batch_tokens(batch, torch.Generator())
        state_BU = policy.states_after(token_BSE, torch.from_numpy(batch.seen_BS))
        action_BMTA, _ = policy.mixture(state_BU)
        wanted_BTA = policy.actions(torch.from_numpy(batch.action_BTA))
    expected = (action_BMTA[:, 0] - wanted_BTA).square().mean(dim=2) * torch.from_numpy(batch.target_BT)
    torch.testing.assert_close(error_BT, expected)


def test_the_gradient_is_that_of_the_mixtures_likelihood(
    returning: list[Episode], cut: Cut, policy: MixturePolicy
) -> None:
    batch = windows(policy, returning[0], cut, (0, 20, returning[0].length - 3), 8)
    target_BT, spread = torch.from_numpy(batch.target_BT), policy.config.spread

    def log_likelihood() -> torch.Tensor:
        """Return the log likelihood of each window's targets, up to a constant: (B,)."""
        token_BSE = policy.batch_tokens(batch, torch.Generator())
        action_BMTA, logit_BM = policy.mixture(
            policy.states_after(token_BSE, torch.from_numpy(batch.seen_BS))
        )
        difference_BMTA = action_BMTA - policy.actions(torch.from_numpy(batch.action_BTA)).unsqueeze(1)
        square_BM = (difference_BMTA.square() * target_BT[:, None, :, None]).sum(dim=(2, 3))
        return (logit_BM.log_softmax(dim=1) - square_BM / (2 * spread**2)).logsumexp(dim=1)

    weights = list(policy.parameters())
    ours = torch.autograd.grad(policy.error(batch, torch.Generator()).sum(), weights)
    scale = 2 * spread**2 / policy.action_size
    theirs = torch.autograd.grad(-scale * log_likelihood().sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-5)


def test_a_choice_is_one_components_plan(policy: MixturePolicy) -> None:
    """Actions are never a mean of plans, and each component is chosen about as often as its share."""
    state_BU = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)).repeat(2000, 1)
    with torch.inference_mode():
        action_BMTA, logit_BM = policy.mixture(state_BU[:1])
        chosen = policy.decide(state_BU, rngs(2000))
    bounded = action_BMTA[0].clamp(policy.actions.low, policy.actions.high)
    plans = policy.actions.invert(bounded).numpy()
    distance_BM = np.abs(chosen[:, None] - plans[None]).max(axis=(2, 3))
    assert (distance_BM.min(axis=1) < 1e-5).all()
    share_M = np.bincount(distance_BM.argmin(axis=1), minlength=4) / len(chosen)
    np.testing.assert_allclose(share_M, logit_BM[0].softmax(dim=0).numpy(), atol=0.05)


def test_a_row_depends_on_its_own_generator_alone(policy: MixturePolicy) -> None:
    state_BU = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    order = [7, 2, 5]
    with torch.inference_mode():
        chosen = policy.decide(state_BU, rngs(9))
        some = policy.decide(state_BU[order], [rngs(9)[row] for row in order])
        others = policy.decide(state_BU, rngs(18)[9:])
    np.testing.assert_allclose(some, chosen[order], rtol=0, atol=1e-5)
    assert np.abs(others - chosen).max() > 1e-2


# Acting


def expected(
    policy: MixturePolicy, frames: NDArray[Any], T_o: int, seed: int, seen: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Decide with a state that saw the same steps as a session's oldest chain, without the session."""
    now = len(frames) - 1
    starts = [step for step in range(now + 1) if now - step < T_o and (
        step == 0 or any(step % T_o == chain * T_o // memory.CHAINS for chain in range(memory.CHAINS))
    )]  # fmt: skip
    oldest = starts[0] if starts[0] == 0 or now >= T_o else 0
    with torch.inference_mode():
        token_1SE = policy.tokens({"position": frames[oldest:]})[None]
        seen_1S = np.ones((1, now + 1 - oldest), np.bool_) if seen is None else seen[None, oldest:]
        past = np.zeros((1, 2, 2), np.float32)
        (action_TA,) = policy.sample(token_1SE, seen_1S, past, [np.random.default_rng(seed)])
    return action_TA[policy.horizon.past :][:8].clip(-1, 1)


@pytest.mark.parametrize("T_o", [1, 3, 16, 24, 64])
def test_skipped_steps_advance_no_state(policy: MixturePolicy, returning: list[Episode], T_o: int) -> None:
    frames = np.concatenate([episode.arrays["observation.position"] for episode in returning])
    session, step, seen = PolicySession(policy, 2), 0, np.zeros(0, np.bool_)
    for skipped, count in ((2, 3), (0, 8), (5, 1), (1, 2), (7, 1), (70, 2), (0, 6), (3, 20)):
        start, step = step + skipped, step + skipped + count
        seen = np.concatenate((seen, np.zeros(skipped, np.bool_), np.ones(count, np.bool_)))
        (actions,) = session.act(
            [1],
            [{"position": frames[start:step]}],
            [np.zeros((count - 1, 2), np.float32)],
            np.array([step == skipped + count]),
            T_o,
            [np.random.default_rng(step)],
            skipped=[skipped],
        )
        whole = expected(policy, frames[:step], T_o, step, seen)
        np.testing.assert_allclose(actions, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("T_o", [1, 2, 3, 16, 24, 64])
def test_a_session_decides_by_what_a_state_saw_of_the_last_steps(
    policy: MixturePolicy, returning: list[Episode], T_o: int
) -> None:
    episode, rng = returning[0], np.random.default_rng(0)
    frames, actions = episode.arrays["observation.position"], episode.arrays[ACTION]
    session, step = PolicySession(policy, 2), 0
    while step + 8 < episode.length:
        new = 1 if step == 0 else int(rng.integers(1, 9))
        fresh = np.array([step == 0])
        news, executed = {"position": frames[step : step + new]}, actions[max(step - 1, 0) : step + new - 1]
        (action,) = session.act([1], [news], [executed], fresh, T_o, [np.random.default_rng(step)])
        step += new
        np.testing.assert_allclose(
            action, expected(policy, frames[:step], T_o, step - new), rtol=0, atol=1e-5
        )
    assert step > 30


def test_new_weights_and_another_context_length_begin_from_the_kept_frames(
    policy: MixturePolicy, returning: list[Episode]
) -> None:
    frames, actions = returning[0].arrays["observation.position"], returning[0].arrays[ACTION]
    session = PolicySession(policy, 1)

    def act(start: int, end: int, T_o: int) -> NDArray[np.float32]:
        executed = actions[max(start - 1, 0) : end - 1]
        fresh, rngs = np.array([start == 0]), [np.random.default_rng(end)]
        return session.act([0], [{"position": frames[start:end]}], [executed], fresh, T_o, rngs)[0]

    act(0, 30, 16)
    np.testing.assert_allclose(act(30, 33, 64), expected(policy, frames[:33], 64, 33), rtol=0, atol=1e-5)
    np.testing.assert_allclose(act(33, 36, 8), expected(policy, frames[:36], 8, 36), rtol=0, atol=1e-5)
    other = policy_from_bytes(policy_to_bytes(policy))
    assert isinstance(other, MixturePolicy)
    with torch.no_grad():
        for weights in other.parameters():
            weights.add_(0.1)
    session.load(7, other)
    np.testing.assert_allclose(act(36, 39, 8), expected(other, frames[:39], 8, 39), rtol=0, atol=1e-5)
    assert np.abs(expected(other, frames[:39], 8, 39) - expected(policy, frames[:39], 8, 39)).max() > 1e-3


def test_acting_takes_in_as_many_frames_at_every_context_length(
    policy: MixturePolicy, returning: list[Episode]
) -> None:
    """Every new frame costs the same number of advances at every context length."""
    frames, actions = returning[0].arrays["observation.position"], returning[0].arrays[ACTION]
    advanced: list[int] = []
    hook = policy.cell.register_forward_hook(lambda module, given, made: advanced.append(given[0].shape[0]))
    counts = {}
    for T_o in (8, 16, 64):
        session = PolicySession(policy, 1)
        for start in range(0, 40, 8):
            fresh, executed = np.array([start == 0]), actions[max(start - 1, 0) : start + 7]
            session.act([0], [{"position": frames[start : start + 8]}], [executed], fresh, T_o, rngs(1))
        counts[T_o], advanced[:] = list(advanced), []
    hook.remove()
    assert counts[8] == counts[16] == counts[64] == [memory.CHAINS] * 40


def test_a_resumed_training_ends_bit_for_bit_the_same(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Any
) -> None:
    config = replace(tiny, policy=policy_config(kind="recurrent", token_size=8, hidden=12))
    straight = train(config, **arguments | {"checkpoints": tmp_path / "one"})
    asked = iter(range(100))
    two = arguments | {"checkpoints": tmp_path / "two"}
    train(config, **two | {"should_stop": lambda: next(asked) == 12})
    resumed = train(config, **two)
    assert policy_to_bytes(straight) == policy_to_bytes(resumed)
    assert type(policy_from_bytes(policy_to_bytes(resumed))) is MixturePolicy
