"""The CUDA operators, run on the CPU one thread at a time, against the tests of the operators.

What it finds, on the paths that the tests take: wrong logic and indices; races, missing barriers and lanes; shared
memory out of bounds or unwritten; misaligned vectors; accesses outside tensors and scratch memory, and to freed memory;
launches that are too large, on another stream than the current one, or unchecked; host code of .cu files that touches
device memory; waiting for the device while a graph is captured.

It does not show that anything works on a GPU. What it cannot see:

* rounding of the GPU's own instructions, and what nvcc makes of the code;
* the memory model, and lanes that diverge and converge differently than here;
* registers, and shared variables on paths not taken (tests/test_cuda_resources.py reads both from the binary);
* an access that misses its tensor by more than a kilobyte and hits another one;
* reading global memory that nobody has written, unless a result shows it: new memory holds NaN;
* host code of the fronts, which may read any tensor, and torch's operators there and in Python, which may wait;
* memory that is reused on another stream, several devices, and speed.
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
    "barrier_for_some": "some threads wait for others that do not come",
    "two_barriers": "threads of one block are at the barriers",
    "lanes_missing": "some threads wait for others that do not come",
    "beyond_shared": "out of bounds in shared memory at mistakes.cu:50",
    "unwritten": "nobody has written what is read in shared memory at mistakes.cu:54",
    "misaligned": "type_mismatch_v1 at mistakes.cu:57",
    "handed_over": "",
    "handed_over_in_pairs": "",
    "other_counter": "race: ",
    "no_fence": "race: read of another thread's write in global memory at mistakes.cu:84",
    "beyond_tensor": "outside the tensors in global memory at mistakes.cu:60",
    "freed": "outside the tensors in global memory at mistakes.cu:61",
    "host_variable": "outside the tensors in global memory at mistakes.cu:61",
    "narrow": "more threads in a block than its __launch_bounds__",
    "wide_block": "a block that is too large",
    "high_grid": "a grid that is too large",
    "much_shared": "more shared memory, static and dynamic, than 48 KiB",
    "much_shared_asked_for": "",
    "many_parameters": "more than 4 KiB of parameters",
    "default_stream": "correct is on the default stream",
    "other_stream": "correct is on another stream",
    "memset_on_default_stream": "cudaMemsetAsync is on the default stream",
    "two_launches_one_check": "correct: nothing checks whether the launch failed",
    "no_check": "correct: nothing checks whether the launch failed",
    "host_reads": "the host touches device memory at mistakes.cu:202",
    "waits_in_capture": "cudaStreamSynchronize: the host waits while a graph is captured",
    "copies_in_capture": "cudaMemcpyAsync: the host waits while a graph is captured",
}

pytestmark = pytest.mark.slow


def built(factory, name, sources):
    """The library of these files, which the processes of pytest-xdist share."""
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
def test_names_the_mistake(mistakes, kernel):
    mistakes.emulation_capture(kernel.endswith("in_capture"))
    for _ in range(3):  # forwards, backwards, shuffled
        said = mistakes.complaint(kernel.encode()).decode()
        assert MISTAKES[kernel] in said
        assert bool(said) == bool(MISTAKES[kernel])


@pytest.mark.timeout(600)
def test_every_operator_once(tmp_path_factory):
    """The rest, many tests of each operator, is `make emulate`."""
    library = built(tmp_path_factory, "operators", [*OPERATORS, FRONTS])
    done = run_tests(library, HERE / "every_operator.py", capture_output=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
