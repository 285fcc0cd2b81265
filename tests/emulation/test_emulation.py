"""Runs the CUDA operators on the CPU, one thread at a time, with the tests of the operators.

On the paths that the tests exercise, this detects: wrong logic and indices; races, missing barriers and missing lanes;
out-of-bounds or uninitialized shared memory; misaligned vectors; accesses outside tensors and scratch memory, and to
freed memory; launches that are too large, on the wrong stream, or unchecked; host code in .cu files that touches device
memory; synchronization during graph capture.

It does not prove that anything works on a GPU. It cannot detect:

* rounding of GPU instructions, and code generation by nvcc;
* effects of the memory model, and of lanes that diverge and converge differently than here;
* register use, and shared variables on paths not taken (tests/test_cuda_resources.py reads both from the binary);
* accesses that miss a tensor by more than a kilobyte and hit another one;
* reads of uninitialized global memory, unless they affect a result (new memory is filled with NaN);
* host code outside .cu files, which may read any tensor, and synchronization in torch's operators;
* memory reuse on another stream, problems with several devices, and speed.
"""

import ctypes
import fcntl
import os

import pytest

from tests.emulation.build import FRONTS, HERE, OPERATORS, build, library_in
from tests.emulation.run import run_tests

MISTAKES = {
    "correct": "",
    "no_barrier": "in shared memory at mistakes.cu:23",
    "no_warp_barrier": "in shared memory at mistakes.cu:28",
    "blocks_write_the_same": "race: second write in global memory at mistakes.cu:30",
    "barrier_for_some": "some threads wait for others that never arrive",
    "two_barriers": "threads of one block are at the barriers",
    "lanes_missing": "some threads wait for others that never arrive",
    "beyond_shared": "out of bounds in shared memory at mistakes.cu:50",
    "unwritten": "uninitialized read in shared memory at mistakes.cu:54",
    "misaligned": "type_mismatch_v1 at mistakes.cu:57",
    "handed_over": "",
    "handed_over_in_pairs": "",
    "other_counter": "race: ",
    "no_fence": "race: read of another thread's write in global memory at mistakes.cu:84",
    "beyond_tensor": "outside the tensors in global memory at mistakes.cu:60",
    "freed": "outside the tensors in global memory at mistakes.cu:61",
    "host_variable": "outside the tensors in global memory at mistakes.cu:61",
    "narrow": "more threads in a block than its __launch_bounds__ allow",
    "wide_block": "the block is too large",
    "high_grid": "the grid is too large",
    "much_shared": "more static and dynamic shared memory than 48 KiB",
    "much_shared_asked_for": "",
    "many_parameters": "more than 4 KiB of parameters",
    "default_stream": "correct is on the default stream",
    "other_stream": "correct is on another stream, not on the current one",
    "memset_on_default_stream": "cudaMemsetAsync is on the default stream",
    "two_launches_one_check": "correct: the launch is not checked for errors",
    "no_check": "correct: the launch is not checked for errors",
    "host_reads": "the host touches device memory at mistakes.cu:202",
    "waits_in_capture": "cudaStreamSynchronize: synchronization during graph capture",
    "copies_in_capture": "cudaMemcpyAsync: synchronization during graph capture",
}

pytestmark = pytest.mark.slow


def built(factory, name, sources):
    """The library of these files, shared by the processes of pytest-xdist."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = shared / name
        return library_in(folder) if folder.exists() else build(folder, sources)


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    library = ctypes.CDLL(str(built(tmp_path_factory, "mistakes", [HERE / "mistakes.cu"])))
    library.complaint.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("kernel", MISTAKES)
def test_detects_the_mistake(mistakes, kernel):
    mistakes.emulation_capture(kernel.endswith("in_capture"))
    for _ in range(3):  # forward, backward and shuffled thread order
        said = mistakes.complaint(kernel.encode()).decode()
        assert MISTAKES[kernel] in said
        assert bool(said) == bool(MISTAKES[kernel])


@pytest.mark.timeout(600)
def test_every_operator_once(tmp_path_factory):
    """`make emulate` runs all tests of the operators."""
    library = built(tmp_path_factory, "operators", [*OPERATORS, FRONTS])
    done = run_tests(library, HERE / "every_operator.py", capture_output=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
