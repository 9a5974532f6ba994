"""robosuite's Lift: a Panda arm lifts a cube from a table. Needs no memory; everything that matters is seen.

Panda with robosuite's default controller for it (OSC_POSE, deltas, base frame) and gripper, 20 Hz; observed
are the state keys that robomimic calls low-dim.
"""

import numpy as np

from longview.actors.task import Action, Environment, Expert
from longview.actors.tasks.arm import ROBOT_STATE, ArmTask, RobosuiteEnv, Vector, reach
from longview.replay.episode import ArraySpec, TaskSpec

UP = 0.08
"""How far up, in metres, the expert wants to go with the cube."""
CUBE = ("cube_pos", "cube_quat", "gripper_to_cube_pos")
"""robosuite's observables that make up `object`."""

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
    """The environment."""

    robosuite_name = "Lift"

    def state(self) -> dict[str, Vector]:
        sensed = self.sense((*ROBOT_STATE, *CUBE))
        return sensed | {"object": np.concatenate([sensed.pop(name) for name in CUBE])}


def expert(env: Environment, rng: np.random.Generator) -> Expert:
    """Reaches above the cube, descends, grasps and lifts; each follows from the simulator's state alone."""
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
        # Along the cube's faces, turned the least.
        yaw = np.arctan2(cube.xmat[3], cube.xmat[0])
        return scene.towards(move, (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4, grip)

    return act


task = ArmTask(spec, Lift, expert)
make = task.make
