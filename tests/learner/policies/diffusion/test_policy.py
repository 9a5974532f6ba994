from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from longview.learner.config import architectures, policy_config
from longview.learner.normalize import Statistics, measure
from longview.learner.policies.diffusion.config import Prediction
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import mean_loss, policy_from_bytes, policy_to_bytes
from longview.learner.windows import Batch, build, margin, nows
from longview.replay.episode import ArraySpec, Episode, Segment, TaskSpec

Cut = Callable[[Episode, int, int, int], Segment]


@pytest.fixture
def batch(policy: DiffusionPolicy, returning: list[Episode], cut: Cut) -> Batch:
    """Return windows of T_o = 6 from the start, the middle and the end of an episode."""
    return windows(policy, returning[0], cut, (0, 20, returning[0].length - 1), 6)


def windows(
    policy: DiffusionPolicy, episode: Episode, cut: Cut, nows: tuple[int, ...], context_length: int
) -> Batch:
    """Cut one window at each step of `nows`."""
    segments = [cut(episode, now, context_length - 1, policy.horizon.after) for now in nows]
    return build(segments, policy.spec, policy.horizon, context_length, np.array([[now] for now in nows]))


@pytest.fixture
def seeing(policy: DiffusionPolicy, looking: list[Episode], looking_spec: TaskSpec) -> DiffusionPolicy:
    """Return an untrained policy with cameras, in evaluation mode."""
    torch.manual_seed(0)
    made = DiffusionPolicy(policy.config, looking_spec)
    made.fit(measure(looking, looking_spec))
    return made.eval()


def draw(policy: DiffusionPolicy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    noise_BTA = torch.randn(batch.action_BTA.shape, generator=generator)
    return noise_BTA, torch.randint(policy.config.diffusion_steps, (batch.size,), generator=generator)


def loss(
    policy: DiffusionPolicy, batch: Batch, noise_BTA: torch.Tensor, noise_step_B: torch.Tensor
) -> torch.Tensor:
    return policy.denoising_error(
        batch, policy.batch_tokens(batch, torch.Generator().manual_seed(0)), noise_BTA, noise_step_B
    )


def act(policy: DiffusionPolicy, batch: Batch, noise: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        token_BSE = policy.tokens(batch.observation)[torch.from_numpy(batch.frame_BS)]
        return policy.denoise(policy.sampling(), token_BSE, batch.seen_BS, noise)


def newest(batch: Batch, context_length: int) -> Batch:
    """Shorten windows to a context length, and keep all frames."""
    target_T = np.arange(batch.target_BT.shape[1]) - 2 > -context_length
    return replace(
        batch,
        frame_BS=batch.frame_BS[:, -context_length:],
        seen_BS=batch.seen_BS[:, -context_length:],
        target_BT=batch.target_BT & target_T,
    )


def one_by_one(batch: Batch) -> Batch:
    """Give each window frames of its own."""
    frame_F = batch.frame_BS.reshape(-1)
    return replace(
        batch,
        observation={key: values[frame_F] for key, values in batch.observation.items()},
        segment_F=batch.segment_F[frame_F],
        frame_BS=np.arange(frame_F.size).reshape(batch.frame_BS.shape),
    )


def test_closed_past_positions_tell_nothing(policy: DiffusionPolicy, batch: Batch) -> None:
    """At T_o = 2 one past action is known. Older actions must not change the loss."""
    short = newest(batch, 2)
    changed = short.action_BTA.copy()
    changed[:, 0] += 0.5
    noise_BTA, noise_step_B = draw(policy, short)
    one, other = (
        loss(policy, each, noise_BTA, noise_step_B) for each in (short, replace(short, action_BTA=changed))
    )
    assert torch.equal(one, other)
    assert policy.open(torch.from_numpy(short.seen_BS))[:, :3, 0].tolist() == [
        [False, False, True],  # the episode begins here, so the action before it is unknown
        [False, True, True],
        [False, True, True],
    ]


def test_loss_is_zero_where_there_is_no_target(policy: DiffusionPolicy, batch: Batch) -> None:
    error_BT = loss(policy, batch, *draw(policy, batch))
    assert (error_BT.shape, error_BT.dtype) == (batch.target_BT.shape, torch.float32)
    assert ((error_BT > 0).numpy() == batch.target_BT).all()
    assert not batch.target_BT.all(axis=1)[[0, 2]].any()
    assert batch.target_BT[1].all()


def test_every_window_weighs_the_same() -> None:
    error_BT = torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 8.0, 0.0]])
    target_BT = torch.tensor([[True, True, True, False], [False, False, True, False]])
    assert float(mean_loss(error_BT, target_BT)) == 5


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_what_is_predicted_is_what_the_config_says(
    policy: DiffusionPolicy, batch: Batch, prediction: Prediction
) -> None:
    """The error of a network that predicts zeros is the squared target."""
    silent = DiffusionPolicy(replace(policy.config, prediction=prediction), policy.spec).eval()
    silent.load_state_dict(policy.state_dict())
    noise_BTA, noise_step_B = draw(silent, batch)
    with torch.no_grad():
        for parameter in silent.denoiser.parameters():
            parameter.zero_()
        error_BT = loss(silent, batch, noise_BTA, noise_step_B)
    clean_BTA = silent.actions(torch.from_numpy(batch.action_BTA))
    wanted_BTA = noise_BTA if prediction == "epsilon" else clean_BTA
    expected = wanted_BTA.square().mean(dim=2) * torch.from_numpy(batch.target_BT)
    torch.testing.assert_close(error_BT, expected)


