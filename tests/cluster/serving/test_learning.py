"""A run under way learns from a person who corrects the policy that the run serves."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from longview.cluster.run.folder import Run
from longview.cluster.run.services import redis_server
from longview.learner.files import steps
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore
from tests.cluster.serving.serving import TASK, episode

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context:DeprecationWarning")

LEARNER = (
    *("learner.steps=60", "learner.publish_every=10", "learner.checkpoint_every=10", "learner.batch_size=8"),
    *("learner.warmup=1", "learner.validation_episodes=0", "learner.windows_per_segment=1"),
    *("learner.policy.architecture=unet_cross", "learner.policy.widths=[8]"),
    *("learner.policy.groups=2", "learner.policy.token_size=8"),
    *("evaluation.context_lengths=[1,8]", "replay.samples_per_insert=1"),
)
"""Settings of a learner whose demonstrations suffice for a part of its training: each of their steps is drawn
once on average."""
ACTORS = (
    *("collect.kind=human", "actors.count=1", "actors.simulators=2", "actors.demonstrations=3"),
    *("evaluation.episodes=0", "evaluation.final_episodes=2"),
)
"""Settings of a run with actors, which only evaluate."""
TAKEOVER = 8
"""Steps after which the person takes over."""


def correct(url: str, seed: int) -> list[int]:
    """Let the policy begin an episode, and the expert take over, as a person would; returns the versions that
    decided."""
    env, versions = TASK.make(), []
    present, _ = env.reset(seed=seed)
    assert TASK.expert is not None
    expert, policy = TASK.expert(env, np.random.default_rng(seed)), WebsocketClientPolicy(url)
    frames, executed, controller = [present], np.empty((0, 2), np.float32), np.empty(0, np.uint8)
    steps, outcome = 0, None
    while True:
        call = {"frames": {key: np.stack([frame[key] for frame in frames]) for key in present}}
        if outcome is not None:
            call["outcome"] = outcome
        answer = policy.infer(call | {"executed": executed, "controller": controller})
        assert answer["recording"]
        versions.append(answer["policy_version"])
        if outcome is not None:
            policy._ws.close()  # openpi's client leaves its connection open
            return versions
        frames, actions, by = [], [], []
        for action in answer["actions"]:
            person = steps >= TAKEOVER
            actions.append(np.asarray(expert() if person else action, np.float32))
            by.append(2 if person else 0)
            present, _, terminated, truncated, info = env.step(actions[-1])
            frames.append(present)
            steps += 1
            if terminated or truncated:
                outcome = str(info["outcome"])
                break
        executed, controller = np.array(actions), np.array(by, np.uint8)


def launched(longview: Any, url: str) -> Any:
    """Launch a run with actors, whose expert demonstrates."""
    (longview.folder / "run.yaml").write_text("task: return_point\n")
    return longview.start("launch", "run.yaml", "name=drawer", f"replay.url={url}", *ACTORS, *LEARNER)


def trained(longview: Any, url: str) -> Any:
    """Train on demonstrations that lie in a store, in a namespace of their own."""
    store = EpisodeStore.connect(url, "lab", StoreConfig())
    store.register(TASK.spec)
    for seed in range(3):
        store.add(episode(seed))
    store.close()
    return longview.start("train", "lab", "--url", url, "name=drawer", *LEARNER)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("begin", [trained, launched])
def test_a_run_learns_from_a_person_and_serves_what_it_learnt(
    begin: Callable[[Any, str], Any], longview: Any, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with redis_server(tmp_path / "redis") as url:
        learning = begin(longview, url)
        run = Run(tmp_path / "runs" / "drawer")
        longview.wait_for(lambda: steps(run.checkpoints) or learning.poll() is not None, 400)
        assert learning.poll() is None, learning.communicate()[0]
        server = longview.start("serve", "drawer", "--record", url, "--port", str(port))
        longview.wait_for(lambda: healthy(port) or server.poll() is not None, 300)

        assert server.poll() is None, server.communicate()[0]
        versions: list[list[int]] = []
        while learning.poll() is None:
            versions.append(correct(f"ws://127.0.0.1:{port}", seed=1000 + 2 * len(versions)))
        output, _ = learning.communicate(timeout=300)
        assert learning.returncode == 0, output
        server.terminate()
        server.communicate(timeout=60)
        assert server.returncode == 130

        assert all(len(set(found)) == 1 for found in versions), "an episode keeps its weights"
        assert versions[0][0] < versions[-1][0] <= 60, "newer weights acted"
        store = EpisodeStore.connect(url, run.config.data.namespace or "drawer", StoreConfig())
        corrections = list(store.records("correction"))
        assert len(corrections) == len(versions)
        assert store.stats().stored["demo"].steps < 60 * 8, "without the person, the learner would still wait"
        for record in corrections:
            controller = store.read(record.meta.id).arrays["controller"]
            assert set(controller[:TAKEOVER].tolist()) == {0}
            assert set(controller[TAKEOVER:].tolist()) == {2}
            assert record.learnable == record.length - TAKEOVER
        store.close()


def healthy(port: int) -> bool:
    """Tell whether a server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.read() == b"OK\n")
    except OSError:
        return False
