"""Make recordings that stand in for those of your robot: a LeRobotDataset like an SO-101's.

It has 30 steps a second, six joints and two cameras.

    python record.py weigh --episodes 40
"""

import argparse
from pathlib import Path

import numpy as np
from arm import HEIGHT, HZ, WIDTH, Arm, way

from longview.replay.datasets import lerobot_writer
from longview.replay.episode import BY_PERSON, ArraySpec, Episode, EpisodeMeta, TaskSpec

PICTURE = ArraySpec((HEIGHT, WIDTH, 3), "uint8", 0, 255)
SPEC = TaskSpec(
    name="weigh",
    observation={"state": ArraySpec((6,)), "images.front": PICTURE, "images.wrist": PICTURE},
    action=ArraySpec((6,)),
    control_hz=HZ,
    max_steps=400,
    context_lengths=(1,),
    demonstrations=40,
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="the data set to make; must not exist")
    arguments.add_argument("--episodes", type=int, default=40)
    options = arguments.parse_args()
    episodes = (episode(index) for index in range(options.episodes))
    lerobot_writer.write(options.folder, SPEC, episodes, lossless=False)


def episode(index: int) -> Episode:
    """Record one episode, by a hand that wavers."""
    rng = np.random.default_rng(index)
    arm, frames, actions, waver = Arm(rng), [], [], np.zeros(6)
    for target in way(arm, rng):
        waver = 0.9 * waver + rng.normal(scale=(0.4, 0.4, 0.4, 0.4, 0.4, 0.1))
        frames.append(arm.observe())
        actions.append(arm.step(target + waver))
    assert arm.returned == 1, f"episode {index} failed"
    arrays = {f"observation.{key}": np.stack([frame[key] for frame in frames]) for key in frames[0]}
    arrays |= {
        "action": np.array(actions, np.float32),
        "reward": np.zeros(len(actions), np.float32),
        "controller": np.full(len(actions), BY_PERSON),
    }
    return Episode(EpisodeMeta(f"human.weigh.{index:09d}", "weigh", index, "human"), "success", arrays)


if __name__ == "__main__":
    main()
