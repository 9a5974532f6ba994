"""Any environment of robosuite as a task, `robosuite:NAME`. It is stepped by robosuite itself.

Observations have the names that robomimic gives them. By default they are those of its low-dimensional
policies: `robot<i>_eef_pos`, `robot<i>_eef_quat` and `robot<i>_gripper_qpos` of each arm, and `object`, which
robosuite calls `object-state`. docs/environments.md tells the rest.
"""

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from longview.actors.config import NO_CAMERAS, CamerasConfig, EnvironmentConfig
from longview.actors.task import UnknownTask
from longview.actors.tasks.arm import ArmTask, SceneEnv, Vector, import_robosuite, settings
from longview.replay.episode import ArraySpec, TaskSpec

STATE = re.compile(r"robot\d+_(\w+_)?(eef_pos|eef_quat|gripper_qpos)|object")
"""Names of the observations that are taken by default."""
HORIZONS, HORIZON = {"ToolHang": 700, "TwoArmTransport": 700}, 400
"""Time limits of robomimic's evaluations, in steps."""
CONTROL_HZ = 20.0
"""Control rate of robosuite's environments and robomimic's data sets."""
CONTEXT_LENGTHS, DEMONSTRATIONS = (1, 2, 4, 8, 16), 200
"""Context lengths; and N, the size of robomimic's data sets of proficient persons."""


@cache
def task_of(name: str, environment: EnvironmentConfig) -> ArmTask:
    """Make the task of an environment. The environment is made and reset once to read its spec.

    Args:
        name: name of the environment in robosuite.
        environment: how it is made; without `robots`, with one Panda, or two for two arms.

    Raises:
        UnknownTask: there is no such environment, it observes no such key, or tells itself what is set.
        SimulatorError: robosuite is not installed, or cannot build the scene.
    """
    known = import_robosuite().ALL_ENVIRONMENTS
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise UnknownTask(f"robosuite has no environment {name!r}; {hint}")
    if environment.success is not None:
        raise UnknownTask(f"environment.success: robosuite:{name} tells itself what a success is")
    arguments = {"robots": ["Panda"] * (2 if name.startswith("TwoArm") else 1), **environment.arguments}
    if isinstance(arguments["robots"], str):
        arguments["robots"] = [arguments["robots"]]
    simulator = partial(AnyRobosuiteEnv, environment=name, arguments=arguments)
    max_steps = environment.max_steps or HORIZONS.get(name, HORIZON)
    spec = TaskSpec(
        name=f"robosuite:{name}",
        observation={},
        action=ArraySpec((0,)),
        control_hz=float(environment.control_hz or arguments.get("control_freq", CONTROL_HZ)),
        max_steps=max_steps,
        context_lengths=tuple(length for length in CONTEXT_LENGTHS if length <= max_steps),
        demonstrations=DEMONSTRATIONS,
    )
    with closing(simulator(spec)) as read:
        read.reset(seed=0)
        low, high = read.simulator.action_spec
        cameras = tuple(read.simulator.sim.model.camera_names)
        usual = (key for key, value in read.seen.items() if STATE.fullmatch(key) and np.size(value))
        keys = environment.keys or tuple(usual)
        if unknown := sorted(set(keys) - read.seen.keys()):
            raise UnknownTask(
                f"environment.keys: {spec.name} has no {', '.join(unknown)}, only {', '.join(read.seen)}"
            )
        observation = {key: ArraySpec(np.shape(read.seen[key])) for key in keys}
    action = ArraySpec(low.shape, low=float(low.min()), high=float(high.max()))
    return ArmTask(replace(spec, observation=observation, action=action), simulator, cameras=cameras)


class AnyRobosuiteEnv(SceneEnv):
    """A simulator: the environment, as a task's."""

    # Some environments move parts of the model when they are reset.
    shared: ClassVar[bool] = False

    def __init__(
        self,
        spec: TaskSpec,
        render_mode: str | None = None,
        cameras: CamerasConfig = NO_CAMERAS,
        *,
        environment: str,
        arguments: Mapping[str, Any],
    ) -> None:
        self._environment, self._arguments = environment, arguments
        super().__init__(spec, render_mode, cameras)

    def build(self, robosuite: ModuleType) -> Any:
        rate = {"control_freq": self.task_spec.control_hz}
        arguments = {**settings(self.task_spec), **self._arguments, **rate}
        if isinstance(name := arguments.get("controller_configs"), str):
            arguments["controller_configs"] = [_controller(name, robot) for robot in arguments["robots"]]
        return robosuite.make(self._environment, **arguments)

    def start(self, rng: np.random.Generator) -> None:
        # Samplers of places, objects and robots hold this generator, and cannot all be found.
        drawn = np.random.default_rng(rng.integers(2**63))
        self.simulator.rng.bit_generator.state = drawn.bit_generator.state
        self._see(self.simulator.reset())

    def act(self, action: Vector) -> None:
        observations, _, self._over, _ = self.simulator.step(action)
        self._see(observations)

    def state(self) -> dict[str, Vector]:
        return {key: self.seen[key] for key in self.task_spec.observation if key in self.seen}

    def outcome(self) -> str | None:
        if self.simulator._check_success():
            return "success"
        return "failure" if self._over else None

    def _see(self, observations: Mapping[str, Any]) -> None:
        self.seen = {key.replace("object-state", "object"): value for key, value in observations.items()}
        """All that robosuite observes, by the names of robomimic."""


def _controller(name: str, robot: str) -> Any:
    """Return the configuration of a robot whose arm has another controller, such as `JOINT_POSITION`."""
    from robosuite.controllers import load_part_controller_config
    from robosuite.controllers.composite import composite_controller_factory as factory

    arm = load_part_controller_config(default_controller=name)
    return factory.refactor_composite_controller_config(arm, robot, ["right"])
