"""Base of the tasks in robosuite: a simulator as a `TaskEnv`, and one with an arm that is stepped fast."""

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
"""Versions of MuJoCo that robosuite 1.5 works with: from the first, up to but not including the second."""
INSTALL = "pip install 'robosuite==1.5.2' 'mujoco>=3.3,<3.10'"

DIVERGED = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")
"""MuJoCo's warnings about a state that is not finite or far too large; it starts over from such a state."""
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
"""Names of robosuite's cameras: the choice for `<camera>_image`."""
RADIANS = 0.5
"""Rotation per step at full action, in radians, if the arm could follow at once: robosuite's."""
GAIN = 2.0
"""Experts at 20 Hz ask for this multiple of the distance that is left; the arm does a fifth of it."""
NEAR = 0.012
"""Distance, in metres, at which an expert closes the gripper around something."""
HOVER = 0.08
"""Height above the thing, in metres, at which an expert approaches it from the side."""
OPEN = 0.07
"""Distance of the fingers, in metres, above which the gripper counts as open."""
PICTURE = ("agentview", 256)
"""Camera of the picture that `render` draws, and its pixels a side."""

ROBOT_STATE = {
    "robot0_eef_pos": ArraySpec((3,), low=-2.0, high=2.0),
    "robot0_eef_quat": ArraySpec((4,), low=-1.0, high=1.0),
    "robot0_gripper_qpos": ArraySpec((2,), low=-0.1, high=0.1),
}
"""State of the arm, as robomimic's low-dimensional data sets hold it."""


@dataclass(frozen=True)
class ArmTask(SimulatedTask):
    """A task whose simulator is a `SceneEnv`; a `longview.actors.task.FilmedTask`."""

    cameras: Sequence[str] = CAMERAS
    """Names of the cameras that can look at it."""

    def with_cameras(self, cameras: CamerasConfig) -> "ArmTask":
        """Return the task with `<camera>_image`, (size, size, 3) uint8, among its observations."""
        unknown = sorted(set(cameras.names) - set(self.cameras))
        if unknown:
            raise ValueError(
                f"task {self.spec.name} has no cameras {', '.join(unknown)}: it has {', '.join(self.cameras)}"
            )
        if missing := sorted(set(cameras.instead_of) - self.spec.observation.keys()):
            raise ValueError(
                f"task {self.spec.name} has no observation {', '.join(missing)} that cameras can stand for: "
                f"it has {', '.join(self.spec.observation)}"
            )
        image = ArraySpec((cameras.size, cameras.size, 3), "uint8", 0, 255)
        state = {key: a for key, a in self.spec.observation.items() if key not in cameras.instead_of}
        seen = {**state, **{f"{name}_image": image for name in cameras.names}}
        spec = replace(self.spec, observation=seen)
        return replace(self, spec=spec, simulator=partial(self.simulator, cameras=cameras))


class SceneEnv(TaskEnv):
    """A robosuite simulator. A task's own class builds it, acts and observes, and decides the outcome."""

    shared: ClassVar[bool] = True
    """Whether all simulators of a process have one model, which then must never change."""

    def __init__(
        self, spec: TaskSpec, render_mode: str | None = None, cameras: CamerasConfig = NO_CAMERAS
    ) -> None:
        super().__init__(spec, render_mode)
        self._cameras, self._drawn = cameras, bool(cameras.names) or render_mode == "rgb_array"
        robosuite = import_robosuite()
        from longview.actors.tasks.scenes import freeze, shared_models

        try:
            with shared_models(self._drawn, self.shared):
                self.simulator = self.build(robosuite)
        # A file is missing, its XML is damaged, or MuJoCo refuses what it holds.
        except (OSError, SyntaxError, ValueError) as error:
            raise SimulatorError(
                f"robosuite cannot build its scene ({str(error).splitlines()[0]}); "
                "reinstall robosuite, its files may be damaged"
            ) from error

        # At every reset robosuite hides its sites, by a write to the model. Do it now: once they are hidden,
        # resets leave the model as it is.
        self.simulator.visualize(dict.fromkeys(self.simulator._visualizations, False))
        if self.shared:
            freeze(self.model)

        import mujoco

        # MuJoCo would write warnings into a file in the working folder; `diverged` asks its counters instead.
        mujoco.set_mju_user_warning(lambda message: None)
        self._divergences = [int(getattr(mujoco.mjtWarning, name)) for name in DIVERGED]
        self._renderers: dict[tuple[int, str], Any] = {}
        self._built = frozenset(vars(self)) - {"steps", "_memory_rng"}
        """Names of the attributes that no episode changes: simulator, objects, cameras."""

    @abstractmethod
    def build(self, robosuite: ModuleType) -> Any:
        """Make the robosuite environment."""

    @abstractmethod
    def act(self, action: Vector) -> None:
        """Make one control step."""

    @abstractmethod
    def state(self) -> dict[str, Vector]:
        """Return what is observed, without images."""

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
        state = {key: value for key, value in self.state().items() if key not in cameras.instead_of}
        return state | images

    def render(self) -> Any:
        """Draw a picture of the scene, (256, 256, 3) uint8.

        Raises:
            RendererError: this machine cannot render, or the simulator was made without visuals.
        """
        from longview.actors.tasks.render import RendererError

        if not self._drawn:
            raise RendererError("the simulator has no visuals: make it with render_mode='rgb_array'")
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
        """State of the simulation, an MjData."""
        return self.simulator.sim.data._data

    @property
    def model(self) -> Any:
        """Model of the scene, an MjModel."""
        return self.simulator.sim.model._model

    def diverged(self) -> bool:
        """Tell whether MuJoCo has had to start over since the reset."""
        counts = self.data.warning.number.tolist()
        return any(counts[warning] for warning in self._divergences)

    def _picture(self, camera: str, size: int, quality: str) -> Any:
        from longview.actors.tasks.render import Renderer

        if (size, quality) not in self._renderers:
            self._renderers[size, quality] = Renderer(self.model, size, quality)
        return self._renderers[size, quality].render(self.data, camera)


