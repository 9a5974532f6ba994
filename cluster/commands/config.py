"""`longview config`: every key with its value, default and meaning, as a file that `launch` takes."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from longview.cluster.run.config import RunConfig, plain
from longview.learner.config import PolicyConfig, policy_config

WIDTH = 100
"""Columns of a comment."""


def config_text(config: RunConfig) -> str:
    """Write a config as YAML, with the meaning of every key above it."""
    head = (
        f"# Settings of a run of {config.task}: `longview launch FILE` takes this file, or any part of it.\n"
    )
    return head + "\n".join(_lines(config, RunConfig(), 0)) + "\n"


def meanings(kind: type) -> dict[str, str]:
    """Return the docstring of every field of a config class, those of its base classes included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for line, following in zip(definition.body, definition.body[1:], strict=False):
            match line, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return {field.name: found[field.name] for field in fields(kind) if field.name in found}


def _lines(config: Any, defaults: Any, depth: int) -> Iterator[str]:
    """Write the keys of a config, and of the configs below it."""
    indent, texts = "  " * depth, meanings(type(config))
    for field in fields(config):
        value, default = getattr(config, field.name), getattr(defaults, field.name)
        meaning = texts[field.name]
        if is_dataclass(value):
            below = _defaults(value) if isinstance(value, PolicyConfig) else default
            yield from _comment(meaning, indent)
            yield f"{indent}{field.name}:"
            yield from _lines(value, below, depth + 1)
        else:
            changed = "" if value == default else f" (default: {_yaml(default)})"
            yield from _comment(meaning + changed, indent)
            yield f"{indent}{field.name}: {_yaml(value)}"


def _defaults(policy: PolicyConfig) -> PolicyConfig:
    """Return the default config of a policy's own kind, architecture and size."""
    same = {name: getattr(policy, name) for name in ("kind", "architecture", "size") if hasattr(policy, name)}
    return policy_config(**same)


def _comment(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def _yaml(value: Any) -> str:
    """Write a value on one line."""
    text: str = yaml.safe_dump([plain(value)], default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip().removeprefix("[").removesuffix("]")
