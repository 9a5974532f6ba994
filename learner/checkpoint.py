"""Checkpoints: everything that a resume needs, written atomically.

<directory>/step-000001500/
    policy.safetensors      the averaged policy, which acts; it describes itself
    adapter.safetensors     the averaged adapter alone, if adapters are trained
    training.safetensors    raw weights and the optimizer's moments; with adapters also the base's weights
    state.json              step, config, checksums of the other files
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from longview.learner.config import PolicyConfig
from longview.learner.files import (
    ADAPTER,
    POLICY,
    STATE,
    TRAINING,
    Contents,
    checksum,
    contents,
    folders,
    newest,
)
from longview.learner.policy import policy_from_bytes, policy_to_bytes
from longview.learner.tensors import file_parts

BASE = "base."
"""Beginning of the names of a base's weights among the tensors of a training."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    step: int
    policy: bytes
    training: dict[str, Tensor]
    config: dict[str, Any]
    base: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the base that adapters change, by name; empty without adapters."""


def save(
    directory: Path,
    step: int,
    policy: bytes | memoryview,
    training: Mapping[str, Tensor],
    config: Any,
    keep: int,
    adapter: bytes | memoryview | None = None,
) -> Path:
    """Write a checkpoint atomically, and remove all but the newest ones.

    Args:
        directory: folder of all checkpoints of a run.
        step: training steps done.
        policy: bytes of the averaged policy.
        training: raw weights and the optimizer's moments, and what `with_base` adds.
        config: settings of the training, as JSON can hold them.
        keep: number of checkpoints that stay.
        adapter: bytes of the averaged adapter, if adapters are trained.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: the checkpoint cannot be written; it names the folder, of which nothing is left.
    """
    parts: dict[str, Sequence[bytes | memoryview]] = {
        POLICY: [policy],
        TRAINING: file_parts({name: tensor.cpu() for name, tensor in training.items()}),
    }
    if adapter is not None:
        parts[ADAPTER] = [adapter]
    sums = {name: checksum(each) for name, each in parts.items()}
    state = json.dumps({"step": step, "sha256": sums, "config": config}, indent=1)
    target = directory / f"step-{step:09d}"
    unfinished = directory / f"{target.name}.tmp"
    for left_over in (*directory.glob("*.tmp"), target):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        for name, each in {**parts, STATE: [state.encode()]}.items():
            with (unfinished / name).open("wb") as file:
                file.writelines(each)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # on a full disk its space is needed
        error.filename = error.filename or str(unfinished)
        raise
    unfinished.rename(target)
    _sync(directory)
    # Later ones are damaged, or the training would have gone on from there.
    for old in [each for each in folders(directory) if each <= target][:-keep]:
        shutil.rmtree(old)
    return target


def latest(directory: Path) -> Checkpoint | None:
    """Return the newest undamaged checkpoint. Damaged ones are skipped with a warning."""
    found = newest(directory)
    return None if found is None else _decoded(found)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint from its folder.

    Raises:
        OSError, ValueError, KeyError: the checkpoint is incomplete or damaged.
    """
    return _decoded(contents(path))


def reconfigure(path: Path, config: PolicyConfig) -> None:
    """Give the policy of a checkpoint other settings of acting. Its weights stay.

    Args:
        path: folder of the checkpoint.
        config: settings of the policy, which differ from its own in `acting` alone.

    Raises:
        OSError, ValueError, KeyError: the checkpoint is incomplete or damaged.
    """
    policy = policy_from_bytes(contents(path).policy)
    policy.config = config
    state, data = json.loads((path / STATE).read_bytes()), policy_to_bytes(policy)
    state["sha256"][POLICY] = checksum([data])
    state["config"]["policy"] = asdict(config)
    (path / POLICY).write_bytes(data)
    (path / STATE).write_text(json.dumps(state, indent=1))


def pack(checkpoint: Checkpoint) -> bytes:
    """Encode a checkpoint, without its config, as bytes for other ranks."""
    policy = torch.frombuffer(bytearray(checkpoint.policy), dtype=torch.uint8)
    training = with_base(checkpoint.training, checkpoint.base)
    return save_tensors({**training, POLICY: policy, STATE: torch.tensor(checkpoint.step)})


def unpack(data: bytes) -> Checkpoint:
    """Decode the bytes of `pack`."""
    tensors = load_tensors(data)
    policy, step = tensors.pop(POLICY), tensors.pop(STATE)
    training, base = _without_base(tensors)
    return Checkpoint(int(step), policy.numpy().tobytes(), training, {}, base)


def with_base(training: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the tensors of a training and the weights of its base under names that tell them apart."""
    return {**training, **{BASE + name: tensor for name, tensor in base.items()}}


def _without_base(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate what `with_base` has joined."""
    training = {name: tensor for name, tensor in tensors.items() if not name.startswith(BASE)}
    base = {name.removeprefix(BASE): tensors[name] for name in tensors.keys() - training.keys()}
    return training, base


def _decoded(found: Contents) -> Checkpoint:
    training, base = _without_base(load_tensors(found.training))
    return Checkpoint(found.step, found.policy, training, found.config, base)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