class ArmEnv(SceneEnv):
    """A scene with one arm, whose control law is compiled."""

    posture_kp: ClassVar[float] = 10.0
    """Stiffness of the pull to the start posture, as far as the hand's motion leaves freedom: robosuite's."""

    def samplers(self) -> Sequence[Any]:
        """Return what draws at random in the simulator's reset, besides the robot's start joints."""
        return ()

    def place(self) -> None:
        """Arrange the scene of a new episode; the robot has been reset already."""

    def start(self, rng: np.random.Generator) -> None:
        from longview.actors.tasks.osc import Arm

        for drawing in (self.simulator, *self.samplers()):
            drawing.rng = rng
        self.simulator.reset()
        self.arm = Arm(self.simulator, self.posture_kp)
        self.place()

    def changing(self) -> Iterable[str]:
        return vars(self).keys() - self._built - {"_built", "arm"}

    def save(self) -> Any:
        import mujoco

        # All of MuJoCo's data: what is observed follows from positions that are one physics step old.
        data = mujoco.MjData(self.model)
        mujoco.mj_copyData(data, self.model, self.data)
        return super().save(), data, self.arm.save()

    def restore(self, state: Any) -> None:
        import mujoco

        own, data, arm = state
        super().restore(own)
        mujoco.mj_copyData(self.data, self.model, data)
        self.arm.restore(arm)

    @property
    def width(self) -> float:
        """Distance of the fingers, in metres, up to 0.08."""
        one, other = self.simulator.robots[0]._ref_gripper_joint_pos_indexes["right"]
        return float(self.data.qpos[one] - self.data.qpos[other])

    def sense(self, names: Iterable[str]) -> dict[str, Vector]:
        """Return robosuite's observables of these names, as of now. Name one after those that it needs."""
        sensed: dict[str, Any] = {}
        for name in names:
            sensed[name] = self.simulator._observables[name]._sensor(sensed)
        return sensed


class RobosuiteEnv(ArmEnv):
    """A task of robosuite's own.

    An action is a displacement (3), a rotation vector (3) and the gripper (open < 0 < close). The first two
    are shares, in [-1, 1], of the largest that robosuite's controller takes.
    """

    robosuite_name: ClassVar[str]
    """Name of the task in robosuite."""

    def build(self, robosuite: ModuleType) -> Any:
        return robosuite.make(self.robosuite_name, **settings(self.task_spec))

    def samplers(self) -> Sequence[Any]:
        return [self.simulator.placement_initializer]

    def act(self, action: Vector) -> None:
        self.arm.step(action[:3], action[3:6], action[6])

    def outcome(self) -> str | None:
        return "success" if self.simulator._check_success() else None

    def towards(self, move: Vector, yaw: float, grip: float) -> Action:
        """Return an expert's action (7,): move the hand, and turn it to point down.

        Args:
            move: displacement of the hand (3,), in metres.
            yaw: turn of the thing to grasp, in radians; the fingers close along its y axis.
            grip: open < 0 < close.
        """
        sine, cosine = np.sin(yaw), np.cos(yaw)
        goal = np.array(((-sine, cosine, 0.0), (cosine, sine, 0.0), (0.0, 0.0, -1.0)))
        turn = 0.5 * np.cross(self.arm.axes, goal, axis=0).sum(axis=1)
        shares = GAIN * np.concatenate((move / self.arm.span, turn / RADIANS))
        return np.clip((*shares, grip), -1.0, 1.0).astype(np.float32)

    @property
    def yaw(self) -> float:
        """Turn of the hand around the vertical, in radians, as `towards` takes it."""
        return float(np.arctan2(-self.arm.axes[0, 0], self.arm.axes[1, 0]))


