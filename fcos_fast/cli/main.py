"""The command ``fcos-fast``: finds the subcommand, and turns the user's mistakes into one line each.

It imports torch, which takes seconds, only once the options are known to be right; so do the files of the subcommands.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module

import fcos_fast
from fcos_fast.cli.suggest import did_you_mean
from fcos_fast.engine.files import WriteError
from fcos_fast.engine.launch import ProcessLostError, launched
from fcos_fast.errors import ExtensionError
from fcos_fast.memory import keep_memory
from fcos_fast.text import printable

SUBCOMMANDS = {
    "train": "train a detector, or resume a run",
    "evaluate": "average precision of a checkpoint on a data set",
    "detect": "draw what a checkpoint finds in images or folders, and write it as JSON",
    "convert": "checkpoints of other implementations into this project's, and back",
    "data": "data stats: how the boxes of a data set suit the levels of a detector",
    "benchmark": "how long detecting takes on this machine, from the file to the boxes",
    "demo": "generate images, train a small detector on them, and look at what it learnt",
    "info": "what is installed, and which implementation of each operator runs",
}


FOR_SEVERAL_PROCESSES = ("train", "evaluate")

EXTRAS = {"timm": "timm", "safetensors": "timm"}
"""Module to the extra of the package that has it; all others are in ``train``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fcos-fast`` and return its exit status: 0, 1 (the work failed), 2 (bad input), 130 (Ctrl-C), 143 (SIGTERM).

    Bad input ends in one line on stderr; the environment variable ``FCOS_FAST_DEBUG=1`` shows the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows what it can
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(fcos_fast.__version__)
        return 0
    subcommand, *rest = arguments
    if subcommand not in SUBCOMMANDS:
        return _fail("fcos-fast", f"unknown subcommand {subcommand!r}{did_you_mean(subcommand, SUBCOMMANDS)}")
    keep_memory()
    with _sigterm_as_ctrl_c() as received:
        try:
            with _processes(subcommand):
                return import_module(f"fcos_fast.cli.{subcommand}").main(rest)
        except KeyboardInterrupt as interruption:
            status = 128 + (signal.SIGTERM if received else signal.SIGINT)
            return _fail(f"fcos-fast {subcommand}", str(interruption) or "interrupted", status)
        except ProcessLostError as error:
            # the one that failed first has said the same
            return 1 if error.repeated else _fail(f"fcos-fast {subcommand}", str(error), status=1)
        except ModuleNotFoundError as error:
            if _debugging() or (error.name or "fcos_fast").startswith("fcos_fast"):
                raise
            extra = EXTRAS.get(error.name.split(".")[0], "train")
            return _fail(
                f"fcos-fast {subcommand}",
                f"needs {error.name}, which is not installed; pip install 'fcos_fast[{extra}]'",
            )
        except (ValueError, OSError, FloatingPointError, ExtensionError) as error:
            if _debugging():
                raise
            # the loss became NaN, the disk is full: not the input's fault
            status = 1 if isinstance(error, (FloatingPointError, WriteError)) else 2
            return _fail(f"fcos-fast {subcommand}", str(error), status)


def _processes(subcommand: str) -> AbstractContextManager[None]:
    """As :func:`fcos_fast.engine.distributed.processes`, whose import takes seconds, where there are several."""
    if not launched():
        return nullcontext()
    from fcos_fast.engine.distributed import processes

    return _only_for_several(processes(), subcommand)


@contextmanager
def _only_for_several(processes: AbstractContextManager[None], subcommand: str) -> Iterator[None]:
    with processes:
        if subcommand not in FOR_SEVERAL_PROCESSES:
            raise ValueError("it runs in one process; start it without torchrun")
        yield


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """End a block on SIGTERM as on Ctrl-C; yields a list that holds the signal then."""
    received: list[int] = []
    process = os.getpid()

    def interrupt(number: int, _: object) -> None:
        if os.getpid() != process:  # a forked worker, which has nothing to save
            os._exit(128 + number)
        received.append(number)
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # only there signals can be set
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield received
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    subcommands = "\n".join(f"  {subcommand:{width}}  {what}" for subcommand, what in SUBCOMMANDS.items())
    return f"usage: fcos-fast SUBCOMMAND [options]\n\n{subcommands}\n\nfcos-fast SUBCOMMAND --help shows its options."


def _fail(command: str, message: str, status: int = 2) -> int:
    print(f"{command}: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _debugging() -> bool:
    return os.environ.get("FCOS_FAST_DEBUG", "0") not in ("", "0")
