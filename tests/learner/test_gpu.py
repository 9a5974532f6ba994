"""Training and acting on a pretended GPU, for every kind of policy. Each case is a process of its own.

No step may wait for the device, and the number of operations may not grow. pretend.py describes the device,
rehearse.py what is done on it, and faults.py what these tests would find.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("rehearse.py")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
OPERATIONS = {
    ("unet_cross", 0, "float32"): (776, 929),
    ("unet_film", 0, "float32"): (416, 392),
    ("dit", 0, "float32"): (489, 608),
    ("mlp", 0, "float32"): (251, 193),
    ("recurrent", 0, "float32"): (107, 80),
    ("unet_cross", 2, "float32"): (1092, 1103),
    ("unet_film", 2, "float32"): (732, 566),
    ("dit", 2, "float32"): (805, 782),
    ("mlp", 2, "float32"): (567, 367),
    ("recurrent", 2, "float32"): (423, 254),
    ("unet_cross", 2, "bfloat16"): (1813, 1103),
    ("unet_film", 2, "bfloat16"): (1199, 566),
    ("dit", 2, "bfloat16"): (1284, 782),
    ("mlp", 2, "bfloat16"): (964, 367),
    ("recurrent", 2, "bfloat16"): (702, 254),
}
"""Operations of a training step and of a decision, by kind of policy, cameras and precision. Lower one if you
can, and raise one only for a reason."""
FEATURES = {
    ("unet_cross", 0, "delay"): (787, 945),
    ("unet_cross", 0, "tokens"): (836, 959),
    ("unet_cross", 2, "stride"): (1093, 1103),
    ("unet_cross", 0, "keyframes"): (780, 947),
    ("unet_cross", 2, "recent"): (1424, 1282),
    ("unet_cross", 2, "encoder"): (903, 1103),
    ("unet_cross", 0, "adapters"): (1024, 929),
    ("recurrent", 0, "linear"): (118, 104),
}
"""Operations in float32, by kind of policy, cameras, and a feature that most policies do without."""


def rehearse(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(kind: str, cameras: int, precision: str, change: str = "") -> dict[str, Any]:
    """Rehearse one case, with a feature or a planted fault, and check what the device was asked for."""
    found = rehearse(kind, str(cameras), precision, *[change] * bool(change))
    training, acting = found["device"]["training"], found["device"]["acting"]
    assert training["waits"] == {}
    assert list(acting["waits"].values()) == [1], "a decision waits for its actions alone"
    (reason,) = acting["waits"]
    assert reason.startswith("copy to the host")
    of_step, of_decision = FEATURES.get((kind, cameras, change)) or OPERATIONS[kind, cameras, precision]
    assert training["operations"] <= of_step
    assert acting["operations"] <= of_decision
    return found


@pytest.mark.parametrize(
    ("kind", "cameras", "precision", "feature"),
    [
        *(
            pytest.param(*case, "", marks=[] if case == ("unet_cross", 0, "float32") else pytest.mark.slow)
            for case in OPERATIONS
        ),
        *(
            pytest.param(kind, cameras, "float32", feature, marks=pytest.mark.slow)
            for kind, cameras, feature in FEATURES
        ),
    ],
)
def test_the_device_computes_what_the_cpu_does_and_nobody_waits_for_it(
    kind: str, cameras: int, precision: str, feature: str
) -> None:
    found = check(kind, cameras, precision, feature)
    cpu, device = found["cpu"], found["device"]
    exact = precision == "float32"
    losses = device["training"]["losses"]
    assert losses == pytest.approx(cpu["training"]["losses"], rel=1e-4 if exact else 0.02)
    assert len(losses) == 2
    errors = device["training"]["action_errors"]
    assert errors == pytest.approx(cpu["training"]["action_errors"], rel=1e-4 if exact else 0.05)
    assert device["training"]["published"] == cpu["training"]["published"] == [3, 6, 3, 3, 6]
    straight, resumed = device["training"]["sums"]
    assert straight == resumed, "a resumed run ends bit for bit the same"
    if exact:
        np.testing.assert_allclose(device["acting"]["actions"], cpu["acting"]["actions"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("number_in_a_step", "number: learner"),
        pytest.param("arange_on_the_cpu", "mixes tensors of the CPU", marks=pytest.mark.slow),
        pytest.param("truth_in_a_step", "number: learner", marks=pytest.mark.slow),
        pytest.param("mask_in_a_step", "size: learner", marks=pytest.mark.slow),
        pytest.param("pageable_batch", "copy to the device", marks=pytest.mark.slow),
        pytest.param("gradient_by_gradient", "operations|<=", marks=pytest.mark.slow),
        pytest.param("constants_in_a_decision", "waits for its actions alone", marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_is_found(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check("unet_cross", 0, "float32", fault)


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu_too(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--quick", "--json", str(tmp_path / "found.json")]
    subprocess.run([sys.executable, BENCHMARK, *arguments], check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["machine"]["left_out"] == []
    measured = {row["measure"]: row["value"] for row in found["rows"]}
    assert measured.keys() >= {"training", "decision", "loss_difference", "gradient_difference_bfloat16"}
    assert measured["loss_difference"] == measured["action_difference"] == 0


def test_the_benchmark_says_that_there_is_no_gpu() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, BENCHMARK], check=True, capture_output=True, text=True, env=hidden)
    assert "no GPU" in done.stdout
