"""Resource budgets of the CUDA kernels, from their sm_90 machine code (nvcc 13.0), not measured on any GPU.

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
        name: from `tests.sass.demangled`.
        source: file in csrc/cuda.
        dtype: dtype of the elements.
        instructions_per_element: in the hot loop.
        bytes_per_element: moved in the hot loop; 0 if no loop runs over elements, so that none are counted.
        bytes_per_access: width of the accesses that identify the hot loop and move these bytes.
        registers: per thread.
        threads: per block.
        blocks_per_sm: concurrent blocks, limited by registers, threads and static shared memory.
        launches: number of launches per call of the operator.
        shortest: count the shortest path, since the hot loop has branches for rare elements. Default: the longest.
        memory: ``global`` or ``shared``: the kind of accesses that identify the hot loop.
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
    Kernel("assign_kernel", "assign_targets.cu", "float32", 0, 0, 16, 36, 256, 6, 1),
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
    Kernel("loss_kernel<1,float,FocalLoss<float,true>>", "detection_loss.cu", "float32", 28.5, 4, 16, 47, 256, 5, 2, shortest=True),
    Kernel("loss_kernel<1,bfloat16,FocalLoss<float,true>>", "detection_loss.cu", "bfloat16", 20.8, 2, 16, 47, 256, 5, 2, shortest=True),
    Kernel("loss_kernel<4,float,FocalLoss<float,true>>", "detection_loss.cu", "float32", 35.8, 8, 16, 47, 256, 5, 2, shortest=True),
    Kernel("loss_kernel<4,bfloat16,FocalLoss<float,true>>", "detection_loss.cu", "bfloat16", 25.4, 4, 16, 48, 256, 5, 2, shortest=True),
    Kernel("rescale_kernel", "detection_loss.cu", "bfloat16", 5, 4, 16, 32, 256, 8, 1),
    Kernel("sum_kernel", "detection_loss.cu", "float64", 2.4, 8, 8, 29, 1024, 2, 2),
    Kernel("class_kernel<0,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 31.5, 8, 16, 39, 256, 6, 1, shortest=True),
    Kernel("dense_kernel<0,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 36.8, 12, 16, 32, 256, 8, 1),
    Kernel("class_kernel<0,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 24.4, 4, 16, 43, 256, 5, 1, shortest=True),
    Kernel("dense_kernel<0,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 36.4, 6, 16, 32, 256, 8, 1),
    Kernel("class_kernel<1,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 28.2, 4, 16, 32, 256, 8, 2, shortest=True),
    Kernel("dense_kernel<1,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 36.8, 8, 16, 32, 256, 8, 2),
    Kernel("class_kernel<1,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 20.6, 2, 16, 44, 256, 5, 2, shortest=True),
    Kernel("dense_kernel<1,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 36.4, 4, 16, 32, 256, 8, 2),
    Kernel("class_kernel<2,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 34.5, 8, 16, 38, 256, 6, 1, shortest=True),
    Kernel("dense_kernel<2,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 46.8, 12, 16, 31, 256, 8, 1),
    Kernel("class_kernel<2,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 24.2, 4, 16, 47, 256, 5, 1, shortest=True),
    Kernel("dense_kernel<2,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 46.4, 6, 16, 32, 256, 8, 1),
    Kernel("class_kernel<3,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 38, 12, 16, 44, 256, 5, 1, shortest=True),
    Kernel("dense_kernel<3,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 46.5, 16, 16, 40, 256, 6, 1),
    Kernel("class_kernel<3,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 27.2, 6, 16, 48, 256, 5, 1, shortest=True),
    Kernel("dense_kernel<3,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 48, 8, 16, 32, 256, 8, 1),
    Kernel("class_kernel<4,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 35.5, 8, 16, 40, 256, 6, 2, shortest=True),
    Kernel("dense_kernel<4,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 50, 12, 16, 32, 256, 8, 2),
    Kernel("class_kernel<4,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 25.5, 4, 16, 48, 256, 5, 2, shortest=True),
    Kernel("dense_kernel<4,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 48.8, 6, 16, 32, 256, 8, 2),
    Kernel("weighted_kernel<1,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 37, 4, 4, 30, 256, 8, 2, shortest=True),
    Kernel("weighted_kernel<1,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 35, 2, 2, 30, 256, 8, 2, shortest=True),
    Kernel("weighted_kernel<2,float,FocalLoss<float,true>>", "focal_loss.cu", "float32", 46, 8, 4, 26, 256, 8, 1, shortest=True),
    Kernel("weighted_kernel<2,bfloat16,FocalLoss<float,true>>", "focal_loss.cu", "bfloat16", 46, 4, 2, 26, 256, 8, 1, shortest=True),
    Kernel("moments_kernel<float,ContiguousChunk<float>>", "group_norm_relu.cu", "float32", 3.7, 4, 16, 40, 256, 6, 3),
    Kernel("moments_kernel<float,ChannelsLastChunk<float>>", "group_norm_relu.cu", "float32", 4.4, 4, 16, 40, 256, 6, 3),
    Kernel("moments_kernel<bfloat16,ContiguousChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 4.8, 2, 16, 40, 256, 6, 3),
    Kernel("moments_kernel<bfloat16,ChannelsLastChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 5.2, 2, 8, 40, 256, 6, 3),
    Kernel("apply_kernel<float,ContiguousChunk<float>>", "group_norm_relu.cu", "float32", 5.2, 8, 16, 32, 256, 8, 3),
    Kernel("apply_kernel<float,ChannelsLastChunk<float>>", "group_norm_relu.cu", "float32", 6.1, 8, 16, 36, 256, 6, 3),
    Kernel("apply_kernel<bfloat16,ContiguousChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 6.6, 4, 16, 39, 256, 6, 3),
    Kernel("apply_kernel<bfloat16,ChannelsLastChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 7.4, 4, 8, 38, 256, 6, 3),
    Kernel("grad_sums_kernel<float,ContiguousChunk<float>>", "group_norm_relu.cu", "float32", 7.9, 8, 16, 40, 256, 6, 3),
    Kernel("grad_sums_kernel<float,ChannelsLastChunk<float>>", "group_norm_relu.cu", "float32", 8.8, 8, 16, 48, 256, 5, 3),
    Kernel("grad_sums_kernel<bfloat16,ContiguousChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 9.9, 4, 16, 40, 256, 6, 3),
    Kernel("grad_sums_kernel<bfloat16,ChannelsLastChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 10.4, 4, 8, 47, 256, 5, 3),
    Kernel("grad_apply_kernel<float,ContiguousChunk<float>>", "group_norm_relu.cu", "float32", 8.4, 12, 16, 40, 256, 6, 3),
    Kernel("grad_apply_kernel<float,ChannelsLastChunk<float>>", "group_norm_relu.cu", "float32", 9, 12, 16, 40, 256, 6, 3),
    Kernel("grad_apply_kernel<bfloat16,ContiguousChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 10.7, 6, 16, 40, 256, 6, 3),
    Kernel("grad_apply_kernel<bfloat16,ChannelsLastChunk<bfloat16>>", "group_norm_relu.cu", "bfloat16", 12.4, 6, 8, 40, 256, 6, 3),
    Kernel("merge_moments_kernel", "group_norm_relu.cu", "float32", 0, 0, 8, 30, 256, 8, 3),
    Kernel("merge_sums_kernel", "group_norm_relu.cu", "float32", 0, 0, 8, 31, 256, 8, 3),
    Kernel("greatest_kernel", "match_anchors.cu", "float32", 0, 0, 16, 38, 256, 6, 2),
    Kernel("match_kernel", "match_anchors.cu", "float32", 0, 0, 16, 44, 256, 5, 2),
    Kernel("plan_kernel", "nms.cu", "int64", 0, 0, 8, 58, 1024, 1, 3),
    Kernel("compare_kernel", "nms.cu", "float32", 49.5, 16, 16, 32, 64, 32, 3, memory="shared"),
    Kernel("walk_kernel", "nms.cu", "bool", 8.1, 8, 8, 56, 512, 2, 3),
    Kernel("sort_kernel", "nms_padded.cu", "float32", 0, 0, 8, 47, 512, 2, 2),
    Kernel("suppress_kernel", "nms_padded.cu", "float32", 0, 0, 16, 62, 512, 2, 2),
    Kernel("filter_kernel<float>", "postprocess.cu", "float32", 0, 0, 4, 27, 256, 8, 4),
    Kernel("filter_best_kernel<float>", "postprocess.cu", "float32", 10.9, 4, 4, 32, 256, 8, 4),
    Kernel("select_kernel<float>", "postprocess.cu", "float32", 0, 0, 4, 64, 512, 2, 4),
    Kernel("filter_kernel<bfloat16>", "postprocess.cu", "bfloat16", 0, 0, 2, 39, 256, 6, 4),
    Kernel("filter_best_kernel<bfloat16>", "postprocess.cu", "bfloat16", 11.9, 2, 2, 32, 256, 8, 4),
    Kernel("select_kernel<bfloat16>", "postprocess.cu", "bfloat16", 0, 0, 4, 57, 512, 2, 4),
    Kernel("detect_kernel", "postprocess.cu", "float32", 0, 0, 4, 56, 512, 2, 4),
    Kernel("add_partial_sums<float>", "launch.h", "float64", 13, 8, 8, 20, 256, 8, 2),
]
# fmt: on

FLOAT64 = {
    "add_partial_sums": "sums over blocks",
    "sum_kernel": "sums over blocks",
    "filter_kernel": "compares the scores of the few candidates with the threshold",
    "select_kernel": "compares the scores of the few candidates with the threshold",
    "detect_kernel": "converts map values of any dtype, only for kept candidates",
}
"""Kernels with float64 computations in their hot loop, and the reason."""


@dataclass(frozen=True)
class Binary:
    """The compiled CUDA operators."""

    path: Path
    cuobjdump: Path

    def usage(self) -> list[sass.Usage]:
        """Resource usage of every kernel on every architecture."""
        return sass.read_usage(sass.run(self.cuobjdump, "-res-usage", self.path))

    def code(self, mangled: list[str]) -> dict[str, sass.Code]:
        """Code of these kernels on sm_90."""
        text = sass.run(
            self.cuobjdump, "-sass", "-arch", ARCHITECTURE, self.path
        )  # -fun takes five times as long
        return sass.read_code(text, mangled)


def measured(kernel: Kernel, usage: sass.Usage, code: sass.Code) -> Kernel:
    """The budget with the values of the binary."""
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
        FileNotFoundError: if it is not built, or cuobjdump is missing.
    """
    folder = Path(__file__).parent.parent / "fcos_fast"
    path = next(folder.glob("_C_cuda.*"), None)
    if path is None:
        raise FileNotFoundError("fcos_fast._C_cuda is not built here")
    cuobjdump = sass.find_cuobjdump()
    if cuobjdump is None:
        raise FileNotFoundError("cuobjdump not found in the CUDA toolkit, on the PATH or in Triton")
    return Binary(path, cuobjdump)


def main() -> None:
    """Print all rows with the values of the binary."""
    binary = built()
    usage = {u.name: u for u in binary.usage() if u.architecture == ARCHITECTURE}
    code = binary.code([usage[kernel.name].mangled for kernel in KERNELS])
    for kernel in KERNELS:
        print(measured(kernel, usage[kernel.name], code[usage[kernel.name].mangled]))


if __name__ == "__main__":
    main()
