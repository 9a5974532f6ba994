"""Environments of gymnasium as tasks: spaces, success, time limits, what is refused, and real packages."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from longview.actors.checks import check_task
from longview.actors.config import NO_CAMERAS, ActorsConfig, EnvironmentConfig
from longview.actors.task import Task, UnknownTask, columns_of, is_task, load_task
from longview.actors.tasks.any_gym import one_hot
from longview.actors.worker import Order, Worker
from longview.cluster.commands.config import config_text
from longview.cluster.run.config import ConfigError, environment_of, preset_file, read_config
from longview.cluster.run.services import redis_server
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.datasets.formats import open_source
from longview.replay.episode import ArraySpec
from longview.replay.store import EpisodeStore

NAMESPACE = "longview-test"


class Scripted(gymnasium.Env[Any, Any]):
    """An environment of any spaces, which keeps the actions that it gets."""

    metadata = {"render_modes": [], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        observed: Any = None,
        acted: Any = None,
        info: Sequence[Mapping[str, Any]] = ({}, {}, {}),
        rewards: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.observation_space = observed or spaces.Box(-1, 1, (2,))
        self.action_space = acted or spaces.Box(-1, 1, (2,))
        self._info, self._rewards = info, rewards
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.taken = []
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.taken.append(action)
        step = len(self.taken) - 1
        over = step == len(self._info) - 1
        return self.observation_space.sample(), self._rewards[step], over, False, dict(self._info[step])


class Old(gymnasium.Env[Any, Any]):
    """An environment with the interface of gym before 0.26."""

    observation_space = action_space = spaces.Box(-1, 1, (2,))

    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32)

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, {}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    gymnasium.register(f"{NAMESPACE}/Scripted-v0", Scripted, max_episode_steps=10)
    gymnasium.register(f"{NAMESPACE}/Endless-v0", Scripted)
    gymnasium.register(f"{NAMESPACE}/Threshold-v0", Scripted, reward_threshold=2.0, max_episode_steps=10)
    gymnasium.register(f"{NAMESPACE}/Old-v0", Old, max_episode_steps=10)
    yield
    for name in ("Scripted", "Endless", "Threshold", "Old"):
        del gymnasium.registry[f"{NAMESPACE}/{name}-v0"]


def load(name: str = "Scripted", success: str | float | None = "done", **settings: Any) -> Task:
    """Load an environment of this file."""
    names = ("keys", "max_steps", "control_hz")
    given = {key: settings.pop(key) for key in names if key in settings}
    environment = EnvironmentConfig(arguments=settings, success=success, **given)
    return load_task(f"gym:{NAMESPACE}/{name}-v0", NO_CAMERAS, environment)


def played(task: Task, actions: int = 10, seed: int = 0) -> tuple[str, list[float], Any]:
    """Play an episode of zeros: its outcome, rewards and simulator."""
    simulator, rewards = task.make(), list[float]()
    simulator.reset(seed=seed)
    for _ in range(actions):
        _, reward, terminated, truncated, info = simulator.step(np.zeros(task.spec.action.shape, np.float32))
        rewards.append(float(reward))
        if terminated or truncated:
            return info["outcome"], rewards, simulator
    raise AssertionError("the episode goes on")


def test_parts_of_parts_are_named_by_a_path_and_each_space_becomes_an_array() -> None:
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (4, 6, 3), np.uint8),
            "bytes": spaces.Box(0, 255, (4,), np.uint8),
            "arm": spaces.Dict({"angle": spaces.Box(-2, 3, (2,), np.float64), "mode": spaces.Discrete(3)}),
            "cards": spaces.MultiDiscrete([2, 3]),
            "flags": spaces.MultiBinary(2),
        }
    )
    task = load(observed=space)
    assert task.spec.observation == {
        "arm/angle": ArraySpec((2,), low=-2, high=3),
        "arm/mode": ArraySpec((3,), low=0, high=1),
        "bytes": ArraySpec((4,), low=0, high=255),
        "camera": ArraySpec((4, 6, 3), "uint8", 0, 255),
        "cards": ArraySpec((5,), low=0, high=1),
        "flags": ArraySpec((2,), low=0, high=1),
    }
    simulator: Any = task.make()
    seen, _ = simulator.reset(seed=0)
    assert simulator.observation_space.contains(seen)
    theirs = simulator._seen
    np.testing.assert_array_equal(seen["camera"], theirs["camera"])
    assert seen["arm/mode"].argmax() == theirs["arm"]["mode"]
    assert [seen["cards"][:2].argmax(), seen["cards"][2:].argmax()] == theirs["cards"].tolist()
    assert seen["cards"].sum() == 2


@pytest.mark.parametrize(
    ("space", "spec"),
    [
        (spaces.Box(-1, 2, (3,)), {"state": ArraySpec((3,), low=-1, high=2)}),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), {"image": ArraySpec((8, 8, 3), "uint8", 0, 255)}),
        (spaces.Discrete(4, start=2), {"state": ArraySpec((4,), low=0, high=1)}),
    ],
)
def test_an_observation_that_is_no_dict_has_a_name_too(space: Any, spec: dict[str, ArraySpec]) -> None:
    assert load(observed=space).spec.observation == spec


def test_chosen_keys_alone_are_observed_and_an_unknown_one_is_told() -> None:
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([spaces.Discrete(2)])})
    words = r"gym:longview-test~Scripted-v0: observation b is a Tuple, .*leave it out by environment\.keys"
    with pytest.raises(UnknownTask, match=words):
        load(observed=space)
    assert list(load(observed=space, keys=("a",)).spec.observation) == ["a"]
    with pytest.raises(UnknownTask, match=r"^environment\.keys: gym:longview-test~.* has no c, only a, b$"):
        load(observed=space, keys=("c",))


@pytest.mark.parametrize(
    ("space", "scores", "value"),
    [
        (spaces.Discrete(3, start=5), [-1, 0.5, 0.4], 6),
        (spaces.MultiDiscrete([2, 3]), [0.1, 0.2, 0.9, -1, 1], [1, 2]),
        (spaces.MultiBinary(3), [-0.1, 0.1, 0], [0, 1, 0]),
        (spaces.Box(np.float32([-1, 0]), np.float32([1, 2])), [2, -1], [1, 0]),
        (spaces.Box(0, 9, (2, 1), np.int64), [3.6, 9], [[4], [9]]),
    ],
)
def test_an_action_becomes_a_value_of_its_space(space: Any, scores: list[float], value: Any) -> None:
    task = load(acted=space)
    simulator: Any = task.make()
    simulator.reset(seed=0)
    assert task.spec.action.shape == (len(scores),)
    simulator.step(np.array(scores, np.float32))
    taken = simulator.simulator.unwrapped.taken[-1]
    np.testing.assert_array_equal(taken, value)


@pytest.mark.parametrize("space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Text(4)])
def test_an_action_space_that_does_not_fit_is_told_with_what_to_do(space: Any) -> None:
    with pytest.raises(UnknownTask, match=r"the action space is a T\w+, .* write a task of your own"):
        load(acted=space)


def test_a_key_of_info_ends_the_episode_as_success() -> None:
    task = load(success=None, info=({"is_success": 0.0}, {"is_success": 1.0}, {"is_success": 0.0}))
    assert played(task)[0] == "success"
    assert len(played(task)[1]) == 2
    assert played(load(success=None, info=({"success": False},) * 3))[0] == "failure"
    assert played(load(success="won", info=({}, {}, {"won": True})))[0] == "success"


def test_a_return_is_judged_when_the_episode_ends() -> None:
    rewards = (3.0, -1.0, -0.5)
    assert played(load(success=1.5, rewards=rewards))[:2] == ("success", list(rewards))
    assert played(load(success=1.6, rewards=rewards))[0] == "failure"
    assert played(load("Threshold", success=None, rewards=(1.0, 0.0, 1.0)))[0] == "success"
    cut = played(load(success=1.5, rewards=rewards, max_steps=2))
    assert cut[:2] == ("success", [3.0, -1.0])


def test_what_an_environment_does_not_tell_must_be_set() -> None:
    with pytest.raises(UnknownTask, match=r"what a success is: set environment\.success .*which is empty"):
        load(success=None)
    with pytest.raises(UnknownTask, match=r"how many steps an episode may last: set environment\.max_steps"):
        load("Endless")
    spec = load("Endless", max_steps=3, control_hz=4.0).spec
    assert (spec.max_steps, spec.control_hz, spec.context_lengths) == (3, 4.0, (1, 2))
    assert load().spec.control_hz == 5.0


def test_the_interface_of_old_gym_is_refused() -> None:
    with pytest.raises(UnknownTask, match=r"does not reset and step as gymnasium's .*one of the old package"):
        load("Old")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gym:Nope-v0", r"Environment `Nope` doesn't exist.*name the package that registers it"),
        ("gym:absent:Nope-v0", r"task gym:absent:Nope-v0 cannot be loaded: ModuleNotFoundError.*'absent'"),
        ("gym:", r"task gym: cannot be loaded: .*Malformed environment ID"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_environment_that_is_not_registered_is_told(name: str, words: str) -> None:
    with pytest.raises(UnknownTask, match=words):
        load_task(name)


def test_arguments_that_do_not_fit_are_told() -> None:
    with pytest.raises(UnknownTask, match=r"with environment\.arguments \{'colour': 'red'\}: TypeError"):
        load(colour="red")


def test_other_tasks_take_no_such_settings() -> None:
    with pytest.raises(ConfigError, match=r"^environment: task lift takes no such settings"):
        read_config(None, ["task=lift", "environment.max_steps=3"])
    with pytest.raises(ConfigError, match=r"^environment\.max_steps must be positive, not 0$"):
        read_config(None, ["task=gym:CartPole-v1", "environment.max_steps=0"])
    assert environment_of(["environment.arguments.k=2", "seed=3"]).arguments == {"k": 2}


def test_an_episode_follows_from_its_seed() -> None:
    task = load()
    first, other, again = (task.make().reset(seed=seed)[0]["state"] for seed in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    simulator = task.make()
    simulator.reset(seed=1)
    assert not np.array_equal(simulator.reset()[0]["state"], first)


def test_choices_of_a_data_set_become_scores(tmp_path: Path) -> None:
    sizes, starts = np.array((3,)), np.array((0,))
    np.testing.assert_array_equal(one_hot([2, 0], sizes, starts, -1), [[-1, -1, 1], [1, -1, -1]])
    np.testing.assert_array_equal(one_hot([[2.0]], sizes, starts, 0), [[0, 0, 1]])
    for wrong in ([0.5], [-1]):
        with pytest.raises(ValueError, match="expected whole numbers"):
            one_hot(wrong, sizes, starts, 0)

    task = load(observed=spaces.Discrete(4), acted=spaces.Discrete(3))
    with h5py.File(tmp_path / "cards.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["obs/state"] = np.array((0, 2)), np.array((3, 1))
    source = open_source(tmp_path / "cards.hdf5", task.spec.name, task.spec, columns_of(task), hz=5)
    arrays = source.read(0).arrays
    np.testing.assert_array_equal(arrays["action"], [[1, -1, -1], [-1, -1, 1]])
    np.testing.assert_array_equal(arrays["observation.state"], [[0, 0, 0, 1], [0, 1, 0, 0]])


def test_config_and_checks_take_such_names() -> None:
    name = "gym:CartPole-v1"
    assert is_task(name)
    assert preset_file(name) is None
    assert "task: 'gym:CartPole-v1'" in config_text(read_config(None, [], task=name))
    verdicts = {finding.check: finding.verdict for finding in check_task(load_task(name))}
    assert set(verdicts.values()) <= {"ok", "warning"}, verdicts
    assert verdicts["seeds"] == verdicts["observations"] == verdicts["actions"] == "ok"


class Random:
    """A policy that acts at random."""

    execute = 4

    def __init__(self, task: Task) -> None:
        self._space = task.spec.action

    def act(self, slots: Sequence[int], *others: Any) -> NDArray[np.float32]:
        space, rngs = self._space, others[-1]
        shape = (self.execute, *space.shape)
        return np.stack([rng.uniform(space.low, space.high, shape) for rng in rngs]).astype(np.float32)


@pytest.mark.filterwarnings("ignore")  # of the packages, when they are imported
@pytest.mark.parametrize(
    ("name", "settings", "shapes", "action"),
    [
        (
            "gym:FetchReach-v4",
            {"max_steps": 6},
            {"observation": (10,), "achieved_goal": (3,), "desired_goal": (3,)},
            4,
        ),
        ("gym:popgym-RepeatPreviousEasy-v0", {"success": 0.99}, {"state": (4,)}, 4),
        ("gym:longview-test/Scripted-v0", {"success": "won"}, {"state": (2,)}, 2),
        pytest.param(
            "gym:Meta-World/MT1",
            {"arguments": {"env_name": "reach-v3", "seed": 0}, "max_steps": 6},
            {"state": (39,)},
            4,
            marks=pytest.mark.slow,  # ten seconds to import
        ),
    ],
)
def test_episodes_of_a_package_reach_the_store(
    tmp_path: Path, name: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]], action: int
) -> None:
    task, hub = load_task(name, environment=EnvironmentConfig(**settings)), Hub()
    spec = task.spec
    assert {key: array.shape for key, array in spec.observation.items()} == shapes
    assert spec.action.shape == (action,)
    assert spec.name == name.replace("/", "~")
    assert load_task(spec.name, environment=EnvironmentConfig(**settings)).spec == spec
    with redis_server(tmp_path) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig())
        store.register(spec)
        worker = Worker(task, ActorsConfig(simulators=2), 7, "actor-0", store, hub.report)
        result = worker.work(Order("rollout", 0, 3, context_length=1, version=1), Random(task))
        assert result.outcomes == {"failure": 3}
        ids = store.ids("rollout")
        assert len(ids) == 3
        lengths = {store.read(id).length for id in ids}
        assert lengths == {min(spec.max_steps, 3 if "Scripted" in name else spec.max_steps)}
        starts = [[store.read(id).arrays[f"observation.{key}"][0].tolist() for key in shapes] for id in ids]
        assert starts[0] != starts[1]
        store.close()
    assert hub.snapshot()["longview_episodes_total"] == {(spec.name, "rollout", "failure"): 3}


TINY = (
    *("actors.count=1", "actors.simulators=2", "learner.steps=6", "learner.warmup=2", "learner.batch_size=8"),
    *("learner.policy.widths=[8]", "learner.policy.groups=4", "learner.policy.token_size=8"),
    *("evaluation.episodes=0", "evaluation.final_episodes=2", "evaluation.context_lengths=[1, 4]"),
)
"""Settings of a run that learns nothing, quickly."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_from_episodes_that_were_imported_into_its_store(longview: Any) -> None:
    name, simulator = "gym:CartPole-v1", gymnasium.make("CartPole-v1", 40)
    with h5py.File(longview.folder / "pole.hdf5", "w") as file:
        for number in range(5):
            rows, actions = [simulator.reset(seed=number)[0]], list[int]()
            for _ in range(40):
                actions.append(int(rows[-1] @ (0.1, 0.3, 1.0, 0.6) > 0))
                rows.append(simulator.step(actions[-1])[0])
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["obs/state"] = np.array(actions), np.array(rows[:-1])

    code, output = longview("demo", "--task", name)
    assert code == 2, output
    assert f"task {name} has no expert: give human demonstrations" in output
    run = f"{name}-1"  # the name that a run gets from its task
    code, output = longview("store", "import", "pole.hdf5", run, "--task", name, "--hz", "50")
    assert code == 0, output
    assert f"task {name}: 5 new episodes" in output
    code, output = longview("demo", "--resume", run, *TINY)
    assert code == 0, output
    folder = longview.folder / "runs" / run
    assert (folder / f"success-{name}.png").exists()
    assert "data:image/png" in (folder / "report.html").read_text()
    code, output = longview("evaluate", str(folder), "--context", "4", "--episodes", "2", "--json")
    assert code == 0, output
    assert json.loads(output)["success"][name]["4"]["episodes"] == 2
