"""Operational space control of robosuite's arms, without robosuite's Python between two physics steps.

robosuite computes the torques of a control step's 25 or 50 physics steps in Python, which takes several times
as long as the physics. This file has the same law (OSC_POSE with deltas in the base frame, fixed impedance,
uncoupled; Khatib 1987, doi 10.1109/JRA.1987.1087068), compiled, on the same model and data.

Legend: J joints of the arm, V degrees of freedom of the whole model.
"""

from typing import Any

import mujoco
import numba
import numpy as np
from numpy.typing import NDArray
from robosuite.utils.transform_utils import axisangle2quat, quat2mat

Vector = NDArray[np.float64]


class Arm:
    """The one robot of a robosuite environment. A step has the same effect as robosuite's `environment.step`.

    Make a new one after every reset, as robosuite does with its controllers.
    """

    def __init__(self, environment: Any, posture_kp: float) -> None:
        robot = environment.robots[0]
        controller, grip = robot.part_controllers["right"], robot.part_controllers["right_gripper"]
        self._model, self._data = environment.sim.model._model, environment.sim.data._data
        self._substeps = int(environment.control_timestep / environment.model_timestep)
        self._site = self._model.site(controller.ref_name).id
        self.hand = self._data.site_xpos[self._site]
        """Position of the grip site in the world, in metres (3,); a view that follows the simulation."""
        self.axes = self._data.site_xmat[self._site].reshape(3, 3)
        """Orientation of the grip site (3, 3), its axes as columns; a view that follows the simulation."""
        self._base_axes = np.array(controller.origin_ori)
        self._turn_span = np.array(controller.output_max[3:])
        self.span = np.array(controller.output_max[:3])
        """Largest distance of a goal from the hand, in metres (3,)."""
        self._gripper, self._grip_limits = robot.gripper["right"], (grip.actuator_min, grip.actuator_max)
        self._arm_motors = np.array(robot._ref_actuators_indexes_dict["right"])
        self._grip_motors = np.array(robot._ref_actuators_indexes_dict["right_gripper"])
        size, freedoms = self._model.nv, np.array(controller.qvel_index)
        self._mass_VV, self._jacobian_6V = np.zeros((size, size)), np.zeros((6, size))
        # robosuite reads the inertia before the fingers open, and again only after the first torques.
        self._first_mass: Vector | None = controller.mass_matrix
        self._block = np.ix_(freedoms, freedoms)
        self._fixed = (
            np.array(controller.qpos_index),
            freedoms,
            np.array(controller.initial_joint),
            controller.kp,
            controller.kd,
            posture_kp,
            *self._model.actuator_ctrlrange[self._arm_motors].T.copy(),
        )

    def save(self) -> tuple[Vector | None, Vector]:
        """Return what changes from step to step besides MuJoCo's data."""
        return self._first_mass, self._gripper.current_action

    def restore(self, state: tuple[Vector | None, Vector]) -> None:
        """Return to a state that `save` gave. Nothing changes these arrays; new ones replace them."""
        self._first_mass, self._gripper.current_action = state

    def step(self, move: Vector, turn: Vector, grip: float) -> None:
        """Make one control step, by deltas as in robosuite.

        Args:
            move: displacement of the hand (3,), as a share in [-1, 1] of `span`.
            turn: rotation vector (3,), as a share in [-1, 1] of the largest that the controller takes.
            grip: open < 0 < close.
        """
        mujoco.mj_step1(self._model, self._data)
        rotation = quat2mat(axisangle2quat(turn * self._turn_span))
        self._run(move, self._base_axes @ rotation @ self._base_axes.T @ self.axes, grip)

    def step_towards(self, move: Vector, axes: Vector, grip: float) -> None:
        """Make one control step, with a goal for the hand's orientation: its `axes` (3, 3) as columns."""
        mujoco.mj_step1(self._model, self._data)
        self._run(move, axes, grip)

    def _run(self, move: Vector, goal_axes: Vector, grip: float) -> None:
        """Make the physics steps of a control step. The first half of the first one has been made."""
        model, data = self._model, self._data
        low, high = self._grip_limits
        share = self._gripper.format_action(np.array([grip]))
        data.ctrl[self._grip_motors] = 0.5 * (high + low) + 0.5 * (high - low) * share
        goal = self.hand + self._base_axes @ (move * self.span)
        translation, rotation = self._jacobian_6V[:3], self._jacobian_6V[3:]
        # Views that follow the simulation. Asking for them in every physics step would take 2 % longer.
        inertia, control = data.qM, data.ctrl
        state = (data.qpos, data.qvel, data.qfrc_bias, self.hand, self.axes)
        for substep in range(self._substeps):
            if substep:
                mujoco.mj_step1(model, data)
            mujoco.mj_jacSite(model, data, translation, rotation, self._site)
            mujoco.mj_fullM(model, self._mass_VV, inertia)
            if self._first_mass is not None:
                self._mass_VV[self._block], self._first_mass = self._first_mass, None
            control[self._arm_motors] = torques(
                self._mass_VV, self._jacobian_6V, *state, goal, goal_axes, *self._fixed
            )
            mujoco.mj_step2(model, data)


