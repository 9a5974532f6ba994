"""Run folders are found again, or made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longview.cluster.run.config import ConfigError, read_config
from longview.cluster.run.folder import RunError, create_run, resumable_run


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
