"""The thread that reads ahead: its bound, its errors, and its end."""

from __future__ import annotations

import threading
import time

import pytest

from fcos_fast.inference.read_ahead import batched, read_ahead

NAME = "fcos_fast read_ahead"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_all_items_in_order():
    assert list(read_ahead(range(1000), 3)) == list(range(1000))
    assert list(read_ahead([], 3)) == []
    assert threads() == []


def test_at_most_size_items_wait():
    read = []
    items = read_ahead((read.append(i) or i for i in range(100)), 4)
    assert next(items) == 0
    wait_until(lambda: len(read) == 6)  # one used, four wait, the thread holds one
    time.sleep(0.05)
    assert len(read) == 6
    items.close()


def test_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise OSError("disk")

    ahead, seen = read_ahead(items(), 5), []
    with pytest.raises(OSError, match="disk"):
        seen.extend(ahead)
    assert seen == [1, 2]
    assert threads() == []


@pytest.mark.parametrize(
    "leave", [lambda items: items.close(), lambda items: None], ids=["closed", "forgotten"]
)
def test_leaving_early_ends_the_thread_and_closes_the_source(leave):
    ends = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            ends.append(threading.current_thread().name)

    items = read_ahead(endless(), 2)
    assert next(items) == 0
    assert len(threads()) == 1
    leave(items)
    del items
    assert threads() == []
    assert ends == [NAME]  # where it runs: another thread cannot close a generator that is running


def test_nothing_starts_before_the_first_item_is_wanted():
    items = read_ahead(iter(int, 1), 2)
    assert threads() == []
    items.close()


def test_the_oldest_items_are_dropped():
    used, produced = threading.Event(), threading.Event()

    def camera():
        yield 0
        assert used.wait(20)
        yield from range(1, 50)
        produced.set()

    items = read_ahead(camera(), 2, drop_oldest=True)
    assert next(items) == 0
    used.set()
    assert produced.wait(20)  # it did not wait for the consumer
    assert list(items) == [48, 49]


def test_batches():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched(range(4), 2)) == [[0, 1], [2, 3]]
    assert list(batched([], 2)) == []


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, [[0, 1]]), (3, [[0, 1], [2]])])
def test_batch_before_an_error_is_complete(count, expected):
    def items():
        yield from range(count)
        raise ValueError("bad")

    seen = []
    with pytest.raises(ValueError, match="bad"):
        seen.extend(batched(items(), 2))
    assert seen == expected
