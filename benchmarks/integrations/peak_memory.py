"""Peak memory of the loss stage of mmdetection's detectors: ``python -m benchmarks.integrations.peak_memory``.

Each row is a process of its own: the growth of its peak resident memory during one loss stage with its backward pass.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

BOXES = (20, 100, 1000)


def measure(name: str, boxes: int, accelerated: bool) -> float:
    """MiB by which the peak resident memory of this process grows."""
    from benchmarks.integrations.bench_mmdet import loss_data, losses

    data = loss_data("cpu", name, boxes)
    run = losses(name, accelerated)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that freed memory of the forward pass is not reused unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from the present size
    before = resident("VmRSS")
    run(*data)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """KiB that the kernel reports: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def main(arguments: list[str]) -> None:
    """Print a table; with arguments, measure one row."""
    if arguments:
        name, boxes, accelerated = arguments
        print(measure(name, int(boxes), accelerated == "True"))
        return
    print("| detector | boxes per image | mmdetection, MiB | fcos_fast, MiB |\n|---|--:|--:|--:|")
    for name in ("FCOS-R50", "RetinaNet-R50"):
        for boxes in BOXES:
            found = []
            for accelerated in (False, True):
                command = [sys.executable, "-m", __spec__.name, name, str(boxes), str(accelerated)]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.append(float(output.splitlines()[-1]))
            print(f"| {name} | {boxes:,} | {found[0]:,.0f} | {found[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
