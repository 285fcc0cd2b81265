"""The command ``fcos-fast``: runs a subcommand and reports a user's mistake in one line.

Importing torch takes seconds, so this file and those of the subcommands import it only after the options are checked.
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
from fcos_fast.engine.launch import ProcessLostError, launched, with_contexts
from fcos_fast.errors import ExportError, ExtensionError
from fcos_fast.memory import keep_memory
from fcos_fast.text import printable

SUBCOMMANDS = {
    "train": "train a detector, or resume a run",
    "evaluate": "measure the average precision of a checkpoint on a dataset",
    "compare": "show runs side by side: options that differ, average precision, errors, time",
    "detect": "detect objects in images and videos; writes them drawn, and JSON",
    "export": "write a trained detector as a file for other runtimes: ONNX, OpenVINO",
    "serve": "serve a detector over HTTP: web page, JSON, drawn images",
    "convert": "convert checkpoints from and to other implementations",
    "data": "datasets: stats, check, show, split, convert",
    "benchmark": "time detection on this machine, from the image file to the boxes",
    "demo": "train a small detector on generated images",
    "info": "show versions, GPUs and which operators are native; --model NAME: describe a model",
}

DISTRIBUTED = ("train", "evaluate")
"""Subcommands that run under torchrun."""

EXTRAS = {
    **{"imagehash": "check", "scipy": "check", "timm": "timm", "safetensors": "timm", "av": "video"},
    **{
        "onnx": "export",
        "onnxscript": "export",
        "onnxruntime": "export",
        "openvino": "openvino",
        "nncf": "openvino",
    },
    **dict.fromkeys(("wandb", "mlflow"), "loggers"),
    **dict.fromkeys(("fastapi", "prometheus_client", "python_multipart", "uvicorn"), "serve"),
}
"""Optional dependency -> the extra that installs it; all others are in ``train``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fcos-fast`` and return its exit status.

    It is 0, 1 (the run failed, or ``data check`` found faults), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM).

    Bad input is reported in one line on stderr; the environment variable ``FCOS_FAST_DEBUG=1`` shows the traceback.
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
    if subcommand.startswith("-"):
        return _fail(
            "fcos-fast", f"unknown option {subcommand}; options follow the subcommand, see fcos-fast --help"
        )
    if subcommand not in SUBCOMMANDS:
        return _fail("fcos-fast", f"unknown subcommand {subcommand!r}{did_you_mean(subcommand, SUBCOMMANDS)}")
    keep_memory()
    with _sigterm_as_ctrl_c() as received:
        try:
            with _processes(subcommand):
                return import_module(f"fcos_fast.cli.{subcommand}").main(rest)
        except (KeyboardInterrupt, ProcessLostError) as error:
            status, message = _ended_from_outside(error, received)
            return _fail(f"fcos-fast {subcommand}", message, status) if message else status
        except ModuleNotFoundError as error:
            if _debugging() or (error.name or "fcos_fast").startswith("fcos_fast"):
                raise
            missing = error.name or ""
            extra = EXTRAS.get(missing.split(".")[0], "train")
            return _fail(
                f"fcos-fast {subcommand}",
                f"needs {missing}, which is not installed; pip install 'fcos_fast[{extra}]'",
            )
        except (ValueError, OSError, FloatingPointError, ExtensionError, ExportError) as error:
            if _debugging():
                raise
            # NaN in the loss, a full disk or a wrong export are not the input's fault
            status = 1 if isinstance(error, (FloatingPointError, WriteError, ExportError)) else 2
            return _fail(f"fcos-fast {subcommand}", str(error), status)


def _processes(subcommand: str) -> AbstractContextManager[None]:
    """:func:`fcos_fast.engine.distributed.processes` under torchrun; without it nothing is imported.

    Raises:
        ValueError, ProcessLostError: the subcommand runs in one process; rank 0 says so, before ranks connect.
    """
    if not launched():
        return nullcontext()
    if subcommand not in DISTRIBUTED:
        message = "it runs in one process; start it without torchrun"
        raise ValueError(message) if os.environ["RANK"] == "0" else ProcessLostError(message, repeated=True)
    from fcos_fast.engine.distributed import processes

    return processes()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on SIGTERM, which ``torchrun`` sends too; yields a list that then contains the signal."""
    received: list[int] = []
    process = os.getpid()

    def interrupt(number: int, _: object) -> None:
        if os.getpid() != process:  # a forked worker has nothing to save
            os._exit(128 + number)
        received.append(number)
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # signal.signal works only there
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield received
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ended_from_outside(error: BaseException, received: list[int]) -> tuple[int, str]:
    """Exit status and message after a signal or the loss of another process; no message if that one reports it."""
    for cause in with_contexts(error):
        if isinstance(cause, ProcessLostError):
            return 1, "" if cause.repeated else str(cause)
    return 128 + (signal.SIGTERM if received else signal.SIGINT), str(error) or "interrupted"


def _usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    subcommands = "\n".join(f"  {subcommand:{width}}  {what}" for subcommand, what in SUBCOMMANDS.items())
    more = "fcos-fast SUBCOMMAND --help lists the options, fcos-fast --version prints the version."
    return f"usage: fcos-fast SUBCOMMAND [options]\n\n{subcommands}\n\n{more}"


def _fail(command: str, message: str, status: int = 2) -> int:
    print(f"{command}: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _debugging() -> bool:
    return os.environ.get("FCOS_FAST_DEBUG", "0") not in ("", "0")