class TableEnv(ArmEnv):
    """A scene of our own, with a `Table`. Positions are relative to the middle of its surface.

    An action is a place for the hand to go to (3), within the workspace, and the gripper (open < 0 < close).
    The hand keeps pointing down. If it were free to turn, its posture would tell the side it came from.
    """

    workspace: ClassVar[tuple[Sequence[float], Sequence[float]]] = ((0.0, 0.0, 0.15), (0.25, 0.25, 0.15))
    """Middle of the space that actions from -1 to 1 span, and half its size, in metres."""
    # This stiff, the elbow no longer shows after a second where the hand came from.
    posture_kp: ClassVar[float] = 100.0

    def put(self, item: Any, position: Sequence[float], yaw: float = 0.0) -> None:
        """Put an object to a place (3,), in metres, turned by `yaw`, at rest."""
        pose = (*np.add(position, SURFACE), np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.simulator.sim.data.set_joint_qpos(item.joints[0], np.array(pose))
        self.simulator.sim.forward()

    def act(self, action: Vector) -> None:
        middle, half = self.workspace
        move = (middle + half * action[:3] - self.hand) / self.arm.span
        # The gripper moves by a fifth of its range per 1/20 s. A step here is twice as long: tell it twice.
        self.simulator.robots[0].gripper["right"].format_action(action[3:])
        self.arm.step_towards(np.clip(move, -1, 1), DOWN, action[3])

    def towards(self, move: Vector, grip: float) -> Action:
        """Return the action that moves the hand by `move` (3,), in metres, or as far as it gets in a step."""
        middle, half = self.workspace
        goal = self.hand + np.clip(move, -self.arm.span, self.arm.span)
        return np.clip((*((goal - middle) / half), grip), -1, 1).astype(np.float32)

    @property
    def hand(self) -> Vector:
        """Position of the point between the finger tips (3,), in metres."""
        position: Vector = self.arm.hand - SURFACE
        return position

    def position(self, item: Any) -> Vector:
        """Return the position of an object's centre (3,), in metres."""
        body = self.simulator.sim.model.body_name2id(item.root_body)  # MuJoCo's own look-up takes 15 us
        position: Vector = self.data.xpos[body] - SURFACE
        return position

    def velocity(self, item: Any) -> Vector:
        """Return the velocity of an object's centre (3,), in metres per second."""
        velocity: Vector = self.simulator.sim.data.get_joint_qvel(item.joints[0])[:3]
        return velocity


class ToolEnv(TableEnv):
    """A table at which the closed gripper is the tool. An action is a place for the hand to go to (3)."""

    def act(self, action: Vector) -> None:
        super().act(np.append(action, 1.0))

    def go(self, move: Vector) -> Action:
        """Return the action that moves the hand by `move` (3,), in metres, or as far as it gets in a step."""
        return self.towards(move, 1.0)[:3]

    def start_at(self, place: Vector, steps: int) -> None:
        """Move the hand to its place (3,) at the start of the episode."""
        for _ in range(steps):
            self.act(self.go(place - self.hand).astype(np.float64))


def reach(offset: Vector, width: float, near: float = NEAR, hover: float = HOVER) -> tuple[Vector, float]:
    """Return how to move (3,) and grip (open < 0 < close) to grasp something from above.

    Args:
        offset: from the hand to the place to grasp (3,), in metres.
        width: distance of the fingers, in metres.
        near: distance, in metres, at which the gripper closes.
        hover: height above the place, in metres, at which the hand approaches from the side.
    """
    aside = float(np.hypot(offset[0], offset[1]))
    # A wider range once it closes keeps it from changing its mind; the gripper's width tells that it closes.
    if max(aside, abs(offset[2])) < (near if width > OPEN else 2 * near):
        return offset, 1.0
    above = min(max(0.0, 3 * (aside - near / 2)), hover)
    return np.add(offset, (0.0, 0.0, above)), -1.0


def settings(spec: TaskSpec) -> dict[str, Any]:
    """Return arguments for any robosuite environment: no rendering, fast resets."""
    return {
        "robots": "Panda",
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "renderer": "mujoco",
        "control_freq": spec.control_hz,
        "ignore_done": True,
        "hard_reset": False,
        # Sizes of objects follow from this seed: they must be equal in all simulators.
        "seed": 0,
    }


def import_robosuite() -> ModuleType:
    """Import robosuite, without side effects on this process and its children.

    Raises:
        SimulatorError: it cannot be imported; the message says what to install.
    """
    # On import, robosuite warns about extras that are not used here, and sets MUJOCO_GL. Processes started
    # from this one could then not import mujoco on a machine without EGL.
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
