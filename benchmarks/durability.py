"""Loss of acknowledged episodes when Redis is killed with -9, or its power is cut, again and again under
writers.

The table shows the episodes that are lost, their age, and the time until writing goes on. A power cut is
simulated: Redis keeps its file on a loop device, and after a kill the file system is shut down without
writing what the kernel still holds in memory. That needs root.
"""

import fcntl
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import Row, finish, machine, parser, results

from longview.cluster.run.services import find_redis_server
from longview.replay.config import StoreConfig
from longview.replay.episode import ArraySpec, EpisodeMeta, TaskSpec
from longview.replay.errors import StoreUnavailable
from longview.replay.redis.client import Client
from longview.replay.store import EpisodeStore

SPEC = TaskSpec("walk", {"position": ArraySpec((32,))}, ArraySpec((7,), low=-1, high=1), 20.0, 100, (1,), 1)
"""Task of the episodes."""
CONFIG = StoreConfig(chunk_steps=16)
"""Settings of the store."""
NAMESPACE = "durability"
"""Namespace of the episodes."""
STEPS = 40
"""Steps per episode, in three chunks."""

KINDS = ("always", "everysec")
"""Values of appendfsync."""
ENDS = {"killed": "kills", "cut": "power cuts"}
"""Ways in which Redis ends, with a title for each."""
TARGETS = {
    f"{measure}_{end}_{fsync}": "<= 0"
    for measure in ("missing", "broken")
    for end in ENDS
    for fsync in KINDS
    if (measure, fsync) != ("missing", "everysec")
} | {f"lost_seconds_{end}_everysec": "<= 1" for end in ENDS}
"""Bounds that the measures should meet."""
DISK_MIB = 2048
"""Size of the loop device."""
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)
"""Request EXT4_IOC_SHUTDOWN, after which the file system writes nothing more, not even its journal."""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--kills", type=int, default=20, help="number of kills per value of appendfsync")
    cuts = 0 if os.geteuid() else 20
    options.add_argument("--cuts", type=int, default=cuts, help="number of power cuts per value; needs root")
    options.add_argument("--writers", type=int, default=8, help="number of processes that write")
    chosen = options.parse_args()
    where = machine(quick=chosen.quick)
    rows = []
    for end, asked in {"killed": chosen.kills, "cut": chosen.cuts}.items():
        count = min(asked, 3) if chosen.quick else asked
        for fsync in KINDS if count else ():
            case = f"{count} {ENDS[end]} under {chosen.writers} writers"
            rows += rows_of(measured(fsync, count, chosen.writers, end), f"{end}_{fsync}", case)
    finish(results(where, rows, {}), TARGETS, chosen.json)


@dataclass
class Outcome:
    """Result for one value of appendfsync. Times are in seconds of time.monotonic."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    """Times at which episodes were acknowledged, by id."""
    visible: int = 0
    """Number of episodes in the store in the end, acknowledged or not."""
    missing: list[str] = field(default_factory=list)
    """Ids of acknowledged episodes that the store does not hold."""
    broken: int = 0
    """Number of episodes with wrong content and of findings of `store verify`."""
    kills: list[float] = field(default_factory=list)
    """Times at which Redis was dead."""
    starts: list[float] = field(default_factory=list)
    """Times at which Redis answered again, one per kill."""
    recovered: list[float] = field(default_factory=list)
    """Seconds from each start to the first acknowledgement after it."""


def rows_of(outcome: Outcome, kind: str, case: str) -> list[Row]:
    """Make the rows of the table."""
    found = len(outcome.acknowledged) - len(outcome.missing)
    return [
        Row(f"acknowledged_{kind}", case, "episodes", [len(outcome.acknowledged)]),
        Row(f"found_{kind}", case, "episodes", [found]),
        Row(f"missing_{kind}", case, "episodes", [len(outcome.missing)]),
        Row(f"lost_seconds_{kind}", f"{case}, each", "s", lost_seconds(outcome)),
        Row(f"broken_{kind}", case, "episodes", [outcome.broken]),
        Row(f"recovery_{kind}", f"{case}, each", "s", outcome.recovered),
    ]


def lost_seconds(outcome: Outcome) -> list[float]:
    """Return for each kill the age of the oldest lost episode at that time, in seconds; 0 if none was
    lost."""
    lost = [0.0] * len(outcome.kills)
    for id in outcome.missing:
        noted = outcome.acknowledged[id]
        # An acknowledgement just before a kill may be noted just after it, but before Redis is back.
        number = next(number for number, start in enumerate(outcome.starts) if start > noted)
        lost[number] = max(lost[number], outcome.kills[number] - noted)
    return lost


def measured(fsync: str, ends: int, writers: int, end: str) -> Outcome:
    """End Redis several times under writers; then compare the acknowledged episodes with the stored ones.

    Args:
        fsync: value of appendfsync.
        ends: number of kills or power cuts.
        writers: number of processes that write.
        end: "killed" or "cut".
    """
    outcome, chance = Outcome(), random.Random(0)
    with TemporaryDirectory(dir="/tmp") as folder, redis(Path(folder), fsync, end == "cut") as server:
        store = EpisodeStore.connect(server.url, NAMESPACE, CONFIG)
        store.register(SPEC)
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        logs = [Path(folder) / f"writer-{number}" for number in range(writers)]
        processes = [
            context.Process(target=write, args=(server.url, number, log, stop), daemon=True)
            for number, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        wait_for_all(logs, 0.0)
        for _ in range(ends):
            time.sleep(chance.uniform(0.2, 1.5))
            outcome.kills.append(server.kill())
            outcome.starts.append(started := server.start())
            outcome.recovered.append(wait_for_all(logs, started) - started)
        stop.set()
        for process in processes:
            process.join(60)
            if process.exitcode != 0:
                raise RuntimeError(f"a writer ended with {process.exitcode}")
        for log in logs:
            outcome.acknowledged |= acknowledged(log)
        stored = store.ids()
        outcome.visible = len(stored)
        outcome.missing = sorted(outcome.acknowledged.keys() - set(stored))
        outcome.broken = len(store.verify().findings) + sum(not is_whole(store, id) for id in stored)
        store.close()
    return outcome


def write(url: str, writer: int, log: Path, stop: object) -> None:
    """Write episodes, one after the other, until told to stop; log each acknowledged one."""
    store = EpisodeStore.connect(url, NAMESPACE, CONFIG)
    number = 0
    with log.open("w", buffering=1) as lines:
        while not stop.is_set():  # type: ignore[attr-defined]
            meta = EpisodeMeta(f"rollout.{writer}.{number:09d}", SPEC.name, number, "rollout")
            episode = store.writer(meta)
            for row in range(STEPS):
                episode.append(step_of(number + row))
            if episode.commit("success"):
                lines.write(f"{meta.id} {time.monotonic()}\n")
            number += 1
    store.close()


def step_of(number: int) -> dict[str, np.ndarray]:
    """Make a step whose values follow from a number."""
    return {
        "observation.position": np.full(32, number, np.float32),
        "action": np.zeros(7, np.float32),
        "reward": np.array(number, np.float32),
    }


def is_whole(store: EpisodeStore, id: str) -> bool:
    """Tell whether an episode has exactly the steps that were written."""
    episode = store.read(id)
    expected = np.arange(episode.meta.seed, episode.meta.seed + STEPS, dtype=np.float32)
    seen = episode.arrays["observation.position"]
    return bool((episode.arrays["reward"] == expected).all() and (seen == expected[:, None]).all())


def acknowledged(log: Path) -> dict[str, float]:
    """Read a log: the times of acknowledgement by episode id."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {id: float(at) for id, at in (line.split() for line in lines if line.count(" ") == 1)}


