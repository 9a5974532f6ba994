import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from longview.actors.task import load_task
from longview.learner.config import CurriculumConfig, Horizon, LearnerConfig, architectures, policy_config
from longview.learner.policies.diffusion.config import SHARED, UNetConfig
from longview.replay.episode import ArraySpec, Selection

SPEC = load_task("return_point").spec


def test_importing_the_config_loads_no_torch() -> None:
    code = (
        "import sys, longview.learner.config, longview.learner.curriculum; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_horizon_follows_the_task_by_default() -> None:
    assert policy_config().horizon(SPEC) == Horizon(context=64, past=2, future=10, execute=8)
    assert policy_config(context_length=8, past_actions="all", future_actions=9).horizon(SPEC).past == 7
    assert policy_config(context_length=1).horizon(SPEC).past == 0
    assert policy_config(max_delay=3).horizon(SPEC).max_delay == 3


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (policy_config(widths=(8, 8), future_actions=15), ["17", "divisible by 2", "16"]),
        (policy_config(past_actions="all", widths=(8, 8), future_actions=16), ["79", "63", "17"]),
        (policy_config(widths=(8, 8, 8), future_actions=16), ["18", "divisible by 4", "18"]),
    ],
)
def test_positions_that_do_not_fit_the_unet_are_named(config: UNetConfig, values: list[str]) -> None:
    with pytest.raises(ValueError, match="T_p") as caught:
        config.horizon(SPEC)
    assert all(value in str(caught.value) for value in values)


def test_only_the_unets_downsample() -> None:
    assert policy_config(future_actions=15, architecture="dit").horizon(SPEC).positions == 17


def test_a_size_sets_what_is_not_given() -> None:
    """A finished config holds every value: made again from its fields, it is equal."""
    assert policy_config() == policy_config(size="tiny", widths=(32,), camera_width=16)
    paper = policy_config(size="paper", dropout=0.0, heads=2)
    assert (paper.widths, paper.token_size, paper.camera_width) == ((256, 512, 1024), 256, 64)
    assert (paper.dropout, paper.heads) == (0.0, 2)
    assert policy_config(**asdict(paper)) == paper
    assert None not in {**asdict(paper), "context_length": 1}.values()


def test_every_size_fits_every_architecture() -> None:
    for size, architecture in itertools.product(SHARED, architectures("diffusion")):
        config = policy_config(size=size, architecture=architecture)
        assert asdict(config).items() >= config.sizes[size].items()
        config.horizon(SPEC)


def test_normalization_follows_the_names_by_default() -> None:
    keys = {"hand_quat": ArraySpec((4,)), "hand": ArraySpec((3,)), "image": ArraySpec((84, 84, 3), "uint8")}
    spec = replace(SPEC, observation=keys)
    assert policy_config().normalization(spec) == {
        "hand_quat": "identity",
        "hand": "min_max",
        "action": "min_max",
    }
    changed = policy_config(normalize={"hand_quat": "mean_std", "action": "identity"}).normalization(spec)
    assert changed == {"hand_quat": "mean_std", "hand": "min_max", "action": "identity"}
    for key in ("image", "hnd"):
        with pytest.raises(ValueError, match=rf"\['{key}'\] .* which has hand_quat, hand, action"):
            policy_config(normalize={key: "identity"}).normalization(spec)


