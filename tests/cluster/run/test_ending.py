"""Tests that an ending does not hide why something ends."""

import pytest

from longview.cluster.run.ending import ending


def fail() -> None:
    raise OSError("the end")


def test_the_first_error_is_raised() -> None:
    with pytest.raises(ValueError, match="the cause"), ending(fail):
        raise ValueError("the cause")
    with pytest.raises(KeyboardInterrupt), ending(fail):
        raise KeyboardInterrupt


def test_without_another_error_that_of_the_end_is_raised() -> None:
    with pytest.raises(OSError, match="the end"), ending(fail):
        pass


def test_the_function_is_called_once() -> None:
    calls: list[int] = []
    with ending(lambda: calls.append(1)):
        pass
    with pytest.raises(KeyError), ending(lambda: calls.append(2)):
        raise KeyError
    assert calls == [1, 2]
