"""Output of `longview store verify` for people and for scripts."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis
from typer.testing import CliRunner

from longview.cluster.commands.store import app
from longview.cluster.run.services import redis_server
from longview.replay.config import StoreConfig
from longview.replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from longview.replay.store import EpisodeStore

SPEC = TaskSpec("walk", {"o": ArraySpec((2,))}, ArraySpec((1,), low=-1.0, high=1.0), 20.0, 9, (1,), 1)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Redis with a damaged store in namespace `lab`: an episode and a count."""
    monkeypatch.chdir(tmp_path)
    with redis_server(tmp_path / "redis", fsync="always") as url:
        store = EpisodeStore.connect(url, "lab", StoreConfig(shards=1))
        store.register(SPEC)
        for number in range(3):
            writer = store.writer(EpisodeMeta(f"demo.walk.{number}", "walk", number, "demo"))
            step = {"observation.o": np.zeros(2, np.float32), "action": np.zeros(1, np.float32)}
            writer.append(step | {"reward": np.array(0, np.float32)})
            writer.commit("success")
        with Redis.from_url(url) as redis:
            assert redis.config_get("appendfsync") == {"appendfsync": "always"}
            (key,) = redis.scan_iter("{lab:0}:chunks:demo.walk.1:*")
            redis.set(key, b"nonsense")
            redis.hincrby("{lab:0}:totals", "live:demo:steps", 1)
        store.close()
        yield url


def verify(url: str, *arguments: str, code: int) -> str:
    result = CliRunner().invoke(app, ["verify", "lab", "--url", url, *arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_person_is_told_and_helped(url: str) -> None:
    told = verify(url, code=1)
    assert "2 findings" in told
    assert "demo.walk.1" in told
    assert "2 episodes are whole: 2 steps" in told
    assert "--repair sets damaged episodes aside" in told
    assert "yes" in verify(url, "--repair", code=0)
    told = verify(url, code=0)
    assert "findings" not in told
    assert "in quarantine: episode demo.walk.1: 8 bytes are too few for a chunk" in told
    assert "1 in quarantine" in told
    assert "0 in quarantine" in verify(url, "--drop", code=0)


def test_a_script_gets_json(url: str) -> None:
    found = json.loads(verify(url, "--json", code=1))
    assert (found["episodes"], found["steps"], found["sound"], found["quarantined"]) == (2, 2, False, {})
    assert {(item["kind"], item["repaired"]) for item in found["findings"]} == {
        ("episode", False),
        ("totals", False),
    }
    repaired = json.loads(verify(url, "--json", "--repair", code=0))
    assert {item["repaired"] for item in repaired["findings"]} == {True}
    assert list(repaired["quarantined"]) == ["demo.walk.1"]
    assert json.loads(verify(url, "--json", code=0))["findings"] == []
