"""Tests of a run's log file."""

import logging
from contextlib import suppress
from pathlib import Path

import pytest

from longview.cluster.run.log import LogFile


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "file.py", 1, message, args, None)


def test_it_holds_any_letters(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.txt")
    log.emit(record("läuft: %s", "\udc80"))
    log.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "läuft: \\udc80\n"


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile(Path("/dev/full"))
    for _ in range(3):
        log.emit(record("message"))
    with suppress(OSError):
        log.close()
    assert capsys.readouterr().err == "longview: /dev/full is not written: No space left on device\n"


def test_a_bug_keeps_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile(tmp_path / "log.txt")
    log.emit(record("%d", "text"))
    log.close()
    assert "TypeError" in capsys.readouterr().err
