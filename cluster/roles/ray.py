"""Starting Ray actors, and options that several of them share."""

from typing import Any

import ray

Handle = Any
"""A handle on a Ray actor; Ray does not type them."""


def start(role: type, *arguments: Any, **options: Any) -> Handle:
    """Start a role as a Ray actor.

    Args:
        role: the role's class.
        arguments: arguments of its constructor, which Ray calls again when it restarts the actor.
        options: options of Ray actors, such as `num_cpus`.
    """
    return ray.remote(**options)(role).remote(*arguments)


ALWAYS_BACK = {
    "num_cpus": 0,
    "resources": {"node:__internal_head__": 0.001},
    "max_restarts": -1,
    "max_task_retries": -1,
}
"""Options of roles to which any call may be repeated. They stay on Ray's head node, which keeps its address
and does not leave when the cluster shrinks."""
