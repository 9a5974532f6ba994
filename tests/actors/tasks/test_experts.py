"""Rules for every expert. What is particular to one is tested beside its task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longview.actors.task import Environment, load_task
from longview.cluster.run.config import preset_file, read_config


def anywhere(env: Environment, rng: np.random.Generator) -> NDArray[Any]:
    return rng.uniform(-1, 1, env.action_space.shape)


def down(env: Environment, rng: np.random.Generator) -> NDArray[Any]:
    """Move into the table, with the gripper open or closed."""
    return np.array((0.5, 0.4, -1.0, 0.1, -0.2, 0.3, rng.choice((-1.0, 1.0))))


def aside(env: Environment, rng: np.random.Generator) -> NDArray[Any]:
    """Move aside, but not down: that might be another scoop, which cannot be undone."""
    scene: Any = env.unwrapped
    return np.asarray(scene.go(rng.uniform((-0.05, -0.05, -0.01), 0.05)))


@dataclass(frozen=True)
class Case:
    """A task's expert."""

    name: str
    share: float
    """Least share of 200 episodes that succeed."""
    steps: tuple[int, int]
    """Bounds of the length of an episode that succeeds, in steps."""
    stray: Callable[[Environment, np.random.Generator], NDArray[Any]]
    """Chooses an action that leads astray."""
    astray: tuple[int, int, int]
    """First step at which that action is taken, for how many steps, and the period of its repetition."""
    seeds: int = 3
    """Episodes that are played in the quick tests."""

    @property
    def noise(self) -> float:
        """Noise of its demonstrations, by default or by the task's preset."""
        return read_config(preset_file(self.name), task=self.name).actors.noise


CASES = (
    Case("lift", 0.98, (20, 45), down, (0, 20, 120)),
    Case("square", 0.95, (60, 400), down, (0, 20, 400)),
    Case("grasp_and_return", 0.98, (45, 110), anywhere, (12, 3, 30)),
    Case("push_and_return", 0.98, (70, 200), anywhere, (12, 3, 40)),
    Case("count_scoops", 0.98, (60, 260), aside, (12, 3, 25)),
    Case("return_point", 1.0, (35, 90), anywhere, (2, 3, 10), seeds=200),
    # Once the puck is gone nothing can be mended, so it strays as the hand begins to push.
    Case("slide_puck", 0.97, (70, 96), anywhere, (8, 1, 32), seeds=20),
)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


@pytest.fixture
def env(case: Case, simulators: Callable[[str], Environment]) -> Environment:
    return simulators(case.name)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_expert_succeeds(case: Case, env: Environment, play: Callable[..., Any], noisy: bool) -> None:
    task, noise = load_task(case.name), case.noise * noisy
    for seed in range(case.seeds):
        played = play(task, env, seed, noise)
        assert (played.outcome, played.terminated) == ("success", True)
        assert played.rewards == [0.0] * (len(played.rewards) - 1) + [1.0]
        assert case.steps[0] < len(played.rewards) < case.steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [False, True])
def test_the_expert_succeeds_almost_always(
    case: Case, env: Environment, play: Callable[..., Any], noisy: bool
) -> None:
    task, noise = load_task(case.name), case.noise * noisy
    outcomes = [play(task, env, seed, noise).outcome for seed in range(200)]
    assert outcomes.count("success") >= case.share * len(outcomes)


def test_the_expert_recovers_from_where_it_would_not_have_gone(case: Case, env: Environment) -> None:
    """The expert has no phase that it could be wrong about, so it can label any state of a policy."""
    task, (first, length, period) = load_task(case.name), case.astray
    assert task.expert is not None
    for seed in range(4):
        env.reset(seed=seed)
        expert, rng = task.expert(env, np.random.default_rng(seed)), np.random.default_rng(seed)
        for step in range(task.spec.max_steps):
            since = step % period - first
            if since == 0:
                wrong = case.stray(env, rng).astype(np.float32)
            _, _, terminated, truncated, info = env.step(wrong if 0 <= since < length else expert())
            if terminated or truncated:
                break
        assert info["outcome"] == "success", seed
