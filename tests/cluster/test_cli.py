"""The command line where nothing has to be started: usage, errors, exit codes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from longview.cluster.run.config import read_config
from longview.cluster.run.folder import LEASE_SECONDS, create_run
from tests.conftest import COMMON_IMPORTS, Forks

NOTHING_HEAVY = """
import sys
for name in ("torch", "ray", "robosuite", "mujoco"):
    sys.modules[name] = None
"""

WITHOUT_HEAVY_IMPORTS = f"""
{NOTHING_HEAVY}
from longview.cluster.cli import main
sys.argv = ["longview", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def light() -> Iterator[Forks]:
    """A process that cannot import anything heavy, and whose forks cannot, either."""
    with closing(Forks(COMMON_IMPORTS, NOTHING_HEAVY)) as forks:
        yield forks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "learner.batchsize=3"], ["unknown key learner.batchsize", "learner.batch_size"]),
        (["demo", "learner.steps=many"], ["learner.steps", "many", "integer"]),
        (["demo", "learner.policy={widths: [32, 64], future_actions: 13}"], ["T_p 15", "divisible by 2"]),
        (["demo", "--task", "lfit"], ["unknown task 'lfit'", "did you mean lift"]),
        (["demo", "--tsk", "lift"], ["No such option"]),
        (["study", "report", "quick", "--cells", "absent"], ["absent has no finished cell of study quick"]),
        (["study", "run", "paper", "axes.task=[push_t]"], ["task push_t has no expert"]),
        (["study", "run", "paper", "demonstrations=absent"], ["there is no file or folder absent"]),
        (
            ["demo", "--task", "lift", "--pixels"],
            ["no settings to learn lift from pixels", "grasp_and_return"],
        ),
        (
            ["demo", "--pixels", "actors.cameras.instead_of=[cube]"],
            ["has no observation cube", "hand_pos, gripper, cube_pos"],
        ),
        (["demo", "--task", "push_t"], ["push_t has no expert", "demonstrations=PATH"]),
        (["demo", "--task", "push_t", "demonstrations=absent"], ["there is no file or folder absent"]),
        (["demo", "demonstrations=7"], ["there is no file or folder 7"]),
        (["demo", "name=a/b"], ["name must be a plain folder name: 'a/b'"]),
        (["collect", "counting", "name=.."], ["name must be a plain folder name: '..'"]),
        (["collect", "counting", "name=a\tb"], ["name must not hold control characters"]),
        (["store", "import", "absent.hdf5", "--task", "a/b"], ["--task must be a plain folder name"]),
        (["store", "list", "a\tb", "--url", "redis://nowhere"], ["namespace must not hold control char"]),
        (["demo", "--resume", "nothing"], ["no run 'nothing'"]),
        (["launch"], ["give a config file, or --resume RUN"]),
        (["launch", "absent.yaml"], ["cannot read config absent.yaml"]),
        (["evaluate", "absent"], ["absent holds no policy"]),
        (["evaluate", "absent", "--context", "1,x"], ["--context takes numbers"]),
        (["serve", "absent"], ["absent holds no policy"]),
        (["serve", "absent", "--host", "0.0.0.0"], ["set LONGVIEW_API_KEY or give --api-key-file"]),
        (["collect", "lfit"], ["unknown task 'lfit'", "did you mean lift"]),
        (["collect", "push_t"], ["task push_t has no expert"]),
        (["collect", "lift", "--episodes", "0"], ["--episodes"]),
        (["collect", "lift", "--resume", "nothing"], ["no run 'nothing'"]),
        (["status"], ["no run in runs/"]),
        (["stop", "nothing"], ["no run 'nothing'"]),
        (["scale"], ["Missing argument 'actors=N'"]),
        (["scale", "actors=0"], ["expected actors=N with N at least 1", "actors=8", "'actors=0'"]),
        (["scale", "learners=2"], ["expected actors=N", "'learners=2'"]),
        (["scale", "actors=2", "nothing"], ["no run 'nothing'"]),
        (["nonsense"], ["No such command"]),
    ],
)
def test_bad_usage_is_exit_2_before_anything_heavy_loads(
    light: Forks, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    code, output = light.run(tmp_path, arguments)
    assert code == 2, output
    assert all(word in output for word in words), output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_changes_no_exit_code(tmp_path: Path, stream: str) -> None:
    arguments = ["config"] if stream == "stdout" else ["demo", "learner.batchsize=3"]
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY_IMPORTS, *arguments], cwd=tmp_path, check=False, **streams
    )
    os.close(writer)
    assert done.returncode == (0 if stream == "stdout" else 2)
    assert not done.stdout
    assert not done.stderr


def test_a_full_disk_behind_stdout_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_HEAVY_IMPORTS, "config"], cwd=tmp_path, stdout=full, check=False
        )
    assert done.returncode != 0


def test_a_port_in_use_is_exit_2_before_anything_heavy_loads(light: Forks, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = light.run(tmp_path, ["demo", f"monitoring.port={port}"])
    assert code == 2
    assert f"monitoring.port {port}" in output
    assert "in use" in output


def test_or_resume_waits_until_the_run_is_free(longview: Any) -> None:
    """The process that holds it may have died on a machine whose lock a file server keeps for a while."""
    held = create_run(read_config(None, ["name=mine", "task=counting"]), longview.folder / "runs")
    (longview.folder / "run.yaml").write_text("{name: mine, task: counting}")
    process = longview.start("launch", "run.yaml", "--or-resume")
    waits = f"longview: waiting up to {LEASE_SECONDS:g} s until mine is free\n"
    assert waits in process.stdout, "its lines end without it"
    process.terminate()
    process.communicate(timeout=60)
    held.unlock()


def test_a_name_that_is_taken(longview: Any) -> None:
    (longview.folder / "runs" / "mine").mkdir(parents=True)
    code, output = longview("demo", "--task", "return_point", "name=mine")
    assert code == 2
    assert "--resume mine" in output


@pytest.mark.parametrize(
    "command", [[], ["demo"], ["launch"], ["collect"], ["evaluate"], ["store", "stats"], ["stop"], ["scale"]]
)
def test_help_has_examples_and_fits_80_columns(light: Forks, tmp_path: Path, command: list[str]) -> None:
    code, output = light.run(tmp_path, [*command, "--help"], {"COLUMNS": "80"})
    assert code == 0
    assert "Usage" in output
    assert max(len(line) for line in output.splitlines()) <= 80
    if command not in ([], ["stop"]):
        assert f"longview {' '.join(command)} " in output.replace("Usage: longview", "")


def test_redis_unreachable_is_exit_1_in_time_and_shows_no_password(longview: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://me:geheim@127.0.0.1:{closed.getsockname()[1]}/0"
        started = time.monotonic()
        code, output = longview("demo", f"replay.url={url}", "name=away")
        assert time.monotonic() - started < 15 + 5  # 15 s of waiting, and the start of Python
    assert code == 1, output
    assert "127.0.0.1" in output
    written = "".join(path.read_text() for path in (longview.folder / "runs" / "away").glob("*.*"))
    assert "geheim" not in output + written


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_wrong_redis_password_is_exit_1_and_not_shown(longview: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "right", "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        longview.wait_for(lambda: answers(port))
        code, output = longview("demo", f"replay.url=redis://:geheim@127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait()
    assert code == 1, output
    assert "geheim" not in output
    assert "password" in output.lower()
