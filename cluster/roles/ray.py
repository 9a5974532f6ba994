"""What every role needs of Ray."""

from typing import Any

import ray

Handle = Any
"""A handle on a Ray actor; Ray does not type them."""


def start(role: type, *arguments: Any, **options: Any) -> Handle:
    """Start a role as a Ray actor.

    Args:
        role: its class.
        arguments: of its constructor, which runs again when the actor is restarted.
        options: Ray's.
    """
    return ray.remote(**options)(role).remote(*arguments)


ALWAYS_BACK = {
    "num_cpus": 0,
    "resources": {"node:__internal_head__": 0.001},
    "max_restarts": -1,
    "max_task_retries": -1,
}
"""Options of roles that hold no work of their own: any call to them may be repeated. They stay on Ray's head
node, which has an address that lasts and does not leave when the cluster shrinks."""
