"""Calls every registered operator with a hostile value for each of its arguments; run in a separate process.

Prints each call before it is made, so that the last line shows the one that crashed, and finally the invalid arguments
that were accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from tests.ops.arguments import registered, valid_arguments

HUGE = 2**62


def hostile_tensors(t: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Yields (description, tensor, whether the operator must raise)."""
    yield "on another device", torch.empty_like(t, device="meta"), True
    yield "complex", t.to(torch.complex64), True
    yield (
        "int8" if t.is_floating_point() else "float32",
        t.to(torch.int8 if t.is_floating_point() else torch.float32),
        False,
    )
    for dtype in (torch.float64, torch.float16, torch.bool, torch.uint8, torch.int32, torch.uint16):
        yield str(dtype), t.to(dtype), False
    yield "flat", t.flatten(), False
    yield "one dimension more", t[None], False
    yield "a scalar", t.flatten()[0].clone() if t.numel() else t, False
    yield "without elements", t[:0] if t.ndim else t.new_empty(0), False
    if t.ndim:
        yield "one row more", torch.cat((t, t[-1:])), False
        yield "one row less", t[:-1], False
        yield "overlapping", t[:1].expand_as(t), False
        yield "strided", torch.stack((t, t), dim=-1)[..., 0], False
        yield "backwards", t.flip(0), False
        yield "transposed", t.transpose(0, -1), False
        yield "last dimension shortened", t[..., :-1], False
        yield "last dimension removed", t[..., 0], False
        yield "4 billion of one element", t.new_zeros(()).expand(2**32), False
    extremes = (
        (float("nan"), float("inf"), float("-inf"), -1e30, 3e38)
        if t.is_floating_point()
        else (-1, -3, 2**31 - 1, -(2**31))
    )
    for extreme in extremes:
        yield f"full of {extreme}", torch.full_like(t, extreme), False
    if t.dtype == torch.int64:
        for extreme in (HUGE, -HUGE, 2**40):
            yield f"full of {extreme}", torch.full_like(t, extreme), False


def hostile_values(value: object) -> Iterator[tuple[str, object, bool]]:
    if isinstance(value, torch.Tensor):
        yield from hostile_tensors(value)
    elif isinstance(value, bool):
        yield "the other", not value, False
    elif isinstance(value, int):
        for other in (-1, 0, 3, 7, 2**31, HUGE, -HUGE):
            yield str(other), other, other < 0
    elif isinstance(value, float):
        for other in (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e308, -1e308):
            yield str(other), other, other != other
    elif isinstance(value, str):
        for other in ("", "nonsense", f"{value}\0", "x" * 100_000):
            yield repr(other[:20]), other, True
    elif isinstance(value, list):
        yield "empty", [], False
        yield "shorter", value[:-1], False
        yield "longer", [*value, value[-1]], False
        yield "a hundred", value * 100, False
        if not isinstance(value[0], torch.Tensor):
            for i in range(len(value)):
                kinds = (-5, -1, 2**24 + 1, 2**31 - 1, HUGE) if isinstance(value[0], int) else ()
                for other in kinds or (float("nan"), float("inf"), 0.0, -1e300, 1e300):
                    yield f"[{i}] = {other}", [*value[:i], other, *value[i + 1 :]], bool(kinds)
        else:
            for i, t in enumerate(value):
                for name, other, must_raise in hostile_tensors(t):
                    yield f"[{i}] {name}", [*value[:i], other, *value[i + 1 :]], must_raise
    elif value is not None:
        raise AssertionError(f"no hostile values for {value!r}")


def calls() -> Iterator[tuple[str, str, tuple, bool]]:
    for op, arguments in sorted(valid_arguments().items()):
        names = [a.name for a in getattr(torch.ops.fcos_fast, op).default._schema.arguments]
        for i, (name, value) in enumerate(zip(names, arguments, strict=True)):
            for description, hostile, must_raise in hostile_values(value):
                writes = op.endswith("_") or op.startswith("winograd")  # into its arguments
                others = valid_arguments()[op] if writes else arguments
                yield op, f"{name} {description}", (*others[:i], hostile, *others[i + 1 :]), must_raise


ALONE = "centerness: ltrb on another device"  # its only tensor, so there is no mismatch


def main() -> int:
    missing = registered() - set(valid_arguments())
    assert not missing, f"no arguments for {missing}"
    for op, arguments in valid_arguments().items():
        getattr(torch.ops.fcos_fast, op)(*arguments)
    accepted, count = [], 0
    for op, description, arguments, must_raise in calls():
        sys.stdout.write(f"{op}: {description}\n")
        sys.stdout.flush()
        count += 1
        try:
            getattr(torch.ops.fcos_fast, op)(*arguments)
        except Exception:
            continue
        if must_raise and f"{op}: {description}" != ALONE:
            accepted.append(f"{op}: {description}")
    print("accepted:", *accepted, sep="\n  ")
    print(f"{count} calls")
    return 1 if accepted else 0


if __name__ == "__main__":
    sys.exit(main())
