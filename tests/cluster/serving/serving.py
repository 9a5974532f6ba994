"""Policies of return_point in files, and servers that run in a thread of the test."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from longview.actors.task import load_task
from longview.cluster.serving.calls import Form
from longview.cluster.serving.server import BASE, Acting, RobotServer, ServeConfig
from longview.cluster.serving.weights import Weights
from longview.learner.adapters import AdaptedWeights, adapter_parts, trained_weights
from longview.learner.config import AdaptersConfig, policy_config
from longview.learner.normalize import measure
from longview.learner.policy import Policy, policy_to_bytes
from longview.monitoring.serving import ServingMetrics
from longview.replay.episode import (
    ACTION,
    OBSERVATION_PREFIX,
    REWARD,
    ArraySpec,
    Episode,
    EpisodeMeta,
    TaskSpec,
)

TASK = load_task("return_point")
SEED = 5
"""Seed of the noise of every robot's actions."""
CAMERA = replace(
    TASK.spec, observation={**TASK.spec.observation, "front": ArraySpec((40, 44, 3), "uint8", 0, 255)}
)
"""Task with a camera."""


def play(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Play an episode of the expert; returns frames (T, ...) by key, and `action` (T, A)."""
    env = TASK.make()
    observation, _ = env.reset(seed=seed)
    assert TASK.expert is not None
    expert, rows, ended = TASK.expert(env, np.random.default_rng(seed)), [], False
    while not ended:
        action = expert()
        rows.append({**observation, "action": action})
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def episode(seed: int) -> Episode:
    """Play an episode of the expert, in the store's form."""
    rows = play(seed)
    action = rows.pop("action")
    arrays = {OBSERVATION_PREFIX + key: frames for key, frames in rows.items()}
    meta = EpisodeMeta(f"demo.return_point.{seed}", "return_point", seed, "demo")
    return Episode(meta, "success", arrays | {ACTION: action, REWARD: np.zeros(len(action), np.float32)})


def with_pictures(episode: Episode) -> Episode:
    """Return an episode of `CAMERA`, with random pictures."""
    shape = episode.length, *CAMERA.observation["front"].shape
    pictures = np.random.default_rng(episode.meta.seed).integers(0, 256, shape, np.uint8)
    return replace(episode, arrays={**episode.arrays, OBSERVATION_PREFIX + "front": pictures})


def make_policy(episodes: list[Episode], seed: int, max_delay: int = 0, spec: TaskSpec = TASK.spec) -> Policy:
    """Make an untrained policy whose actions depend on all that it sees."""
    torch.manual_seed(seed)
    config = policy_config(
        future_actions=6,
        execute=4,
        widths=(8,),
        groups=2,
        heads=2,
        token_size=8,
        diffusion_steps=10,
        sampling_steps=2,
        max_delay=max_delay,
    )
    policy = config.make(spec)
    policy.fit(measure(episodes, spec))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy.eval()


def write_checkpoint(folder: Path, policy: Policy, step: int) -> Path:
    """Write a policy as the checkpoint of a step, and return the checkpoint's folder."""
    unfinished, checkpoint = folder / "unfinished", folder / f"step-{step:09d}"
    unfinished.mkdir(parents=True)
    (unfinished / "policy.safetensors").write_bytes(policy_to_bytes(policy))
    return unfinished.rename(checkpoint)


def write_adapter(file: Path, base: Policy, seed: int) -> Policy:
    """Write an adapter of a policy that changes all that it does, and return the policy with it."""
    policy = deepcopy(base)
    weights = trained_weights(policy, AdaptersConfig(rank=1), dict(base.named_parameters()))
    assert isinstance(weights, AdaptedWeights)
    weights.vector.data.add_(0.3 * torch.randn(weights.vector.shape, generator=torch.manual_seed(seed)))
    weights.merge()
    file.write_bytes(b"".join(adapter_parts(policy, weights)))
    return policy


class Served:
    """A server under way, in a thread."""

    def __init__(
        self,
        path: Path,
        *,
        adapters: Any = MappingProxyType({}),
        tls: Any = None,
        recorder: Any = None,
        names: Any = MappingProxyType({}),
        resize: bool = False,
        **settings: Any,
    ) -> None:
        """
        Args:
            path: where the policies are.
            adapters: paths of adapters, by name.
            tls: certificate and key.
            recorder: makes a recorder from the task and the metrics; None records nothing.
            names: names of observations, as in `Form`.
            resize: whether pictures are resized, as in `Form`.
            settings: settings of the server; without them, a busy machine may take its time to answer.
        """
        weights, self.metrics = Weights(path, "cpu"), ServingMetrics()
        base = weights.policy
        spec, horizon = base.spec, base.horizon
        config = ServeConfig(port=0, **{"answer_seconds": 120.0} | settings)
        self._recorder = None if recorder is None else recorder(spec, self.metrics)
        form = Form(spec, horizon.context, names, resize, max_delay=horizon.max_delay)
        policies = {BASE: Acting(weights, self._recorder)}
        for name, file in adapters.items():
            policies[name] = Acting(Weights(file, "cpu", base), self._recorder)
        server = RobotServer(policies, form, config, self.metrics, lambda: np.random.default_rng(SEED))
        self._loop, ports = asyncio.new_event_loop(), Queue[int]()
        self._running = self._loop.create_task(server.run(ports.put, tls))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.port = ports.get(timeout=60)
        self.url = f"ws://127.0.0.1:{self.port}"

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._running)

    def stop(self) -> None:
        """Stop the server, and wait until all is recorded. Repeating it changes nothing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._running.cancel)
            self._thread.join()
            self._loop.close()
            if self._recorder is not None:
                self._recorder.close()


Serve = Callable[..., Served]
"""Function that starts a server, with the arguments of `Served`."""
