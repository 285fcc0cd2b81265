"""What a kernel may cost, read from its machine code for sm_90: nvcc 13.0, not measured on any GPU.

Instructions are counted on one path around the hot loop: `tests.sass.Code.hot` chooses both. An element is what moves
`bytes_per_element` bytes there, by accesses of `bytes_per_access`. ``python -m tests.cuda_budget`` prints what the built binary has.
"""

# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tests import sass

ARCHITECTURE = "sm_90"


@dataclass(frozen=True)
class Kernel:
    """A kernel's budget.

    Attributes:
        name: as `tests.sass.readable` writes it.
        source: file in csrc/cuda.
        dtype: of the elements.
        instructions_per_element: in the hot loop.
        bytes_per_element: that the hot loop moves; 0 where no loop runs over elements, and none are counted.
        bytes_per_access: width of the accesses that the hot loop is known by, and that move these bytes.
        registers: of a thread.
        threads: of a block.
        blocks_per_sm: at once, by registers, threads and static shared memory.
        launches: of the operator's call that runs it.
        shortest: the hot loop has branches for rare elements, and its shortest path counts; elsewhere the longest one.
        memory: ``global`` or ``shared``: whose accesses the hot loop is known by.
    """

    name: str
    source: str
    dtype: str
    instructions_per_element: float
    bytes_per_element: float
    bytes_per_access: int
    registers: int
    threads: int
    blocks_per_sm: int
    launches: int
    shortest: bool = False
    memory: str = "global"


