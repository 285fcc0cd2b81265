"""Centerness of a location in its box (Tian et al., "FCOS", 2019, equation 3)."""

from __future__ import annotations

from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops import _checks
from fcos_fast.ops._register import call, register_fake, register_gradient, reject_second_derivative


def centerness(ltrb: Tensor) -> Tensor:
    """``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))``: 1 at the center of the box, 0 at its border.

    Args:
        ltrb: (..., 4) distances to the left, top, right and bottom sides, in any unit; float32, float64, bfloat16 or
            float16.

    Returns:
        (...) centerness, in the same dtype. If a distance is 0, negative or NaN, centerness and gradient are 0.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape.
    """
    _checks.check_same_device("centerness", ltrb=ltrb)
    _checks.check_float("centerness", ltrb=ltrb)
    _checks.check_boxes("centerness", ltrb=ltrb)
    if not use_native(ltrb):
        return reference.centerness(ltrb)
    return call("centerness", ltrb)


if cpu_error is None:
    register_gradient("centerness", "centerness_backward", tensors=1, differentiable=[0])
    reject_second_derivative("centerness_backward")
    register_fake("centerness")(lambda ltrb: ltrb.new_empty(ltrb.shape[:-1]))
    register_fake("centerness_backward")(lambda grad, ltrb: ltrb.new_empty(ltrb.shape))
