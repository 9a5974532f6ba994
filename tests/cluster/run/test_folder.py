"""Run folders are found again, or made."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from longview.actors.task import load_task
from longview.cluster.run.config import ConfigError, RunConfig, read_config
from longview.cluster.run.folder import (
    Run,
    RunError,
    any_store,
    append_row,
    create_run,
    resumable_run,
    store_of,
    take_run,
    write_atomically,
)
from longview.cluster.run.services import redis_server
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore
from tests.conftest import FullDisk


def test_the_run_of_a_configs_name_is_gone_on_with_once_it_exists(tmp_path: Path) -> None:
    config = read_config(None, ["name=mine", "seed=7"])
    assert resumable_run(config, tmp_path) is None
    create_run(config, tmp_path).unlock()
    run = resumable_run(config, tmp_path)
    assert run is not None
    assert run.config == config
    run.lock()
    other = resumable_run(config, tmp_path)
    assert other is not None
    with pytest.raises(RunError, match="run mine is under way"):
        other.lock()
    run.unlock()


def test_the_lock_of_an_attempt_that_is_gone_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(None, ["name=mine"])
    held = create_run(config, tmp_path)
    leave = threading.Timer(1.0, held.unlock)  # a file server ends the lease of a machine that died
    leave.start()
    with pytest.raises(RunError, match="run mine is under way"):
        take_run(config, resumable_run(config, tmp_path), tmp_path, patience=0.1)
    run = take_run(config, resumable_run(config, tmp_path), tmp_path, patience=30)
    leave.join()
    assert held.under_way()
    assert "waiting up to 30 s until mine is free" in capsys.readouterr().err
    run.unlock()


def test_a_launch_that_was_killed_before_it_wrote_its_config(tmp_path: Path) -> None:
    config = read_config(None, ["name=mine", "seed=7"])
    (tmp_path / "mine").mkdir()
    run = resumable_run(config, tmp_path)
    assert run is not None
    assert run.config == config


def test_what_has_no_name_cannot_be_found_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--or-resume needs to know the run"):
        resumable_run(read_config(None), tmp_path)


def test_runs_are_where_the_environment_says_and_are_stopped_on_their_own_host(tmp_path: Path) -> None:
    run = create_run(read_config(None, ["name=mine"]), tmp_path)
    # On another host that process id would belong to another process; here it is this one.
    (run.path / "run.json").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    done = subprocess.run(
        [sys.executable, "-c", "from longview.cluster.cli import main; main()", "stop", "mine"],
        env=os.environ | {"LONGVIEW_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "mine is under way on elsewhere: stop it there" in done.stderr
    run.unlock()


def made(root: Path, *settings: str) -> tuple[RunConfig, Run]:
    """Make a run called `first`, which is not under way."""
    config = read_config(None, ["name=first", "seed=7", *settings])
    run = create_run(config, root)
    run.unlock()
    return config, run


def taken(config: RunConfig, run: Run) -> Run:
    """Go on with a run, and end it."""
    run = take_run(config, run)
    run.unlock()
    return run


def test_a_renamed_run_keeps_its_namespace(tmp_path: Path) -> None:
    config, run = made(tmp_path, "replay.url=redis://store")
    before = run.origin
    run = taken(config, Run(run.path.rename(tmp_path / "second")))
    assert run.origin.namespace == "first"
    assert run.origin.owner == before.owner
    assert run.origin.folder == str(tmp_path / "second")


def test_a_copy_that_would_share_the_store_is_refused(tmp_path: Path) -> None:
    config, run = made(tmp_path, "replay.url=redis://store")
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    with pytest.raises(
        RunError, match=r"copy is a copy of .*first, and both would write into namespace first"
    ):
        take_run(config, copy)
    (tmp_path / "link").symlink_to(tmp_path)
    taken(config, Run(tmp_path / "link" / "first"))
    shutil.rmtree(run.path)
    taken(config, copy)


def test_a_copy_with_a_store_of_its_own_goes_on(tmp_path: Path) -> None:
    config, run = made(tmp_path)
    copy = taken(config, Run(shutil.copytree(run.path, tmp_path / "copy")))
    assert copy.origin.namespace == "first"
    taken(config, run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["seed=8"], "run first was made with seed 7, not 8: .* without seed=8, or launch another run"),
        (["seed=7", "task=counting"], "run first was made with task return_point, not counting"),
    ],
)
def test_another_task_or_seed_is_refused(tmp_path: Path, settings: list[str], message: str) -> None:
    _, run = made(tmp_path)
    before = sorted(run.path.iterdir())
    with pytest.raises(RunError, match=message):
        take_run(read_config(None, settings), run)
    assert sorted(run.path.iterdir()) == before
    assert not run.under_way()


def test_a_run_of_version_0_1_gets_an_origin(tmp_path: Path) -> None:
    config, run = made(tmp_path)
    (run.path / "origin.json").unlink()
    run = taken(config, Run(run.path.rename(tmp_path / "second")))
    assert (run.origin.namespace, run.origin.owner.seed) == ("first", 7)
    assert run.origin == run.origin


def test_names_are_quoted_where_they_are_to_be_typed(tmp_path: Path) -> None:
    config = read_config(None, ["name=my run #3"])
    run = create_run(config, tmp_path)
    assert run.path == tmp_path / "my run #3"
    with pytest.raises(RunError, match="go on with it by --resume 'my run #3'"):
        create_run(config, tmp_path)
    with pytest.raises(RunError, match="longview stop 'my run #3'"):
        Run(run.path).lock()
    run.unlock()


def test_nothing_is_left_of_a_run_that_finds_a_full_disk(full_disk: FullDisk) -> None:
    config = read_config(None, ["name=first"])
    full_disk.fill(leaving=4096)  # the folder fits, but not all of its files
    with pytest.raises(OSError, match=r"No space left on device: '.*/first/"):
        create_run(config, full_disk.folder)
    assert not (full_disk.folder / "first").exists()


def test_a_full_disk_is_said_with_the_file(full_disk: FullDisk) -> None:
    file = full_disk.folder / "rows.jsonl"
    append_row(file, {"first": 1})
    full_disk.fill()
    with pytest.raises(OSError, match=r"No space left on device: '.*/rows.jsonl'"):
        append_row(file, {"second": "x" * 8192})
    with pytest.raises(OSError, match=r"No space left on device: '.*/rows.jsonl'"):
        write_atomically(file, "x" * 8192)
    assert [path.name for path in full_disk.folder.iterdir() if path.name.startswith(".")] == []


def test_the_store_of_a_run_that_reads_another_namespace_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with redis_server(tmp_path / "redis") as url:
        config = read_config(None, ["name=reads"], replay={"url": url}, data={"namespace": "demos"})
        run = create_run(config, tmp_path)
        run.unlock()
        store = EpisodeStore.connect(url, "demos", StoreConfig())
        store.register(load_task("counting").spec)
        store.close()
        with any_store(str(run.path), None) as found:
            assert found.tasks() == ["counting"]
        with store_of(run, config.replay) as address:
            assert address.namespace == run.namespace == "demos"
        own = create_run(read_config(None, ["name=owns"], replay={"url": url}), tmp_path)
        own.unlock()
        assert own.namespace == "owns"