def test_loss_is_that_of_each_sample_alone(policy: DiffusionPolicy, batch: Batch) -> None:
    noise_BTA, noise_step_B = draw(policy, batch)
    together = loss(policy, batch, noise_BTA, noise_step_B)
    for i in range(batch.size):
        one = slice(i, i + 1)
        alone = replace(
            batch,
            frame_BS=batch.frame_BS[one],
            seen_BS=batch.seen_BS[one],
            action_BTA=batch.action_BTA[one],
            target_BT=batch.target_BT[one],
        )
        torch.testing.assert_close(loss(policy, alone, noise_BTA[one], noise_step_B[one]), together[one])


@pytest.mark.parametrize("crops", ["centred", "random"])
def test_gradients_are_those_of_windows_with_frames_of_their_own(
    seeing: DiffusionPolicy, looking: list[Episode], cut: Cut, crops: str
) -> None:
    context_length, after = 16, seeing.horizon.after
    segments = [
        cut(e, 3 + 8 * i, context_length - 1 + margin(4), after + margin(4)) for i, e in enumerate(looking)
    ]
    now_GJ = nows(segments, 4, np.random.default_rng(0))
    shared = build(segments, seeing.spec, seeing.horizon, context_length, now_GJ)
    alone = one_by_one(shared)
    assert len(shared.segment_F) < 0.5 * len(alone.segment_F)
    noise_BTA, noise_step_B = draw(seeing, shared)
    gradients = []
    for each in (shared, alone):
        seeing.zero_grad()
        torch.manual_seed(0)  # for dropout
        loss(seeing.train(crops == "random"), each, noise_BTA, noise_step_B).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in seeing.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1.0, float(one.abs().max()))


def test_sliced_context_equals_masked_context_with_images(
    seeing: DiffusionPolicy, looking: list[Episode], cut: Cut
) -> None:
    batch = windows(seeing, looking[0], cut, (0, 20), 12)
    short = newest(batch, 3)
    seen_BS = batch.seen_BS & (np.arange(12) >= 9)
    masked = replace(short, frame_BS=batch.frame_BS, seen_BS=seen_BS)
    noise_BTA, noise_step_B = draw(seeing, batch)
    one, other = (loss(seeing, each, noise_BTA, noise_step_B) for each in (short, masked))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    noise = np.random.default_rng(0).standard_normal(batch.action_BTA.shape)
    one, other, longer = (act(seeing, each, noise) for each in (short, masked, batch))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    assert (np.abs(one - longer).max(axis=(1, 2)) > 1e-3).tolist() == [False, True]


def test_samples_are_a_function_of_the_noise(policy: DiffusionPolicy, batch: Batch) -> None:
    noise = np.random.default_rng(0).standard_normal((2, *batch.action_BTA.shape))
    one, again, other = (act(policy, batch, each) for each in (noise[0], noise[0], noise[1]))
    assert one.shape == (3, 16, 2)
    assert one.dtype == np.float32
    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.parametrize("kind", ["min_max", "mean_std"])
def test_samples_stay_within_the_range_of_the_data(
    policy: DiffusionPolicy, returning: list[Episode], batch: Batch, kind: Literal["min_max", "mean_std"]
) -> None:
    # An untrained network predicts actions near zero, but a prediction of the noise leads beyond the range.
    config = replace(policy.config, normalize={"action": kind}, prediction="epsilon")
    other = DiffusionPolicy(config, policy.spec).eval()
    measured = measure(returning, policy.spec)
    other.fit(measured)
    noise = 9 * np.random.default_rng(0).standard_normal(batch.action_BTA.shape)
    actions = act(other, batch, noise)
    low, high = measured["action"].low, measured["action"].high
    assert (actions >= low - 1e-5).all()
    assert (actions <= high + 1e-5).all()
    assert np.isclose(actions, low).any()
    assert np.isclose(actions, high).any()


