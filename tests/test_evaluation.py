"""Evaluations with real simulators: outcomes do not depend on how the episodes are split."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, repeat
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longview.actors.config import ActorsConfig
from longview.actors.environment import SimulatedTask
from longview.actors.rollout import Policy
from longview.actors.served import ServedPolicy
from longview.actors.task import Action, Observation, Task, load_task
from longview.actors.worker import Order, Worker, episode_seed
from longview.cluster.run.services import redis_server
from longview.learner import policy as policies
from longview.learner.config import CurriculumConfig, LearnerConfig, policy_config
from longview.learner.inference import PolicyServer, Request
from longview.learner.normalize import measure
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.session import PolicySession
from longview.learner.train import train
from longview.monitoring.hub import Hub
from longview.replay.config import StoreConfig
from longview.replay.store import EpisodeStore

ROUNDING = 1e-6
"""Largest difference of two actions, -1 to 1, that may be rounding. An action is rounded to float32, and the
simulator carries that on."""
EPISODES = 24
WHOLE = [[(0, EPISODES)]]
SPLITS = {
    "fewer simulators": (3, WHOLE),
    "four orders": (8, [[(0, 3), (13, 1), (14, 10), (3, 10)]]),
    "four actors": (8, [[(14, 10)], [(3, 10)], [(13, 1), (0, 2)], [(2, 1)]]),
}
"""Ways to split an evaluation of all episodes: simulators of an actor; for each actor, its orders as (first
episode, number of episodes)."""

Played = Mapping[int, tuple[str, NDArray[np.float32]]]
"""Outcome and actions (steps, A) of each episode, by its seed."""


class Miscounting:
    """A policy for counting that is sometimes wrong, as its generators have it."""

    execute = 4

    def act(
        self,
        slots: Sequence[int],
        new_frames: Sequence[Mapping[str, NDArray[Any]]],
        executed: Sequence[NDArray[np.float32]],
        reset: NDArray[np.bool_],
        T_o: int,
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        now = np.array([frames["count"][-1] for frames in new_frames])
        wrong = np.array([rng.random(self.execute) < 0.03 for rng in rngs])
        return (now + np.arange(self.execute) + wrong).astype(np.float32)[..., None]


def evaluated(
    task: Task,
    policies: Iterator[Policy],
    simulators: int,
    split: Sequence[Sequence[tuple[int, int]]],
    T_o: int,
    delay: int = 0,
) -> Played:
    """Evaluate as actors do, at the same time, each with a policy of its own."""
    played: dict[int, tuple[str, NDArray[np.float32]]] = {}

    class Noting(gymnasium.Wrapper[Observation, Action, Observation, Action]):
        """A simulator that notes what happens in its episodes."""

        def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple[Observation, dict[str, Any]]:
            assert seed is not None
            self.seed, self.actions = seed, list[Action]()
            return self.env.reset(seed=seed, **kwargs)

        def step(self, action: Action) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
            self.actions.append(action)
            observation, reward, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                assert self.seed not in played
                played[self.seed] = info["outcome"], np.array(self.actions)
            return observation, reward, terminated, truncated, info

    noting = SimulatedTask(task.spec, lambda spec, render_mode: Noting(task.make(render_mode)))

    def play(orders: Sequence[tuple[int, int]], policy: Policy) -> None:
        worker = Worker(noting, ActorsConfig(simulators=simulators), 5, "actor", None, Hub().report)
        for first, episodes in orders:
            result = worker.work(Order("evaluation", first, episodes, T_o, version=0, delay=delay), policy)
            assert sum(result.outcomes.values()) == episodes

    with ThreadPoolExecutor(len(split)) as actors:
        list(actors.map(play, split, policies))
    return played


def check_splits(task: Task, policies: Iterator[Policy], T_o: int) -> None:
    """Compare outcomes and actions of every split with those of one order of one actor."""
    whole = evaluated(task, policies, 8, WHOLE, T_o)
    assert whole.keys() == {episode_seed(5, "evaluation", index) for index in range(EPISODES)}
    often = Counter(outcome for outcome, _ in whole.values()).most_common(2)
    assert often[-1][1] >= 8, "outcomes must differ between episodes, or a mix-up would not show"
    for simulators, split in SPLITS.values():
        other = evaluated(task, policies, simulators, split, T_o)
        assert {seed: outcome for seed, (outcome, _) in other.items()} == {
            seed: outcome for seed, (outcome, _) in whole.items()
        }
        for seed, (_, actions) in whole.items():
            np.testing.assert_allclose(other[seed][1], actions, rtol=0, atol=ROUNDING)


def test_counting_ends_the_same_however_it_is_split() -> None:
    check_splits(load_task("counting"), repeat(Miscounting()), T_o=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """Train a policy that arrives, but guesses the side: its noise decides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = load_task("return_point")
    policy = policy_config(widths=(16,), groups=4, heads=2, token_size=16, context_length=8, sampling_steps=5)
    config = LearnerConfig(
        policy=policy,
        curriculum=CurriculumConfig("fixed"),
        learning_rate=1e-3,
        steps=150,
        warmup=10,
        batch_size=32,
    )
    with redis_server(folder := tmp_path_factory.mktemp("store")) as url:
        store = EpisodeStore.connect(url, "test", StoreConfig(refresh_seconds=0))
        store.register(task.spec)
        Worker(task, ActorsConfig(), 0, "actor-0", store, Hub().report).work(Order("demo", 0, 20), None)
        trained = train(
            config,
            task.spec,
            seed=0,
            draw=lambda step, before, after, count: store.sample(
                {"demo": 1.0}, count, before, after, np.random.default_rng(step)
            ),
            statistics=lambda: measure(map(store.read, store.ids()), task.spec),
            publish=lambda version, data: None,
            report=lambda progress: None,
            should_stop=lambda: False,
            checkpoints=folder,
        )
        store.close()
    yield policy_to_bytes(trained)
    torch.set_num_threads(threads)


