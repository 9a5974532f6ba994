"""Make recordings that stand in for those of your robot: a LeRobotDataset like an SO-101's.

A lamp is red or blue for the first second. The arm then picks up a block, holds it over the middle, and puts
it down on the left if the lamp was red, on the right if it was blue. State and action are six joints in
degrees at 30 Hz; the cameras `front` and `wrist` see the table.

    python record.py so101 --episodes 30
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longview.replay.datasets import lerobot_writer
from longview.replay.episode import BY_PERSON, ArraySpec, Episode, EpisodeMeta, TaskSpec

HZ = 30.0
HEIGHT, WIDTH = 96, 128
PICTURE = ArraySpec((HEIGHT, WIDTH, 3), "uint8", 0, 255)
SPEC = TaskSpec(
    name="sort",
    observation={"state": ArraySpec((6,)), "front": PICTURE, "wrist": PICTURE},
    action=ArraySpec((6,)),
    control_hz=HZ,
    max_steps=400,
    context_lengths=(1, 16, 64),
    demonstrations=30,
)
# Joints in degrees: pan, lift, elbow, wrist, roll, gripper (0: closed).
HOME, ABOVE, DOWN = (
    np.array(joints, np.float64)
    for joints in ((0, -60, 60, 40, 0, 40), (0, 10, 30, 50, 0, 40), (0, 35, 30, 30, 0, 40))
)
CLOSED = np.array((1, 1, 1, 1, 1, 0.1))
SIDE = np.array((40, 0, 0, 0, 0, 0), np.float64)
"""Turn of the pan joint from the middle to a side."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="the data set to make; must not exist")
    arguments.add_argument("--episodes", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    episodes = (episode(index, options.seed) for index in range(options.episodes))
    lerobot_writer.write(options.folder, SPEC, episodes, lossless=False)


def episode(index: int, seed: int) -> Episode:
    """Record one episode."""
    rng = np.random.default_rng((seed, index))
    left = bool(rng.integers(2))
    lamp, held, joints = way(rng, 1 if left else -1)
    noise = rng.normal(size=joints.shape).cumsum(axis=0)
    noise -= np.linspace(0, 1, len(joints))[:, None] * noise[-1]  # a wavering hand, which comes back
    joints += 0.15 * noise
    state = np.concatenate((joints[:1], 0.5 * joints[1:] + 0.5 * joints[:-1]))  # the arm lags behind
    state += rng.normal(scale=0.2, size=state.shape)
    block = np.where(held[:, None], tip(state), tip(DOWN[None]))
    released = np.flatnonzero(held)[-1]
    block[released:] = tip(state)[released]
    arrays: dict[str, Any] = {
        "observation.state": state.astype(np.float32),
        "observation.front": np.stack(list(front(state, block, lamp, left))),
        "observation.wrist": np.stack(list(wrist(state, block))),
        "action": joints.astype(np.float32),
        "reward": np.zeros(len(joints), np.float32),
        "controller": np.full(len(joints), BY_PERSON),
    }
    return Episode(EpisodeMeta(f"human.sort.{index:09d}", "sort", index, "human"), "success", arrays)


def way(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plan an episode: whether the lamp is on, whether the block is held, and the joints, at each step."""
    stages = (
        # where to, seconds, whether the lamp is on, whether the block is held
        (HOME, 1.0, True, False),
        (ABOVE, 1.0, False, False),
        (DOWN, 0.6, False, False),
        (DOWN * CLOSED, 0.4, False, True),
        (ABOVE * CLOSED, 0.6, False, True),
        (ABOVE * CLOSED, 0.8, False, True),
        (ABOVE * CLOSED + side * SIDE, 1.0, False, True),
        (DOWN * CLOSED + side * SIDE, 0.6, False, True),
        (DOWN + side * SIDE, 0.4, False, False),
        (HOME, 1.2, False, False),
    )
    here, parts = HOME, []
    for there, seconds, lamp, held in stages:
        steps = round(HZ * seconds * rng.uniform(0.8, 1.25))
        share = np.linspace(0, 1, steps + 1)[1:, None]
        smooth = share**3 * (10 - 15 * share + 6 * share**2)  # least jerk
        parts.append((np.full(steps, lamp), np.full(steps, held), here + smooth * (there - here)))
        here = there
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def tip(joints: np.ndarray) -> np.ndarray:
    """Place the gripper on the front camera's picture: rows and columns, (steps, 2)."""
    pan, lift = np.radians(joints[:, 0]), joints[:, 1]
    return np.stack((40 + 0.9 * lift, WIDTH / 2 - 55 * np.sin(pan)), axis=1)


def front(state: np.ndarray, block: np.ndarray, lamp: np.ndarray, left: bool) -> Iterator[np.ndarray]:
    """See lamp, block and arm from the front."""
    for hand, place, on in zip(tip(state), block, lamp, strict=True):
        picture = np.full((HEIGHT, WIDTH, 3), 180, np.uint8)
        paint(
            picture, (10, WIDTH - 14), 8, ((200, 30, 30) if left else (30, 30, 200)) if on else (90, 90, 90)
        )
        paint(picture, place, 6, (40, 150, 60))
        for share in np.linspace(0, 1, 24):
            paint(picture, (1 - share) * np.array((2, WIDTH / 2)) + share * hand, 2, (60, 60, 70))
        yield picture


def wrist(state: np.ndarray, block: np.ndarray) -> Iterator[np.ndarray]:
    """See the block from the hand."""
    for hand, place in zip(tip(state), block, strict=True):
        picture = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
        paint(picture, np.array((HEIGHT / 2, WIDTH / 2)) + 1.5 * (place - hand), 12, (40, 150, 60))
        yield picture


def paint(picture: np.ndarray, place: Any, half: int, color: tuple[int, int, int]) -> None:
    """Paint a square where it lies in the picture."""
    row, column = (round(float(value)) for value in place)
    rows = slice(max(0, row - half), max(0, row + half))
    picture[rows, max(0, column - half) : max(0, column + half)] = color


if __name__ == "__main__":
    main()