def wait_for_all(logs: list[Path], since: float) -> float:
    """Wait until every writer had an episode acknowledged after `since`; return the time of the first one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        news = [[at for at in acknowledged(log).values() if at > since] for log in logs]
        if all(news):
            return min(min(times) for times in news)
        time.sleep(0.05)
    raise RuntimeError("writers did not go on")


class Server:
    """redis-server that can be killed and started again on its data."""

    def __init__(self, folder: Path, data: Path, fsync: str) -> None:
        """Start a server with its socket in `folder` and its file in `data`."""
        path = folder / "socket"
        self.url, self._log = f"unix://{path}", folder / "log"
        self._command = [find_redis_server(), "--port", "0", "--unixsocket", str(path), "--dir", str(data)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", fsync]
        self.start()

    def start(self) -> float:
        """Start the server; return the time at which it answered."""
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, start_new_session=True)
        while True:
            try:
                client = Client(self.url, CONFIG)
            except StoreUnavailable:
                if self._process.poll() is not None:
                    raise RuntimeError(f"Redis does not start:\n{self._log.read_text()}") from None
                continue
            client.redis.close()
            return time.monotonic()

    def kill(self) -> float:
        """Kill the server, and the child that may be rewriting its file; return the time of death."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        dead = time.monotonic()
        with suppress(ProcessLookupError):
            while time.monotonic() < dead + 5:  # until the child is gone, the disk is busy
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)
        return dead

    def close(self) -> None:
        """End the server."""
        self.kill()


class Fragile(Server):
    """Server whose disk loses everything that was not synced when the server is killed."""

    def __init__(self, folder: Path, fsync: str) -> None:
        """Mount a file system on a loop device, and start a server on it."""
        self._image, self._data = folder / "image", folder / "disk"
        self._data.mkdir()
        with self._image.open("wb") as image:
            image.truncate(DISK_MIB << 20)
        command("mkfs.ext4", "-q", self._image)
        command("mount", "-o", "loop", self._image, self._data)
        super().__init__(folder, self._data, fsync)

    def kill(self) -> float:
        killed = super().kill()
        disk = os.open(self._data, os.O_RDONLY)
        try:
            fcntl.ioctl(disk, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(disk)
        command("umount", self._data)
        command("mount", "-o", "loop", self._image, self._data)
        return killed

    def close(self) -> None:
        super().kill()
        command("umount", self._data)


def command(*words: object) -> None:
    """Run a command, which must succeed."""
    subprocess.run([str(word) for word in words], check=True)


@contextmanager
def redis(folder: Path, fsync: str, fragile: bool) -> Iterator[Server]:
    """Run a server within the context; `fragile` makes its disk lose unsynced data at a kill."""
    server = Fragile(folder, fsync) if fragile else Server(folder, folder, fsync)
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    main()