@numba.njit(cache=True)
def torques(
    mass_VV: Vector,
    jacobian_6V: Vector,
    positions: Vector,
    velocity_V: Vector,
    bias_V: Vector,
    hand: Vector,
    axes: Vector,
    goal: Vector,
    goal_axes: Vector,
    position_indices: NDArray[np.int64],
    freedoms: NDArray[np.int64],
    home: Vector,
    kp: Vector,
    kd: Vector,
    posture_kp: float,
    weakest: Vector,
    strongest: Vector,
) -> Vector:
    """Return the torques (J,) that pull the hand to its goal and, where freedom is left, the joints home.

    Args:
        mass_VV: joint-space inertia.
        jacobian_6V: Jacobian of the hand: translation, then rotation.
        positions: positions of all joints.
        velocity_V: velocities of all joints.
        bias_V: gravity, Coriolis and centrifugal forces.
        hand: position of the hand (3,).
        axes: orientation of the hand (3, 3), its axes as columns.
        goal: position for the hand (3,).
        goal_axes: orientation for the hand (3, 3).
        position_indices: indices of the arm's joints in `positions` (J,).
        freedoms: indices of the arm's joints among V (J,).
        home: posture to return to (J,).
        kp: stiffness (6,).
        kd: damping (6,).
        posture_kp: stiffness of the pull home; it is critically damped.
        weakest: lower limits of the torques (J,).
        strongest: upper limits of the torques (J,).
    """
    joints = len(freedoms)
    mass, jacobian, posture = np.empty((joints, joints)), np.empty((6, joints)), np.empty(joints)
    for row in range(joints):
        error = home[row] - positions[position_indices[row]]
        posture[row] = posture_kp * error - 2 * np.sqrt(posture_kp) * velocity_V[freedoms[row]]
        for column in range(joints):
            mass[row, column] = mass_VV[freedoms[row], freedoms[column]]
        for axis in range(6):
            jacobian[axis, row] = jacobian_6V[axis, freedoms[row]]

    pull = np.empty(6)
    pull[:3] = goal - hand
    pull[3:] = 0.0
    for column in range(3):  # half the sum of the cross products of the axes
        x, y, z = axes[:, column]
        goal_x, goal_y, goal_z = goal_axes[:, column]
        pull[3] += 0.5 * (y * goal_z - z * goal_y)
        pull[4] += 0.5 * (z * goal_x - x * goal_z)
        pull[5] += 0.5 * (x * goal_y - y * goal_x)
    pull = kp * pull - kd * (jacobian_6V @ velocity_V)

    # Uncoupled: translation and rotation each get the inertia that they would have alone.
    mobility = jacobian @ np.linalg.solve(mass, jacobian.T.copy())
    wrench = np.empty(6)
    wrench[:3] = np.linalg.solve(mobility[:3, :3].copy(), pull[:3].copy())
    wrench[3:] = np.linalg.solve(mobility[3:, 3:].copy(), pull[3:].copy())
    # The pull home is M a. Subtract the part that would move the hand: J^T (J M^-1 J^T)^-1 J a.
    wrench -= np.linalg.solve(mobility, jacobian @ posture)
    motion = jacobian.T @ wrench + mass @ posture
    for row in range(joints):
        motion[row] += bias_V[freedoms[row]]
    return np.minimum(np.maximum(motion, weakest), strongest)
