import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longview.learner import checkpoint, files
from tests.conftest import FullDisk

TENSORS = {"weights": torch.arange(50.0), "step": torch.tensor(3.0)}


def save(directory: Path, step: int, keep: int = 3) -> Path:
    return checkpoint.save(directory, step, b"policy %d" % step, TENSORS, {"seed": 1}, keep)


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 1500)
    assert path.name == "step-000001500"
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert (found.step, found.policy, found.config) == (1500, b"policy 1500", {"seed": 1})
    assert found.training.keys() == TENSORS.keys()
    assert all(torch.equal(found.training[name], TENSORS[name]) for name in TENSORS)


def test_a_full_disk_is_said_with_the_folder_of_which_nothing_is_left(full_disk: FullDisk) -> None:
    save(full_disk.folder, 1)
    full_disk.fill(leaving=4096)
    with pytest.raises(OSError, match=r"No space left on device: '.*/step-000000002.tmp'"):
        save(full_disk.folder, 2)
    assert [path.name for path in full_disk.folder.glob("step-*")] == ["step-000000001"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save(tmp_path, step, keep=2)
    assert files.steps(tmp_path) == [2, 30]
    for step in (4, 5):  # the training has gone on from step 2, so the checkpoint of step 30 is damaged
        assert save(tmp_path, step, keep=1).exists()
    assert files.steps(tmp_path) == [5, 30]


def test_a_folder_without_any_has_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [files.POLICY, files.TRAINING, files.STATE])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"{}")])
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    if damage is flip and name == files.STATE:
        state = json.loads((newest / name).read_bytes())
        state["sha256"][files.POLICY] = "0" * 64
        (newest / name).write_text(json.dumps(state))
    else:
        damage(newest / name)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "step-000000020" in caplog.text


def test_a_writer_that_died_leaves_nothing_visible(tmp_path: Path) -> None:
    save(tmp_path, 10)
    half = tmp_path / "step-000000020.tmp"
    half.mkdir()
    (half / files.POLICY).write_bytes(b"half")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 10
    save(tmp_path, 30)
    assert not half.exists()


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    truncate(save(tmp_path, 10) / files.POLICY)
    save(tmp_path, 10)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 10


def test_packing_keeps_all_but_the_config() -> None:
    back = checkpoint.unpack(checkpoint.pack(checkpoint.Checkpoint(7, b"policy", TENSORS, {"seed": 1})))
    assert (back.step, back.policy) == (7, b"policy")
    assert back.training.keys() == TENSORS.keys()
    assert torch.equal(back.training["weights"], TENSORS["weights"])
