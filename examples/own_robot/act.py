"""Let the robot act with a policy that `longview serve` serves. Needs `pip install openpi-client`.

python act.py ws://127.0.0.1:8000 --episodes 10
"""

import argparse

import numpy as np
from arm import HZ, Arm
from openpi_client.websocket_client_policy import WebsocketClientPolicy

SECONDS = 15.0
"""Time of the robot after which an episode ends."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("server", help="address of the server")
    arguments.add_argument("--episodes", type=int, default=10)
    arguments.add_argument("--context", type=int, help="T_o to decide with; by default the policy's longest")
    options = arguments.parse_args()
    policy, outcomes = WebsocketClientPolicy(options.server), []
    for index in range(options.episodes):
        outcomes.append(play(policy, Arm(np.random.default_rng((1, index))), options.context))
        print(f"episode {index + 1}: {('not returned', 'right', 'wrong side')[outcomes[-1]]}", flush=True)
    print(f"right: {outcomes.count(1)} of {len(outcomes)}, wrong side: {outcomes.count(-1)}")


def play(policy: WebsocketClientPolicy, arm: Arm, context: int | None) -> int:
    """Play one episode, and return where the block ended, as `Arm.returned`."""
    frames, executed, reset, steps = [arm.observe()], [], True, 0
    while steps < SECONDS * HZ:
        call = {
            "frames": {key: np.stack([frame[key] for frame in frames]) for key in frames[0]},
            "reset": reset,
            "T_o": context,
        }
        if not reset:
            call["executed"] = np.array(executed, np.float32)
        frames, executed, reset = [], [], False
        for action in policy.infer(call)["actions"]:
            steps += 1
            executed.append(arm.step(action))
            frames.append(arm.observe())
            if arm.returned:
                return arm.returned
    return 0


if __name__ == "__main__":
    main()
