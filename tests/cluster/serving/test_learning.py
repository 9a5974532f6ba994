"""A run under way learns from a person who corrects the policy that the run serves."""

import socket
import urllib.request
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
from tests.cluster.serving.serving import TASK

pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context:DeprecationWarning")

SETTINGS = (
    *("collect.kind=human", "actors.count=1", "actors.simulators=2", "actors.demonstrations=4"),
    *("learner.steps=120", "learner.publish_every=10", "learner.checkpoint_every=10", "learner.batch_size=8"),
    *("learner.warmup=1", "learner.validation_episodes=0", "learner.windows_per_segment=1"),
    *("learner.policy.widths=[8]", "learner.policy.groups=2", "learner.policy.token_size=8"),
    *("evaluation.episodes=0", "evaluation.final_episodes=2", "evaluation.context_lengths=[1,8]"),
    "replay.samples_per_insert=1",
)
"""A run whose demonstrations suffice for some of its steps only, because each is drawn once on average."""
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_learns_from_a_person_and_serves_what_it_learnt(longview: Any, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "run.yaml").write_text("task: return_point\n")
    with redis_server(tmp_path / "redis") as url:
        launched = longview.start("launch", "run.yaml", "name=drawer", f"replay.url={url}", *SETTINGS)
        run = Run(tmp_path / "runs" / "drawer")
        longview.wait_for(lambda: steps(run.checkpoints) or launched.poll() is not None, 400)
        server = longview.start("serve", "drawer", "--record", url, "--port", str(port))
        longview.wait_for(lambda: healthy(port) or server.poll() is not None, 300)

        versions, played = [], 0
        while launched.poll() is None and played < 40:
            versions.append(correct(f"ws://127.0.0.1:{port}", seed=1000 + 2 * played))
            played += 1
        output, _ = launched.communicate(timeout=120)
        assert launched.returncode == 0, output
        server.terminate()
        assert server.wait(60) == 130

        assert all(len(set(found)) == 1 for found in versions), "an episode keeps its weights"
        first, last = versions[0][0], versions[-1][0]
        assert first < last <= 120, "newer weights acted"
        store = EpisodeStore.connect(url, run.origin.namespace, StoreConfig())
        corrections = list(store.records("correction"))
        assert len(corrections) == played
        demonstrated = store.stats().stored["demo"].learnable
        assert demonstrated < 120 * 8, "without the person, the learner would have had to wait"
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
