"""Tests of the training loop, among them golden loss curves.

After a change that is meant to alter the curves, this command refreshes them:

LONGVIEW_REFRESH_GOLDEN=1 pytest tests/learner/test_train.py -k golden
"""

import itertools
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longview.learner import files
from longview.learner.config import CurriculumConfig, LearnerConfig, architectures, policy_config
from longview.learner.curriculum import context_length
from longview.learner.laps import TrainingDiverged, TrainingProgress
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.recipe import DrawSegments, Recipe
from longview.learner.train import ema_decay, learning_rate, prepared, train
from longview.replay.episode import ArraySpec, Episode, Segment, TaskSpec

GOLDEN = Path(__file__).with_name("golden_loss.json")


@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_golden_loss_curve(tiny: LearnerConfig, arguments: dict[str, Any], architecture: str) -> None:
    policy = policy_config(tiny.policy, architecture=architecture)
    reports: list[TrainingProgress] = []
    train(replace(tiny, policy=policy, steps=40, report_every=2), **arguments | {"report": reports.append})
    curve = [report.loss for report in reports if report.step % 2 == 0]
    golden = json.loads(GOLDEN.read_text())
    if os.environ.get("LONGVIEW_REFRESH_GOLDEN"):
        golden[architecture] = curve
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    np.testing.assert_allclose(curve, golden[architecture], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_a_thousand_steps_without_a_value_that_is_not_finite(
    tiny: LearnerConfig, arguments: dict[str, Any], architecture: str
) -> None:
    """The learning rate is the default one, which suits larger batches."""
    policy = policy_config(tiny.policy, architecture=architecture, past_actions="all", future_actions=17)
    config = replace(tiny, policy=policy, steps=1000, learning_rate=3e-3, publish_every=500)
    reports: list[TrainingProgress] = []
    trained = train(config, **arguments | {"report": reports.append})
    assert all(torch.isfinite(weights).all() for weights in trained.state_dict().values())
    assert fmean(report.loss for report in reports[-20:]) < 0.6 * fmean(report.loss for report in reports[:5])


def weights_of(directory: Path, step: int) -> dict[str, torch.Tensor]:
    path = directory / f"step-{step:09d}"
    return load_file(path / files.TRAINING) | load_file(path / files.POLICY)


def stop_at(step: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) == step


@pytest.mark.parametrize(("windows", "damages"), [(1, (False, True)), (2, (False,))])
def test_a_resumed_run_ends_bit_for_bit_the_same(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Path, windows: int, damages: tuple[bool, ...]
) -> None:
    """The run stops at step 13, after a checkpoint at 8. Its newest checkpoint may be damaged."""
    config = replace(tiny, policy=replace(tiny.policy, dropout=0.2), windows_per_segment=windows)
    one, stopped = tmp_path / "one", tmp_path / "stopped"
    train(config, **arguments | {"checkpoints": one})
    straight = weights_of(one, 24)
    train(config, **arguments | {"checkpoints": stopped, "should_stop": stop_at(13)})
    assert files.steps(stopped) == [8, 13]

    def no_statistics() -> dict[str, Any]:
        raise AssertionError("a resumed run keeps its statistics")

    for damaged in damages:
        two = shutil.copytree(stopped, tmp_path / f"damaged {damaged}")
        if damaged:
            (two / "step-000000013" / files.TRAINING).write_bytes(b"")
        torch.manual_seed(99)
        published: list[int] = []

        def publish(version: int, data: Any, published: list[int] = published) -> None:
            published.append(version)

        changed = {"checkpoints": two, "statistics": no_statistics, "publish": publish}
        train(config, **arguments | changed)
        assert published == ([8] if damaged else [13]) + [10] * damaged + [20, 24]
        resumed = weights_of(two, 24)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_checkpoint_of_another_policy_is_refused(tiny: LearnerConfig, arguments: dict[str, Any]) -> None:
    train(replace(tiny, steps=5), **arguments)
    wider = replace(tiny, policy=replace(tiny.policy, widths=(16, 16)))
    with pytest.raises(
        ValueError, match=r"learner\.policy\.widths is \(8, 16\) in the checkpoint and \(16, 16\) now"
    ):
        train(wider, **arguments)


def test_a_checkpoint_of_another_task_is_refused(tiny: LearnerConfig, arguments: dict[str, Any]) -> None:
    tiny = replace(tiny, windows_per_segment=1)
    train(replace(tiny, steps=5), **arguments)
    spec: TaskSpec = arguments["spec"]
    position = spec.observation["position"]
    for observation, message in (
        ({"position": replace(position, shape=(3,))}, r"position\.shape is \(2,\) in .* and \(3,\) now"),
        ({"position": position, "eye": ArraySpec((9, 9, 3), "uint8")}, r"eye is absent in .*'shape': \(9, 9"),
    ):
        with pytest.raises(ValueError, match=rf"task\.observation\.{message}"):
            train(tiny, **arguments | {"spec": replace(spec, observation=observation)})


@pytest.mark.parametrize("changed", [{"precision": "bfloat16"}, {"windows_per_segment": 4}])
def test_a_checkpoint_does_not_depend_on_how_it_was_trained(
    tiny: LearnerConfig, arguments: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    train(replace(tiny, **changed), **arguments | {"should_stop": stop_at(13)})
    assert {weights.dtype for weights in weights_of(tmp_path, 13).values()} == {torch.float32}
    train(tiny, **arguments)
    assert files.steps(tmp_path) == [13, 16, 24]


@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_half_the_precision_is_enough(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Path, architecture: str
) -> None:
    tiny = replace(tiny, policy=policy_config(tiny.policy, architecture=architecture))
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        reports: list[TrainingProgress] = []
        config = replace(tiny, precision=precision)
        train(config, **arguments | {"report": reports.append, "checkpoints": tmp_path / precision})
        losses[precision] = [report.loss for report in reports]
    assert losses["float32"] != losses["bfloat16"]
    np.testing.assert_allclose(losses["float32"], losses["bfloat16"], rtol=0.02)


def test_what_is_published_reported_and_saved(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Path
) -> None:
    published: dict[int, bytes] = {}
    reports: list[TrainingProgress] = []
    average = train(tiny, **arguments | {"publish": published.__setitem__, "report": reports.append})
    assert list(published) == [10, 20, 24]
    assert published[24] == policy_to_bytes(average)
    assert policy_from_bytes(published[10]).config == tiny.policy
    assert files.steps(tmp_path) == [8, 16, 24]
    assert (tmp_path / "step-000000024" / files.POLICY).read_bytes() == published[24]
    training = load_file(tmp_path / "step-000000024" / files.TRAINING)
    assert training.keys() == {"weights", "exp_avg", "exp_avg_sq", "step"}
    size = sum(parameter.numel() for parameter in average.parameters())
    assert len(training["weights"]) == size, "vectors are saved without the gaps of the layout in memory"
    assert [report.step for report in reports] == [6, 8, 10, 12, 16, 18, 20, 24]
    assert [report.samples for report in reports] == [4 * report.step for report in reports]
    assert reports[-1].learning_rate == learning_rate(tiny, 23)
    for report in reports:
        assert report.loss_by_context.keys() <= {1, 8, 16, 24, 32, 48, 64}
        assert report.gradient_norm > 0
        assert report.gradient_norm_by_context.keys() == report.loss_by_context.keys()
        assert report.step_s > 0
        assert report.gpu_memory == 0
        assert report.data_wait_s >= 0
        assert report.out_of_range == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps its heap otherwise")
def test_free_memory_goes_back_to_the_system(tiny: LearnerConfig, arguments: dict[str, Any]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    blocks = [bytearray(100_000) for _ in range(3000)]
    kept = blocks[::10]
    before = resident()
    blocks.clear()
    train(replace(tiny, steps=4, warmup=1), **arguments)
    assert resident() < before - 150, "MiB"
    assert len(kept) == 300


@pytest.mark.parametrize(("windows", "around"), [(None, 0), (2, 15)])
def test_draws_ask_for_what_the_step_needs(
    tiny: LearnerConfig, arguments: dict[str, Any], windows: int | None, around: int
) -> None:
    asked: list[tuple[int, ...]] = []
    draw = arguments["draw"]

    def recording(*request: int) -> list[Segment]:
        asked.append(request)
        segments: list[Segment] = draw(*request)
        return segments

    train(replace(tiny, windows_per_segment=windows), **arguments | {"draw": recording})
    contexts = [context_length(tiny.curriculum, 3, step, tiny.steps, 64) for step in range(tiny.steps)]
    assert sorted(asked) == [  # several threads draw
        (step, contexts[step] - 1 + around, 13 + around, 4 // (windows or 1)) for step in range(tiny.steps)
    ]


def test_diverging_stops_before_anything_is_published(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Path
) -> None:
    draw = arguments["draw"]

    def poisoned(step: int, before: int, after: int, count: int) -> list[Segment]:
        segments: list[Segment] = draw(step, before, after, count)
        if step < 9:
            return segments
        action = np.full_like(segments[0].arrays["expert_action"], np.nan)
        return [replace(segments[0], arrays={**segments[0].arrays, "expert_action": action}), *segments[1:]]

    published: list[int] = []
    file = tmp_path / "diverged-step-10.json"
    with pytest.raises(TrainingDiverged, match=rf"loss nan and gradient norm nan at step 10: .*{file}"):
        train(
            tiny, **arguments | {"draw": poisoned, "publish": lambda version, data: published.append(version)}
        )
    assert published == []
    assert files.steps(tmp_path) == [8]
    assert json.loads(file.read_text()) == {
        "step": 10,
        "context_length": context_length(tiny.curriculum, 3, 9, tiny.steps, 64),
        "loss": "nan",
        "gradient_norm": "nan",
        "episodes": sorted({segment.meta.id for segment in draw(9, 0, 0, 4)}),
    }


def test_an_error_while_drawing_ends_the_training(tiny: LearnerConfig, arguments: dict[str, Any]) -> None:
    def failing(step: int, before: int, after: int, count: int) -> list[Segment]:
        raise ConnectionError("the store is away")

    with pytest.raises(ConnectionError, match="the store is away"):
        train(tiny, **arguments | {"draw": failing})


def test_training_learns_to_act_as_the_expert_in_episodes_it_has_not_seen(
    tiny: LearnerConfig,
    arguments: dict[str, Any],
    returning: list[Episode],
    drawer: Callable[..., DrawSegments],
) -> None:
    config = replace(
        tiny, steps=200, batch_size=32, warmup=20, learning_rate=4e-3, publish_every=40, checkpoint_every=200,
        policy=replace(tiny.policy, context_length=8, dropout=0.0), curriculum=CurriculumConfig("sprinkle"),
    )  # fmt: skip
    reports: list[TrainingProgress] = []
    changed = {"draw": drawer(returning[3:], seed=3), "report": reports.append, "validation": returning[:3]}
    train(config, **arguments | changed)
    assert [report.step for report in reports if report.validation_s] == [40, 80, 120, 160, 200]
    for report in reports:
        validated = {1, 8} if report.step % 40 == 0 else set()
        assert report.validation_loss_by_context.keys() == validated
        assert report.action_error_by_context.keys() == validated
    assert reports[-1].loss < 0.5 * reports[0].loss
    first, *_, last = (report for report in reports if report.validation_s)
    for T_o in (1, 8):
        assert last.validation_loss_by_context[T_o] < 0.6 * first.validation_loss_by_context[T_o]
        assert last.action_error_by_context[T_o] < first.action_error_by_context[T_o]


@pytest.mark.parametrize("loaders", [1, 3, 16])
def test_batches_come_in_order_and_the_threads_end(
    tiny: LearnerConfig, arguments: dict[str, Any], loaders: int
) -> None:
    recipe = Recipe(replace(tiny, loaders=loaders), arguments["spec"], 0, 0, 1, arguments["draw"])
    batches = prepared(recipe, range(5, 12), torch.device("cpu"))
    for step, batch in zip(range(5, 12), batches, strict=True):
        np.testing.assert_array_equal(batch.action_BTA, recipe.batch(step).action_BTA)
    unfinished = prepared(recipe, range(20), torch.device("cpu"))
    next(unfinished)
    unfinished.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_schedules(tiny: LearnerConfig) -> None:
    config = replace(tiny, steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    assert ema_decay(config, 0) == 0
    assert ema_decay(config, 99) == pytest.approx(1 - 100**-0.75)
    assert ema_decay(config, 10**9) == 0.9999
