"""Facts about the machine that belong to every timing."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import fcos_fast


def machine() -> dict[str, Any]:
    """Processor, threads, load and versions."""
    import torch

    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # busy cores, averaged over the last minute
        "torch": torch.__version__,
        "fcos_fast": fcos_fast.__version__,
        "system": platform.platform(),
    }


def cpu_name() -> str:
    """The name that the operating system reports."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
