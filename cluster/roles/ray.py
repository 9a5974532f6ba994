"""Starting Ray actors, and options that several of them share."""

import shutil
from typing import Any, Final

import ray

from longview.replay.memory import usable_memory

SHARED_MEMORY: Final = "/dev/shm"
"""Folder of the memory that processes share. A container's is often small."""
LEAST_OBJECTS: Final = 256 << 20
"""Bytes that Ray's object store has at least."""

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


def default_dashboard() -> str:
    """Return the dashboard of nodes, GPUs and memory that Ray generates for Grafana, as JSON."""
    from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_default_grafana_dashboard

    content: str = generate_default_grafana_dashboard()[0]
    return content


def object_store_bytes() -> int:
    """Return the size of the object store of a Ray that a run starts on this machine.

    The store holds weights: about six copies, for those that are published, handed on and evaluated with. It
    takes no memory before it is used, so its limit fits any policy that the machine can train: a quarter of
    the memory, as far as shared memory has room for it.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free
    return max(LEAST_OBJECTS, min(usable_memory() // 4, free * 9 // 10))


ALWAYS_BACK = {
    "num_cpus": 0,
    "resources": {"node:__internal_head__": 0.001},
    "max_restarts": -1,
    "max_task_retries": -1,
}
"""Options of roles to which any call may be repeated. They stay on Ray's head node, which keeps its address
and does not leave when the cluster shrinks."""
