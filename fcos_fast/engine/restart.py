"""The run of a ``torchrun`` that restarts its processes after a failure (``--max-restarts``).

The folder of a run records the ``torchrun`` of each machine. The processes that one of them starts later continue it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fcos_fast.engine.callbacks import Callback
from fcos_fast.engine.config import Config
from fcos_fast.engine.distributed import broadcast, gather, is_main
from fcos_fast.engine.files import write_text
from fcos_fast.engine.launch import agent

if TYPE_CHECKING:
    from fcos_fast.engine.run import Run

AGENTS = ".torchrun"
"""File in the folder of a run with the :func:`fcos_fast.engine.launch.agent` of each process, one per line."""

# folders of the runs that this process started or continued: a script can train several
_own: set[Path] = set()


def record_agents(folder: Path) -> None:
    """Record in the folder of a new run which ``torchrun`` started the processes; all of them call this."""
    _own.add(folder.resolve())
    agents = gather(agent())
    if is_main() and agents is not None and any(agents):
        write_text(folder / AGENTS, "".join(f"{name}\n" for name in sorted({*filter(None, agents)})))


def run_to_continue(config: Config) -> Path | None:
    """The folder of the run that these processes continue because ``torchrun`` restarted them; None for a new run.

    The first call in a process finds the first run of the ``torchrun``, the second call the second.

    Raises:
        ValueError: the folder is not on the machine of rank 0.
    """
    agents = broadcast(gather(agent()))
    own = None if agent() is None else _first_folder(config, set(agents))
    folders = broadcast(gather(None if own is None else (os.uname().nodename, own)))
    found: Path | None = None if folders[0] is None else folders[0][1]
    elsewhere = next((f"{folder} on {host}" for host, folder in filter(None, folders)), None)
    if found is None and elsewhere is not None:
        raise ValueError(
            f"torchrun restarted the run in {elsewhere}, but rank 0 is now on {os.uname().nodename}, which does not "
            "have that folder; use a file system that all machines share for train.runs, or fix the ranks with "
            "--node-rank"
        )
    _own.update(folder.resolve() for folder in (own, found) if folder is not None)
    return found


class Restarted(Callback):
    """Says that the run continues, where it is logged."""

    def on_start(self, run: Run) -> None:
        """Print it."""
        print(f"restarted by torchrun; the run in {run.folder} continues", flush=True)


def _first_folder(config: Config, agents: set[str | None]) -> Path | None:
    """The oldest folder with the name of the run that one of the ``agents`` started and this process did not use."""
    path = Path(config.train.runs, config.train.name)
    files = [
        file
        for file in path.parent.glob(f"*/{AGENTS}")
        if re.fullmatch(re.escape(path.name) + r"\d*", file.parent.name)
        and file.parent.resolve() not in _own
        and agents & set(file.read_text(encoding="utf-8").splitlines())
    ]
    return min(files, key=lambda file: file.stat().st_mtime).parent if files else None
