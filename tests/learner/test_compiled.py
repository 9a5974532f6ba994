from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._dynamo.utils import counters

from longview.learner.config import CurriculumConfig, LearnerConfig, architectures, policy_config
from longview.learner.laps import TrainingProgress
from longview.learner.train import train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about torch itself
@pytest.mark.parametrize("architecture", architectures("diffusion"))
def test_nothing_is_compiled_once_training_goes_on(
    tiny: LearnerConfig, arguments: dict[str, Any], tmp_path: Path, architecture: str
) -> None:
    """Two context lengths are compiled at the start, and again after a resume, but not between steps."""
    narrow = replace(tiny.policy, context_length=3, widths=(8,), dropout=0.0)
    policy = policy_config(narrow, architecture=architecture)
    curriculum = CurriculumConfig("lengths", lengths={1: 1, 3: 1})
    config = replace(tiny, policy=policy, curriculum=curriculum, compile=True)
    counters.clear()
    graphs: list[int] = []

    def stop_at_13() -> bool:
        """Count the compiled graphs after every step, and stop at step 13."""
        graphs.append(counters["stats"]["unique_graphs"])
        return len(graphs) == 13

    reports: list[TrainingProgress] = []
    arguments |= {"should_stop": stop_at_13, "report": reports.append}
    train(config, **arguments)
    assert graphs == [2] * 13
    train(config, **arguments)
    assert graphs == [2] * 13 + [4] * 11

    # The losses agree, except for the order of sums.
    train(replace(config, compile=False), **arguments | {"checkpoints": tmp_path / "plain"})
    compiled, plain = zip(*([r.loss for r in reports if r.step == step] for step in (20, 24)), strict=True)
    np.testing.assert_allclose(compiled, plain, rtol=1e-3)


def test_without_a_compiler_it_says_so(
    tiny: LearnerConfig, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler .* g\+\+ is not installed.*CXX"):
        train(replace(tiny, compile=True), **arguments)
