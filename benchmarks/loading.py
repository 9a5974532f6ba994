"""Windows per second from recorded video: Longview's store beside LeRobot's own loader.

A LeRobotDataset has two cameras at 30 Hz. Longview imports it once, with pictures of 96x96, and draws batches
as a training does. LeRobot's loader decodes the video for every window, with two workers. Its packages do not
fit ours, so it runs in an environment of its own (`--lerobot PYTHON`), or is not measured.
Two sizes were recorded, 96x96 and 640x480. Longview is measured in three ways:

  as trained       windows that share frames, as in every training, and a cache of decoded episodes
  nothing cached   the same, but every chunk is fetched and decoded anew
  one by one       a segment for each window, so that nothing is shared, and nothing cached
"""

import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import Row, finish, interleaved, machine, parser, ratio, results, seconds
from pictures import PHOTOS, SIZES, video_of

from longview.cluster.run.config import DataConfig
from longview.cluster.run.services import redis_server
from longview.learner.config import CurriculumConfig, LearnerConfig, policy_config
from longview.learner.recipe import Recipe
from longview.learner.train import prepared
from longview.replay.config import StoreConfig
from longview.replay.datasets import lerobot_writer
from longview.replay.datasets.formats import open_source
from longview.replay.datasets.intake import bring_in
from longview.replay.datasets.plan import Choice
from longview.replay.episode import BY_EXPERT, ArraySpec, Episode, EpisodeMeta, Segment, TaskSpec
from longview.replay.store import EpisodeStore

HZ, STEPS, EPISODES = 30, 300, 8
"""Pictures per second; steps of an episode; episodes."""
LENGTHS = (2, 16, 80)
"""Context lengths T_o."""
BATCH = 64
LEROBOTS_BATCH = 2
TARGETS = {f"Longview, as trained over LeRobot, {size}, T_o {LENGTHS[-1]}": ">= 5" for size in SIZES}
CASES = {"as trained": (None, None), "nothing cached": (0, None), "one by one": (0, 1)}
"""Bytes of the cache and windows of a segment; None: the default."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--lerobot", metavar="PYTHON", help="interpreter of an environment with lerobot")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    where = machine(quick=options.quick, lerobot=version_of(options.lerobot))
    rows, ratios = [], {}
    rounds, limit = (1, 2) if options.quick else (3, 8)
    for size in SIZES:
        with TemporaryDirectory() as name, redis_server(Path(name) / "redis") as url:
            folder = Path(name) / "video"
            lerobot_writer.write(folder, recorded(size), episodes(size), lossless=False)
            took = seconds(partial(take_in, folder, url))
            rows.append(Row("import", size, "frames/s", [len(PHOTOS) * EPISODES * STEPS / took]))
            for T_o in LENGTHS:
                sides = {f"Longview, {case}": partial(ours, url, T_o, limit, *CASES[case]) for case in CASES}
                if options.lerobot:
                    sides["LeRobot"] = partial(theirs, options.lerobot, folder, T_o, limit)
                found = interleaved(sides, rounds)
                rows += [
                    Row("windows", f"{size}, T_o {T_o}, {side}", "windows/s", found[side]) for side in found
                ]
                if options.lerobot:
                    ratios |= {
                        f"{side} over LeRobot, {size}, T_o {T_o}": ratio(found[side], found["LeRobot"])
                        for side in found
                        if side != "LeRobot"
                    }
    finish(results(where, rows, ratios), TARGETS, options.json)


def version_of(python: str | None) -> str:
    """Return the version of LeRobot in an environment; "none" without one."""
    if python is None:
        return "none"
    command = [python, "-c", "from importlib.metadata import version; print(version('lerobot'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def recorded(size: str) -> TaskSpec:
    """Return the task as it was recorded."""
    observation = {name: ArraySpec((*SIZES[size], 3), "uint8", 0.0, 255.0) for name in PHOTOS}
    return TaskSpec(
        "video",
        {"state": ArraySpec((6,)), **observation},
        ArraySpec((6,)),
        float(HZ),
        STEPS,
        (1, *LENGTHS),
        1,
    )


def episodes(size: str) -> Iterator[Episode]:
    """Make episodes of cameras that pan over photographs, there and back."""
    rng = np.random.default_rng(0)
    films = {f"observation.{name}": video_of(photo, *SIZES[size]) for name, photo in PHOTOS.items()}
    for index in range(EPISODES):
        state = rng.normal(size=(STEPS, 6)).cumsum(axis=0).astype(np.float32)
        arrays = {
            "observation.state": state,
            "action": np.roll(state, -1, axis=0),
            "reward": np.zeros(STEPS, np.float32),
            "controller": np.full(STEPS, BY_EXPERT),
        }
        for name, film in films.items():
            there = np.concatenate([film, film[::-1]])
            arrays[name] = np.resize(there, (STEPS, *film.shape[1:]))
        yield Episode(EpisodeMeta(f"demo.video.{index:09d}", "video", index, "demo"), "success", arrays)


def take_in(folder: Path, url: str) -> None:
    """Import the data set, with pictures of the default size."""
    source = open_source(folder, "video", hz=HZ, choice=Choice(size=DataConfig().size))
    store = EpisodeStore.connect(url, "video", StoreConfig())
    for _ in bring_in(source, source.indices, store):
        pass
    store.close()


def ours(url: str, T_o: int, limit: float, cache_bytes: int | None, windows: int | None) -> float:
    """Return the windows per second of batches from the store."""
    store = EpisodeStore.connect(url, "video", StoreConfig(cache_bytes=cache_bytes))
    spec = store.spec("video")

    def draw(step: int, before: int, after: int, count: int) -> list[Segment]:
        return store.sample({"import": 1.0}, count, before, after, np.random.default_rng(step))

    config = LearnerConfig(
        policy=policy_config(context_length=T_o), curriculum=CurriculumConfig("fixed"), batch_size=BATCH,
        windows_per_segment=windows,
    )  # fmt: skip
    recipe = Recipe(config, spec, seed=0, rank=0, world=1, draw=draw)
    warm = range(8)  # fills the cache
    for _ in prepared(recipe, warm, torch.device("cpu")):
        pass
    batches, delivered = prepared(recipe, range(len(warm), 1 << 30), torch.device("cpu")), 0
    started = time.perf_counter()
    while time.perf_counter() - started < limit:
        next(batches)
        delivered += BATCH
    took = time.perf_counter() - started
    batches.close()
    store.close()
    return delivered / took


def theirs(python: str, folder: Path, T_o: int, limit: float) -> float:
    """Return the windows per second of LeRobot's loader."""
    actions = policy_config(context_length=T_o).future_actions
    command = [
        python,
        Path(__file__).with_name("lerobot") / "windows.py",
        folder,
        T_o,
        HZ,
        actions,
        LEROBOTS_BATCH,
        limit,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"LeRobot's loader failed:\n{done.stderr}")
    return float(done.stdout)


if __name__ == "__main__":
    main()
