"""The compiled CUDA kernels do not spill on any architecture, and hot loops stay within their budgets."""

import re

import pytest

from tests import cuda_budget
from tests.cuda_budget import ARCHITECTURE, FLOAT64, KERNELS, measured
from tests.sass import Memory

MOST_STATIC_SHARED = 48 * 1024
MARGIN = 1.05  # for instructions, since other nvcc versions schedule and unroll differently

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def binary():
    try:
        return cuda_budget.built()
    except FileNotFoundError as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def usage(binary):
    return binary.usage()


@pytest.fixture(scope="module")
def kernels(usage):
    """Name -> usage, on the architecture of the budgets."""
    found = {u.name: u for u in usage if u.architecture == ARCHITECTURE}
    return found or pytest.skip(f"the binary is not built for {ARCHITECTURE}")


@pytest.fixture(scope="module")
def code(binary, kernels):
    return binary.code([kernels[kernel.name].mangled for kernel in KERNELS if kernel.name in kernels])


def test_no_kernel_uses_local_memory_on_any_architecture(usage):
    assert usage, "no kernel in the binary"
    in_memory = [u for u in usage if u.stack + u.local > 0 and "<double" not in u.name]
    assert not in_memory, "spilled registers, or arrays in local memory"


def test_shared_memory_fits_everywhere(usage):
    too_much = [u for u in usage if u.shared > MOST_STATIC_SHARED]
    assert not too_much, f"more than {MOST_STATIC_SHARED} bytes of static shared memory"


def test_every_kernel_has_a_budget(kernels):
    def functions(names):
        return {re.split("<", name)[0] for name in names}

    assert functions(kernels) == functions(kernel.name for kernel in KERNELS)


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_within_its_budget(kernel, kernels, code, record_property):
    assert kernel.name in kernels, "not in the binary"
    used = kernels[kernel.name]
    now = measured(kernel, used, code[used.mangled])
    record_property(kernel.name, str(now))  # visible with --junitxml
    assert kernel.source in (used.source, "launch.h")
    assert now.instructions_per_element <= kernel.instructions_per_element * MARGIN
    assert now.registers <= kernel.registers
    assert now.blocks_per_sm >= kernel.blocks_per_sm
    memory = Memory(kernel.memory, kernel.bytes_per_access)
    hot = code[used.mangled].hot(memory, kernel.shortest)
    if kernel.bytes_per_element:
        assert memory.count(hot.trace) > 0, f"no {memory}"
    if kernel.name.split("<")[0] not in FLOAT64:
        assert not hot.float64, "float64 in the hot loop"
