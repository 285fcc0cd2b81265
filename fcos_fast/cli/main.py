"""The command ``fcos-fast``: finds the verb, and turns the user's mistakes into one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import fcos_fast
from fcos_fast._extension import ExtensionError
from fcos_fast.cli.suggest import did_you_mean
from fcos_fast.engine.distributed import ProcessLostError, processes, world_size
from fcos_fast.memory import keep_memory

VERBS = {
    "train": "train a detector, or resume a run",
    "evaluate": "average precision of a checkpoint on a data set",
    "detect": "draw what a checkpoint finds in images or folders, and write it as JSON",
    "convert": "checkpoints of other implementations into this project's, and back",
    "data": "data stats: how the boxes of a data set suit the levels of a detector",
    "benchmark": "how long detecting takes on this machine, from the file to the boxes",
    "demo": "generate pictures, train a small detector on them, and look at what it learnt",
    "info": "what is installed, and which implementation of each operator runs",
}


FOR_SEVERAL_PROCESSES = ("train", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fcos-fast`` and return its exit status: 0, 1 (the work failed), 2 (bad input), 130 (interrupted).

    Bad input ends in one line on stderr; the environment variable ``FCOS_FAST_DEBUG=1`` shows the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(fcos_fast.__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _fail("fcos-fast", f"there is no verb {verb!r}{did_you_mean(verb, VERBS)}")
    keep_memory()
    try:
        with processes():
            if world_size() > 1 and verb not in FOR_SEVERAL_PROCESSES:
                raise ValueError("it runs in one process; start it without torchrun")
            return import_module(f"fcos_fast.cli.{verb}").main(rest)
    except KeyboardInterrupt as interruption:
        return _fail(f"fcos-fast {verb}", str(interruption) or "interrupted", status=130)
    except ProcessLostError as error:
        # the one that failed first has said the same
        return 1 if error.alike else _fail(f"fcos-fast {verb}", str(error), status=1)
    except ModuleNotFoundError as error:
        if _debugging() or (error.name or "fcos_fast").startswith("fcos_fast"):
            raise
        return _fail(
            f"fcos-fast {verb}", f"needs {error.name}, which is not installed; pip install 'fcos_fast[train]'"
        )
    except (ValueError, OSError, FloatingPointError, ExtensionError) as error:
        if _debugging():
            raise
        status = (
            1 if isinstance(error, FloatingPointError) else 2
        )  # the loss became NaN: not the input's fault
        return _fail(f"fcos-fast {verb}", str(error), status)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return f"usage: fcos-fast VERB [options]\n\n{verbs}\n\nfcos-fast VERB --help shows the options of a verb."


def _fail(command: str, message: str, status: int = 2) -> int:
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _debugging() -> bool:
    return os.environ.get("FCOS_FAST_DEBUG", "0") not in ("", "0")
