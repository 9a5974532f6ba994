"""Push-T: a disc pushes a T-shaped block onto the outline of one, in the simulator of the package gym-pusht.

A policy observes what the low-dimensional policies of Diffusion Policy see (arXiv 2303.04137): nine points on
the block and the position of the disc, in pixels of a picture of 512 x 512. The task has no expert: it is
learnt from human demonstrations, such as the 206 that were published with that work. This simulator
reproduces their states step by step from their actions.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longview.actors.environment import SimulatedTask, TaskEnv
from longview.actors.task import Action
from longview.replay.episode import ArraySpec, TaskSpec

SIZE: Final = 512
"""Side of the picture, in pixels. Walls stand at 5 and 506, but a block that is pushed hard goes through."""

spec = TaskSpec(
    name="push_t",
    observation={
        "keypoints": ArraySpec((9, 2), low=-SIZE / 2, high=1.5 * SIZE),
        "agent_position": ArraySpec((2,), low=0.0, high=SIZE),
    },
    action=ArraySpec((2,), low=0.0, high=SIZE),
    control_hz=10.0,
    max_steps=300,
    context_lengths=(1, 2, 5, 10, 12, 16, 20),
    demonstrations=200,
)

KEYPOINTS: Final = np.array(
    (
        (9.269787, 90.040974),
        (-60.983472, -1.18673),
        (60.912756, -1.393364),
        (-0.270503, 25.543625),
        (-14.064927, 122.815854),
        (39.002738, 32.857404),
        (-39.966415, 32.729655),
        (-16.824344, 62.863179),
        (23.541461, -1.700288),
    )
)
"""Points on the block, (9, 2), in its own axes: `keypoint` of the published demonstrations."""

columns: Final = {
    "zarr": {
        # The state is exact. The published `keypoint` belongs to a slightly different pose in the quarter of
        # all rows in which the block is touched: 0.007 pixels off as a rule, 2.2 at most.
        "observation.keypoints": ("observation.state", lambda state: keypoints(state[:, 2:5])),
        "observation.agent_position": ("observation.state", lambda state: state[:, :2]),
    }
}
"""How observations follow from a replay buffer of Diffusion Policy; see `longview.actors.task.ImportedTask`.
Its `state` (5,) holds the disc's position (2), the block's position (2) and the block's angle."""


class PushT(TaskEnv):
    """The simulator. An action is the place to which the disc goes; the task is done once the block covers
    more than 95 % of the outline."""

    def __init__(self, spec: TaskSpec, render_mode: str | None = None) -> None:
        super().__init__(spec, render_mode)
        self.simulator = _simulator()

    def start(self, rng: np.random.Generator) -> None:
        self.simulator.np_random = rng
        self.simulator._last_action = None  # or the first picture would show the last episode's
        self.simulator.reset()

    def advance(self, action: Action) -> None:
        *_, info = self.simulator.step(action)
        # The package adds up the block's two parts in the order of a set, which changes the last digits.
        self._covered, self._coverage = bool(info["is_success"]), round(float(info["coverage"]), 6)

    def observe(self) -> Mapping[str, ArrayLike]:
        agent, block = self.simulator.agent, self.simulator.block
        return {
            "keypoints": keypoints(np.array((*block.position, block.angle))),
            "agent_position": agent.position,
        }

    def outcome(self) -> str | None:
        return "success" if self._covered else None

    def reward(self, outcome: str | None) -> float:
        """Return the share of the outline that the block covers."""
        return self._coverage

    def save(self) -> Any:
        """Refuse: a block that is touched would move otherwise once the state is restored.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("pymunk keeps the forces of the last step's contacts to itself")

    def render(self) -> NDArray[np.uint8]:
        """Draw a picture of the scene, (512, 512, 3) uint8."""
        picture: NDArray[np.uint8] = self.simulator.render()
        return picture

    def close(self) -> None:
        self.simulator.close()


def keypoints(pose: NDArray[Any]) -> NDArray[Any]:
    """Return the points on the block (..., 9, 2) for its positions and angles (..., 3)."""
    x, y = KEYPOINTS.T
    cosine, sine = np.cos(pose[..., 2:]), np.sin(pose[..., 2:])
    turned = np.stack((cosine * x - sine * y, sine * x + cosine * y), axis=-1)
    points: NDArray[Any] = pose[..., None, :2] + turned
    return points


task = SimulatedTask(spec, PushT, columns=columns)
make, expert = task.make, task.expert


def _simulator() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    simulators = import_module("gym_pusht.envs.pusht")
    return simulators.PushTEnv(render_mode="rgb_array", visualization_width=SIZE, visualization_height=SIZE)
