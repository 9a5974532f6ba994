"""`longview serve`: what it refuses at once, and a server as a process of its own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from typer.testing import CliRunner

from longview.actors.task import load_task
from longview.cluster.cli import app
from longview.cluster.commands.serve import (
    KEY_VARIABLE,
    api_key,
    resizes,
    run_of,
    serve_checkpoint,
    tls_context,
)
from longview.cluster.run.config import ConfigError, DataConfig, RunConfig, write_config
from longview.cluster.serving.server import ServeConfig
from longview.learner.config import policy_config
from longview.learner.policy import load_policy, policy_to_bytes
from longview.replay.episode import ArraySpec, TaskSpec
from tests.cluster.serving.serving import write_adapter

OPTIONS: dict[str, Any] = {
    "adapters": (),
    "map": (),
    "resize": False,
    "tls": None,
    "metrics_port": None,
    "record": None,
    "namespace": None,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return the folder of a checkpoint that lies in no run."""
    return write_policy(tmp_path / "step-000000003", load_task("return_point").spec)


def write_policy(folder: Path, spec: TaskSpec) -> Path:
    """Write an untrained policy into a new folder, and return the folder."""
    folder.mkdir()
    policy = policy_config(widths=(8,), groups=4, token_size=8).make(spec)
    (folder / "policy.safetensors").write_bytes(policy_to_bytes(policy))
    return folder


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert api_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "from outside")
    assert api_key(None) == "from outside"
    file.write_text("of the file\n")
    assert api_key(file) == "of the file"
    for wrong in ("", " \n", "two\nlines", "schlüssel"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="must be printable ASCII, and not empty"):
            api_key(file)
    with pytest.raises(ConfigError, match="cannot read the key"):
        api_key(tmp_path / "none")
    assert "sesame" not in repr(ServeConfig(key="sesame"))


@pytest.mark.parametrize("arguments", [("--max-rate", "inf"), ("--max-rate", "nan"), ("--ensemble", "inf")])
def test_numbers_without_a_bound_are_refused(arguments: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, ["serve", "absent", *arguments])
    assert (found.exit_code, arguments[0] in found.output) == (2, True), found.output


def test_tls_takes_a_certificate_with_its_key(tmp_path: Path) -> None:
    one, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    certificate, key, foreign = (tmp_path / name for name in ("cert.pem", "key.pem", "foreign.pem"))
    one.cert_chain_pems[0].write_to_path(str(certificate))
    one.private_key_pem.write_to_path(str(key))
    other.private_key_pem.write_to_path(str(foreign))
    assert tls_context(None, None) is None
    assert tls_context(certificate, key) is not None
    with pytest.raises(ConfigError, match="needs both --cert and --key"):
        tls_context(certificate, None)
    for wrong in (foreign, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot use --cert"):
            tls_context(certificate, wrong)


@pytest.mark.parametrize(
    ("host", "options", "message"),
    [
        ("0.0.0.0", {}, r"0\.0\.0\.0 is reached from outside: set LONGVIEW_API_KEY or give --api-key-file"),
        ("localhost", {"map": ["a=b"]}, "the policy has no observation b; it has position"),
        ("localhost", {"map": ["a"]}, "--map takes THEIRS=OURS"),
        ("localhost", {"adapters": ["left"]}, "--adapter takes NAME=PATH"),
        ("localhost", {"adapters": ["left="]}, "--adapter takes NAME=PATH"),
        ("localhost", {"adapters": ["left=nowhere"]}, "--adapter left: nowhere holds no adapter"),
        ("localhost", {"adapters": ["left=."] * 2}, r"--adapter left: \. holds no adapter"),
        ("localhost", {"record": "redis://nowhere"}, "say by --namespace where to record"),
    ],
)
def test_what_cannot_be_served_is_refused(
    checkpoint: Path, host: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        serve_checkpoint(checkpoint, ServeConfig(host=host, port=0), **OPTIONS | options)


def test_an_adapter_that_does_not_fit_is_named(checkpoint: Path, tmp_path: Path) -> None:
    base = load_policy(checkpoint)
    for parameter in base.parameters():
        parameter.data.add_(1.0)
    write_adapter(file := tmp_path / "other.safetensors", base, seed=0)
    options = OPTIONS | {"adapters": [f"left={file}"]}
    with pytest.raises(
        ConfigError, match=r"--adapter left: the adapter does not fit: .* another base than this"
    ):
        serve_checkpoint(checkpoint, ServeConfig(port=0), **options)


def test_a_path_without_a_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(b"nothing")
    for path, message in ((tmp_path / "none", "holds no policy"), (tmp_path, "not a policy of format")):
        with pytest.raises(ConfigError, match=message):
            serve_checkpoint(path, ServeConfig(port=0), **OPTIONS)


def test_pictures_are_resized_as_train_did_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "drawer"
    checkpoint = folder / "checkpoints" / "step-000000003"
    checkpoint.mkdir(parents=True)
    file = checkpoint / "policy.safetensors"
    assert run_of(file) is None
    for data, expected in (
        (DataConfig(paths=("a.hdf5",)), True),
        (DataConfig(paths=("a.hdf5",), size=None), False),
        (DataConfig(), False),
    ):
        write_config(RunConfig(data=data), folder / "config.yaml")
        run = run_of(file)
        assert run is not None
        assert (run.path, resizes(run)) == (folder, expected)


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context:DeprecationWarning")
def test_a_server_is_a_process_without_ray_and_simulators(tmp_path: Path) -> None:
    """It needs the extra `serve` alone, and no argument of it holds the key. An adapter acts beside the
    policy. Pictures are resized for a policy that lies in no run."""
    spec = load_task("return_point").spec
    seen = {"where": np.zeros(2), "front": np.zeros((96, 128, 3), np.uint8)}
    spec = replace(spec, observation=spec.observation | {"front": ArraySpec((48, 64, 3), "uint8", 0, 255)})
    checkpoint = write_policy(tmp_path / "step-000000003", spec)
    adapter = tmp_path / "left.safetensors"
    write_adapter(adapter, load_policy(checkpoint), seed=0)
    script = f"""
import sys
for name in ("ray", "mujoco", "robosuite", "gym_pusht", "redis", "zstandard", "xxhash", "matplotlib"):
    sys.modules[name] = None
sys.argv = ["longview", "serve", {str(checkpoint)!r}, "--port", "0", "--map", "where=position"]
sys.argv += ["--adapter", {f"left={adapter}"!r}, "--resize"]
from longview.cluster.cli import main
main()
"""
    server = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {KEY_VARIABLE: "sesame"},
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        url = said.split()[-1]
        assert said.startswith("return_point, version 3: ws://127.0.0.1:")
        with_adapter = server.stdout.readline().split()[-1]
        assert with_adapter == f"{url}?adapter=left"
        for each, name in ((url, ""), (with_adapter, "left")):
            robot = WebsocketClientPolicy(each, api_key="sesame")
            assert robot.infer(seen)["actions"].shape == (8, 2)
            assert robot.get_server_metadata()["adapter"] == name
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 130
