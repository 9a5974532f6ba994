"""Tests of the pool of reused memory."""

import threading

import numpy as np

from longview.replay.redis.blocks import BlockPool


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


def test_no_more_is_kept_than_allowed_and_only_of_the_size_in_use() -> None:
    memory = BlockPool(2500)
    blocks = [memory.take(1000) for _ in range(4)]
    del blocks
    assert len(memory._spare[1]) == 2
    block = memory.take(500)
    assert len(block) == 500
    assert not memory._spare[1]
    late = memory.take(500)
    last = memory.take(700)
    del late
    assert len(last) == 700
    assert not memory._spare[1]


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
