"""robosuite's Lift: a Panda arm lifts a cube from a table. It needs no memory: all that matters is seen.

The arm has robosuite's default controller for it (OSC_POSE, deltas, base frame) and gripper, at 20 Hz. A
policy observes the state keys that robomimic calls low-dim.
"""

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ROBOT_STATE, ArmTask, RobosuiteEnv, Vector, reach
from longview.replay.episode import ArraySpec, TaskSpec

UP = 0.08
"""Distance, in metres, by which the expert moves a grasped cube up in a step, if the arm could follow."""
CUBE = ("cube_pos", "cube_quat", "gripper_to_cube_pos")
"""Names of robosuite's observables that make up `object`."""

spec = TaskSpec(
    name="lift",
    observation={**ROBOT_STATE, "object": ArraySpec((10,), low=-2.0, high=2.0)},
    action=ArraySpec((7,), low=-1.0, high=1.0),
    control_hz=20.0,
    max_steps=120,
    context_lengths=(1, 2, 8, 16),
    demonstrations=50,
)


class Lift(RobosuiteEnv):
    """The simulator."""

    robosuite_name = "Lift"

    def state(self) -> dict[str, Vector]:
        sensed = self.sense((*ROBOT_STATE, *CUBE))
        return sensed | {"object": np.concatenate([sensed.pop(name) for name in CUBE])}


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Make the expert: it reaches above the cube, descends, grasps and lifts, by the present state alone."""
    scene = env.unwrapped
    assert isinstance(scene, Lift)
    simulator = scene.simulator
    gripper = simulator.robots[0].gripper["right"]

    def act() -> Action:
        cube = scene.data.body(simulator.cube.root_body)
        grasped = simulator._check_grasp(gripper=gripper, object_geoms=simulator.cube)
        move, grip = reach(cube.xpos - scene.arm.hand, scene.width)
        if grasped:
            move, grip = np.array((0.0, 0.0, UP)), 1.0
        # The hand does not turn to the cube: the fingers turn the cube as they close. Imitators would hardly
        # learn which of four equal turns to make.
        return scene.towards(move, 0.0, grip)

    return act


task = ArmTask(spec, Lift, expert)
make = task.make
