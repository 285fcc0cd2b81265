"""The CUDA operators, run on the CPU one thread at a time, against the tests of the operators.

It shows wrong logic and indices, races, missing barriers and lanes, shared memory out of bounds or unwritten, and
misaligned vectors, on the paths that the tests take. It does not show that anything works on a GPU: rounding of the
GPU's own instructions, memory models, register and launch limits, streams, and every speed are another matter; an
access out of the bounds of global memory is noticed only where it changes a result.
"""

import ctypes
import os
import subprocess
import sys

import pytest

from tests.emulation.build import FRONTS, HERE, OPERATORS, ROOT, build

# What only the CPU operators promise, and what repeats a launch too often for an emulation.
LEFT_OUT = (
    "any_number_of_threads",
    "compile",
    "gradcheck",
    "idempotent",
    "memory",
    "named",
    "opcheck",
    "same_bits",
    "same_result",
    "unchecked",
    "5000",
    "5003",
)
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
    "host_reads": "the host touches device memory at mistakes.cu:185",
    "waits_in_capture": "cudaStreamSynchronize: the host waits while a graph is captured",
    "copies_in_capture": "cudaMemcpyAsync: the host waits while a graph is captured",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    library = ctypes.CDLL(str(build(tmp_path_factory.mktemp("mistakes"), [HERE / "mistakes.cu"])))
    library.complaint.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize("kernel", MISTAKES)
def test_names_the_mistake(mistakes, kernel):
    mistakes.emulation_capture(kernel.endswith("in_capture"))
    for _ in range(3):  # forwards, backwards, shuffled
        said = mistakes.complaint(kernel.encode()).decode()
        assert MISTAKES[kernel] in said
        assert bool(said) == bool(MISTAKES[kernel])


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    return build(tmp_path_factory.mktemp("operators"), [*OPERATORS, FRONTS])


@pytest.mark.skipif("EMULATE" not in os.environ, reason="takes minutes: make emulate")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [path.stem for path in OPERATORS])
def test_operator(operators, name):
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "tests.emulation.plugin",
                "-q",
                "--tb=short",
                "-W",
                "ignore",
            ),
            *(f"tests/ops/test_{name}.py", "-k", f"not ({' or '.join(LEFT_OUT)})"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "EMULATED_CUDA": str(operators)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
