"""The detections of a batch, as :mod:`fcos_fast.ops`, :mod:`fcos_fast.reference` and the models return them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BatchDetections(NamedTuple):
    """The detections of B images, padded to D each, best first; all on the device of the head's outputs.

    Attributes:
        boxes: (B, D, 4) float32 (float64 for float64 logits), xyxy in pixels; padded with 0.
        scores: (B, D) of the same dtype, in descending order; padded with 0.
        labels: (B, D) int64, classes 0..C-1; padded with -1.
        counts: (B,) int64; the first ``counts[b]`` rows are detections of image ``b``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor

    def split(self) -> list[dict[str, Tensor]]:
        """One dict of ``boxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) per image; synchronizes once."""
        return [
            {"boxes": self.boxes[b, :n], "scores": self.scores[b, :n], "labels": self.labels[b, :n]}
            for b, n in enumerate(self.counts.tolist())
        ]
