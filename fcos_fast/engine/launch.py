"""Whether this process is one of several, and the error that ends it with them; known without torch."""

from __future__ import annotations

import os


class ProcessLostError(RuntimeError):
    """Another process failed or was killed, so this one cannot continue.

    Attributes:
        repeated: another process reports the same failure: a loss that is not finite, a wrong option, Ctrl-C.
    """

    def __init__(self, message: str, repeated: bool = False) -> None:
        super().__init__(message)
        self.repeated = repeated


def launched() -> bool:
    """Whether ``torchrun``, or a launcher that sets the same variables, started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_rank_0() -> bool:
    """Whether this process prints and writes files: the only one, or rank 0."""
    return not launched() or os.environ["RANK"] == "0"
