"""Options of Ray nodes in this machine."""

from typing import Any

LEAN_HEAD: dict[str, Any] = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""A head without the processes that no test asks: each takes a second to start."""