def test_crops_are_a_share_of_the_images_sides() -> None:
    cameras = {"b": ArraySpec((96, 128, 3), "uint8"), "a": ArraySpec((40, 40, 3), "uint8")}
    spec = replace(SPEC, observation={**SPEC.observation, **cameras})
    assert list(policy_config().crops(spec).items()) == [("a", (36, 36)), ("b", (86, 115))]
    assert policy_config().crops(SPEC) == {}
    with pytest.raises(
        ValueError, match=r"crop 0\.8 leaves 32 x 32 pixels of a, but each side must have at least 33"
    ):
        policy_config(crop=0.8).crops(spec)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (LearnerConfig, {"priority_power": -1.0}, r"priority_power must not be negative: -1\.0"),
        (
            LearnerConfig,
            {"priority_power": 0.6},
            r"0\.6 has no effect with draw_by steps: set draw_by to pri",
        ),
        (policy_config, {"execute": 20, "future_actions": 14}, "execute 20 exceeds future_actions 14"),
        (policy_config, {"widths": (30, 64)}, r"\[30, 64\] must be multiples of groups 8"),
        (policy_config, {"kernel": 4}, "kernel must be odd, not 4"),
        (policy_config, {"sampling_steps": 101}, "sampling_steps 101 exceeds diffusion_steps 100"),
        (policy_config, {"past_actions": "some"}, "past_actions .* not 'some'"),
        (policy_config, {"context_length": 0}, "context_length .* not 0"),
        (policy_config, {"dropout": 1.0}, r"dropout .* not 1\.0"),
        (policy_config, {"size": "huge"}, "size must be one of tiny, small, paper, not 'huge'"),
        (policy_config, {"architecture": "unet"}, "dit, mlp, unet_cross, unet_film, not 'unet'"),
        (policy_config, {"prediction": "v"}, "prediction must be one of epsilon, sample, not 'v'"),
        (
            policy_config,
            {"normalize": {"hand": "max"}},
            r"normalize\.hand must be one of min_max, .* not 'max'",
        ),
        (policy_config, {"heads": 3, "heads_per_key": 2}, "heads 3 must be a multiple of heads_per_key 2"),
        (policy_config, {"architecture": "dit", "token_size": 30}, "token_size 30 must be .* heads 4"),
        (policy_config, {"architecture": "dit", "depth": 0}, "depth must be positive, not 0"),
        (policy_config, {"crop": 1.2}, r"crop must be in \(0, 1\], not 1\.2"),
        (policy_config, {"camera_width": 24}, "camera_width must be a multiple of 16.* not 24"),
        (policy_config, {"candidates": 5, "past_actions": 0}, "candidates 5 .* past_actions must not be 0"),
        (policy_config, {"max_delay": -1}, "max_delay must not be negative: -1"),
        (policy_config, {"max_delay": 5}, "max_delay 5 exceeds half of execute 8: decisions would overlap"),
        (policy_config, {"kind": "recurrent", "max_delay": 2}, "max_delay is unknown to RecurrentConfig"),
        (CurriculumConfig, {"kind": "random"}, "not 'random'"),
        (CurriculumConfig, {"ramp": 0.0}, r"ramp .* not 0\.0"),
        (CurriculumConfig, {"kind": "lengths"}, r"lengths are {} and kind is 'lengths'"),
        (CurriculumConfig, {"kind": "lengths", "lengths": {1: -1, 2: 2}}, "0 or more"),
        (CurriculumConfig, {"kind": "lengths", "lengths": {1: 0}}, "positive sum"),
        (CurriculumConfig, {"kind": "lengths", "lengths": {1: math.inf}}, "positive sum"),
        (CurriculumConfig, {"lengths": {1: 1}}, "kind is 'progressive'.*others none"),
        (LearnerConfig, {"windows_per_segment": 0}, "windows_per_segment must be at least 1, not 0"),
        (LearnerConfig, {"precision": "float16"}, "precision must be float32 or bfloat16, not 'float16'"),
        (LearnerConfig, {"validation_episodes": -1}, "validation_episodes .* -1"),
        (LearnerConfig, {"warmup": 10, "steps": 10}, "warmup 10 .*steps 10"),
        (LearnerConfig, {"mix": {"demos": 1.0}}, r"\['demos'\]"),
        (LearnerConfig, {"mix": {"demo": 0.0}}, r"^mix .*positive sum"),
        (
            LearnerConfig,
            {"outcomes": ("won",)},
            r"^outcomes: \['won'\] cannot be drawn, only success",
        ),
        (LearnerConfig, {"draw_by": "luck"}, r"^draw_by must be one of steps, .* not 'luck'"),
        (LearnerConfig, {"half_life": 0.0}, r"^half_life must be .* not 0\.0"),
        (LearnerConfig, {"batch_size": 0}, "batch_size must be positive, not 0"),
    ],
)
def test_wrong_values_are_named(kind: Callable[..., object], values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**values)


def test_what_to_draw_is_one_value() -> None:
    assert LearnerConfig(outcomes=("success",)).selection("walk") == Selection(
        {"demo": 0.75, "import": 0.75, "human": 0.75, "correction": 0.25, "rollout/success": 0.25},
        "steps",
        1000.0,
        ("success",),
        "walk",
    )
    assert LearnerConfig(draw_by="recency", half_life=50).selection(None).half_life == 50


def test_windows_per_segment_follow_the_cameras() -> None:
    seeing = replace(SPEC, observation={**SPEC.observation, "eye": ArraySpec((84, 84, 3), "uint8")})
    assert (LearnerConfig().windows(SPEC), LearnerConfig().windows(seeing)) == (1, 8)
    assert LearnerConfig(windows_per_segment=4).windows(seeing) == 4
    for spec, config in (
        (seeing, LearnerConfig(batch_size=60)),
        (SPEC, LearnerConfig(batch_size=60, windows_per_segment=8)),
    ):
        with pytest.raises(ValueError, match="batch_size 60 is not a multiple of windows_per_segment 8"):
            config.windows(spec)


def test_ranks_share_out_the_batch_in_whole_segments() -> None:
    assert LearnerConfig(batch_size=48, windows_per_segment=8).windows(SPEC, world=3) == 8
    with pytest.raises(ValueError, match=r"batch_size 64 .* of 3 learner ranks x windows_per_segment 8"):
        LearnerConfig(windows_per_segment=8).windows(SPEC, world=3)
