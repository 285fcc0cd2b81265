"""What ptxas says of every kernel: nothing spills, no array lies in local memory, shared memory fits everywhere."""

import re
import subprocess
from dataclasses import dataclass

import pytest

from tests.child import ROOT
from tests.test_build import run_setup

SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURE = "9.0"
MOST_STATIC_SHARED = 48 * 1024


@dataclass(frozen=True)
class Usage:
    """Bytes, but for the registers, which are of one thread."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def in_memory(self) -> bool:
        """Does it keep in local memory what belongs into registers?"""
        return self.stack + self.spill_stores + self.spill_loads > 0


def kernel_usage(ptxas: str) -> dict[str, Usage]:
    """Mangled name of each kernel -> what it uses, from the output of ``ptxas -v``."""
    found = {}
    for block in ptxas.split("Compiling entry function '")[1:]:

        def number(pattern, block=block):
            match = re.search(pattern, block)
            return int(match.group(1)) if match else 0

        found[block.split("'")[0]] = Usage(
            registers=number(r"Used (\d+) registers"),
            stack=number(r"(\d+) bytes stack frame"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
            shared=number(r"(\d+) bytes smem"),
        )
    return found


def is_float64(kernel: str) -> bool:
    """Is its first template argument double? Such kernels may spill: they are there for checks, not for speed."""
    return "_kernelId" in kernel


def test_the_output_of_ptxas_is_understood():
    text = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN9fcos_fast12some_kernelIfEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN9fcos_fast12some_kernelIfEEvPKT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 33 registers, used 1 barriers, 1792 bytes smem
ptxas info    : Compile time = 71.380 ms
ptxas info    : Compiling entry function '_ZN9fcos_fast12some_kernelIdEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN9fcos_fast12some_kernelIdEEvPKT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers
"""
    usage = kernel_usage(text)
    assert usage == {
        "_ZN9fcos_fast12some_kernelIfEEvPKT_": Usage(33, 16, 8, 12, 1792),
        "_ZN9fcos_fast12some_kernelIdEEvPKT_": Usage(24, 0, 0, 0, 0),
    }
    assert [kernel for kernel in usage if is_float64(kernel)] == ["_ZN9fcos_fast12some_kernelIdEEvPKT_"]


@pytest.fixture(scope="module")
def nvcc():
    """The command that setup.py compiles with, for one architecture, up to machine code: no host compiler runs."""
    names = run_setup(TORCH_CUDA_ARCH_LIST=ARCHITECTURE)
    if names["cuda_home"] is None:
        pytest.skip(f"no CUDA build here: {names['why_not']}")
    extension = names["extensions"][1]
    return [
        *(names["cuda_home"] / "bin" / "nvcc", "-cubin", "-Xptxas=-v"),
        *extension.extra_compile_args["nvcc"],
        *(f"-I{folder}" for folder in extension.include_dirs),
        *(f"-D{name}" if value is None else f"-D{name}={value}" for name, value in extension.define_macros),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_kernels_keep_everything_in_registers(source, nvcc, tmp_path, record_property):
    command = [*nvcc, source, "-o", tmp_path / "kernels.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    usage = kernel_usage(done.stdout + done.stderr)
    assert usage, "no kernel in this file"
    for kernel, used in usage.items():
        record_property(kernel, str(used))  # --junitxml has them all
    in_memory = {kernel: used for kernel, used in usage.items() if used.in_memory and not is_float64(kernel)}
    assert not in_memory, "registers spilled or arrays in local memory"
    too_much = {kernel: used for kernel, used in usage.items() if used.shared > MOST_STATIC_SHARED}
    assert not too_much, f"more than {MOST_STATIC_SHARED} bytes of static shared memory"
