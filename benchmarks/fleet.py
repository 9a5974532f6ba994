"""Measure how many actors one learner, one driver and one store can take.

Two runs train, collect and publish with the parts of `longview launch`:

    real        1, 2 and 4 actors
    simulated   1,000 actors, which are threads of four processes

A simulated actor has no simulator and no network: it sends the steps of recorded episodes, at the pace of a
robot. Everything else is real: its orders, weights and reports, and its own connection to the store. First
the limiter holds these actors back, then they collect as much as they can.
"""

# ruff: noqa: E402
# Ray reads its authentication mode when it is imported.
from longview.cluster.roles.auth import choose_ray_auth

choose_ray_auth(None)

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from common import Row, finish, machine, parser, results
from numpy.typing import NDArray

from longview.actors.config import ActorsConfig, CollectConfig, EvaluationConfig
from longview.actors.task import Action, Observation, load_task
from longview.actors.worker import Order, Result, Worker
from longview.cluster.driver.dispatch import Dispatcher
from longview.cluster.driver.launch import TICK_SECONDS, collection_of, ray_cluster, start_actor
from longview.cluster.driver.orders import Orders
from longview.cluster.driver.reports import DriverReporter
from longview.cluster.driver.scaling import REQUEST, Scaling
from longview.cluster.driver.training import Training
from longview.cluster.driver.weights import HeldWeights
from longview.cluster.roles.board import WeightBoard
from longview.cluster.roles.hub import Answer, MetricsHub
from longview.cluster.roles.rank import share_out
from longview.cluster.roles.ray import ALWAYS_BACK, Handle, start
from longview.cluster.roles.reporting import HUB
from longview.cluster.roles.rollout import RolloutActor
from longview.cluster.run.config import RunConfig
from longview.cluster.run.folder import Run, create_run, write_atomically
from longview.cluster.run.progress import RunProgress
from longview.cluster.run.services import redis_server
from longview.learner.config import CurriculumConfig, LearnerConfig
from longview.monitoring.hub import Hub, Reporters
from longview.replay.episode import ACTION, OBSERVATION_PREFIX, REWARD, Episode
from longview.replay.store import EpisodeStore, StoreAddress

TASK = load_task("return_point")
REAL = (1, 2, 4)
"""Numbers of real actors."""
SIMULATED, HOSTS = 1000, 4
"""Number of simulated actors, and of the processes whose threads they are."""
PACE = TASK.spec.control_hz
"""Steps per second of a simulated actor, which stands for one robot."""
LIMIT = 60.0
"""Steps per training step that simulated actors may collect while the limiter holds them back."""
SETTLES, SETTLED_SECONDS = 0.2, 60.0
"""Share of each stage at its start that no figure is taken from, and the most seconds of it."""
REPORTED_SECONDS = 15.0
"""Time after which every simulated actor has reported what it did under the limit before."""

TARGETS = {
    "driver_turn_p90": "<= 250",
    "written_over_allowed": "<= 1",
    "driver_growth": "<= 10",
    "hub_growth": "<= 10",
}
"""A turn of the driver delays results and weights by its length. Memory that grows by less is flat."""
GROWTH_SECONDS = 600.0
"""Shortest time in which the growth of memory says anything."""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--minutes", type=float, help="minutes under the limit; 60, or 1 with --quick")
    chosen = options.parse_args()
    measure(chosen.quick, chosen.minutes, chosen.json)


def measure(quick: bool, minutes: float | None, file: Path | None) -> None:
    """Measure both runs, print the tables, and write the results to `file` if one is given.

    Args:
        quick: measure within two minutes in all.
        minutes: length of the run with simulated actors that the limiter holds back; by default 60, or 1 if
            `quick`.
        file: file for the results as JSON.
    """
    minutes = minutes or (1.0 if quick else 60.0)
    where = machine(quick=quick, minutes=minutes)
    with TemporaryDirectory() as name, redis_server(Path(name) / "redis") as url:
        real = real_actors(Path(name), url, 6.0 if quick else 60.0)
        simulated = simulated_actors(Path(name), url, 60 * minutes)
    rows = [row for stage in (*real, *simulated) for row in stage.rows()]
    ratios = {"written_over_allowed": simulated[0].written_over_allowed}
    finish(results(where, rows, ratios), TARGETS, file)


