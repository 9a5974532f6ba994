"""Slide a puck to a target on a lane of unknown friction: only earlier attempts tell how hard to push.

      back                    line                               target               end
      -1.2                     0                               1.2 .. 1.8             2.6
        |     o -->  held      |         o ----->  slides       [   |   ]              |

An episode has three attempts on one lane, each with a target of its own. In an attempt the hand first holds
the puck still for 8 steps. Then it pushes the puck up to the line, where the hand stops, and the puck slides
on until the friction has stopped it. After 32 steps hand and puck are put back. The last attempt counts.

The friction is drawn anew for every episode. A policy that has seen an attempt knows it: a puck of speed v
slides v^2 / (2 friction) far. Nothing else tells it:

- Up to the line the puck goes as fast as the hand, so the present push cannot be corrected by what it shows.
- The place to which the puck is put back is drawn independently of what was done and of the friction.
- The puck is held for as long as the second shortest context, which sees nothing of the attempt before.

The idea of a hidden property that is learnt over attempts is that of the cross-trial tasks of MemMimic (arXiv
2604.18933).
"""

from collections.abc import Mapping, Sequence
from math import log, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longview.actors.environment import SimulatedTask, TaskEnv
from longview.actors.task import Action, Environment, Expert
from longview.replay.episode import ArraySpec, TaskSpec

ATTEMPTS, ATTEMPT_STEPS = 3, 32
"""Attempts of an episode, and steps of each. All last equally long, so that time tells nothing."""
HOLD_STEPS = 8
"""Steps at the start of an attempt in which the puck is held still. They keep what came before out of sight
of a short context."""
SPEED = 0.6
"""Distance per step at full action."""
FRICTION = (0.0167, 0.1)
"""Range of the friction: speed that a sliding puck loses in each step. It is log-uniform."""
STARTS, BACK = (-1.1, -0.9), -1.2
"""Range of the puck's place at the start of an attempt, and the farthest that the hand draws it back."""
TARGETS, TOLERANCE = (1.2, 1.8), 0.2
"""Range of a target's distance from the line, and largest distance from it at which the puck has to stop."""
END = 2.6
"""Distance of the lane's end from the line; the puck goes no farther."""
FIRST = (0.2, 0.26)
"""Range of the expert's speed in the first attempt. The puck stays on the lane, whatever the friction."""
SPREAD = 0.02
"""Largest share by which the expert's speed in an attempt is off."""
PICTURE = 256
"""Pixels a side of the picture that `render` draws."""

spec = TaskSpec(
    name="slide_puck",
    observation={
        "puck_pos": ArraySpec((1,), low=BACK, high=END),
        "puck_speed": ArraySpec((1,), low=-SPEED, high=SPEED),
        "target_pos": ArraySpec((1,), low=0.0, high=END),
    },
    action=ArraySpec((1,), low=-1.0, high=1.0),
    control_hz=10.0,
    max_steps=ATTEMPTS * ATTEMPT_STEPS,
    context_lengths=(1, 8, 16, 32, 48, 64, 96),
    demonstrations=200,
    # Of the frictions, which span ln 6, a speed brings the puck into ln((target + 0.2) / (target - 0.2)).
    chance=0.153,
)


