"""Tests of `longview show`: a real store, a real policy, and Rerun reading the file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rerun.dataframe import load_recording
from typer.testing import CliRunner

from longview.cluster.cli import app
from longview.cluster.run.services import redis_server
from longview.learner.config import policy_config
from longview.learner.policy import policy_to_bytes
from longview.replay.config import StoreConfig
from longview.replay.episode import BY_PERSON, BY_POLICY, ArraySpec, Episode, EpisodeMeta, TaskSpec
from longview.replay.store import EpisodeStore

SPEC = TaskSpec(
    name="drawer",
    observation={"front": ArraySpec((40, 40, 3), "uint8", 0, 255), "state": ArraySpec((2,))},
    action=ArraySpec((1,), low=-1, high=1),
    control_hz=10,
    max_steps=40,
    context_lengths=(1, 4),
    demonstrations=4,
)
STEPS = 10


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a store with three demonstrations, and a rollout in which a person took over."""
    rng = np.random.default_rng(0)
    with redis_server(tmp_path_factory.mktemp("redis")) as address:
        store = EpisodeStore.connect(address, "demos", StoreConfig())
        store.register(SPEC)
        for number, source in enumerate(("demo", "demo", "demo", "correction")):
            arrays = {
                "observation.front": rng.integers(0, 255, (STEPS, 40, 40, 3), np.uint8),
                "observation.state": np.full((STEPS, 2), number, np.float32),
                "action": rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32),
                "reward": np.zeros(STEPS, np.float32),
            }
            if source == "correction":
                arrays["controller"] = np.array([BY_POLICY] * 7 + [BY_PERSON] * 3, np.uint8)
            meta = EpisodeMeta(f"{source}.drawer.{number:09d}", "drawer", number, source)
            store.add(Episode(meta, "failure" if number == 1 else "success", arrays))
        store.close()
        yield address


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = policy_config(
        **{"widths": (8, 16), "groups": 2, "heads": 2, "token_size": 8, "sampling_steps": 2},
        **{"context_length": 4, "past_actions": 2, "future_actions": 6, "execute": 4},
    )
    file = tmp_path / "policy.safetensors"
    file.write_bytes(policy_to_bytes(config.make(SPEC)))
    return file


def show(url: str, *arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["show", *arguments, "--url", url])
    return found.exit_code, found.output


def entities(file: Path) -> set[str]:
    return {str(column.entity_path) for column in load_recording(file).schema().component_columns()}


def test_episodes_and_what_a_policy_looks_at(url: str, tmp_path: Path, policy: Path) -> None:
    file = tmp_path / "shown.rrd"
    last = "correction.drawer.000000003"
    code, said = show(url, "demos", last, "--rerun", str(file), "--policy", str(policy), "--context", "3")
    assert (code, "1 episodes of drawer" in said) == (0, True), said
    table = load_recording(file).view(index="step", contents="/**").select().read_all()
    attention = table[f"/{last}/policy/attention:TensorData"].to_pylist()
    at = dict(zip(table["step"].to_pylist(), attention, strict=True))
    shares = {step: found[0]["buffer"] for step, found in at.items() if found is not None}
    assert list(shares) == [0, 4, 8]
    assert shares[0] == [0, 0, 1]
    assert sum(shares[4]) == pytest.approx(1)
    assert min(shares[4]) > 0
    assert entities(file) >= {
        f"/{last}/{name}"
        for name in ("cameras/front", "numbers/state", "numbers/action", "controller", "policy/attention")
    }
    assert list(tmp_path.glob(".*")) == []


def test_the_newest_episodes_that_fit_are_shown(url: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.rrd"
    code, said = show(url, "demos", "--rerun", str(file), "--source", "demo", "--count", "2")
    assert code == 0, said
    shown = {path.split("/")[1] for path in entities(file)}
    assert shown >= {"demo.drawer.000000001", "demo.drawer.000000002"}
    assert not any("policy" in path for path in entities(file))
    code, said = show(url, "demos", "--rerun", str(file), "--outcome", "failure")
    assert code == 0, said
    assert "1 episodes" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["demos", "demo.drawer.9"], 1, "the store has no episode demo.drawer.9"),
        (["demos", "--outcome", "wrong"], 1, "the store has no episodes of outcome wrong"),
        (["demos", "--outcome", "brilliant"], 2, "--outcome is one of success"),
        (["demos", "demo.drawer.000000001", "--count", "2"], 2, "give IDs, or choose by"),
        (["demos", "--context", "3"], 2, "give --policy"),
        (["demos", "--policy", "nowhere"], 2, "nowhere"),
        (["demos", "--policy", "POLICY", "--context", "9"], 2, "longer than the policy's longest, 4"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    arguments: list[str], code: int, message: str, url: str, tmp_path: Path, policy: Path
) -> None:
    typed = [str(policy) if text == "POLICY" else text for text in arguments]
    found, said = show(url, *typed, "--rerun", str(tmp_path / "shown.rrd"))
    assert (found, message in said) == (code, True), said
    assert list(tmp_path.glob("*.rrd")) == []
    assert show(url, "demos", "--rerun", str(tmp_path / "no" / "shown.rrd"))[0] == 2
