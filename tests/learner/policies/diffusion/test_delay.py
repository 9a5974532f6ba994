"""Decisions that continue actions which are decided already: training with them, and acting."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from longview.learner.config import CurriculumConfig, LearnerConfig, architectures, policy_config
from longview.learner.normalize import measure
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.learner.windows import Batch, build
from longview.replay.episode import (
    ACTION,
    BY_EXPERT,
    CONTROLLER,
    OBSERVATION_PREFIX,
    REWARD,
    ArraySpec,
    Episode,
    EpisodeMeta,
    Segment,
    TaskSpec,
)

Cut = Callable[[Episode, int, int, int], Segment]
Array = NDArray[Any]

PAST, MAX_DELAY = 2, 4
NOWS = (0, 20, 12)
CONTEXT = 6


@pytest.fixture(params=architectures("diffusion"))
def delayed(request: pytest.FixtureRequest, policy: DiffusionPolicy, returning: list[Episode]) -> Any:
    """Return a policy that continues what is decided, as if it had been trained: no parameter is zero."""
    torch.manual_seed(0)
    config = policy_config(policy.config, architecture=request.param, max_delay=MAX_DELAY, candidates=3)
    made = DiffusionPolicy(config, policy.spec)
    made.fit(measure(returning, made.spec))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


@pytest.fixture
def batch(policy: DiffusionPolicy, returning: list[Episode], cut: Cut) -> Batch:
    segments = [cut(returning[0], now, CONTEXT - 1, policy.horizon.after) for now in NOWS]
    return build(segments, policy.spec, policy.horizon, CONTEXT, np.array([[now] for now in NOWS]))


@contextmanager
def shown(policy: DiffusionPolicy) -> Iterator[list[Tensor]]:
    """Record the inputs of a policy's denoiser in training."""
    inputs: list[Tensor] = []
    hook = policy.denoiser.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    yield inputs
    hook.remove()


def known(count_B: list[int], positions: int) -> Array:
    """Return the mask (B, T) of the first positions from now on."""
    ahead_T = np.arange(positions) - PAST
    return (ahead_T >= 0) & (ahead_T < np.array(count_B)[:, None])


def test_without_delay_the_network_is_the_same(policy: DiffusionPolicy) -> None:
    for name in architectures("diffusion"):
        without, with_delay = (
            DiffusionPolicy(policy_config(policy.config, architecture=name, max_delay=most), policy.spec)
            for most in (0, MAX_DELAY)
        )
        assert without.horizon == policy.horizon
        shapes, others = (
            {key: tensor.shape for key, tensor in each.state_dict().items()} for each in (without, with_delay)
        )
        assert shapes.keys() == others.keys()
        assert 1 <= sum(shapes[key] != others[key] for key in shapes) <= 2, "only the input is wider"


def test_known_actions_enter_without_noise_and_marked(delayed: DiffusionPolicy, batch: Batch) -> None:
    noise_BTA = torch.randn(batch.action_BTA.shape, generator=torch.Generator().manual_seed(1))
    noise_step_B, token_BSE = torch.tensor([19, 19, 19]), delayed.batch_tokens(batch, torch.Generator())
    with shown(delayed) as inputs:
        errors = [
            delayed.denoising_error(batch, token_BSE, noise_BTA, noise_step_B, torch.tensor(counts))
            for counts in ([0, 2, 4], [0, 0, 0])
        ]
    known_BT = known([0, 2, 4], delayed.horizon.positions)
    clean_BTA = delayed.actions(torch.from_numpy(batch.action_BTA))
    noisy_BTC, plain_BTC = inputs
    assert (noisy_BTC[..., -1].numpy() == known_BT).all()
    assert not plain_BTC[..., -1].any()
    assert torch.equal(noisy_BTC[..., :-1][known_BT], clean_BTA[known_BT])
    assert torch.equal(noisy_BTC[..., :-1][~known_BT], plain_BTC[..., :-1][~known_BT])
    assert (plain_BTC[..., :-1][known_BT] - clean_BTA[known_BT]).abs().max() > 0.5
    # What is known is no target, and everything else still is.
    assert ((errors[0] > 0).numpy() == batch.target_BT & ~known_BT).all()
    assert ((errors[1] > 0).numpy() == batch.target_BT).all()


def test_known_actions_give_no_gradient(delayed: DiffusionPolicy, batch: Batch) -> None:
    """The gradient of the network's output is zero at known positions alone."""
    outputs: list[Tensor] = []
    hook = delayed.denoiser.register_forward_hook(lambda module, given, made: outputs.append(made))
    noise_BTA = torch.randn(batch.action_BTA.shape, generator=torch.Generator().manual_seed(1))
    token_BSE = delayed.batch_tokens(batch, torch.Generator())
    error_BT = delayed.denoising_error(
        batch, token_BSE, noise_BTA, torch.tensor([5, 9, 13]), torch.tensor([1, 4, 2])
    )
    hook.remove()
    (gradient_BTA,) = torch.autograd.grad(error_BT.sum(), outputs)
    reached_BT = gradient_BTA.abs().sum(dim=2).numpy() > 0
    assert (reached_BT == batch.target_BT & ~known([1, 4, 2], delayed.horizon.positions)).all()


