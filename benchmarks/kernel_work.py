"""Number of elements and bytes that the CUDA kernels process for ``benchmarks.data.BATCHES["cuda"]``.

That is 16 images of 800x1344 with 80 classes. The cost per element is from machine code, in ``tests.cuda_budget``;
``python -m benchmarks.roofline`` computes the resulting bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.data import BATCHES
from tests.cuda_budget import KERNELS, Kernel

BATCH = BATCHES["cuda"]
LOGITS = BATCH.locations * BATCH.classes
P3 = BATCH.images * 256 * BATCH.feature_sizes[0][0] * BATCH.feature_sizes[0][1]
ANCHORS = 9 * BATCH.locations
BUDGETS = {kernel.name: kernel for kernel in KERNELS}
# bytes per location (four distances, centerness, their gradients, an int32 label), divided among its classes
BESIDE_LOGITS = (2 * 2 * 5 + 4) / BATCH.classes


@dataclass(frozen=True)
class Work:
    """The work of an operator for this batch.

    Attributes:
        what: the operator, dtype and memory format.
        kernels: names in ``tests.cuda_budget`` of the kernels that process all elements, in order.
        elements: number of elements.
        bytes_per_element: bytes read and written in all launches.
        memsets: number of memsets, in addition to kernel launches.
    """

    what: str
    kernels: tuple[str, ...]
    elements: int
    bytes_per_element: float
    memsets: int = 0

    @property
    def budgets(self) -> list[Kernel]:
        """The budgets of its kernels."""
        return [BUDGETS[name] for name in self.kernels]

    @property
    def bytes(self) -> float:
        """Total number of bytes."""
        return self.elements * self.bytes_per_element

    @property
    def instructions_per_element(self) -> float | None:
        """In all hot loops, per thread; None if a kernel has no loop over elements."""
        counted = [budget.instructions_per_element for budget in self.budgets]
        return sum(counted) if all(counted) else None

    @property
    def launches(self) -> int:
        """Of the whole operator, including memsets."""
        return self.budgets[0].launches + self.memsets


def focal(wanted: int) -> str:
    """The bfloat16 kernel for class targets; ``wanted``: 1 is the sum, 2 the gradient, 4 both."""
    return f"class_kernel<{wanted},bfloat16,FocalLoss<float,true>>"


def group_norm(*kernels: str, chunk: str) -> tuple[str, ...]:
    """The bfloat16 kernels."""
    return tuple(f"{kernel}_kernel<bfloat16,{chunk}Chunk<bfloat16>>" for kernel in kernels)


FORMATS = {"NCHW": "Contiguous", "channels-last": "ChannelsLast"}

WORKS = [
    # with the budget of the costlier memory format
    Work(
        "detection_loss with gradient",
        ("loss_kernel<4,bfloat16,FocalLoss<float,true>>",),
        LOGITS,
        4 + BESIDE_LOGITS,
    ),
    Work("focal loss, class targets: sum", (focal(1),), LOGITS, 2 + 8 / BATCH.classes),
    Work("focal loss, class targets: gradient", (focal(2),), LOGITS, 4 + 8 / BATCH.classes),
    *(
        Work(f"group_norm_relu forward, {name}", group_norm("moments", "apply", chunk=chunk), P3, 3 * 2)
        for name, chunk in FORMATS.items()
    ),
    *(
        Work(
            f"group_norm_relu backward, {name}", group_norm("grad_sums", "grad_apply", chunk=chunk), P3, 5 * 2
        )
        for name, chunk in FORMATS.items()
    ),
    Work("assign_targets, 20 boxes an image", ("assign_kernel",), BATCH.locations, 7 * 4, memsets=1),
    Work("match_anchors, 20 boxes an image", ("match_kernel",), ANCHORS, 2 * 4, memsets=1),
    Work("postprocess, all classes of a location", ("filter_kernel<bfloat16>",), LOGITS, 2),
    Work("postprocess, the best class", ("filter_best_kernel<bfloat16>",), LOGITS, 2),
]