class SlidePuck(TaskEnv):
    """The simulator. An action is the hand's speed as a share of `SPEED`.

    `x` and `speed` are the puck's, in distance and distance per step; the hand has it where `x` < 0.
    """

    def start(self, rng: np.random.Generator) -> None:
        low, high = FRICTION
        self.friction = float(low * (high / low) ** self.memory_rng.random())
        self._starts = rng.uniform(*STARTS, ATTEMPTS).tolist()
        self._targets = rng.uniform(*TARGETS, ATTEMPTS).tolist()
        self._ends = list[float]()
        self._put_back()

    def _put_back(self) -> None:
        self.x, self.speed = self._starts[self.attempt], 0.0

    @property
    def attempt(self) -> int:
        """Index of the present attempt, from 0."""
        return len(self._ends)

    @property
    def target(self) -> float:
        """Place of the present attempt's target."""
        return float(self._targets[self.attempt])

    def advance(self, action: Action) -> None:
        step = self.steps % ATTEMPT_STEPS
        if self.x >= 0:
            self._slide(1.0)
        elif step >= HOLD_STEPS:
            self._push(SPEED * action.item())
        if step == ATTEMPT_STEPS - 1 and self.attempt < ATTEMPTS - 1:
            self._ends.append(self.x)
            self._put_back()

    def _push(self, speed: float) -> None:
        """Move the puck with the hand for a step, and let it go at the line."""
        self.speed = max(speed, BACK - self.x)
        if self.x + self.speed < 0:
            self.x += self.speed
        else:
            left = 1 + self.x / self.speed
            self.x = 0.0
            self._slide(left)

    def _slide(self, time: float) -> None:
        """Let the puck slide for a part of a step."""
        end = max(self.speed - time * self.friction, 0.0)
        self.x += (self.speed**2 - end**2) / (2 * self.friction)
        self.speed = end
        if self.x >= END:
            self.x, self.speed = END, 0.0

    def observe(self) -> Mapping[str, ArrayLike]:
        return {"puck_pos": (self.x,), "puck_speed": (self.speed,), "target_pos": (self.target,)}

    def answer(self) -> float:
        return self.friction

    def outcome(self) -> str | None:
        if self.attempt < ATTEMPTS - 1 or self.x < 0 or self.speed > 0:
            return None
        return "success" if abs(self.x - self.target) <= TOLERANCE else "wrong"

    def render(self) -> NDArray[np.uint8]:
        """Draw a picture of all attempts so far, (H, W, 3) uint8; the browner the lane, the rougher it is."""
        share = log(self.friction / FRICTION[0]) / log(FRICTION[1] / FRICTION[0])
        return _draw([*self._ends, self.x], self._targets, share)


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it tries the lane with a speed that does not depend on it, and then knows it."""
    scene = env.unwrapped
    assert isinstance(scene, SlidePuck)
    first = rng.uniform(*FIRST)
    off = rng.uniform(1 - SPREAD, 1 + SPREAD, ATTEMPTS)

    def act() -> Action:
        right = off[scene.attempt] * sqrt(2 * scene.friction * scene.target)
        return np.array((min((right if scene.attempt else first) / SPEED, 1.0),), np.float32)

    return act


task = SimulatedTask(spec, SlidePuck, expert)
make = task.make


def _draw(pucks: Sequence[float], targets: Sequence[float], rough: float) -> NDArray[np.uint8]:
    """Draw a lane for each attempt, from the top down.

    Args:
        pucks: place of the puck in each attempt so far.
        targets: place of the target in each attempt.
        rough: roughness of the lane, 0 to 1.
    """
    pixels = np.arange(PICTURE)
    across, down = np.meshgrid(pixels * 4.4 / PICTURE - 1.5, pixels * 4.4 / PICTURE)
    picture = np.full((PICTURE, PICTURE, 3), (250, 249, 246), np.uint8)
    lane = (1 - rough) * np.array((196, 216, 232)) + rough * np.array((206, 180, 140))

    def box(left: float, right: float, y: float, half: float, colour: ArrayLike) -> None:
        picture[(left <= across) & (across <= right) & (abs(down - y) <= half)] = colour

    for attempt, target in enumerate(targets):
        y = 1.1 * (attempt + 1)
        box(BACK - 0.2, END + 0.2, y, 0.3, lane)
        box(-0.02, 0.02, y, 0.3, (70, 78, 92))
        if attempt < len(pucks):
            x = pucks[attempt]
            box(target - TOLERANCE, target + TOLERANCE, y, 0.3, (120, 184, 138))
            box(min(x, 0.0) - 0.24, min(x, 0.0) - 0.14, y, 0.2, (70, 78, 92))
            picture[np.hypot(across - x, down - y) <= 0.14] = (206, 66, 56)
    return picture
