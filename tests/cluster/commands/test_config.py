"""`longview config`: every key is there, explained, and the text is a config."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from longview.cluster.commands.config import config_text, meanings
from longview.cluster.run.config import RunConfig, preset_file, public_config, read_config
from longview.learner.config import policy_names


def classes(config: Any) -> Iterator[type]:
    """Yield the classes of a config and of all configs below it."""
    yield type(config)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from classes(value)


CLASSES = sorted(
    {*classes(RunConfig()), *(entry.load() for entry in policy_names().values())},
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_key_has_a_docstring(kind: type) -> None:
    texts = meanings(kind)
    assert {field.name for field in fields(kind)} == texts.keys()
    assert all(len(text.split()) > 1 for text in texts.values())


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("return_point", []),
        ("grasp_and_return", ["learner.policy.architecture=dit"]),
        ("lift", ["learner.policy.kind=recurrent", "actors.cameras.names=[agentview]"]),
        ("push_t", ["learner.mix={demo: 3, rollout/success: 1}", 'demonstrations="a path/with: signs"']),
    ],
)
def test_the_text_is_the_config(task: str, settings: list[str], tmp_path: Path) -> None:
    config = read_config(preset_file(task), settings, task=task)
    file = tmp_path / "run.yaml"
    file.write_text(config_text(config))
    assert read_config(file) == config
    assert yaml.safe_load(file.read_text()) == public_config(config)
    assert max(map(len, file.read_text().splitlines())) <= 110


def test_a_value_that_is_not_the_default_says_so() -> None:
    text = config_text(read_config(None, ["learner.steps=7000", "learner.warmup=50"]))
    assert "(default: 2400)\n  steps: 7000" in text
    assert "(default: 100)\n  warmup: 50" in text
    assert text.count("(default:") == 2
