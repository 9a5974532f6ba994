"""What the tasks with a robot arm share: a robosuite simulator as a gymnasium environment, stepped fast."""

import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longview.actors.config import NO_CAMERAS, CamerasConfig
from longview.actors.environment import Diverged, SimulatedTask, TaskEnv
from longview.actors.task import Action, SimulatorError
from longview.replay.episode import ArraySpec, TaskSpec

Vector = NDArray[np.float64]

MUJOCO = ((3, 3), (3, 10))
"""The versions that robosuite 1.5 works with, the last one excluded."""
INSTALL = "pip install 'robosuite==1.5.2' 'mujoco>=3.3,<3.10'"

DIVERGED = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")
"""MuJoCo's warnings of a state that is not finite or far too large; it starts over from such a state."""
SURFACE = np.array((0.0, 0.0, 0.8))
"""Middle of the table's surface in the world; x points away from the robot, y to its left."""
DOWN = np.array(((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)))
"""Orientation (columns) of a hand that points down and closes its fingers along y."""
CAMERAS = (
    "agentview",
    "birdview",
    "frontview",
    "sideview",
    "robot0_eye_in_hand",
    "robot0_robotview",
)
"""robosuite's, and so all that `<camera>_image` may be of."""
RADIANS = 0.5
"""What robosuite's controller makes of a full rotation, per step, if the arm could follow at once."""
GAIN = 2.0
"""At 20 Hz experts ask for this multiple of what is missing: the arm covers about a fifth of it in a step."""
NEAR = 0.012
"""From this close to what it reaches for, in metres, an expert closes the gripper."""
HOVER = 0.08
"""Height above that, in metres, at which it comes from the side."""
OPEN = 0.07
"""Distance of the fingers, in metres, above which the gripper counts as open."""
PICTURE = ("agentview", 256)
"""Camera, and pixels a side, of what `render` shows."""

ROBOT_STATE = {
    "robot0_eef_pos": ArraySpec((3,), low=-2.0, high=2.0),
    "robot0_eef_quat": ArraySpec((4,), low=-1.0, high=1.0),
    "robot0_gripper_qpos": ArraySpec((2,), low=-0.1, high=0.1),
}
"""What robomimic's low-dimensional data sets have of the arm."""


@dataclass(frozen=True)
class ArmTask(SimulatedTask):
    """A task whose simulator is an `ArmEnv`; a `longview.actors.task.FilmedTask`."""

    def with_cameras(self, cameras: CamerasConfig) -> "ArmTask":
        """Return the task with `<camera>_image`, (size, size, 3) uint8, among its observations."""
        unknown = sorted(set(cameras.names) - set(CAMERAS))
        if unknown:
            raise ValueError(
                f"task {self.spec.name} has no cameras {', '.join(unknown)}: it has {', '.join(CAMERAS)}"
            )
        image = ArraySpec((cameras.size, cameras.size, 3), "uint8", 0, 255)
        seen = {**self.spec.observation, **{f"{name}_image": image for name in cameras.names}}
        spec = replace(self.spec, observation=seen)
        return replace(self, spec=spec, simulator=partial(self.simulator, cameras=cameras))


