"""What each CUDA kernel costs per element, read from its machine code for sm_90, and never measured on a GPU.

The reference work is ``benchmarks.data.BATCHES["cuda"]``: 16 images of 800x1344 with 80 classes. Whoever changes a
kernel changes its row; ``python -m benchmarks.roofline`` says what follows for a card.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.data import BATCHES

BATCH = BATCHES["cuda"]
LOGITS = BATCH.locations * BATCH.classes
P3 = BATCH.images * 256 * BATCH.feature_sizes[0][0] * BATCH.feature_sizes[0][1]
ANCHORS = 9 * BATCH.locations


@dataclass(frozen=True)
class Kernel:
    """A row.

    Attributes:
        kernel: its name in the source; of a pair of kernels that share the work the one with the hot loop.
        what: the work, as it is told from other uses of the kernel.
        source: file in the repository.
        dtype: of the elements.
        elements: of the reference work.
        instructions_per_element: of the hot loop, as one thread issues them; None where nobody has counted.
        bytes_per_element: read and written, all launches together.
        registers: of a thread.
        threads: of a block.
        launches: of the whole operator, memsets with them.
    """

    kernel: str
    what: str
    source: str
    dtype: str
    elements: int
    instructions_per_element: float | None
    bytes_per_element: float
    registers: int
    threads: int
    launches: int

    @property
    def bytes(self) -> float:
        """Of the reference work."""
        return self.elements * self.bytes_per_element


KERNELS = [
    Kernel(
        kernel="loss_kernel",
        what="detection_loss, NCHW",
        source="csrc/cuda/detection_loss.cu",
        dtype="bfloat16",
        elements=LOGITS,
        instructions_per_element=44,
        # a logit and its gradient; of a location four distances, centerness, their gradients, and an int32 label
        bytes_per_element=2 * 2 + (2 * 2 * 5 + 4) / BATCH.classes,
        registers=64,
        threads=256,
        launches=3,  # with the rescaling
    ),
    Kernel(
        kernel="loss_kernel",
        what="detection_loss, channels-last",
        source="csrc/cuda/detection_loss.cu",
        dtype="bfloat16",
        elements=LOGITS,
        instructions_per_element=72,
        bytes_per_element=2 * 2 + (2 * 2 * 5 + 4) / BATCH.classes,
        registers=64,
        threads=256,
        launches=3,
    ),
    Kernel(
        kernel="focal_kernel",
        what="focal loss, sum, class targets",
        source="csrc/cuda/focal_loss.cu",
        dtype="bfloat16",
        elements=LOGITS,
        instructions_per_element=65,
        bytes_per_element=2 + 8 / BATCH.classes,
        registers=35,
        threads=256,
        launches=2,
    ),
    Kernel(
        kernel="focal_kernel",
        what="focal loss, gradient, class targets",
        source="csrc/cuda/focal_loss.cu",
        dtype="bfloat16",
        elements=LOGITS,
        instructions_per_element=75,
        bytes_per_element=2 * 2 + 8 / BATCH.classes,
        registers=47,
        threads=256,
        launches=1,
    ),
    Kernel(
        kernel="apply_kernel",
        what="group_norm_relu, forward, NCHW",
        source="csrc/cuda/group_norm_relu.cu",
        dtype="bfloat16",
        elements=P3,
        instructions_per_element=None,
        bytes_per_element=3 * 2,  # x twice, y
        registers=54,
        threads=512,
        launches=2,
    ),
    Kernel(
        kernel="apply_kernel",
        what="group_norm_relu, forward, channels-last",
        source="csrc/cuda/group_norm_relu.cu",
        dtype="bfloat16",
        elements=P3,
        instructions_per_element=None,
        bytes_per_element=3 * 2,  # x twice, y
        registers=56,
        threads=512,
        launches=2,
    ),
    Kernel(
        kernel="grad_apply_kernel",
        what="group_norm_relu, backward, NCHW",
        source="csrc/cuda/group_norm_relu.cu",
        dtype="bfloat16",
        elements=P3,
        instructions_per_element=None,
        bytes_per_element=5 * 2,  # x and y's gradient twice, x's gradient
        registers=40,
        threads=512,
        launches=2,
    ),
    Kernel(
        kernel="grad_apply_kernel",
        what="group_norm_relu, backward, channels-last",
        source="csrc/cuda/group_norm_relu.cu",
        dtype="bfloat16",
        elements=P3,
        instructions_per_element=None,
        bytes_per_element=5 * 2,  # x and y's gradient twice, x's gradient
        registers=63,
        threads=512,
        launches=2,
    ),
    Kernel(
        kernel="assign_kernel",
        what="assign_targets, 20 boxes an image",
        source="csrc/cuda/assign_targets.cu",
        dtype="float32",
        elements=BATCH.locations,
        instructions_per_element=None,  # every box against every location
        bytes_per_element=7 * 4,
        registers=32,
        threads=256,
        launches=2,
    ),
    Kernel(
        kernel="match_kernel",
        what="match_anchors, 20 boxes an image",
        source="csrc/cuda/match_anchors.cu",
        dtype="float32",
        elements=ANCHORS,
        instructions_per_element=None,  # every IoU twice
        bytes_per_element=2 * 4,
        registers=29,
        threads=256,
        launches=4,
    ),
    Kernel(
        kernel="filter_kernel",
        what="postprocess, NCHW",
        source="csrc/cuda/postprocess.cu",
        dtype="bfloat16",
        elements=LOGITS,
        instructions_per_element=None,
        bytes_per_element=2,
        registers=39,
        threads=256,
        launches=4,  # filter, select, detect and a memset
    ),
]
