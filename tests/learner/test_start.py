"""Tests of trainings that begin from a trained policy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longview.learner import files
from longview.learner.config import LearnerConfig, PolicyConfig, policy_config
from longview.learner.normalize import Statistics, measure
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import Policy, policy_from_bytes, policy_to_bytes
from longview.learner.start import INPUT, fit_scales, take
from longview.learner.train import train
from longview.replay.episode import ArraySpec, Episode, TaskSpec

MLP = policy_config(architecture="mlp", token_size=8, width=16, depth=1, heads=2)


def made(config: PolicyConfig, spec: TaskSpec, seed: int = 1) -> Policy:
    torch.manual_seed(seed)
    return config.make(spec).eval()


def numbers(low: float, high: float, size: int) -> Statistics:
    """Make the statistics of numbers that lie evenly between two values."""
    low_D, high_D = np.full(size, low, np.float32), np.full(size, high, np.float32)
    return Statistics(low_D, high_D, (low_D + high_D) / 2, (high_D - low_D) / 12**0.5)


@pytest.mark.parametrize("kind", ["mlp", "unet_cross", "unet_film", "dit", "recurrent"])
def test_a_policy_of_the_same_kind_and_task_is_taken_whole(kind: str, policy: DiffusionPolicy) -> None:
    chosen = {"kind": kind} if kind == "recurrent" else {"architecture": kind}
    config = policy_config(**chosen)
    base, new = (made(config, policy.spec, seed) for seed in (1, 2))
    fit = take(new, base)
    assert (fit.left, fit.partly, fit.share) == ((), (), 1.0)
    assert fit.lines == [f"taken: {len(fit.taken)} of {len(fit.taken)} tensors, 100.0% of the parameters"]
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(new.parameters(), base.parameters(), strict=True)
    )


def test_what_does_not_fit_is_named_and_stays_random(policy: DiffusionPolicy) -> None:
    """The new task has one more action, and the new policy is wider."""
    spec = replace(policy.spec, action=ArraySpec((3,), low=-1.0, high=1.0))
    wider = replace(MLP, width=32)
    base, new, fresh = made(MLP, policy.spec), made(wider, spec, seed=2), made(wider, spec, seed=2)
    fit = take(new, base)
    assert "encoder.layers.2.weight" in fit.taken
    assert {"denoiser.actions.weight", "denoiser.blocks.0.layers.1.weight"} <= set(fit.left)
    taken, untouched = dict(base.named_parameters()), dict(fresh.named_parameters())
    for name, parameter in new.named_parameters():
        assert torch.equal(parameter, (untouched if name in fit.left else taken)[name])
    first, left, settings = fit.lines
    assert first.startswith(f"taken: {len(fit.taken)} of {len(fit.taken) + len(fit.left)} tensors, ")
    assert "denoiser.blocks.*" in left
    assert settings == "settings of learner.policy that differ: width 16 there and 32 here"


def test_columns_are_taken_by_the_name_of_the_observation(policy: DiffusionPolicy) -> None:
    """Both tasks observe five numbers, so that the shapes agree although the meaning does not."""
    old = replace(policy.spec, observation={"arm": ArraySpec((2,)), "cube": ArraySpec((3,))})
    spec = replace(policy.spec, observation={"zone": ArraySpec((2,)), "cube": ArraySpec((3,))})
    base, new, fresh = made(MLP, old), made(MLP, spec, seed=2), made(MLP, spec, seed=2)
    fit = take(new, base)
    assert fit.partly == (INPUT,)
    (ours, theirs, before) = (dict(each.named_parameters())[INPUT] for each in (new, base, fresh))
    assert torch.equal(ours[:, :3], theirs[:, 2:]), "the cube comes first here and last there"
    assert torch.equal(ours[:, 3:], before[:, 3:])


def test_networks_of_cameras_are_taken_by_the_name_of_the_camera(looking_spec: TaskSpec) -> None:
    seen = looking_spec.observation
    images = {"right_image": seen["right_image"], "top_image": seen["left_image"]}
    other = replace(looking_spec, observation={"position": seen["position"], **images})
    base, new, fresh = made(MLP, looking_spec), made(MLP, other, seed=2), made(MLP, other, seed=2)
    fit = take(new, base)
    (_, right), (ours, top), (_, untouched) = (each.encoder.cameras for each in (base, new, fresh))
    for name, weights in ours.named_parameters():
        assert torch.equal(weights, dict(right.named_parameters())[name])
    for name, weights in top.named_parameters():
        assert torch.equal(weights, dict(untouched.named_parameters())[name])
    assert {name.split(".")[2] for name in fit.left if name.startswith("encoder.cameras")} == {"1"}


def test_a_policy_of_another_kind_gives_its_encoder(policy: DiffusionPolicy) -> None:
    recurrent = made(policy_config(kind="recurrent", token_size=8, hidden=16), policy.spec)
    fit = take(recurrent, made(MLP, policy.spec))
    assert {name.split(".")[0] for name in fit.taken} == {"encoder"}
    assert {name.split(".")[0] for name in fit.left} == {"cell", "head"}


def test_the_scale_is_kept_where_it_suits_the_new_data(policy: DiffusionPolicy) -> None:
    """Each observation is one way in which new data may differ from old ones."""
    ranges = {
        "a_narrower": ((0.0, 1.0), (0.3, 0.6), True),
        "b_beyond": ((0.0, 1.0), (0.2, 1.4), True),
        "c_far_away": ((0.0, 1.0), (0.2, 1.6), False),
        "d_constant": ((0.0, 1.0), (0.25, 0.25), True),
        "e_other_unit": ((0.0, 1000.0), (0.0, 1.0), False),
        "f_was_constant": ((0.5, 0.5), (0.45, 0.55), False),
    }
    spec = replace(policy.spec, observation={key: ArraySpec((2,)) for key in ranges})
    base, new, plain = (made(MLP, spec) for _ in range(3))
    old, data = (
        {f"observation.{key}": numbers(*pair[which], 2) for key, pair in ranges.items()}
        | {"action": numbers(-1.0, 1.0, 2)}
        for which in (0, 1)
    )
    base.fit(old)
    plain.fit(data)
    anew = fit_scales(new, data, base)
    assert anew == {f"observation.{key}": 2 for key, (_, _, kept) in ranges.items() if not kept}
    for number, (key, ((low, high), (least, most), kept)) in enumerate(ranges.items()):
        place = slice(2 * number, 2 * number + 2)
        wanted = base if kept else plain
        assert torch.equal(new.states.scale[place], wanted.states.scale[place]), key
        assert torch.equal(new.states.centre[place], wanted.states.centre[place]), key
        for value in (least, most, *((low, high) if kept else ())):
            row = torch.full((1, 12), 0.0)
            row[:, place] = value
            normal = new.states(row)[:, place]
            bounds = new.states.low[place], new.states.high[place]
            assert (normal >= bounds[0] - 1e-5).all(), key
            assert (normal <= bounds[1] + 1e-5).all(), key


def test_an_array_that_is_normalised_in_another_way_is_measured_anew(policy: DiffusionPolicy) -> None:
    base, data = (
        made(MLP, policy.spec),
        {"action": numbers(-1, 1, 2), "observation.position": numbers(0, 1, 2)},
    )
    base.fit(data)
    new = made(replace(MLP, normalize={"position": "mean_std"}), policy.spec)
    assert fit_scales(new, data, base) == {"observation.position": 2}


def test_a_training_begins_from_a_policy_and_a_resumed_one_does_not(
    tiny: LearnerConfig, arguments: dict[str, Any], policy: DiffusionPolicy, tmp_path: Path
) -> None:
    file = tmp_path / "base.safetensors"
    file.write_bytes(policy_to_bytes(policy))
    config = replace(tiny, start_from=str(file), learning_rate=1e-9, steps=8, checkpoint_every=4)
    one = tmp_path / "one"
    trained = train(config, **arguments | {"checkpoints": one})
    for ours, theirs in zip(trained.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    about = json.loads((one / files.START).read_text())
    assert about["from"] == str(file)
    assert (about["share"], about["left"], about["scaled_anew"]) == (1.0, [], {})

    file.unlink()
    asked = iter([False, False, False, True])
    file.write_bytes(policy_to_bytes(policy))
    two = tmp_path / "two"
    train(config, **arguments | {"checkpoints": two, "should_stop": lambda: next(asked)})
    file.unlink()
    resumed = train(config, **arguments | {"checkpoints": two})
    assert policy_to_bytes(resumed) == policy_to_bytes(trained)


def test_a_base_that_is_missing_is_said(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere holds no policy"):
        train(replace(tiny, start_from=str(tmp_path / "nowhere")), **arguments)


def test_new_data_of_a_policys_own_task_keep_its_scales(
    policy: DiffusionPolicy, returning: list[Episode]
) -> None:
    few = measure(returning[:2], policy.spec)
    new = policy_from_bytes(policy_to_bytes(policy))
    assert fit_scales(new, few, policy) == {}
    assert torch.equal(new.states.scale, policy.states.scale)
