"""`longview store migrate`, with a run's config and a namespace as Longview 0.1 left them."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from redis import Redis
from typer.testing import CliRunner

from longview.cluster.cli import app
from longview.cluster.driver.launch import _next_index
from longview.cluster.run.folder import open_run
from longview.cluster.run.services import redis_server
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore
from tests.replay.redis.test_migrate import assert_all_is_there, load_old_namespace

CONFIG = Path(__file__).parent.parent / "run" / "data" / "config_of_0.1.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def old_run(folder: Path) -> Iterator[str]:
    """A run of 0.1 whose store is in its folder."""
    path = folder / "runs" / "old_run"
    path.mkdir(parents=True)
    shutil.copy(CONFIG, path / "config.yaml")
    with redis_server(path / "redis") as url:
        redis = Redis.from_url(url)
        load_old_namespace(redis, "old_run")
        redis.close()
    return "old_run"


def done(*arguments: str, code: int = 0) -> str:
    """Run `longview` in this process, and return its output."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_a_run_of_0_1_is_refused_until_it_is_brought_over(old_run: str) -> None:
    line = "longview: run old_run is of Longview 0.1: `longview store migrate old_run` brings it over\n"
    assert done("launch", "--resume", old_run, code=2) == line
    assert done("demo", "--resume", old_run, code=2) == line
    assert done("store", "stats", old_run, code=2) == line

    output = done("store", "migrate", old_run)
    assert "config.yaml: sources have their new names; the run goes on without collecting" in output
    assert "namespace old_run has format 3: 14 episodes were brought over" in output
    was, now = (yaml.safe_load(file.read_text()) for file in (CONFIG, Path("runs/old_run/config.yaml")))
    assert now["learner"].pop("mix") == {"demo": 0.75, "import": 0.75, "correction": 0.25}
    assert now["replay"].pop("evict") == ["rollout", "correction"]
    del was["learner"]["mix"], was["replay"]["evict"]
    del was["actors"]["episodes_per_version"], was["actors"]["beta_until"]
    assert now == was
    run = open_run(old_run)
    assert run.config.collect.kind == "off"
    with redis_server(run.path / "redis") as url, closing(store := connect(url, old_run)):
        assert_all_is_there(store)
        # A resumed run goes on behind the corrections of 0.1, whose ids begin with dagger.
        assert _next_index(store, "correction") == 1005
    assert '"learnable": 36' in done("store", "stats", old_run, "--json")
    assert "0 episodes were brought over" in done("store", "migrate")


def test_a_namespace_in_a_redis_of_ones_own(folder: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as url, Redis.from_url(url) as redis:
        load_old_namespace(redis, "lab")
        assert "14 episodes were brought over" in done("store", "migrate", "lab", "--url", url)
        assert "there is no namespace lib in" in done("store", "migrate", "lib", "--url", url, code=1)
        with closing(store := connect(url, "lab")):
            assert_all_is_there(store)


def test_a_run_under_way_is_not_touched(old_run: str) -> None:
    run = open_run(old_run)
    run.lock()
    assert "old_run is under way" in done("store", "migrate", old_run, code=2)
    run.unlock()
    assert "dagger" in (run.path / "config.yaml").read_text()


def connect(url: str, namespace: str) -> EpisodeStore:
    return EpisodeStore.connect(url, namespace, StoreConfig(refresh_seconds=0.0))
