"""Tests of two ranks in plain processes, over gloo. Each process runs two_ranks.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longview.learner import files, ranks
from longview.learner.adapters import with_adapter
from longview.learner.policy import load_policy, policy_to_bytes

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two ranks together, and of the first one alone before that."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "error", str(SCRIPT), f"file://{folder}/meeting"]
    processes = [subprocess.Popen([*command, str(rank), "2", str(folder)]) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


def test_two_halves_give_the_gradient_of_the_whole_batch(out: Path) -> None:
    first, second, alone = (
        load_file(out / f"gradients-{name}")["gradients"] for name in ("0-of-2", "1-of-2", "0-of-1")
    )
    assert torch.equal(first, second)
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)


def test_both_ranks_end_with_the_same_weights(out: Path) -> None:
    assert (out / "straight-0").read_bytes() == (out / "straight-1").read_bytes()


def test_one_rank_stops_all_and_both_resume_from_the_firsts_checkpoint(out: Path) -> None:
    assert files.steps(out / "resumed") == [16, 20, 24]
    straight = (out / "straight-0").read_bytes()
    assert (out / "resumed-0").read_bytes() == straight
    assert (out / "resumed-1").read_bytes() == straight


def test_both_ranks_train_the_same_adapters(out: Path) -> None:
    """The training was stopped at step 13 and resumed."""
    assert (out / "adapted-0").read_bytes() == (out / "adapted-1").read_bytes()
    base = load_policy(out / "straight")
    assert policy_to_bytes(with_adapter(base, out / "adapted")) == (out / "adapted-0").read_bytes()


def test_every_rank_gathers_the_values_of_all_ranks(out: Path) -> None:
    for rank in (0, 1):
        assert (out / f"said-{rank}").read_bytes() == b"rank 0 says |rank 1 says so "


def test_a_rank_that_nobody_joins_says_that_it_lost_the_others(tmp_path: Path) -> None:
    with pytest.raises(ranks.RankLost, match="other learner ranks"):
        ranks.join(f"file://{tmp_path}/meeting", 0, 2, "cpu", timeout_s=1)


def test_losses_are_those_of_all_ranks(out: Path) -> None:
    for rank in (0, 1):
        assert json.loads((out / f"reported-{rank}").read_text()) == [2.0, 2.0, 3.0]


def test_ranks_share_out_the_episodes_of_a_validation(out: Path) -> None:
    """Noise of the loss differs from rank to rank, that of the actions belongs to the window."""
    first, second, alone = (
        json.loads((out / f"validated-{name}").read_text()) for name in ("0-of-2", "1-of-2", "0-of-1")
    )
    assert first == second
    assert first[1] == pytest.approx(alone[1], rel=1e-5)
    assert first[0] == pytest.approx(alone[0], rel=0.2)
    assert first[0] != alone[0]


def test_a_bad_episode_of_one_rank_ends_all_and_is_named(out: Path) -> None:
    file = out / "diverged" / "diverged-step-5.json"
    for rank in (0, 1):
        assert str(file) in (out / f"diverged-{rank}").read_text()
    assert json.loads(file.read_text())["episodes"] == ["demo.return_point.0", "demo.return_point.7"]
    assert files.steps(out / "diverged") == []
