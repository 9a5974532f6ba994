"""Tests of policies as files, for every kind of policy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from longview.learner import checkpoint, files
from longview.learner.policies.diffusion.policy import DiffusionPolicy
from longview.learner.policy import (
    FORMAT,
    OLD_FORMAT,
    Policy,
    load_policy,
    policy_from_bytes,
    policy_to_bytes,
)

DATA = Path(__file__).parent / "data"


def test_a_policy_is_on_the_cpu_by_default(policy: DiffusionPolicy) -> None:
    back = policy_from_bytes(policy_to_bytes(policy))
    assert {tensor.device.type for tensor in back.state_dict().values()} == {"cpu"}
    assert not back.training


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 100,
        lambda data: data.replace(FORMAT.encode(), b"longview-policy-0"),
        lambda data: (2).to_bytes(8, "little") + json.dumps({}).encode(),
    ],
)
def test_other_bytes_are_refused(policy: DiffusionPolicy, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=f"not a policy of format {FORMAT}"):
        policy_from_bytes(damage(policy_to_bytes(policy)))


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("policy", {"momentum": 1}, "momentum"),
        ("policy", {"token_size": 10}, r"encoder\.layers\.0\.weight"),
        ("policy", {"widths": [8]}, r"denoiser\."),
        ("policy", {"normalize": {"hand": "identity"}}, r"normalize: \['hand'\]"),
        ("task", {"gravity": 1}, "gravity"),
        ("task", {"context_lengths": [4, 2]}, "must ascend"),
        ("task", {"action": {"dtype": "float32"}}, "shape"),
        ("task", {"action": {"shape": [3], "dtype": "float32", "low": -1, "high": 1}}, r"actions\.centre"),
    ],
)
def test_what_does_not_fit_is_named(
    policy: DiffusionPolicy, part: str, change: dict[str, Any], named: str
) -> None:
    data = policy_to_bytes(policy)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"][FORMAT])
    changed = save(load(data), metadata={FORMAT: json.dumps({**about, part: {**about[part], **change}})})
    with pytest.raises(ValueError, match=rf"(?s)does not fit .*{named}"):
        policy_from_bytes(changed)


def test_a_file_of_the_old_format_acts_as_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 0.1 wrote the file and the action. Its configs had the fields of every architecture, and its
    sampler predicted at other diffusion steps."""
    of_0_1 = list(range(90, -1, -10))
    monkeypatch.setattr("longview.learner.policies.diffusion.policy.strides", lambda *_: of_0_1)
    policy = load_policy(DATA / "policy-format-2.safetensors")
    known = json.loads((DATA / "policy-format-2.json").read_text())
    assert isinstance(policy, DiffusionPolicy)
    assert (policy.config.kind, policy.config.architecture, policy.horizon.context) == (
        "diffusion",
        "unet_cross",
        16,
    )
    rng = np.random.default_rng(0)
    rng.uniform(-1, 1, (5, 2))
    with torch.inference_mode():
        token_1SE = policy.tokens({"position": np.array(known["position"], np.float32)})[None]
        seen_1S, noise_1TA = np.ones((1, 5), np.bool_), rng.standard_normal((1, 12, 2))
        action_1TA = policy.denoise(policy.sampling(), token_1SE, seen_1S, noise_1TA)
    np.testing.assert_allclose(action_1TA[0], known["action"], rtol=0, atol=1e-5)
    assert FORMAT.encode() in policy_to_bytes(policy)


def test_a_policy_is_loaded_from_a_file_a_checkpoint_or_a_run(
    policy: DiffusionPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = policy_to_bytes(policy)
    run = tmp_path / "runs" / "mine"
    for step in (10, 20):
        checkpoint.save(run / "checkpoints", step, data if step == 20 else b"old", {}, {}, keep=3)
    monkeypatch.setenv("LONGVIEW_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()  # the folder of its data set, which holds no policy
    newest = run / "checkpoints" / "step-000000020"
    for path in (newest / files.POLICY, newest, run / "checkpoints", run, "mine"):
        found: Policy = load_policy(path)
        assert found.config == policy.config
        assert not found.training


def test_a_path_without_a_policy_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            FileNotFoundError, match=rf"{path} holds no policy: expected a file, a checkpoint's"
        ):
            load_policy(path)


def test_a_policy_of_a_kind_that_is_not_installed_is_named(policy: DiffusionPolicy) -> None:
    data = policy_to_bytes(policy)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"][FORMAT])
    about["policy"]["kind"] = "state_space"
    changed = save(load(data), metadata={FORMAT: json.dumps(about)})
    with pytest.raises(ValueError, match=r"kind must be one of diffusion, recurrent.*not 'state_space'"):
        policy_from_bytes(changed)


def test_an_unknown_format_is_named(policy: DiffusionPolicy) -> None:
    data = policy_to_bytes(policy).replace(FORMAT.encode(), b"longview-policy-9")
    with pytest.raises(ValueError, match="not a policy of format longview-policy-3 or longview-policy-2"):
        policy_from_bytes(data)
    assert OLD_FORMAT == "longview-policy-2"
