"""Facts about the machine for the report of a run: ``python -m tests.machine FILE`` writes them as JSON."""

from __future__ import annotations

import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

import fcos_fast.machine
from fcos_fast._extension import cpu_error
from fcos_fast._source_hash import source_hash

COMMIT = Path(__file__).parent.parent / "COMMIT"
"""Written by ``tests.gpu_steps`` into its copy of the tree."""


def machine() -> dict:
    """Hardware, versions and the state of the sources."""
    return {
        **fcos_fast.machine.machine(),
        "simd": importlib.import_module("fcos_fast._C").simd() if cpu_error is None else None,
        "gpu": gpu() if torch.cuda.is_available() else None,
        "torchvision": torchvision_version(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
        "csrc": source_hash(),
    }


def torchvision_version() -> str | None:
    """None if it is not installed."""
    try:
        return importlib.import_module("torchvision").__version__
    except ImportError:
        return None


def gpu() -> dict:
    """The current GPU, with its clocks, power limit and temperature at this moment."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    fields = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
    output = output_of("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    values = output.splitlines()[0].split(", ") if output else [None] * len(fields)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": properties.L2_cache_size / 2**20,
        **dict(zip(fields, values, strict=True)),
    }


def commit() -> str | None:
    """The hash in the file ``COMMIT`` of a tree without git, or the hash from git, with ``-dirty`` if files changed."""
    if COMMIT.exists():
        return COMMIT.read_text()
    return output_of("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None


def output_of(*command: str) -> str:
    """What a command prints; "" if it cannot run or fails."""
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(machine(), indent=1) + "\n")
