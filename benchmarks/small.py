"""Every operator, forward and backward, on small inputs: ``python -m benchmarks.small cuda``, for compute-sanitizer.

Small because every access is checked, but with several blocks, levels and images, odd sizes and both memory formats.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks import (
    bench_assign_targets,
    bench_box_loss,
    bench_centerness,
    bench_detection_loss,
    bench_focal_loss,
    bench_group_norm_relu,
    bench_match_anchors,
    bench_nms,
    bench_postprocess,
)
from benchmarks.data import Batch
from benchmarks.rows import OURS
from fcos_fast._extension import backend

BATCH = Batch(2, (200, 264), 5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FORMATS = (torch.contiguous_format, torch.channels_last)


def work(device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields (name, call)."""

    def ours(bench, *data, **rows):
        return lambda: bench.rows(**rows)[OURS](*data)

    for dtype in DTYPES:
        for memory_format in FORMATS:
            name = f"{dtype}, {memory_format}".replace("torch.", "")
            maps = bench_detection_loss.make(device, BATCH, dtype, memory_format)
            yield f"detection_loss {name}", ours(bench_detection_loss, *maps, classes=BATCH.classes)
            x = bench_group_norm_relu.make(device, (2, 256, 13, 19), dtype, memory_format)
            yield f"group_norm_relu {name}", ours(bench_group_norm_relu, *x)
            if dtype != torch.float64:
                maps = bench_postprocess.make(device, BATCH, dtype, memory_format)
                yield f"postprocess {name}", ours(bench_postprocess, *maps)
        logits = bench_focal_loss.make(device, BATCH, dtype)
        for kind in (bench_focal_loss.on_classes, bench_focal_loss.on_dense):
            yield f"focal_loss {kind.__name__} {dtype}", ours(bench_focal_loss, *logits, on_targets=kind)
    for kind in bench_box_loss.PEERS:
        yield f"box_loss {kind}", ours(bench_box_loss, *bench_box_loss.make(device, 1027), kind=kind)
    centerness = next(case for case in bench_centerness.CASES)
    data = bench_centerness.make(device, 1027)
    yield "centerness", lambda: centerness.rows[OURS](*data)
    for boxes in (0, 1, 37):
        yield f"assign_targets {boxes}", ours(bench_assign_targets, *bench_assign_targets.make(device, boxes))
        yield f"match_anchors {boxes}", ours(bench_match_anchors, *bench_match_anchors.make(device, 2, boxes))
    for count in (1, 65, 1500):
        images = [bench_nms.make(device, bench_nms.clustered_boxes, count, 3) for _ in range(2)]
        yield f"nms {count}", lambda data=images[0][:2]: bench_nms.rows("nms")[OURS](*data)
        yield f"batched_nms {count}", lambda data=images[0]: bench_nms.rows("batched_nms")[OURS](*data)
        stacked = [torch.stack(of_kind) for of_kind in zip(*images, strict=True)]
        yield f"nms_padded {count}", lambda data=stacked: bench_nms.padded_rows(100)[OURS](*data)


def main(device: str) -> None:
    """Print the name of each call before it runs, so that the last line shows which one crashed."""
    torch.manual_seed(0)
    done = 0
    with backend("native"):
        for name, call in work(device):
            print(name, flush=True)
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            done += 1
    print(f"done: {done}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
