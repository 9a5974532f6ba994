"""Copies of a run at a URL: in a folder, and on a real S3 server."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longview.cluster.run import copies as module
from longview.cluster.run.config import ConfigError, read_config
from longview.cluster.run.copies import Copies, bring_back, copying, has_copy, refuse_uncopyable
from longview.cluster.run.folder import Run, RunError, create_run
from longview.learner import checkpoint
from longview.learner.files import STATE, steps


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


class S3Server:
    """A server of S3 with a bucket called `results`, which can be stopped and started."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Start the server. It begins with an empty bucket."""
        import boto3
        from botocore.exceptions import BotoCoreError

        script = f"from moto.server import main; main(['--host', '127.0.0.1', '--port', '{self.port}'])"
        self._server = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}").create_bucket(
                    Bucket="results"
                )
                return
            except BotoCoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server, which forgets everything."""
        self._server.kill()
        self._server.wait()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Start a server of S3 that the environment names, as it would name another one."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = S3Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.stop()


def began(root: Path, *settings: str) -> Run:
    """Begin a run called `mine`."""
    return create_run(read_config(None, ["name=mine", "seed=7", *settings]), root)


def save(run: Run, step: int, keep: int = 2) -> None:
    """Save a checkpoint."""
    data = np.random.default_rng(step).bytes(1000)
    checkpoint.save(run.checkpoints, step, data, {"weights": torch.full((4,), float(step))}, {}, keep)


def until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check_copies(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Copy a run under way, and bring it back elsewhere."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)
    run = began(tmp_path / "here")
    with copying(run, url) as copies:
        assert copies is not None
        save(run, 10)
        until(lambda: has_copy(f"{url}/mine"))
        until(lambda: not copies._changed())
        save(run, 20)
        save(run, 30)
        (run.path / "redis").mkdir()
        (run.path / "redis" / "dump.rdb").write_bytes(b"episodes")
        (run.path / "summary.json").write_text("{}")
        (run.path / "success-lift.png").write_bytes(b"picture")
    assert copies.failures == 0
    there = bring_back(f"{url}/mine", tmp_path / "there")
    assert steps(there.checkpoints) == [20, 30], "what the run has removed is removed from the copy as well"
    newest = checkpoint.latest(there.checkpoints)
    assert newest is not None
    assert newest.step == 30
    assert there.config == run.config
    assert there.origin == run.origin
    here = {name: data for name, data in contents(run.path).items() if name not in ("lock", "redis/dump.rdb")}
    assert contents(there.path) == here
    return run


def test_a_run_comes_back_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_copies((tmp_path / "copies").as_uri(), tmp_path, monkeypatch).unlock()


def test_a_run_comes_back_from_s3(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_copies("s3://results/runs", tmp_path, monkeypatch).unlock()


def test_a_store_that_is_away_is_told_and_tried_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s3.stop()
    run = began(tmp_path)
    with copying(run, "s3://results/runs") as copies:
        assert copies is not None
        save(run, 10)
        until(lambda: copies.failures > 0)
        s3.start()
    assert "copying to s3://results/runs/mine failed and is tried again" in caplog.text
    assert steps(bring_back("s3://results/runs/mine", tmp_path / "there").checkpoints) == [10]
    run.unlock()


def test_what_could_not_be_copied_is_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "copies").write_text("a file where a folder has to be")
    run = began(tmp_path)
    save(run, 10)
    copies = Copies(run, (tmp_path / "copies").as_uri())
    started = time.monotonic()
    copies.close(patience=1.5)
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert f"not copied to file://{tmp_path}/copies/mine: " in said
    assert f"checkpoints/step-000000010/{STATE}" in said
    assert copies.failures > 0
    run.unlock()


def test_the_results_of_another_run_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = (tmp_path / "copies").as_uri()
    first, second = began(tmp_path / "first"), began(tmp_path / "second")
    save(first, 10)
    Copies(first, url).close()
    before = contents(tmp_path / "copies")
    save(second, 20)
    Copies(second, url).close(patience=1.5)
    assert contents(tmp_path / "copies") == before
    assert "not copied to" in capsys.readouterr().err
    first.unlock()
    second.unlock()


def test_a_checkpoint_that_was_not_copied_completely_is_left_out(tmp_path: Path) -> None:
    run = began(tmp_path / "here")
    save(run, 10)
    save(run, 20)
    url = (tmp_path / "copies").as_uri()
    Copies(run, url).close()
    (tmp_path / "copies" / "mine" / "checkpoints" / "step-000000020" / STATE).unlink()
    assert steps(bring_back(f"{url}/mine", tmp_path / "there").checkpoints) == [10]
    run.unlock()


def test_a_run_that_is_here_or_nowhere_is_not_brought_back(tmp_path: Path) -> None:
    run = began(tmp_path / "here")
    url = (tmp_path / "copies").as_uri()
    Copies(run, url).close()
    with pytest.raises(RunError, match="mine exists: go on with it by --resume mine"):
        bring_back(f"{url}/mine", tmp_path / "here")
    with pytest.raises(RunError, match="copies/other holds no copy of a run"):
        bring_back(f"{url}/other", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    run.unlock()


@pytest.mark.parametrize("url", ["runs", "ftp://store/runs", "s3://key:secret@bucket/runs"])
def test_a_url_of_another_kind_or_with_a_password_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="copy_to must be a URL that starts with s3://"):
        read_config(None, [f"copy_to={url}"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"copy_to gs://bucket/runs: .*longview\[copies\]"):
        refuse_uncopyable(read_config(None, ["copy_to=gs://bucket/runs"]))


@pytest.mark.slow
def test_a_run_goes_on_from_its_copy_on_a_machine_that_has_nothing(longview: Any, tmp_path: Path) -> None:
    url = (tmp_path / "copies").as_uri()
    small = [
        *("task=counting", "name=mine", f"copy_to={url}", "actors.count=1", "actors.simulators=2"),
        *(
            "learner.warmup=5",
            "learner.publish_every=20",
            "learner.checkpoint_every=20",
            "learner.batch_size=16",
        ),
        *("evaluation.episodes=0", "evaluation.final_episodes=2", "learner.validation_episodes=0"),
    ]
    (tmp_path / "run.yaml").write_text("actors: {demonstrations: 8}\n")
    code, output = longview("launch", "run.yaml", "--or-resume", *small, "learner.steps=20")
    assert code == 0, output
    (tmp_path / "runs").rename(tmp_path / "lost")
    code, output = longview("launch", "run.yaml", "--or-resume", *small, "learner.steps=40")
    assert code == 0, output
    copy = tmp_path / "copies" / "mine"
    assert json.loads((copy / "summary.json").read_text())["status"] == "finished"
    assert (copy / "report.html").exists()
    assert steps(copy / "checkpoints")[-2:] == [20, 40]
    (tmp_path / "runs").rename(tmp_path / "lost again")
    code, output = longview("launch", "--resume", f"{url}/mine", "learner.steps=60")
    assert code == 0, output
    assert steps(copy / "checkpoints")[-1] == 60
