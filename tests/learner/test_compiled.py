from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._dynamo.utils import counters

from longview.learner.config import CurriculumConfig, LearnerConfig, architectures, policy_config
from longview.learner.laps import TrainingProgress
from longview.learner.normalize import measure
from longview.learner.recipe import DrawSegments
from longview.learner.train import train
from longview.replay.episode import Episode, TaskSpec


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about torch itself
@pytest.mark.parametrize(
    ("kind", "cameras", "encoder_steps"),
    [*((architecture, False, 0) for architecture in architectures("diffusion")), ("unet_cross", True, 0),
     ("recurrent", True, 0), ("unet_cross", True, 8), ("unet_cross", True, 18)],
)  # fmt: skip
def test_nothing_is_compiled_once_training_goes_on(
    tiny: LearnerConfig,
    arguments: dict[str, Any],
    looking: list[Episode],
    looking_spec: TaskSpec,
    drawer: Callable[..., DrawSegments],
    tmp_path: Path,
    kind: str,
    cameras: bool,
    encoder_steps: int,
) -> None:
    """Encoder and loss are compiled at the start, and again after a resume, but not between steps."""
    if cameras:
        arguments |= {
            "spec": looking_spec, "draw": drawer(looking, seed=3),
            "statistics": lambda: measure(looking, looking_spec),
        }  # fmt: skip
    policy = (
        policy_config(kind=kind, context_length=3, hidden=8, token_size=8, camera_width=16)
        if kind == "recurrent"
        else policy_config(
            replace(tiny.policy, context_length=3, widths=(8,), dropout=0.0, camera_width=16),
            architecture=kind,
        )
    )
    curriculum = CurriculumConfig("lengths", lengths={1: 1, 3: 1})
    config = replace(
        tiny, policy=policy, curriculum=curriculum, compile=True, windows_per_segment=1, warmup=1,
        encoder_steps=encoder_steps,
    )  # fmt: skip
    counters.clear()
    graphs: list[int] = []

    def stop_at_13() -> bool:
        """Count the compiled graphs after every step, and stop at step 13."""
        graphs.append(counters["stats"]["unique_graphs"])
        return len(graphs) == 13

    reports: list[TrainingProgress] = []
    arguments |= {"should_stop": stop_at_13, "report": reports.append}
    train(config, **arguments)
    # The encoder is compiled for any number of frames, and the loss at two context lengths. A recurrent
    # policy's state has the same size at every length.
    compiled = 2 if kind == "recurrent" else 3
    # Where the cameras' networks are trained first, the rest of the training has an encoder without images.
    resumed = compiled + (encoder_steps > 13)
    compiled += encoder_steps > 0
    assert graphs == [compiled] * 13
    train(config, **arguments)
    assert graphs == [compiled] * 13 + [compiled + resumed] * 11

    # The losses agree, except for the order of sums.
    train(replace(config, compile=False), **arguments | {"checkpoints": tmp_path / "plain"})
    fast, plain = zip(*([r.loss for r in reports if r.step == step] for step in (20, 24)), strict=True)
    np.testing.assert_allclose(fast, plain, rtol=1e-3)


def test_without_a_compiler_it_says_so(
    tiny: LearnerConfig, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler .* g\+\+ is not installed.*CXX"):
        train(replace(tiny, compile=True), **arguments)
