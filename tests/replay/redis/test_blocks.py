"""Tests of the pool of reused memory."""

import threading

import numpy as np
import pytest

from longview.replay.redis.blocks import TRIED, BlockPool


def address(block: np.ndarray) -> int:
    return int(block.__array_interface__["data"][0])


def test_a_block_is_used_again_once_nothing_refers_to_it_or_a_view_of_it() -> None:
    memory = BlockPool(1 << 20)
    block = memory.take(1000)
    first = address(block)
    view = block[8:16].view(np.float32)
    del block
    assert address(memory.take(1000)) != first
    view[:] = 1.0
    sent = view.data
    del view
    assert address(memory.take(1000)) != first
    del sent
    blocks = [memory.take(1000) for _ in range(2)]
    assert first in map(address, blocks)


def test_no_more_is_kept_than_allowed() -> None:
    memory = BlockPool(2500)
    blocks = [memory.take(1000) for _ in range(4)]
    del blocks
    assert [len(block) for block in memory._spare] == [1000, 1000]


@pytest.mark.parametrize(("size", "serves"), [(1000, True), (800, True), (799, False), (1001, False)])
def test_a_block_serves_sizes_that_are_a_little_smaller(size: int, serves: bool) -> None:
    memory = BlockPool(2500)
    memory.take(1000)[:] = 7
    (kept,) = memory._spare
    block = memory.take(size)
    assert len(block) == size
    assert (address(block) == address(np.frombuffer(kept, np.uint8))) == serves


def test_blocks_of_sizes_out_of_use_are_dropped() -> None:
    memory = BlockPool(10_000)
    blocks = [memory.take(1000) for _ in range(3)]
    del blocks
    held = [memory.take(5000 + number) for number in range(3)]
    assert not memory._spare
    del held
    assert len(memory._spare) == 2


def test_of_many_blocks_a_few_are_tried() -> None:
    memory = BlockPool(1 << 20)
    blocks = [memory.take(size) for size in (*[100] * TRIED, 500, 1000)]
    while blocks:
        blocks.pop(0)
    memory.take(1000)
    assert [len(block) for block in memory._spare] == [1000, *[100] * TRIED, 1000]


def test_threads_never_get_the_same_block() -> None:
    memory = BlockPool(1 << 20)
    wrong = []

    def work(number: int) -> None:
        for turn in range(2000):
            size = 64 if turn % 3 else 128
            block = memory.take(size)
            block[:] = number
            if len(block) != size or (block != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