class ArmEnv(TaskEnv):
    """A robosuite simulator. A task's own class builds it, and says what is seen, done and decided in it."""

    posture_kp: ClassVar[float] = 10.0
    """Stiffness of the pull to the start posture, where the hand's motion leaves freedom: robosuite's."""

    def __init__(
        self, spec: TaskSpec, render_mode: str | None = None, cameras: CamerasConfig = NO_CAMERAS
    ) -> None:
        super().__init__(spec, render_mode)
        self._cameras = cameras
        robosuite = import_robosuite()
        try:
            self.simulator = self.build(robosuite)
        # The first is of files, the second of XML, the third is MuJoCo's of what the files hold.
        except (OSError, SyntaxError, ValueError) as error:
            raise SimulatorError(
                f"robosuite cannot build its scene ({str(error).splitlines()[0]}); "
                "reinstall robosuite, its files may be damaged"
            ) from error

        import mujoco

        # MuJoCo would write warnings into a file in the working folder; `diverged` asks its counters instead.
        mujoco.set_mju_user_warning(lambda message: None)
        self._renderers: dict[tuple[int, str], Any] = {}

    @abstractmethod
    def build(self, robosuite: ModuleType) -> Any:
        """A robosuite environment."""

    def samplers(self) -> Sequence[Any]:
        """What draws in the simulator's reset, apart from the robot's start joints."""
        return ()

    def place(self) -> None:
        """Arrange what a new episode starts with; the robot is reset already."""

    @abstractmethod
    def act(self, action: Vector) -> None:
        """One control step."""

    @abstractmethod
    def state(self) -> dict[str, Vector]:
        """What is observed, images aside."""

    def start(self, rng: np.random.Generator) -> None:
        from longview.actors.tasks.osc import Arm

        for drawing in (self.simulator, *self.samplers()):
            drawing.rng = rng
        self.simulator.reset()
        self.arm = Arm(self.simulator, self.posture_kp)
        self.place()

    def advance(self, action: Action) -> None:
        try:
            self.act(action.astype(np.float64))
        except np.linalg.LinAlgError as error:
            raise Diverged("no torques follow from this state") from error
        if self.diverged():
            raise Diverged("MuJoCo had to start over")

    def observe(self) -> Mapping[str, ArrayLike]:
        cameras = self._cameras
        images = {
            f"{name}_image": self._picture(name, cameras.size, cameras.quality) for name in cameras.names
        }
        return self.state() | images

    def render(self) -> Any:
        """A picture of the scene, (H, W, 3) of uint8."""
        name, size = PICTURE
        return self._picture(name, size, "full")

    def close(self) -> None:
        """Free the simulator and its renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self.simulator.close()

    @property
    def data(self) -> Any:
        """MuJoCo's."""
        return self.simulator.sim.data._data

    @property
    def model(self) -> Any:
        """MuJoCo's."""
        return self.simulator.sim.model._model

    @property
    def width(self) -> float:
        """Distance of the fingers, in metres, up to 0.08."""
        joints = self.simulator.robots[0].gripper["right"].joints
        one, other = (self.simulator.sim.data.get_joint_qpos(name) for name in joints)
        return float(one - other)

    def diverged(self) -> bool:
        """Whether MuJoCo has had to start over since the reset."""
        import mujoco

        return any(self.data.warning[int(getattr(mujoco.mjtWarning, name))].number for name in DIVERGED)

    def sense(self, names: Iterable[str]) -> dict[str, Vector]:
        """Some of robosuite's own observables, now; those that follow from others come after them."""
        sensed: dict[str, Any] = {}
        for name in names:
            sensed[name] = self.simulator._observables[name]._sensor(sensed)
        return sensed

    def _picture(self, camera: str, size: int, quality: str) -> Any:
        from longview.actors.tasks.render import Renderer

        if (size, quality) not in self._renderers:
            self._renderers[size, quality] = Renderer(self.model, size, quality)
        return self._renderers[size, quality].render(self.data, camera)


class RobosuiteEnv(ArmEnv):
    """One of robosuite's own tasks.

    Actions are displacement (3), rotation vector (3) and gripper (open < 0 < close), the first two as shares
    in [-1, 1] of what robosuite's controller makes of them.
    """

    robosuite_name: ClassVar[str]
    """What robosuite calls the task."""

    def build(self, robosuite: ModuleType) -> Any:
        return robosuite.make(self.robosuite_name, **settings(self.task_spec))

    def samplers(self) -> Sequence[Any]:
        return [self.simulator.placement_initializer]

    def act(self, action: Vector) -> None:
        self.arm.step(action[:3], action[3:6], action[6])

    def outcome(self) -> str | None:
        return "success" if self.simulator._check_success() else None

    def towards(self, move: Vector, yaw: float, grip: float) -> Action:
        """The action that an expert takes for the hand to move on by `move` (3,), in metres, and to point
        down, with fingers that close along the y axis of what is turned by `yaw`."""
        sine, cosine = np.sin(yaw), np.cos(yaw)
        goal = np.array(((-sine, cosine, 0.0), (cosine, sine, 0.0), (0.0, 0.0, -1.0)))
        turn = 0.5 * np.cross(self.arm.axes, goal, axis=0).sum(axis=1)
        shares = GAIN * np.concatenate((move / self.arm.span, turn / RADIANS))
        return np.clip((*shares, grip), -1.0, 1.0).astype(np.float32)

    @property
    def yaw(self) -> float:
        """Of the hand, as `towards` has it."""
        return float(np.arctan2(-self.arm.axes[0, 0], self.arm.axes[1, 0]))


