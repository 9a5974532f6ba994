"""A small world that stands in for your robot: an arm with six joints, a block, and two cameras.

The block lies on the left or on the right. The arm takes it to the scale in the middle, lets go, and brings
it back to where it came from. Joints are in degrees: pan, lift, elbow, wrist, roll, gripper (0: closed).
"""

from typing import Any

import numpy as np

HZ = 30.0
HEIGHT, WIDTH = 96, 128
HOME, ABOVE, DOWN = (
    np.array(joints, np.float64)
    for joints in ((0, -60, 60, 40, 0, 40), (0, 10, 30, 50, 0, 40), (0, 35, 30, 30, 0, 40))
)
CLOSED = np.array((1, 1, 1, 1, 1, 0.1))
"""Factor of the joints that closes the gripper."""
SIDE = np.array((40, 0, 0, 0, 0, 0), np.float64)
"""Turn from the middle to a side."""
NEAR = 8.0
"""Distance, in pixels of the front camera, from which the gripper takes the block."""


class Arm:
    """The robot: it observes, and steps with target joints."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.joints, self.held, self.weighed = rng, HOME.copy(), False, False
        self.side = int(rng.choice((-1, 1)))
        self.block = tip(DOWN + self.side * SIDE) + rng.normal(scale=1.0, size=2)

    def observe(self) -> dict[str, np.ndarray]:
        """Return what the robot sees and feels: `state`, `images.front`, `images.wrist`."""
        state = self.joints + self.rng.normal(scale=0.2, size=6)
        cameras = {"images.front": self._front(), "images.wrist": self._wrist()}
        return {"state": state.astype(np.float32), **cameras}

    def step(self, target: np.ndarray) -> np.ndarray:
        """Move halfway to target joints, and return the target that was executed."""
        self.joints = (self.joints + target) / 2
        hand, closed = tip(self.joints), bool(self.joints[5] < 20)
        if closed and not self.held:
            self.held = bool(np.linalg.norm(hand - self.block) < NEAR and self.joints[1] > 28)
        self.held = self.held and closed
        if self.held:
            self.block = hand
        elif abs(self.block[1] - WIDTH / 2) < NEAR:
            self.weighed = True
        return target

    @property
    def returned(self) -> int:
        """Place of the block after it was weighed: 1 where it came from, -1 on the other side, else 0."""
        from_middle = WIDTH / 2 - self.block[1]
        if self.held or not self.weighed or abs(from_middle) < 2 * NEAR:
            return 0
        return int(np.sign(from_middle)) * self.side

    def _front(self) -> np.ndarray:
        picture = np.full((HEIGHT, WIDTH, 3), 180, np.uint8)
        paint(picture, tip(DOWN), 9, (120, 120, 150))
        paint(picture, self.block, 6, (40, 150, 60))
        for share in np.linspace(0, 1, 24):
            paint(picture, (1 - share) * np.array((2, WIDTH / 2)) + share * tip(self.joints), 2, (60, 60, 70))
        return picture

    def _wrist(self) -> np.ndarray:
        picture = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
        place = np.array((HEIGHT / 2, WIDTH / 2)) + 1.5 * (self.block - tip(self.joints))
        paint(picture, place, 12, (40, 150, 60))
        return picture


def tip(joints: np.ndarray) -> np.ndarray:
    """Place the gripper on the front camera's picture: row and column."""
    return np.array((40 + 0.9 * joints[1], WIDTH / 2 - 55 * np.sin(np.radians(joints[0]))))


def paint(picture: np.ndarray, place: Any, half: int, color: tuple[int, int, int]) -> None:
    """Paint a square, as far as it lies in the picture."""
    row, column = (round(float(value)) for value in place)
    rows = slice(max(0, row - half), max(0, row + half))
    picture[rows, max(0, column - half) : max(0, column + half)] = color


def way(arm: Arm, rng: np.random.Generator) -> list[np.ndarray]:
    """Plan what a person would do: target joints at each step."""
    there = arm.side * SIDE
    stages = (
        (HOME, 0.2),
        *(
            (ABOVE + there, 0.7),
            (DOWN + there, 0.4),
            ((DOWN + there) * CLOSED, 0.3),
            ((ABOVE + there) * CLOSED, 0.4),
        ),
        *((ABOVE * CLOSED, 0.7), (DOWN * CLOSED, 0.4), (DOWN, 0.3), (ABOVE, 0.4), (ABOVE, 0.6)),
        *((DOWN, 0.4), (DOWN * CLOSED, 0.3), (ABOVE * CLOSED, 0.4)),
        *(((ABOVE + there) * CLOSED, 0.7), ((DOWN + there) * CLOSED, 0.4), (DOWN + there, 0.3), (HOME, 0.8)),
    )
    here, targets = HOME, list[np.ndarray]()
    for joints, seconds in stages:
        steps = round(HZ * seconds * rng.uniform(0.85, 1.2))
        for share in np.linspace(0, 1, steps + 1)[1:]:
            smooth = share**3 * (10 - 15 * share + 6 * share**2)  # least jerk
            targets.append(here + smooth * (joints - here))
        here = joints
    return targets
