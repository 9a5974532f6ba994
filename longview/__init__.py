"""Longview trains robot policies that remember.

Each public name is imported when it is first used: `import longview` loads no PyTorch, Ray or simulator.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from longview.actors.task import Task
    from longview.learner.policy import Policy, load_policy
    from longview.learner.session import PolicySession
    from longview.replay.episode import ArraySpec, Episode, TaskSpec
    from longview.replay.store import EpisodeStore

__version__ = "0.2.0"
__all__ = [
    "ArraySpec",
    "Episode",
    "EpisodeStore",
    "Policy",
    "PolicySession",
    "Task",
    "TaskSpec",
    "__version__",
    "load_policy",
]

_HOMES: Final = {
    "ArraySpec": "longview.replay.episode",
    "Episode": "longview.replay.episode",
    "EpisodeStore": "longview.replay.store",
    "Policy": "longview.learner.policy",
    "PolicySession": "longview.learner.session",
    "Task": "longview.actors.task",
    "TaskSpec": "longview.replay.episode",
    "load_policy": "longview.learner.policy",
}
"""The module that defines each public name."""

if not TYPE_CHECKING:  # for a type checker every attribute would exist

    def __getattr__(name: str) -> Any:
        """Import a public name from its module."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
