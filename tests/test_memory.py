"""Freed memory is reused: the process needs no new pages for a tensor of a size that it had before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import resource, sys, torch, fcos_fast
kept = sys.argv[1] == "keep" and fcos_fast.keep_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
[pages() for _ in range(4)]  # the heap grows to its final size
print(kept, pages())
"""


def _child(mode: str) -> tuple[bool, int]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", CHILD, mode]
    output = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return output[0] == "True", int(output[1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_reused():
    kept, pages = _child("keep")
    if not kept:
        pytest.skip("this C library is not glibc")
    assert pages < 100
    assert _child("plain")[1] > 100 * 5  # without keep_memory(), with large or small pages
