"""The run of a ``torchrun`` that restarts its processes after a failure (``--max-restarts``).

The folder of a run records the ``torchrun`` of each machine. The processes that one of them starts later continue it.
"""

from __future__ import annotations

import os
from pathlib import Path

from fcos_fast.engine.config import Config
from fcos_fast.engine.distributed import broadcast, gather, is_main
from fcos_fast.engine.files import write_text
from fcos_fast.engine.launch import agent

AGENTS = ".torchrun"
"""File in the folder of a run with the :func:`fcos_fast.engine.launch.agent` of each process, one per line."""


def record_agents(folder: Path | None) -> None:
    """Record in the new folder of rank 0 which ``torchrun`` started the processes; all of them call this."""
    agents = gather(agent())
    if folder is not None and agents is not None and any(agents):
        write_text(folder / AGENTS, "".join(f"{name}\n" for name in sorted({*filter(None, agents)})))


def run_to_continue(config: Config) -> Path | None:
    """The folder of the run that these processes continue because ``torchrun`` restarted them; None for a new run.

    Raises:
        ValueError: the folder is not on the machine of rank 0.
    """
    agents = broadcast(gather(agent()))
    own = None if agent() is None else _newest_folder(config, set(agents))
    folders = broadcast(gather(None if own is None else (os.uname().nodename, own)))
    found: Path | None = None if folders[0] is None else folders[0][1]
    elsewhere = next((f"{folder} on {host}" for host, folder in filter(None, folders)), None)
    if found is None and elsewhere is not None:
        raise ValueError(
            f"torchrun restarted the run in {elsewhere}, but rank 0 is now on {os.uname().nodename}, which does not "
            "have that folder; use a file system that all machines share for train.runs, or fix the ranks with "
            "--node-rank"
        )
    if found is not None and is_main():
        print(f"restarted by torchrun; the run in {found} continues", flush=True)
    return found


def _newest_folder(config: Config, agents: set[str | None]) -> Path | None:
    files = Path(config.train.runs).glob(f"{config.train.name}*/{AGENTS}")
    own = [file for file in files if agents & set(file.read_text(encoding="utf-8").splitlines())]
    return max(own, key=lambda file: file.stat().st_mtime).parent if own else None