def real_actors(folder: Path, url: str, seconds: float) -> list["Stage"]:
    """Measure real actors: one that the default limit holds back, then several without a limit."""
    config = config_of("real", ActorsConfig(count=REAL[0]), CollectConfig("rollout"))
    with driven(config, folder, url) as loop:
        actors: list[Handle] = []

        def begin(name: str) -> Handle:
            actors.append(start_actor(config, loop.address, 0, name, role=MeasuredActor))
            return actors[-1]

        loop.begin(begin, lambda: [actor.uses.remote() for actor in actors])
        stages = [loop.measure("real: 1, the default limit", seconds, seconds)]
        loop.lift_limit()
        for number in REAL:
            loop.scale(number)
            stages.append(loop.measure(f"real: {number}, no limit", seconds, seconds))
    return stages


def simulated_actors(folder: Path, url: str, seconds: float) -> list["Stage"]:
    """Measure simulated actors for `seconds` with a limit that holds them back, and for a sixth of it without
    one."""
    settings = ActorsConfig(count=SIMULATED, simulators=1)
    config = config_of("simulated", settings, CollectConfig("rollout", steps_per_training_step=LIMIT))
    with driven(config, folder, url) as loop:
        recorded = [loop.store.read(id) for id in loop.store.ids("demo")]
        options = {"num_cpus": 0, "max_concurrency": SIMULATED // HOSTS + 1}
        hosts = [start(Host, config, loop.address, recorded, **options) for _ in range(HOSTS)]
        turns = cycle(hosts)
        loop.begin(lambda name: thread_of(next(turns), name), lambda: [host.uses.remote() for host in hosts])
        between = min(60.0, seconds / 6)
        stages = [loop.measure(f"{SIMULATED:,}, limit {LIMIT:g}", seconds, between)]
        loop.lift_limit()
        loop.go_on(REPORTED_SECONDS)
        stages.append(loop.measure(f"{SIMULATED:,}, no limit", seconds / 6, between / 6))
    return stages


def config_of(name: str, actors: ActorsConfig, collect: CollectConfig) -> RunConfig:
    """Return the config of a run that trains to the end of the measurement, and evaluates nothing."""
    learner = LearnerConfig(
        curriculum=CurriculumConfig("sprinkle"),
        steps=10_000_000,
        publish_every=100,
        checkpoint_every=1_000,
        mix={"demo": 0.5, "rollout/success": 0.5},
        validation_episodes=0,
    )
    return RunConfig(
        TASK.spec.name,
        name=name,
        actors=actors,
        collect=collect,
        learner=learner,
        evaluation=EvaluationConfig(episodes=0),
    )


# The loop of the driver


@contextmanager
def driven(config: RunConfig, folder: Path, url: str) -> Iterator["Loop"]:
    """Make a run with its demonstrations, and Ray for as long as the context lasts."""
    run = create_run(config, folder)
    address = StoreAddress(url, run.name)
    store = address.connect(config.replay)
    store.register(TASK.spec)
    expert = Worker(TASK, ActorsConfig(), config.seed, "expert", store, Hub().report)
    expert.work(Order("demo", 0, TASK.spec.demonstrations), None)
    with ray_cluster(config, None):
        loop = Loop(config, run, address, store)
        try:
            yield loop
        finally:
            loop.training.kill()
    store.close()


class Loop:
    """The driver's loop in the phase of training, as `launch` has it, with a clock."""

    def __init__(self, config: RunConfig, run: Run, address: StoreAddress, store: EpisodeStore) -> None:
        """Start the roles, and training.

        Args:
            config: the run's config.
            run: the run's folder.
            address: address of the run's store.
            store: the store, with demonstrations.
        """
        self.address, self.store = address, store
        self._config, self._run = config, run
        self._hub = start(TimedHub, run.name, "127.0.0.1", 0, name=HUB, **ALWAYS_BACK)
        self._board = start(TimedBoard, run.checkpoints.absolute(), **ALWAYS_BACK)
        self._progress = RunProgress(run, config, TASK.spec)
        self._collection = collection_of(config, TASK.spec, store)
        self._orders = Orders(config, TASK.spec, self._collection)
        self._dispatcher = Dispatcher(self._orders)
        self._weights = HeldWeights(self._board)
        self._reporter = DriverReporter(self._hub, store, self._progress)
        self.training = Training(config, run.checkpoints.absolute(), address)
        self.training.start(share_out(store, TASK.spec, 0), self._board)

    def begin(self, begin: Callable[[str], Handle], uses: Callable[[], list[Any]]) -> None:
        """Start the actors, and go on until all are placed and a version is published.

        Args:
            begin: starts an actor of the given name.
            uses: asks for the return values of `uses` of all actors since the last call.
        """
        self._uses = uses
        self._scaling = Scaling(self._run, self._config, self._dispatcher, begin, lambda _: None, None)
        self._wait()

    def scale(self, actors: int) -> None:
        """Change the number of actors as `longview scale` does, and go on until all are placed."""
        write_atomically(self._run.path / REQUEST, json.dumps({"actors": actors, "id": actors}))
        self._turn(Turns())
        self._wait()

    def lift_limit(self) -> None:
        """Let actors collect as much as they can from now on."""
        self._collection.limiter.inserts_per_sample = None

    def go_on(self, seconds: float) -> None:
        """Go on without measuring."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._turn(Turns())

    def measure(self, case: str, seconds: float, between: float) -> "Stage":
        """Go on for `seconds`, and look at everything each `between` seconds once the loop has settled."""
        settles = min(SETTLES * seconds, SETTLED_SECONDS)
        self.go_on(settles)
        stage = Stage(case)
        ray.get([self._hub.exchanges.remote(), *self._uses()])  # of the time before
        began, stage.looks = time.monotonic(), [self._look()]
        until = began + seconds - settles
        while time.monotonic() < until:
            self._turn(stage.turns)
            if time.monotonic() >= stage.looks[-1].at + between:
                stage.looks.append(self._look())
        if len(stage.looks) == 1 or time.monotonic() > stage.looks[-1].at + between / 2:
            stage.looks.append(self._look())
        stage.exchanges, published = ray.get([self._hub.exchanges.remote(), self._board.published.remote()])
        for version, at in (use for uses in ray.get(self._uses()) for use in uses):
            if published.get(version, 0.0) >= began:
                stage.delays.setdefault(version, []).append(at - published[version])
        return stage

    def _wait(self) -> None:
        while self._dispatcher.there < self._scaling.target or self._weights.newest is None:
            self._turn(Turns())

    def _turn(self, turns: "Turns") -> None:
        started, worked = time.perf_counter(), time.thread_time()
        self._scaling.adjust()
        dispatcher, weights, progress = self._dispatcher, self._weights, self._progress
        trained = int(progress.metrics.total("longview_learner_step"))
        dispatcher.dispatch(weights.newest, trained, weights.of)
        asked, came = time.perf_counter(), 0.0
        for order, result in dispatcher.collect(TICK_SECONDS):
            came = came or time.perf_counter()
            self._reporter.arrived(order, result, weights.newest)
            self._orders.finish(order, result)
            turns.staleness.append((weights.newest or 0) - (order.version or 0))
        waited = (came or time.perf_counter()) - asked
        self.training.finished(weights.newest)
        weights.refresh(keep=dispatcher.versions)
        progress.version, progress.actors = weights.newest, self._scaling.target
        progress.update(self._reporter.report())
        turns.seconds.append(time.perf_counter() - started - waited)
        turns.working += time.thread_time() - worked

    def _look(self) -> "Look":
        metrics, committed = self._progress.metrics, self.store.stats().committed
        trained = int(metrics.total("longview_learner_step"))
        steps = sum(count.steps for (source, _), count in committed.items() if source == "rollout")
        limited = self._collection.limiter.inserts_per_sample is not None
        allowed = self._config.collect.steps_per_training_step * trained if limited else None
        return Look(
            time.monotonic(),
            steps,
            trained,
            allowed,
            metrics.by("longview_actor_seconds_total", "part"),
            usage(),
        )


# What is measured


@dataclass
class Turns:
    """Turns of the driver, and the results that they brought."""

    seconds: list[float] = field(default_factory=list)
    """Length of each turn, without the wait for results."""
    working: float = 0.0
    """CPU seconds of the driver's main thread in all turns."""
    staleness: list[int] = field(default_factory=list)
    """Training steps by which the policy of each order was older than the newest at the order's end."""


@dataclass(frozen=True)
class Usage:
    """What the processes of one role use together."""

    cpu: float = 0.0
    """CPU seconds so far."""
    memory: float = 0.0
    """MiB of memory of their own. Ray's shared memory does not count."""


@dataclass(frozen=True)
class Look:
    """State of a run at one moment."""

    at: float
    """Monotonic time."""
    steps: int
    """Collected steps that were ever committed to the store."""
    trained: int
    """Training steps, as last reported."""
    allowed: float | None
    """Steps that the limiter allowed to collect until then; None without a limit."""
    spent: Mapping[str, float]
    """Seconds of all actors by what they did."""
    usage: Mapping[str, Usage]
    """What processes use, by role."""


@dataclass
class Stage:
    """Figures of one number of actors under one limit."""

    case: str
    """Description of the stage."""
    turns: Turns = field(default_factory=Turns)
    """The driver's turns."""
    looks: list[Look] = field(default_factory=list)
    """Looks at the run, at equal distances."""
    exchanges: Sequence[float] = ()
    """Seconds that each exchange of the hub with the driver took within the hub."""
    delays: dict[int, list[float]] = field(default_factory=dict)
    """Seconds from the publication of a version until each actor that used it had loaded it, by version."""

    @property
    def written_over_allowed(self) -> float:
        """Most steps collected so far at any look, as a share of the steps that the limiter allowed."""
        return max(look.steps / look.allowed for look in self.looks if look.allowed)

    def rows(self) -> list[Row]:
        """Return the figures as rows."""
        first, last, turns = self.looks[0], self.looks[-1], self.turns
        elapsed, orders = last.at - first.at, len(turns.staleness)
        spent = {part: last.spent[part] - first.spent.get(part, 0.0) for part in last.spent}
        kinds = {"limited": spent["limited"], "waiting": spent["waiting"]}
        kinds["busy"] = sum(spent.values()) - sum(kinds.values())
        rows = [
            Row("env_steps", self.case, "steps/s", self._rates("steps")),
            Row("training_steps", self.case, "steps/s", self._rates("trained")),
            Row("orders", self.case, "1/s", [orders / elapsed]),
            *(
                Row(f"actor_{kind}", self.case, "%", [100 * seconds / sum(spent.values())])
                for kind, seconds in kinds.items()
            ),
            *self._quantiles("staleness", "steps", turns.staleness),
            *self._quantiles("publish_to_first_use", "s", list(map(min, self.delays.values()))),
            *self._quantiles(
                "publish_to_use", "s", [delay for some in self.delays.values() for delay in some]
            ),
            *self._quantiles("driver_turn", "ms", [1000 * seconds for seconds in turns.seconds]),
            Row("driver_work", self.case, "ms/order", [1000 * turns.working / max(1, orders)]),
            *self._quantiles("hub_exchange", "ms", [1000 * seconds for seconds in self.exchanges]),
        ]
        for role in ("driver", "hub", "store", "learner", "actors"):
            cores = (last.usage[role].cpu - first.usage[role].cpu) / elapsed
            rows.append(Row("cores", f"{self.case}: {role}", "", [cores]))
        for role in ("driver", "hub"):
            memory = [look.usage[role].memory for look in self.looks]
            rows.append(Row("memory", f"{self.case}: {role}", "MiB", memory))
            if elapsed >= GROWTH_SECONDS:
                hours = [look.at / 3600 for look in self.looks]
                growth = float(np.polyfit(hours, memory, 1)[0])
                rows.append(Row(f"{role}_growth", self.case, "MiB/h", [growth]))
        return rows

    def _rates(self, name: str) -> list[float]:
        return [
            (getattr(after, name) - getattr(before, name)) / (after.at - before.at)
            for before, after in pairwise(self.looks)
        ]

    def _quantiles(self, measure: str, unit: str, values: Sequence[float]) -> list[Row]:
        shown = {"p50": 0.5, "p90": 0.9} if values else {}
        return [
            Row(f"{measure}_{name}", self.case, unit, [float(np.quantile(values, share))])
            for name, share in shown.items()
        ]


ROLES = {
    "TimedHub": "hub",
    "TimedBoard": "board",
    "LearnerRank": "learner",
    "MeasuredActor": "actors",
    "Host": "actors",
    "redis-server": "store",
    "redis": "store",
}
"""Roles by the titles of their processes. All other processes are Ray's own."""


def usage() -> dict[str, Usage]:
    """Return what this process and its descendants use, by role."""
    parents, found = dict[int, int](), dict[int, tuple[str, Usage]]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            times = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_text().split("\0")[0]
        except OSError:  # the process has ended
            continue
        name = Path(title).name.removeprefix("ray::").split(".")[0]
        cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        memory = int(status.get("RssAnon", "0 kB").split()[0]) / 1024
        parents[int(folder.name)] = int(times[1])
        found[int(folder.name)] = ROLES.get(name, "Ray"), Usage(cpu, memory)
    me, sums = os.getpid(), dict[str, Usage]()
    for pid, (name, used) in found.items():
        above = pid
        while above not in (me, 0):
            above = parents.get(above, 0)
        if above == me:
            role = "driver" if pid == me else name
            known = sums.get(role, Usage())
            sums[role] = Usage(known.cpu + used.cpu, known.memory + used.memory)
    return sums


# Roles that tell what they do


class TimedHub(MetricsHub):
    """A hub that measures its exchanges with the driver."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._exchanges: list[float] = []

    @ray.method(num_returns=2)
    def exchange(self, *kept: Any) -> tuple[Answer | None, Reporters]:
        """Exchange reports, and remember the seconds that it took."""
        started = time.perf_counter()
        answer, following = super().exchange(*kept)
        self._exchanges.append(time.perf_counter() - started)
        return answer, following

    def exchanges(self) -> list[float]:
        """Return the seconds of each exchange since the last call."""
        taken, self._exchanges = self._exchanges, []
        return taken


class TimedBoard(WeightBoard):
    """A board that remembers when versions were published."""

    def __init__(self, checkpoints: Path) -> None:
        self._published: dict[int, float] = {}
        super().__init__(checkpoints)

    def publish(self, version: int, weights: bytes) -> None:
        """Take over weights, and remember the moment."""
        self._published[version] = time.monotonic()
        super().publish(version, weights)

    def published(self) -> dict[int, float]:
        """Return the monotonic time of each publication."""
        return self._published


class MeasuredActor(RolloutActor):
    """An actor that also tells when it had loaded its weights."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._uses: list[tuple[int, float]] = []

    def _load(self, version: int, weights: bytes) -> None:
        super()._load(version, weights)
        self._uses.append((version, time.monotonic()))

    def uses(self) -> list[tuple[int, float]]:
        """Return the versions loaded since the last call, each with the monotonic time."""
        taken, self._uses = self._uses, []
        return taken


class SimulatedActor(RolloutActor):
    """An actor whose simulators and policy repeat recorded episodes."""

    def __init__(
        self,
        config: RunConfig,
        name: str,
        store: StoreAddress,
        recorded: Sequence[Episode],
        load: Callable[[int, bytes], None],
    ) -> None:
        """
        Args:
            config: the run's config.
            name: name of this actor.
            store: store for its episodes.
            recorded: episodes to repeat.
            load: takes each version and its weights.
        """
        super().__init__(config, name, store)
        self._worker.envs = envs = [Recording(recorded) for _ in range(config.actors.simulators)]
        self._session, self._take_in = Player(envs, config.learner.policy.execute), load

    def _load(self, version: int, weights: bytes) -> None:
        self._take_in(version, weights)
        self._version = version


class Recording:
    """A simulator that repeats a recorded episode, whatever the actions are."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._episodes, self._episode, self._step = episodes, episodes[0], 0

    def reset(self, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode that the seed chooses."""
        self._episode, self._step = self._episodes[seed // 2 % len(self._episodes)], 0
        return self._observation(), {}

    def step(self, _: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Go on to the next step."""
        reward = float(self._episode.arrays[REWARD][self._step])
        self._step += 1
        ended = self._step == self._episode.length
        return self._observation(), reward, ended, False, {"outcome": self._episode.outcome}

    def coming(self, number: int) -> NDArray[np.float32]:
        """Return the next recorded actions (number, A); zeros after the last."""
        actions_TA = self._episode.arrays[ACTION][self._step : self._step + number]
        return np.pad(actions_TA, ((0, number - len(actions_TA)), (0, 0)))

    def _observation(self) -> Observation:
        step, arrays = min(self._step, self._episode.length - 1), self._episode.arrays
        return {key: arrays[OBSERVATION_PREFIX + key][step] for key in TASK.spec.observation}


class Player:
    """A policy that decides what was recorded, and takes as long as the steps take at `PACE`."""

    def __init__(self, envs: Sequence[Recording], execute: int) -> None:
        self._envs, self.execute = envs, execute

    def act(self, slots: Sequence[int], *_: Any) -> NDArray[np.float32]:
        """Return the recorded actions (B, T_a, A) of B simulators."""
        time.sleep(len(slots) * self.execute / PACE)
        return np.stack([self._envs[slot].coming(self.execute) for slot in slots])


class Host:
    """A process whose threads are simulated actors."""

    def __init__(self, config: RunConfig, store: StoreAddress, recorded: Sequence[Episode]) -> None:
        """
        Args:
            config: the run's config.
            store: store for the episodes.
            recorded: episodes to repeat.
        """
        # Else each thread that waits for the interpreter asks for it 200 times a second: hundreds of threads
        # use all cores for that.
        sys.setswitchinterval(0.1)
        # Imported here because the driver does without torch.
        from longview.learner.policy import policy_from_bytes

        self._decode, self._decoded, self._lock = policy_from_bytes, set[int](), threading.Lock()
        self._make = partial(SimulatedActor, config, store=store, recorded=recorded, load=self._load)
        self._actors: dict[str, SimulatedActor] = {}
        self._uses: list[tuple[int, float]] = []

    def node(self, name: str) -> str:
        """Make an actor, and return its node."""
        self._actors[name] = self._make(name)
        return self._actors[name].node()

    def work(self, name: str, *order: Any) -> Result:
        """Have an actor do an order; see `RolloutActor.work`."""
        return self._actors[name].work(*order)

    def rest(self, name: str, held: Mapping[str, float]) -> None:
        """Have an idle actor report; see `RolloutActor.rest`."""
        self._actors[name].rest(held)

    def uses(self) -> list[tuple[int, float]]:
        """Return the versions that actors loaded since the last call, each with the monotonic time."""
        taken, self._uses = self._uses, []
        return taken

    def _load(self, version: int, weights: bytes) -> None:
        """Decode each version once: a thousand decoders would want more cores than this machine has."""
        with self._lock:
            if version not in self._decoded:
                self._decode(weights)
                self._decoded.add(version)
        self._uses.append((version, time.monotonic()))


def thread_of(host: Handle, name: str) -> Handle:
    """Return what the dispatcher needs of a handle on one simulated actor."""
    calls = {call: partial(getattr(host, call).remote, name) for call in ("node", "work", "rest")}
    return SimpleNamespace(**{call: SimpleNamespace(remote=remote) for call, remote in calls.items()})


if __name__ == "__main__":
    main()
