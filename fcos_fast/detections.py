"""What detection ends in; shared by :mod:`fcos_fast.ops`, :mod:`fcos_fast.reference` and the models."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Detections(NamedTuple):
    """The detections of B images, at most D each, best first; all on the device of the head's outputs.

    Attributes:
        boxes: (B, D, 4) float32 (float64 of float64 logits), xyxy in pixels; 0 where there is none.
        scores: (B, D) of the same dtype, falling; 0 where there is none.
        labels: (B, D) int64, classes 0..C-1; -1 where there is none.
        counts: (B,) int64; image ``b`` owns the first ``counts[b]`` places.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor

    def split(self) -> list[dict[str, Tensor]]:
        """One dict of ``boxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) per image; waits for the device once."""
        return [
            {"boxes": self.boxes[b, :n], "scores": self.scores[b, :n], "labels": self.labels[b, :n]}
            for b, n in enumerate(self.counts.tolist())
        ]