def test_out_of_range_is_the_share_of_what_was_seen(policy: DiffusionPolicy, batch: Batch) -> None:
    assert policy.out_of_range(batch) == 0
    far = {"position": batch.observation["position"] + np.array([9, 0], np.float32)}
    assert policy.out_of_range(replace(batch, observation=far)) == 0.5


def test_observations_are_joined_in_order_each_of_its_kind(policy: DiffusionPolicy) -> None:
    observation = {
        "hand_quat": ArraySpec((4,)),
        "b": ArraySpec((1,)),
        "grid": ArraySpec((2, 1), "uint8"),
        "a": ArraySpec((1,)),
    }
    config = replace(policy.config, normalize={"b": "mean_std"})
    joint = DiffusionPolicy(config, replace(policy.spec, observation=observation))
    column = np.array([[0, 4, 3, 0.5]] * 4, np.float32).T
    measured = Statistics(*column)
    one = Statistics(*column[:, :1])
    two = Statistics(*column[:, :2])
    joint.fit(
        {
            "action": two,
            "observation.a": one,
            "observation.b": one,
            "observation.grid": two,
            "observation.hand_quat": measured,
        }
    )
    frames = {
        "a": np.full((5, 1), 4, np.float32),
        "b": np.full((5, 1), 4, np.float32),
        "grid": np.full((5, 2, 1), 2, np.uint8),
        "hand_quat": np.full((5, 4), 0.75, np.float32),
    }
    normal_FD = joint.normal_states(frames)
    assert normal_FD.dtype == torch.float32
    assert normal_FD.tolist() == [[1, 2, 0, 0, 0.75, 0.75, 0.75, 0.75]] * 5


def test_cameras_alone_are_enough(
    seeing: DiffusionPolicy, looking: list[Episode], looking_spec: TaskSpec, cut: Cut
) -> None:
    spec = replace(looking_spec, observation={"left_image": looking_spec.observation["left_image"]})
    blind = DiffusionPolicy(seeing.config, spec)
    blind.fit(measure(looking, spec))
    batch = windows(blind, looking[0], cut, (20,), 2)
    assert loss(blind, batch, *draw(blind, batch)).isfinite().all()
    assert blind.out_of_range(batch) == 0


@pytest.mark.parametrize("architecture", architectures("diffusion"))
@pytest.mark.parametrize("cameras", [False, True])
def test_bytes_hold_the_whole_policy(
    policy: DiffusionPolicy,
    looking: list[Episode],
    looking_spec: TaskSpec,
    cut: Cut,
    architecture: str,
    cameras: bool,
) -> None:
    config = policy_config(
        policy.config,
        architecture=architecture,
        past_actions="all",
        context_length=3,
        normalize={"position": "mean_std", "action": "identity"},
        prediction="sample",
        share_cameras=True,
    )
    made = DiffusionPolicy(config, looking_spec if cameras else policy.spec)
    made.fit(measure(looking, made.spec))
    made.eval()
    data = policy_to_bytes(made)
    back = policy_from_bytes(data)
    assert (back.config, back.spec) == (made.config, made.spec)
    batch = windows(made, looking[0], cut, (0, 20), 3)
    noise = np.random.default_rng(0).standard_normal(batch.action_BTA.shape)
    assert (act(made, batch, noise) == act(back, batch, noise)).all()
    assert policy_to_bytes(back) == data
    assert {tensor.dtype for tensor in load(data).values()} == {torch.float32}


@pytest.mark.parametrize(("past", "future"), [(0, 10), (2, 10), ("all", 9)])
def test_any_number_of_past_actions_trains(
    policy: DiffusionPolicy, returning: list[Episode], cut: Cut, past: int | Literal["all"], future: int
) -> None:
    config = replace(policy.config, context_length=8, past_actions=past, future_actions=future)
    other = DiffusionPolicy(config, policy.spec)
    for context_length in (1, 3, 8):
        batch = windows(other, returning[0], cut, (0, 1, 20), context_length)
        assert loss(other, batch, *draw(other, batch)).isfinite().all()
        opened = other.open(torch.from_numpy(batch.seen_BS))[:, :, 0].numpy()
        past_positions = np.arange(other.horizon.positions) < other.horizon.past
        assert (opened[:, past_positions] == batch.target_BT[:, past_positions]).all()
        assert opened[:, ~past_positions].all()
