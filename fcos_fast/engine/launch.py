"""Whether this process is one of several, and the error that ends it with them; known without torch."""

from __future__ import annotations

import os


class ProcessLostError(RuntimeError):
    """Another process failed or was killed, and this one cannot go on without it.

    Attributes:
        alike: this process had failed by itself in the same way: a loss that is not finite, a wrong option, Ctrl-C.
    """

    def __init__(self, message: str, alike: bool = False) -> None:
        super().__init__(message)
        self.alike = alike


def launched() -> bool:
    """Was this process started as one of several, by ``torchrun`` or what sets the same variables?"""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