# fmt: off
KERNELS = [
    # name, source, dtype, instructions and bytes per element, bytes per access, registers, threads, blocks, launches
    Kernel("assign_kernel", "assign_targets.cu", "float32", 69.5, 16, 16, 32, 256, 8, 2, memory="shared"),
    Kernel("box_loss_kernel<float,2,0>", "box_loss.cu", "float32", 100, 32, 16, 28, 256, 8, 1),
    Kernel("box_loss_kernel<bfloat16,2,0>", "box_loss.cu", "bfloat16", 100.5, 16, 16, 31, 256, 8, 1),
    Kernel("box_loss_kernel<float,2,1>", "box_loss.cu", "float32", 100, 32, 16, 31, 256, 8, 2),
    Kernel("box_loss_kernel<bfloat16,2,1>", "box_loss.cu", "bfloat16", 101, 16, 16, 35, 256, 6, 2),
    Kernel("box_loss_kernel<float,2,2>", "box_loss.cu", "float32", 200, 48, 16, 49, 256, 4, 1),
    Kernel("box_loss_kernel<bfloat16,2,2>", "box_loss.cu", "bfloat16", 209, 24, 16, 51, 256, 4, 1),
    Kernel("centerness_kernel<float,false>", "centerness.cu", "float32", 62, 16, 16, 26, 256, 8, 1),
    Kernel("centerness_kernel<bfloat16,false>", "centerness.cu", "bfloat16", 62, 8, 16, 25, 256, 8, 1),
    Kernel("centerness_kernel<float,true>", "centerness.cu", "float32", 194, 32, 16, 32, 256, 8, 1),
    Kernel("centerness_kernel<bfloat16,true>", "centerness.cu", "bfloat16", 200.5, 16, 16, 35, 256, 6, 1),
    Kernel("loss_kernel<float,FocalLoss<float,true>>", "detection_loss.cu", "float32", 45.2, 8, 16, 57, 256, 4, 2),
    Kernel("loss_kernel<bfloat16,FocalLoss<float,true>>", "detection_loss.cu", "bfloat16", 46.2, 4, 16, 64, 256, 4, 2),
    Kernel("loss_kernel<float16,FocalLoss<float,true>>", "detection_loss.cu", "float16", 46.1, 4, 16, 64, 256, 4, 2),
    Kernel("rescale_kernel<float>", "detection_loss.cu", "bfloat16", 4.1, 8, 8, 30, 256, 8, 1),
    Kernel("focal_kernel<float,true,0,FocalLoss<float,true>>", "focal_loss.cu", "float32", 44, 12, 16, 28, 256, 8, 1),
    Kernel("focal_kernel<bfloat16,true,0,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 46.8, 6, 16, 32, 256, 8, 1),
    Kernel("focal_kernel<float,true,1,FocalLoss<float,true>>", "focal_loss.cu", "float32", 44.8, 8, 16, 30, 256, 8, 2),
    Kernel("focal_kernel<bfloat16,true,1,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 45.1, 4, 16, 35, 256, 6, 2),
    Kernel("focal_kernel<float,true,2,FocalLoss<float,true>>", "focal_loss.cu", "float32", 44.8, 12, 16, 31, 256, 8, 1),
    Kernel("focal_kernel<bfloat16,true,2,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 46.2, 6, 16, 47, 256, 5, 1),
    Kernel("focal_kernel<float,false,0,FocalLoss<float,true>>", "focal_loss.cu", "float32", 80.5, 8, 16, 32, 256, 8, 1),
    Kernel("focal_kernel<bfloat16,false,0,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 73.1, 4, 16, 36, 256, 6, 1),
    Kernel("focal_kernel<float,false,1,FocalLoss<float,true>>", "focal_loss.cu", "float32", 80.2, 4, 16, 32, 256, 8, 2),
    Kernel("focal_kernel<bfloat16,false,1,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 71.4, 2, 16, 38, 256, 6, 2),
    Kernel("focal_kernel<float,false,2,FocalLoss<float,true>>", "focal_loss.cu", "float32", 61.7, 8, 16, 36, 256, 6, 1),
    Kernel("focal_kernel<bfloat16,false,2,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 56.9, 4, 16, 47, 256, 5, 1),
    Kernel("moments_kernel<float,4,false>", "group_norm_relu.cu", "float32", 6.7, 4, 16, 46, 512, 2, 2),
    Kernel("moments_kernel<bfloat16,8,false>", "group_norm_relu.cu", "bfloat16", 6.8, 2, 16, 46, 512, 2, 2),
    Kernel("moments_kernel<float,4,true>", "group_norm_relu.cu", "float32", 6.7, 4, 16, 48, 512, 2, 2),
    Kernel("moments_kernel<bfloat16,8,true>", "group_norm_relu.cu", "bfloat16", 6.8, 2, 16, 48, 512, 2, 2),
    Kernel("apply_kernel<float,4,false>", "group_norm_relu.cu", "float32", 7.6, 8, 16, 52, 512, 2, 2),
    Kernel("apply_kernel<bfloat16,8,false>", "group_norm_relu.cu", "bfloat16", 8.2, 4, 16, 54, 512, 2, 2),
    Kernel("apply_kernel<float,4,true>", "group_norm_relu.cu", "float32", 7.5, 8, 16, 48, 512, 2, 2),
    Kernel("apply_kernel<bfloat16,8,true>", "group_norm_relu.cu", "bfloat16", 8.3, 4, 16, 58, 512, 2, 2),
    Kernel("grad_sums_kernel<float,4,false>", "group_norm_relu.cu", "float32", 7.9, 8, 16, 32, 512, 4, 2),
    Kernel("grad_sums_kernel<bfloat16,8,false>", "group_norm_relu.cu", "bfloat16", 11.1, 4, 16, 32, 512, 4, 2),
    Kernel("grad_sums_kernel<float,4,true>", "group_norm_relu.cu", "float32", 8.1, 8, 16, 54, 512, 2, 2),
    Kernel("grad_sums_kernel<bfloat16,8,true>", "group_norm_relu.cu", "bfloat16", 11, 4, 16, 64, 512, 2, 2),
    Kernel("grad_apply_kernel<float,4,false>", "group_norm_relu.cu", "float32", 9, 12, 16, 40, 512, 3, 2),
    Kernel("grad_apply_kernel<bfloat16,8,false>", "group_norm_relu.cu", "bfloat16", 11.9, 6, 16, 40, 512, 3, 2),
    Kernel("grad_apply_kernel<float,4,true>", "group_norm_relu.cu", "float32", 8.9, 12, 16, 42, 512, 2, 2),
    Kernel("grad_apply_kernel<bfloat16,8,true>", "group_norm_relu.cu", "bfloat16", 12.1, 6, 16, 63, 512, 2, 2),
    Kernel("greatest_kernel", "match_anchors.cu", "float32", 71, 16, 16, 28, 256, 8, 3, memory="shared"),
    Kernel("match_kernel", "match_anchors.cu", "float32", 52.2, 16, 16, 29, 256, 8, 3, memory="shared"),
    Kernel("compare_kernel<float>", "nms.cu", "float32", 49.2, 20, 4, 38, 64, 24, 3, memory="shared"),
    Kernel("walk_kernel", "nms.cu", "bool", 1.6, 8, 8, 32, 512, 4, 3),
    Kernel("suppress_kernel<float,float>", "nms_padded.cu", "float32", 0, 0, 4, 47, 512, 2, 1),
    Kernel("filter_kernel<float,float>", "postprocess.cu", "float32", 10.5, 4, 16, 31, 256, 8, 3, shortest=True),
    Kernel("filter_best_kernel<float,float>", "postprocess.cu", "float32", 10.8, 4, 4, 32, 256, 8, 3, shortest=True),
    Kernel("filter_kernel<bfloat16,float>", "postprocess.cu", "bfloat16", 8.5, 2, 16, 39, 256, 6, 3, shortest=True),
    Kernel("filter_best_kernel<bfloat16,float>", "postprocess.cu", "bfloat16", 11.9, 2, 2, 32, 256, 8, 3, shortest=True),
    Kernel("plan_kernel", "nms.cu", "int64", 0, 0, 8, 58, 1024, 1, 3),
    Kernel("select_kernel<float,float>", "postprocess.cu", "float32", 0, 0, 4, 64, 512, 2, 3),
    Kernel("sum_kernel<float>", "detection_loss.cu", "float64", 2.4, 8, 8, 29, 1024, 2, 2),
    Kernel("add_partial_sums<float>", "launch.h", "float64", 15, 8, 8, 18, 256, 8, 2),
    Kernel("detect_kernel<float>", "postprocess.cu", "float32", 0, 0, 4, 48, 512, 2, 3),
]
# fmt: on

FLOAT64 = {
    "add_partial_sums": "the sums of the blocks",
    "sum_kernel": "the sums of the blocks",
    "box_loss_kernel": "adds each loss to the thread's sum",
    "focal_kernel": "adds each vector's losses to the thread's sum",
    "rescale_kernel": "what flows in",
    "filter_kernel": "the threshold",
}
"""Kernels that compute in float64 in their hot loop, and what."""


@dataclass(frozen=True)
class Binary:
    """The CUDA operators as they were built."""

    path: Path
    cuobjdump: Path

    def usage(self) -> list[sass.Usage]:
        """Of every kernel on every architecture."""
        return sass.read_usage(sass.run(self.cuobjdump, "-res-usage", self.path))

    def code(self, mangled: list[str]) -> dict[str, sass.Code]:
        """Of these kernels on sm_90."""
        text = sass.run(
            self.cuobjdump, "-sass", "-arch", ARCHITECTURE, self.path
        )  # -fun takes five times as long
        return sass.read_code(text, mangled)


def measured(kernel: Kernel, usage: sass.Usage, code: sass.Code) -> Kernel:
    """The row with what the binary has."""
    memory = sass.Memory(kernel.memory, kernel.bytes_per_access)
    trace = code.hot(memory, kernel.shortest).trace
    moved = memory.count(trace) * kernel.bytes_per_access
    multiprocessor = sass.MULTIPROCESSORS[ARCHITECTURE]
    return replace(
        kernel,
        instructions_per_element=round(len(trace.instructions) * kernel.bytes_per_element / moved, 1)
        if moved
        else 0,
        registers=usage.registers,
        blocks_per_sm=multiprocessor.resident(kernel.threads, usage.registers, usage.shared),
    )


def built() -> Binary:
    """The binary of this tree.

    Raises:
        FileNotFoundError: where it was not built, or cuobjdump is missing; the message says which.
    """
    folder = Path(__file__).parent.parent / "fcos_fast"
    path = next(folder.glob("_C_cuda.*"), None)
    if path is None:
        raise FileNotFoundError("fcos_fast._C_cuda is not built here")
    cuobjdump = sass.find_cuobjdump()
    if cuobjdump is None:
        raise FileNotFoundError("no cuobjdump: not in the CUDA toolkit, not on the PATH, not in Triton")
    return Binary(path, cuobjdump)


def main() -> None:
    """Print the rows as the binary has them."""
    binary = built()
    usage = {u.name: u for u in binary.usage() if u.architecture == ARCHITECTURE}
    code = binary.code([usage[kernel.name].mangled for kernel in KERNELS])
    for kernel in KERNELS:
        print(measured(kernel, usage[kernel.name], code[usage[kernel.name].mangled]))


if __name__ == "__main__":
    main()
