"""Whether this process is one of several, and the error that ends it with them; known without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


class ProcessLostError(RuntimeError):
    """Another process failed or was killed, so this one cannot continue.

    Attributes:
        repeated: another process reports the same failure: a loss that is not finite, a wrong option, Ctrl-C.
    """

    def __init__(self, message: str, repeated: bool = False) -> None:
        super().__init__(message)
        self.repeated = repeated


def with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, the one during whose handling it was raised, and so on.

    torchrun ends the others just after a process was lost: its SIGTERM can come while they still handle that.
    """
    while error is not None:
        yield error
        error = error.__context__


def attempt() -> str:
    """How often ``torchrun`` has restarted the processes; ``0`` without it."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def agent() -> str | None:
    """The ``torchrun`` that started this process and restarts it: host, process and its start. None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    # after the name, which can contain spaces, in parentheses
    started = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return f"{os.uname().nodename} {parent} {started}"


def launched() -> bool:
    """Whether ``torchrun``, or a launcher that sets the same variables, started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_rank_0() -> bool:
    """Whether this process prints and writes files: the only one, or rank 0."""
    return not launched() or os.environ["RANK"] == "0"
