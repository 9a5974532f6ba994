"""Process of one case in test_gpu.py. Usage: rehearse.py KIND CAMERAS PRECISION [FEATURE or FAULT]

It prints, as JSON, the results on the CPU and on the pretended device. With a fault of faults.py, it prints
those on the device alone.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faults
import numpy as np
import torch
from conftest import TINY, TINY_TRAINING, collect, cut
from pretend import DEVICE, device, pretended

from longview.actors.task import load_task
from longview.learner.config import (
    AdaptersConfig,
    CurriculumConfig,
    LearnerConfig,
    PolicyConfig,
    policy_config,
)
from longview.learner.laps import TrainingProgress
from longview.learner.normalize import measure
from longview.learner.policy import Policy, policy_from_bytes, policy_to_bytes
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.replay.episode import OBSERVATION_PREFIX, ArraySpec, Episode, Segment, TaskSpec

CONTEXT, ROBOTS, STEPS = 8, 3, 6
COUNTED = 5
"""Training step that is counted. It reports, publishes and saves nothing."""
FEATURES: dict[str, dict[str, Any]] = {
    "delay": {"max_delay": 2},
    "tokens": {"memory_tokens": 4},
    "stride": {"frame_stride": 2},
    "keyframes": {"keyframes": 3},
    "recent": {"recent_encoder": True},
    "linear": {"cell": "linear"},
}
"""Settings of a policy by the name of a feature, which most policies do without."""
ENCODER_STEPS = 3
"""Training steps of the encoder alone, for the feature `encoder`."""


def policy_of(kind: str, feature: str) -> PolicyConfig:
    """Return a tiny policy that uses the features that nearly all policies of its kind have, and one more."""
    shared: dict[str, Any] = {"context_length": CONTEXT, "camera_width": 16, "token_size": 8}
    shared |= FEATURES.get(feature, {})
    if kind == "recurrent":
        return policy_config(kind=kind, future_actions=14, hidden=16, components=2, **shared)
    return policy_config(TINY, architecture=kind, candidates=2, **shared)


def training_of(feature: str, spec: TaskSpec, episodes: list[Episode], folder: Path) -> dict[str, Any]:
    """Return the settings of the training that a feature changes."""
    if feature == "encoder":
        return {"encoder_steps": ENCODER_STEPS, "warmup": 1}
    if feature != "adapters":
        return {}
    torch.manual_seed(1)
    base = policy_of("unet_cross", "").make(spec)
    base.fit(measure(episodes, spec))
    (folder / "base.safetensors").write_bytes(policy_to_bytes(base))
    return {"start_from": str(folder / "base.safetensors"), "adapters": AdaptersConfig(rank=2)}


def seeing(cameras: int) -> tuple[TaskSpec, list[Episode]]:
    """Return the spec and episodes of return_point with cameras that show noise."""
    task, rng = load_task("return_point"), np.random.default_rng(0)
    spec, episodes = task.spec, [collect(task, seed, noise=0.1) for seed in range(4)]
    for index in range(cameras):
        name, image = f"camera{index}", ArraySpec((40, 44, 3), "uint8", 0, 255)
        spec = replace(spec, observation={**spec.observation, name: image})
        for episode in episodes:
            images = rng.integers(256, size=(episode.length, *image.shape), dtype=np.uint8)
            episode.arrays[OBSERVATION_PREFIX + name] = images
    return spec, episodes


def trained(
    config: LearnerConfig, spec: TaskSpec, episodes: list[Episode], where: str, folder: Path
) -> dict[str, Any]:
    """Train straight through, and with a stop and a resume. Return results, and what a step asked for."""
    found: dict[str, Any] = {"losses": [], "action_errors": [], "published": []}

    def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
        chosen = [episodes[i % 3] for i in range(count)]
        return [cut(e, (7 * step + i) % e.length, before, after) for i, e in enumerate(chosen)]

    def report(progress: TrainingProgress) -> None:
        found["losses"].append(progress.loss)
        found["action_errors"] += progress.action_error_by_context.values()

    def run(name: str, steps: Callable[[int], bool], report: Callable[[TrainingProgress], None]) -> Policy:
        taken = 0

        def step_is_over() -> bool:
            nonlocal taken
            taken += 1
            if taken == COUNTED:
                found["waits"], found["operations"] = dict(device.waits), device.operations.total()
            device.clear()
            return steps(taken)

        return train(
            config, spec, seed=0, draw=draw, statistics=lambda: measure(episodes, spec), report=report,
            publish=lambda version, data: published.append(version), validation=episodes[3:],
            should_stop=step_is_over, checkpoints=folder / name, device=where,
        )  # fmt: skip

    published = found["published"]
    straight = run("straight", lambda taken: False, report)
    run("resumed", lambda taken: taken == 3, lambda progress: None)
    resumed = run("resumed", lambda taken: False, lambda progress: None)
    sums = [hashlib.sha256(policy_to_bytes(policy)).hexdigest() for policy in (straight, resumed)]
    return found | {"policy": policy_to_bytes(straight), "sums": sums}


def acted(policy: Policy) -> dict[str, Any]:
    """Act for several robots, of which one skips a step. Return the actions and what a decision asked for."""
    spec, horizon, rng = policy.spec, policy.horizon, np.random.default_rng(0)
    session = PolicySession(policy, ROBOTS)
    rngs, executed, actions = rng.spawn(ROBOTS), [np.zeros((0, *spec.action.shape), np.float32)] * ROBOTS, []
    found: dict[str, Any] = {}
    for decision in range(3):
        count = horizon.execute if decision else 1
        frames = [
            {key: rng.integers(256, size=(count, *array.shape)).astype(array.dtype) for key, array in
             spec.observation.items()} for _ in range(ROBOTS)
        ]  # fmt: skip
        device.clear()
        chosen = session.act(
            range(ROBOTS), frames, executed, np.full(ROBOTS, decision == 0), CONTEXT, rngs,
            skipped=[0] * (ROBOTS - 1) + [decision],
        )  # fmt: skip
        found = {"waits": dict(device.waits), "operations": device.operations.total()}
        actions.append(chosen.tolist())
        executed = [*chosen[:-1], chosen[-1][1:]]  # the skipped steps are not known
    return found | {"actions": actions}


def rehearsed(
    kind: str, cameras: int, precision: Any, feature: str, where: str, weights: bytes | None
) -> dict[str, Any]:
    """Train, validate, resume and act on one device.

    Without `weights`, the policy acts that was trained here. Two devices are compared with the same weights:
    what they train differs by more than their decisions, because the optimizer makes rounding larger.
    """
    spec, episodes = seeing(cameras)
    config = replace(
        TINY_TRAINING, policy=policy_of(kind, feature), precision=precision, batch_size=8, steps=STEPS,
        curriculum=CurriculumConfig("sprinkle"), publish_every=3, report_every=3, checkpoint_every=100,
        warmup=2,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        config = replace(config, **training_of(feature, spec, episodes, Path(folder)))
        training = trained(config, spec, episodes, where, Path(folder))
    own = training.pop("policy")
    weights = weights or own
    return {"training": training, "acting": acted(policy_from_bytes(weights, where)), "weights": weights}


def main(kind: str, cameras: str, precision: str, change: str = "") -> None:
    torch.set_num_threads(1)
    fault = None if change in FEATURES or change in ("", "encoder", "adapters") else getattr(faults, change)
    devices = {"cpu": "cpu", "device": str(DEVICE)} if fault is None else {"device": str(DEVICE)}
    with pretended(), nullcontext() if fault is None else fault():
        found, weights = dict[str, Any](), None
        for name, where in devices.items():
            found[name] = rehearsed(kind, int(cameras), precision, change, where, weights)
            weights = found[name].pop("weights")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
