"""Names of runs, namespaces and tasks: one rule for all, and their encoding in keys, ids and indices."""

from typing import Final
from urllib.parse import quote, unquote

MAX_BYTES: Final = 128
"""Longest name, in bytes of UTF-8."""


def check_name(name: str, what: str = "name") -> str:
    """Check the name of a run, namespace or task, and return it.

    A name may hold what people type, such as spaces, capitals and letters of any script. It also names a
    folder or file, so it holds no `/` and is not `.` or `..`.

    Args:
        name: the name.
        what: description of the name that begins the error's message.

    Raises:
        ValueError: the name breaks the rule; the message says how.
    """
    if not name or len(name.encode(errors="replace")) > MAX_BYTES:
        fault = f"must have 1 to {MAX_BYTES} bytes of UTF-8"
    elif name in (".", "..") or "/" in name:
        fault = "must be a plain folder name"
    elif not name.isprintable():
        fault = "must not hold control characters or other invisible ones"
    elif name != name.strip():
        fault = "must not begin or end with a space"
    else:
        return name
    raise ValueError(f"{what} {fault}: {name!r}")


def encode_name(name: str) -> str:
    """Encode a name for keys, ids and index entries: all but A-Z, a-z, 0-9, `_`, `.`, `-` and `~` becomes
    percent-encoded UTF-8."""
    return quote(name, safe="")


def decode_name(encoded: str) -> str:
    """Return the name that `encode_name` encoded."""
    return unquote(encoded)