def exact(weights: bytes) -> policies.Policy:
    """Return a policy that computes in float64, so that no batch size shows in its actions.

    In float32 every processor rounds batches of different sizes differently. After a whole episode the
    difference can be 1e-5 of an action, as much as that of a small fault.
    """
    policy = policy_from_bytes(weights).double()
    converted = policy.tensor

    def tensor(array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
        value = converted(array)
        return value.double() if value.is_floating_point() else value

    policy.tensor = tensor  # type: ignore[method-assign]
    return policy


@pytest.fixture
def double() -> Iterator[None]:
    """Make new tensors of numbers float64, as the weights of `exact`."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("T_o", [1, 8])
@pytest.mark.usefixtures("double")
def test_return_point_ends_the_same_however_it_is_split(weights: bytes, T_o: int) -> None:
    policies = (PolicySession(exact(weights), 8) for _ in count())
    check_splits(load_task("return_point"), policies, T_o)


# Served by another thread; tests/cluster/roles/test_inference.py has processes


class Miscounter(policies.Policy):
    """The policy `Miscounting` as a learner's policy, which checks the whole context that it is given."""

    def __init__(self) -> None:
        config = policy_config(widths=(8,), groups=4, token_size=8, context_length=8, execute=4)
        super().__init__(config, load_task("counting").spec)

    def tokens(self, observation: Mapping[str, Any], shift_F2: Any = None) -> torch.Tensor:
        return self.tensor(observation["count"]).expand(-1, self.config.token_size)

    def error(self, *_: Any) -> torch.Tensor:
        raise NotImplementedError

    def sample(
        self,
        token_BSE: torch.Tensor,
        seen_BS: NDArray[np.bool_],
        known_BTA: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
    ) -> NDArray[np.float32]:
        for count_S, seen_S in zip(token_BSE[..., 0].numpy(), seen_BS, strict=True):
            assert (np.diff(count_S[seen_S]) == 1).all()
            assert seen_S.sum() == min(seen_S.size, 1 + count_S[-1] - count_S[seen_S][0])
        steps = np.arange(self.horizon.positions) - self.horizon.past
        wrong = np.array([rng.random(len(steps)) < 0.03 for rng in rngs])
        return (token_BSE[:, -1:, 0].numpy() + steps + wrong).astype(np.float32)[..., None]


class Dying:
    """A server that is replaced by a new one, which knows nothing, before every `lives`-th request."""

    def __init__(self, make: Callable[[], policies.Policy], lives: int) -> None:
        self.make, self.lives, self.requests = make, lives, 0
        self.server = self.started()

    def started(self) -> PolicyServer:
        server = PolicyServer(64, max_batch=64, wait_seconds=0.002)
        server.load(0, self.make)
        return server

    def policy(self, client: str) -> ServedPolicy:
        def send(**request: Any) -> Callable[[], NDArray[np.float32] | None]:
            self.requests += 1
            if self.requests % self.lives == 0:
                self.server = self.started()
            return self.server.ask(Request(client=client, version=0, **request)).result

        horizon = self.make().horizon
        return ServedPolicy(horizon.execute, horizon.max_delay, send)


def check_served(
    task: Task,
    make: Callable[[], policies.Policy],
    T_o: int,
    lives: int,
    whole: Sequence[Sequence[tuple[int, int]]] = WHOLE,
    split: Sequence[Sequence[tuple[int, int]]] = SPLITS["four actors"][1],
    delay: int = 0,
) -> None:
    """Compare an evaluation by actors that ask a server with one by an actor that holds the policy."""
    expected = evaluated(task, iter([PolicySession(make(), 8)]), 8, whole, T_o, delay)
    server = Dying(make, lives)
    actors = (server.policy(f"actor-{index}") for index in count())
    served = evaluated(task, actors, 8, split, T_o, delay)
    assert server.requests > lives
    assert served.keys() == expected.keys()
    for seed, (outcome, actions) in expected.items():
        assert served[seed][0] == outcome
        np.testing.assert_allclose(served[seed][1], actions, rtol=0, atol=ROUNDING)


def test_counting_ends_the_same_with_a_server_that_dies_now_and_then() -> None:
    check_served(load_task("counting"), Miscounter, T_o=8, lives=7)


@pytest.mark.parametrize("kind", ["diffusion", "recurrent"])
@pytest.mark.usefixtures("double")
def test_return_point_ends_the_same_with_a_server_that_dies_now_and_then(weights: bytes, kind: str) -> None:
    task = load_task("return_point")
    recurrent = policy_config(kind="recurrent", hidden=16, token_size=16, context_length=8, components=2)
    made = policy_to_bytes(recurrent.make(task.spec)) if kind == "recurrent" else weights
    check_served(task, lambda: exact(made), T_o=8, lives=20)


@pytest.mark.usefixtures("double")
def test_decisions_that_continue_others_are_the_same_with_a_server_that_dies_now_and_then() -> None:
    task = load_task("return_point")
    config = policy_config(
        widths=(8,), groups=4, heads=2, token_size=8, context_length=8, sampling_steps=1, max_delay=3
    )
    made = policy_to_bytes(config.make(task.spec))
    split = [[(0, 4)], [(4, 2)]]
    check_served(task, lambda: exact(made), T_o=8, lives=20, whole=[[(0, 6)]], split=split, delay=3)