class TableEnv(ArmEnv):
    """A scene of our own: a `Table` to build, and positions relative to the middle of its surface.

    An action is a place for the hand to go to (3), within the workspace, and the gripper (open < 0 < close).
    The hand keeps pointing down: were it free to turn, it would arrive from different sides in different
    postures, and so remember.
    """

    workspace: ClassVar[tuple[Sequence[float], Sequence[float]]] = ((0.0, 0.0, 0.15), (0.25, 0.25, 0.15))
    """Middle, and half of the size, in metres, of what actions from -1 to 1 span."""
    # So stiff that the elbow has forgotten within a second where the hand came from.
    posture_kp: ClassVar[float] = 100.0

    def put(self, item: Any, position: Sequence[float], yaw: float = 0.0) -> None:
        """Place an object, at rest."""
        pose = (*np.add(position, SURFACE), np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.simulator.sim.data.set_joint_qpos(item.joints[0], np.array(pose))
        self.simulator.sim.forward()

    def act(self, action: Vector) -> None:
        middle, half = self.workspace
        move = (middle + half * action[:3] - self.hand) / self.arm.span
        # The gripper moves by a fifth of its range in a step of 1/20 s; ours take twice as long.
        self.simulator.robots[0].gripper["right"].format_action(action[3:])
        self.arm.step_towards(np.clip(move, -1, 1), DOWN, action[3])

    def towards(self, move: Vector, grip: float) -> Action:
        """The action that moves the hand on by `move` (3,), in metres, or as far as it gets in a step."""
        middle, half = self.workspace
        goal = self.hand + np.clip(move, -self.arm.span, self.arm.span)
        return np.clip((*((goal - middle) / half), grip), -1, 1).astype(np.float32)

    @property
    def hand(self) -> Vector:
        """Position of the place between the finger tips (3,)."""
        position: Vector = self.arm.hand - SURFACE
        return position

    def position(self, item: Any) -> Vector:
        """Of an object's centre (3,)."""
        position: Vector = self.data.body(item.root_body).xpos - SURFACE
        return position

    def velocity(self, item: Any) -> Vector:
        """Of an object's centre (3,), in metres per second."""
        velocity: Vector = self.simulator.sim.data.get_joint_qvel(item.joints[0])[:3]
        return velocity


class ToolEnv(TableEnv):
    """A table at which the closed gripper is the tool: actions are only a place for the hand to go to (3)."""

    def act(self, action: Vector) -> None:
        super().act(np.append(action, 1.0))

    def go(self, move: Vector) -> Action:
        """The action that moves the hand on by `move` (3,), in metres, or as far as it gets in a step."""
        return self.towards(move, 1.0)[:3]

    def start_at(self, place: Vector, steps: int) -> None:
        """Move the hand to where it is to be when the episode starts."""
        for _ in range(steps):
            self.act(self.go(place - self.hand).astype(np.float64))


def reach(offset: Vector, width: float, near: float = NEAR, hover: float = HOVER) -> tuple[Vector, float]:
    """Where to move (3,) and how to grip (open < 0 < close) to grasp something from above.

    Args:
        offset: from the hand to where it is to grasp (3,), in metres.
        width: distance of the fingers.
        near: from this close, in metres, it grasps.
        hover: height above that, in metres, at which it comes from the side.
    """
    aside = float(np.hypot(offset[0], offset[1]))
    # Once it closes it goes on within a wider range: the width of the gripper is all the memory it needs.
    if max(aside, abs(offset[2])) < (near if width > OPEN else 2 * near):
        return offset, 1.0
    above = min(max(0.0, 3 * (aside - near / 2)), hover)
    return np.add(offset, (0.0, 0.0, above)), -1.0


def settings(spec: TaskSpec) -> dict[str, Any]:
    """Arguments of robosuite's environments, its own tasks as well as ours: no rendering, fast resets."""
    return {
        "robots": "Panda",
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "renderer": "mujoco",
        "control_freq": spec.control_hz,
        "ignore_done": True,
        "hard_reset": False,
        # Sizes of objects are drawn only here: the same in all simulators, or equal seeds would differ.
        "seed": 0,
    }


def import_robosuite() -> ModuleType:
    """robosuite, without what its import does to this process and to those started from it.

    Raises:
        SimulatorError: it cannot be imported; the message says what to install.
    """
    # On import it warns of extras that we do not use, and sets MUJOCO_GL, with which processes started from
    # this one could not import mujoco where there is no EGL.
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    renderer = os.environ.get("MUJOCO_GL")
    try:
        installed = import_module("mujoco").__version__
        if not MUJOCO[0] <= tuple(int(part) for part in installed.split(".")[:2]) < MUJOCO[1]:
            raise SimulatorError(f"robosuite does not work with mujoco {installed}; {INSTALL}")
        return import_module("robosuite")
    except ImportError as error:
        hint = "install the system package libgl1" if "libGL" in str(error) else INSTALL
        raise SimulatorError(f"robosuite cannot be imported ({error}); {hint}") from error
    finally:
        if renderer is None:
            os.environ.pop("MUJOCO_GL", None)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