def test_every_delay_is_drawn_in_training_and_none_in_validation(
    delayed: DiffusionPolicy, batch: Batch
) -> None:
    generator = torch.Generator().manual_seed(0)
    with shown(delayed) as inputs:
        for _ in range(12):
            delayed.train().error(batch, generator)
        delayed.eval().error(batch, generator)
    counts = [int(count) for shown_BTC in inputs for count in shown_BTC[..., -1].sum(dim=1)]
    assert set(counts[:-3]) == set(range(MAX_DELAY + 1))
    assert counts[-3:] == [0, 0, 0]


def sampled(policy: DiffusionPolicy, known_BTA: Array, count: int = 3) -> Array:
    token_BSE = torch.randn(count, 5, policy.config.token_size, generator=torch.Generator().manual_seed(0))
    rngs = np.random.default_rng(0).spawn(count)
    with torch.inference_mode():
        return policy.sample(token_BSE, np.ones((count, 5), np.bool_), known_BTA, rngs)


def test_decided_actions_come_back_exactly_and_change_the_others(delayed: DiffusionPolicy) -> None:
    """Robots of one batch may have any numbers of decided actions. The past is denoised as ever."""
    rng, past_BTA = np.random.default_rng(1), np.full((3, PAST, 2), np.nan, np.float32)
    decided_BTA = rng.uniform(-1, 1, (3, MAX_DELAY, 2)).astype(np.float32)
    decided_BTA[0], decided_BTA[1, 3:] = np.nan, np.nan
    free, held = sampled(delayed, past_BTA), sampled(delayed, np.concatenate((past_BTA, decided_BTA), axis=1))
    given_BTA = ~np.isnan(decided_BTA)
    assert (held[:, PAST : PAST + MAX_DELAY][given_BTA] == decided_BTA[given_BTA]).all()
    np.testing.assert_allclose(held[0], free[0], rtol=0, atol=1e-5)
    for row, count in ((1, 3), (2, 4)):
        assert np.abs(held[row, PAST + count :] - free[row, PAST + count :]).max() > 1e-3
        assert np.abs(held[row, :PAST] - free[row, :PAST]).max() > 1e-4


SIDES = TaskSpec(
    name="sides",
    observation={"nothing": ArraySpec((1,), low=-1.0, high=1.0)},
    action=ArraySpec((1,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=30,
    context_lengths=(1,),
    demonstrations=8,
)
"""Task in which every episode goes to one side, and nothing that is observed tells which."""


def going(side: int, index: int) -> Episode:
    rng, steps = np.random.default_rng(index), 30
    arrays = {
        OBSERVATION_PREFIX + "nothing": rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        ACTION: (side * rng.uniform(0.5, 0.7, (steps, 1))).astype(np.float32),
        REWARD: np.zeros(steps, np.float32),
        CONTROLLER: np.full(steps, BY_EXPERT, np.uint8),
    }
    return Episode(EpisodeMeta(f"demo.sides.{index}", "sides", index, "demo"), "success", arrays)


@pytest.mark.parametrize(
    ("architecture", "steps", "max_delay"),
    [
        ("mlp", 100, 0),
        ("mlp", 100, 2),
        *(pytest.param(name, 500, 2, marks=pytest.mark.slow) for name in ("dit", "unet_cross", "unet_film")),
    ],
)
def test_a_trained_policy_agrees_with_what_is_decided(
    tiny: LearnerConfig, tmp_path: Path, drawer: Any, architecture: str, steps: int, max_delay: int
) -> None:
    """Decided actions tell the side. A policy that is not told of them takes either side."""
    episodes = [going(side, 2 * index + (side > 0)) for index in range(8) for side in (-1, 1)]
    config = policy_config(
        architecture=architecture, token_size=16, future_actions=6, execute=4, past_actions=0,
        context_length=1, max_delay=max_delay, diffusion_steps=20,
    )  # fmt: skip
    training = replace(
        tiny, policy=config, steps=steps, warmup=10, batch_size=16, curriculum=CurriculumConfig("fixed"),
        learning_rate=3e-3, publish_every=steps, checkpoint_every=steps, validation_episodes=0,
    )  # fmt: skip
    policy = train(
        training, SIDES, seed=0, draw=drawer(episodes, 0), statistics=lambda: measure(episodes, SIDES),
        publish=lambda *_: None, report=lambda _: None, should_stop=lambda: False, checkpoints=tmp_path,
    )  # fmt: skip
    robots, rng = 40, np.random.default_rng(3)
    side_B = np.where(np.arange(robots) < robots // 2, -1, 1)
    count_B = 1 + np.arange(robots) % 2
    decided = [
        np.full((count, 1), 0.6 * side, np.float32) for side, count in zip(side_B, count_B, strict=True)
    ]
    session = PolicySession(policy, robots)
    actions = session.act(
        range(robots),
        [{"nothing": rng.uniform(-1, 1, (1, 1)).astype(np.float32)} for _ in range(robots)],
        [np.empty((0, 1), np.float32)] * robots,
        np.ones(robots, np.bool_),
        1,
        rng.spawn(robots),
        decided=decided if max_delay else None,
    )
    agree_B = (np.sign(actions[:, 2:, 0]) == side_B[:, None]).all(axis=1)
    if max_delay:
        assert all((row[: len(ahead)] == ahead).all() for row, ahead in zip(actions, decided, strict=True))
        assert agree_B.mean() >= 0.95
    else:
        assert 0.2 < agree_B.mean() < 0.8
