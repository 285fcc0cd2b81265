"""Items read ahead by a thread, and grouped into batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from threading import Condition, Thread
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

PATIENCE = 5.0
"""Seconds to wait for the thread at the end; a camera that sends nothing must not keep the program."""


def read_ahead(items: Iterable[Item], size: int, drop_oldest: bool = False) -> Generator[Item, None, None]:
    """Yield ``items``, of which a thread reads up to ``size`` ahead.

    An exception of ``items`` is raised after the items before it. When the generator ends or is closed, the thread
    ends, and ``items`` is closed if it is a generator.

    Args:
        items: what to read.
        size: the maximum number of items that wait; the thread holds one more.
        drop_oldest: keep reading, and drop the oldest item instead; for sources that do not wait.
    """
    buffer: _Buffer[Item] = _Buffer(size, drop_oldest)
    thread = Thread(target=buffer.fill, args=(items,), name="fcos_fast read_ahead", daemon=True)
    thread.start()
    try:
        yield from buffer
    finally:
        buffer.close()
        thread.join(PATIENCE)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items; the last may be shorter. What comes before an exception is yielded before it."""
    iterator = iter(items)
    error: Exception | None = None
    while error is None:
        batch: list[Item] = []
        try:
            batch.extend(islice(iterator, size))  # keeps what came before an exception
        except Exception as raised:
            error = raised
        if batch:
            yield batch
        elif error is None:
            return
    raise error


class _Buffer(Generic[Item]):
    """A bounded queue between one thread that fills it and one that iterates over it."""

    def __init__(self, size: int, drop_oldest: bool) -> None:
        self.size = size
        self.drop_oldest = drop_oldest
        self.items: deque[Item] = deque()
        self.changed = Condition()
        self.closed = False  # nobody wants more
        self.ended = False  # nothing more will come
        self.error: BaseException | None = None

    def fill(self, items: Iterable[Item]) -> None:
        """Put all ``items``, until the buffer is closed."""
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:  # raised again where the items are used
            self.error = error
        finally:
            close: Any = getattr(items, "close", lambda: None)
            close()
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Append an item when there is room; returns whether more are wanted."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.drop_oldest or len(self.items) < self.size)
            if len(self.items) == self.size:
                self.items.popleft()
            self.items.append(item)
            self.changed.notify_all()
            return not self.closed

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.items or self.ended)
                if not self.items:
                    break
                item = self.items.popleft()
                self.changed.notify_all()
            yield item
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Tell the thread to end."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
