"""What user code and loggers see of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcos_fast.engine.run import Run
    from fcos_fast.engine.train import TrainResult


class Callback:
    """Base class of callbacks: override the methods that you need; each does nothing by default.

    With several processes only rank 0 calls them. ``run.stop("reason")`` in any of them ends the run after the current
    step, with an evaluation and a checkpoint. An error in a callback ends the run; it can be resumed.

    Example::

        class StopAfterAnHour(fcos_fast.Callback):
            def on_start(self, run):
                self.end = time.monotonic() + 3600

            def on_step(self, run, row):
                if time.monotonic() > self.end:
                    run.stop("the hour is over")
    """

    def on_start(self, run: Run) -> None:
        """Called before the first step, also of a resumed run. ``run`` has ``folder``, ``config`` and ``state``."""

    def on_step(self, run: Run, row: dict[str, float]) -> None:
        """Called when the losses were read: after each step on a CPU, every 20 steps on a GPU.

        ``row`` has ``step``, ``epoch``, ``lr``, and the means since the last call of ``loss``, ``loss_<name>`` and, if
        a loss cannot reach 0, its lower bound ``loss_<name>_floor``.
        """

    def on_epoch_end(self, run: Run, row: dict[str, float]) -> None:
        """Called after evaluation and checkpoint of an epoch; ``row`` is its row of ``metrics.csv``, which can have
        NaN."""

    def on_end(self, run: Run, result: TrainResult | None) -> None:
        """Called at the end of the run; ``result`` is None if an error or Ctrl-C ended it."""


class Callbacks(Callback):
    """Calls several callbacks in order.

    Raises:
        TypeError: one of them is not a :class:`Callback`.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self.callbacks = list(callbacks)
        for i, callback in enumerate(self.callbacks):
            if not isinstance(callback, Callback):
                kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
                raise TypeError(
                    f"callbacks[{i}] is {'the class' if isinstance(callback, type) else 'of type'} {kind}; expected an "
                    "instance of a subclass of fcos_fast.Callback"
                )

    def on_start(self, run: Run) -> None:
        """As :meth:`Callback.on_start`."""
        for callback in self.callbacks:
            callback.on_start(run)

    def on_step(self, run: Run, row: dict[str, float]) -> None:
        """As :meth:`Callback.on_step`."""
        for callback in self.callbacks:
            callback.on_step(run, row)

    def on_epoch_end(self, run: Run, row: dict[str, float]) -> None:
        """As :meth:`Callback.on_epoch_end`."""
        for callback in self.callbacks:
            callback.on_epoch_end(run, row)

    def on_end(self, run: Run, result: TrainResult | None) -> None:
        """As :meth:`Callback.on_end`."""
        for callback in self.callbacks:
            callback.on_end(run, result)


@contextmanager
def ended_on_error(callbacks: Callback, run: Run) -> Iterator[None]:
    """Call ``on_end`` with None if the block raises."""
    try:
        yield
    except BaseException:
        callbacks.on_end(run, None)
        raise
