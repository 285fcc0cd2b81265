"""A strategy for cases and a check of each case, for every operator.

A case is a dictionary of plain values. The native operator is compared with the reference: exactly for decisions
(matches, kept boxes), and by its error in float64 for numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from fcos_fast import ops, reference
from fcos_fast.assignment import AssignmentRule, GroundTruth, Level, Targets
from fcos_fast.ops.box_loss import KINDS as BOX_LOSSES
from fcos_fast.ops.postprocess import CLIPS, SCORES, THRESHOLDS, TOPK_BY, TOPK_OVER
from fcos_fast.serialize import field_types
from tests.fuzz.compare import UNIT, assert_as_good_as_torch
from tests.fuzz.data import (
    DTYPES,
    boxes,
    classes,
    dtypes,
    formats,
    generator,
    kinds,
    lay,
    numbers,
    seeds,
    sides,
    threads,
)

Case = dict[str, object]


@dataclass(frozen=True)
class Fuzzed:
    """The strategy for an operator's cases, and their check."""

    cases: st.SearchStrategy[Case]
    check: Callable[..., None]


OPERATORS: dict[str, Fuzzed] = {}


def fuzzed(**parameters: st.SearchStrategy):
    """Register a check; every case also has a seed and a number of threads."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        cases = st.fixed_dictionaries({"seed": seeds, "threads": threads, **parameters})
        OPERATORS[check.__name__] = Fuzzed(cases, check)
        return check

    return register


def run_case(operator: str, case: Case) -> None:
    """Raise if the case fails."""
    case = dict(case)
    before = torch.get_num_threads()
    torch.set_num_threads(case.pop("threads"))
    try:
        OPERATORS[operator].check(**case)
    finally:
        torch.set_num_threads(before)


def value_and_grads(
    function, inputs: list[Tensor], seed: int, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of a function, for a random incoming gradient that is exact in ``dtype``."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = function(*inputs)
    flow = torch.randn(value.shape, generator=generator(seed), dtype=torch.float64).to(dtype).to(value.dtype)
    return value.detach(), list(torch.autograd.grad(value, inputs, flow, allow_unused=True))


def hold_against_reference(
    native, plain, inputs: list[Tensor], seed: int, finite: Tensor | None = None
) -> None:
    """Compare value and gradients; gradients only in the rows of the ``finite`` mask, if there is one."""
    dtype = inputs[0].dtype
    computed = torch.promote_types(dtype, torch.float32)
    value, grads = value_and_grads(native, inputs, seed, dtype)
    plain_value, plain_grads = value_and_grads(plain, [x.to(computed) for x in inputs], seed, dtype)
    exact_value, exact_grads = value_and_grads(plain, [x.double() for x in inputs], seed, dtype)
    assert_as_good_as_torch(value, plain_value, exact_value, value.dtype)
    for x, grad, plain_grad, exact_grad in zip(inputs, grads, plain_grads, exact_grads, strict=True):
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        if finite is not None:
            grad, plain_grad, exact_grad = (g[finite] for g in (grad, plain_grad, exact_grad))
        assert_as_good_as_torch(grad, plain_grad, exact_grad, x.dtype, slack=64)


# ---- losses ----

alphas = st.sampled_from((-1.0, 0.0, 0.25, 0.5, 1.0))
gammas = st.sampled_from((0.0, 0.5, 1.0, 2.0, 3.7))
reductions = st.sampled_from(("none", "sum", "mean"))
targets = st.sampled_from(("classes", "soft", "hard"))


def focal_inputs(seed, rows, count, kind, dtype, memory_format, target):
    x = lay(numbers(seed, (*rows, count), kind, DTYPES[dtype]), memory_format)
    if target == "classes":
        return x, classes(seed, rows, count)
    y = torch.rand(x.shape, generator=generator(seed + 2), dtype=torch.float64)
    return x, (y.round() if target == "hard" else y).to(x.dtype)


focal_shapes = {
    "rows": st.lists(sides, min_size=1, max_size=3).map(tuple),
    "count": st.sampled_from((1, 2, 3, 16, 17, 80, 91)),
    "kind": kinds,
    "dtype": dtypes,
    "memory_format": formats,
    "target": targets,
    "reduction": reductions,
}


@fuzzed(
    **focal_shapes, alpha=alphas, gamma=gammas, weights=st.sampled_from(("none", "zeros and ones", "random"))
)
def sigmoid_focal_loss(seed, alpha, gamma, reduction, weights, **inputs):
    x, y = focal_inputs(seed, **inputs)
    options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
    if weights != "none" and not y.is_floating_point():
        weight = torch.rand(y.shape, generator=generator(seed + 3))
        options["weight"] = weight.round() if weights == "zeros and ones" else weight + 0.1
    hold_against_reference(
        lambda x: ops.sigmoid_focal_loss(x, y, **options),
        lambda x: reference.sigmoid_focal_loss(x, y.to(x.dtype) if y.is_floating_point() else y, **options),
        [x],
        seed,
        x.abs() < 1e4,  # elsewhere plain PyTorch has no finite slope to compare with
    )


@fuzzed(**focal_shapes, gamma=st.sampled_from((0.3, 1.0, 2.0)), beta=st.sampled_from((-1.0, 0.0, 1.0)))
def sigmoid_focal_loss_star(seed, gamma, beta, reduction, **inputs):
    x, y = focal_inputs(seed, **inputs)
    options = {"gamma": gamma, "beta": beta, "reduction": reduction}
    hold_against_reference(
        lambda x: ops.sigmoid_focal_loss_star(x, y, **options),
        lambda x: reference.sigmoid_focal_loss_star(
            x, y.to(x.dtype) if y.is_floating_point() else y, **options
        ),
        [x],
        seed,
        x.abs() < 1e4,
    )


def ltrb(seed, shape, kind, dtype):
    """Distances; for kind "special" some are 0, negative, huge or not finite."""
    d = numbers(seed, (*shape, 4), kind, dtype)
    return d if kind == "special" else d.abs() + 0.125


@fuzzed(
    rows=st.lists(sides, max_size=3).map(tuple),
    kind=st.sampled_from(("plain", "steps")),
    dtype=dtypes,
    memory_format=formats,
    loss=st.sampled_from(BOX_LOSSES),
    box_format=st.sampled_from(("xyxy", "ltrb")),
    reduction=reductions,
    smooth=st.sampled_from((0.0, 1.0)),
)
def box_loss(seed, rows, kind, dtype, memory_format, loss, box_format, reduction, smooth):
    make = boxes if box_format == "xyxy" else ltrb
    pair = [lay(make(seed + i, rows, kind, DTYPES[dtype]), memory_format) for i in range(2)]
    options = {"box_format": box_format, "smooth": smooth}
    hold_against_reference(
        lambda p, t: ops.box_loss(p, t, loss, reduction, **options),
        lambda p, t: reference.box_loss(p, t, loss, reduction, **options),
        pair,
        seed,
    )


@fuzzed(rows=st.lists(sides, max_size=3).map(tuple), kind=kinds, dtype=dtypes, memory_format=formats)
def centerness(seed, rows, kind, dtype, memory_format):
    d = lay(ltrb(seed, rows, kind, DTYPES[dtype]), memory_format)
    usual = (d > 1e-3) & (d < 1e3)  # elsewhere products under- or overflow in only one of the precisions
    if usual.all():
        hold_against_reference(ops.centerness, reference.centerness, [d], seed)
    else:
        computed = torch.promote_types(d.dtype, torch.float32)
        actual, plain = ops.centerness(d), reference.centerness(d.to(computed))
        assert_as_good_as_torch(actual, plain, plain, d.dtype)


@fuzzed(
    batch=sides,
    groups=st.integers(1, 5),
    channels=st.integers(1, 20),
    size=st.lists(sides, max_size=3).map(tuple),
    kind=st.sampled_from(("plain", "steps")),
    dtype=dtypes,
    parameter_dtype=st.sampled_from(("none", *DTYPES)),
    memory_format=formats,
    offset=st.sampled_from((0.0, 30.0)),
)
def group_norm_relu(seed, batch, groups, channels, size, kind, dtype, parameter_dtype, memory_format, offset):
    shape = (batch, groups * channels, *size)
    if 0 in shape or channels * torch.Size(size).numel() < 2:
        return  # the variance of no elements is 0/0
    x = lay((numbers(seed, shape, kind) + offset).to(DTYPES[dtype]), memory_format)
    parameters = []
    if parameter_dtype != "none":
        parameters = [numbers(seed + i, shape[1:2], "plain", DTYPES[parameter_dtype]) for i in (1, 2)]
    variance = x.double().reshape(batch, groups, -1).var(dim=2, unbiased=False)
    if (variance < 1e-2).any():
        return  # division by a tiny deviation magnifies rounding errors

    def plain(x, *parameters):
        return reference.group_norm_relu(x, groups, *(p.to(x.dtype) for p in parameters))

    def native(x, *parameters):
        return ops.group_norm_relu(x, groups, *parameters)

    value, grads = value_and_grads(native, [x, *parameters], seed, x.dtype)
    computed = torch.promote_types(x.dtype, torch.float32)
    wide = [[t.to(d) for t in (x, *parameters)] for d in (computed, torch.float64)]
    plain_value, plain_grads = value_and_grads(plain, wide[0], seed, x.dtype)
    exact_value, exact_grads = value_and_grads(plain, wide[1], seed, x.dtype)
    assert_as_good_as_torch(value, plain_value, exact_value, x.dtype, slack=32)
    factors = parameters[0].double().abs().max() if parameters else torch.ones(())
    terms = float(factors / variance.min().sqrt())
    before_relu = F.group_norm(wide[1][0], groups, *wide[1][1:])
    if (
        before_relu.abs() > 1e-4 * before_relu.abs().max()
    ).all():  # at the kink of the ReLU, rounding determines the gradient
        for t, *three in zip((x, *parameters), grads, plain_grads, exact_grads, strict=True):
            precision = max(t.dtype, computed, key=UNIT.get)  # float64 parameters in a float32 computation
            assert_as_good_as_torch(*three, precision, slack=128, terms=terms)


# ---- targets ----

image_counts = st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple)
feature_sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=3).map(tuple)
rules = st.fixed_dictionaries(
    {
        **{
            name: st.sampled_from(get_args(kind))
            for name, kind in field_types(AssignmentRule).items()
            if get_origin(kind) is Literal and name != "location"
        },
        "radius": st.sampled_from((0.5, 1.5, 3.0)),
    }
)


def ground_truth(seed, counts, kind):
    found = [boxes(seed + i, (n,), kind, torch.float32) for i, n in enumerate(counts)]
    return GroundTruth.pack(found, [classes(seed + i, (n,), 5, 0) for i, n in enumerate(counts)])


def pyramid(sizes, step):
    bounds = (0.0, 16.0, 32.0, float("inf"))
    return [
        Level(h, w, step * 2.0**i, (step * 2.0**i,) * 2, (step * 2.0**i / 2,) * 2, (bounds[i], bounds[i + 1]))
        for i, (h, w) in enumerate(sizes)
    ]


def assert_equal_fields(actual, expected):
    for name in type(expected).__dataclass_fields__:
        one, other = getattr(actual, name), getattr(expected, name)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 if one.is_floating_point() else 0)


@fuzzed(
    counts=image_counts,
    sizes=feature_sizes,
    kind=st.sampled_from(("plain", "steps", "wide")),
    step=st.sampled_from((1.0, 4.0, 8.0)),
    rule=rules,
)
def assign_targets(seed, counts, sizes, kind, step, rule):
    gt, rule = ground_truth(seed, counts, kind), AssignmentRule(**rule)
    levels = pyramid(sizes, step)
    assert_equal_fields(ops.assign_targets(gt, levels, rule), reference.assign_targets(gt, levels, rule))


@fuzzed(
    counts=image_counts,
    anchors=st.integers(0, 300),
    kind=st.sampled_from(("plain", "steps", "wide")),
    thresholds=st.sampled_from(((0.4, 0.5), (0.5, 0.5), (0.0, 1.0), (0.3, 0.3))),
    low_quality=st.sampled_from(("none", "own_match", "last_claim")),
    min_pos_iou=st.sampled_from((0.0, 0.2, 1.0)),
)
def match_anchors(seed, counts, anchors, kind, thresholds, low_quality, min_pos_iou):
    gt = ground_truth(seed, counts, kind)
    a = boxes(seed + 99, (anchors,), kind, torch.float32)
    options = {
        "low_threshold": thresholds[0],
        "high_threshold": thresholds[1],
        "low_quality": low_quality,
        "min_pos_iou": min_pos_iou,
    }
    assert_equal_fields(ops.match_anchors(a, gt, **options), reference.match_anchors(a, gt, **options))


@fuzzed(
    counts=image_counts,
    sizes=feature_sizes,
    kind=st.sampled_from(("plain", "steps")),
    step=st.sampled_from((4.0, 8.0)),
    dtype=dtypes,
    memory_format=formats,
    count=st.sampled_from((1, 5, 17)),
    alpha=alphas,
    gamma=gammas,
    loss=st.sampled_from(BOX_LOSSES),
    weighted=st.booleans(),
    quality=st.sampled_from(("centerness", "iou")),
    normalizers=st.sampled_from((None, 1, 2)),
    used=st.sampled_from(((1.0, 1.0, 1.0), (1.0, 0.5, 2.0), (1.0, 0.0, 1.0))),
)
def detection_loss(
    seed,
    counts,
    sizes,
    kind,
    step,
    dtype,
    memory_format,
    count,
    alpha,
    gamma,
    loss,
    weighted,
    quality,
    normalizers,
    used,
):
    batch = len(counts)
    levels = pyramid(sizes, step)
    found = reference.assign_targets(ground_truth(seed, counts, kind), levels, AssignmentRule(sampling="box"))
    labels = found.labels.where(found.labels < count, count - 1)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator(seed + 3)) < 0.1, -2)
    found = Targets(labels, *(getattr(found, name) for name in ("matched", "ltrb", "centerness", "totals")))
    maps = []
    for part, channels in enumerate((count, 4, 1)):
        for i, level in enumerate(levels):
            x = numbers(seed + 10 * part + i, (batch, channels, level.height, level.width), kind)
            maps.append(lay((x.abs() + 0.125 if part == 1 else x).to(DTYPES[dtype]), memory_format))
    options = {
        "units": [level.stride for level in levels],
        "alpha": alpha,
        "gamma": gamma,
        "box_loss": loss,
        "centerness_weighted": weighted,
        "quality": quality,
    }
    if normalizers is not None:
        shape = (3,) if normalizers == 1 else (3, batch)
        options["normalizers"] = torch.rand(shape, generator=generator(seed + 4)) * 5 + 1

    def total(module):
        def function(*maps):
            n = len(levels)
            losses = module.detection_loss(maps[:n], maps[n : 2 * n], maps[2 * n :], found, **options)
            return sum(value * factor for value, factor in zip(losses.values(), used, strict=True))

        return function

    hold_against_reference(total(ops), total(reference), maps, seed)


# ---- detections ----

iou_thresholds = st.sampled_from((0.0, 0.3, 0.5, 0.617, 1.0))
box_counts = st.one_of(st.integers(0, 400), st.just(2100))  # classes of 2,048 boxes or more use all threads


def scores_of(seed, shape, kind, dtype):
    return numbers(seed + 7, shape, kind, dtype)


@fuzzed(
    n=box_counts,
    kind=kinds,
    score_kind=kinds,
    dtype=dtypes,
    score_dtype=dtypes,
    iou_threshold=iou_thresholds,
    memory_format=formats,
)
def nms(seed, n, kind, score_kind, dtype, score_dtype, iou_threshold, memory_format):
    b = lay(boxes(seed, (n,), kind, DTYPES[dtype]), memory_format)
    s = scores_of(seed, (n,), score_kind, DTYPES[score_dtype])
    assert ops.nms(b, s, iou_threshold).tolist() == reference.nms(b, s, iou_threshold).tolist()


@fuzzed(
    n=box_counts,
    kind=kinds,
    dtype=dtypes,
    iou_threshold=iou_thresholds,
    groups=st.sampled_from((1, 3, 90)),
    negative=st.booleans(),
)
def batched_nms(seed, n, kind, dtype, iou_threshold, groups, negative):
    b, s = boxes(seed, (n,), kind, DTYPES[dtype]), scores_of(seed, (n,), kind, torch.float32)
    if negative:
        b = b - 3000
    idxs = classes(seed, (n,), groups, -1)
    arguments = (b, s, idxs, iou_threshold)
    assert ops.batched_nms(*arguments).tolist() == reference.batched_nms(*arguments).tolist()


@fuzzed(
    batch=st.integers(0, 3),
    n=box_counts,
    kind=kinds,
    dtype=dtypes,
    iou_threshold=iou_thresholds,
    groups=st.sampled_from((None, 1, 3, 90)),
    most=st.sampled_from((1, 5, 100, 1000)),
    memory_format=formats,
)
def nms_padded(seed, batch, n, kind, dtype, iou_threshold, groups, most, memory_format):
    b = lay(boxes(seed, (batch, n), kind, DTYPES[dtype]), memory_format)
    s = scores_of(seed, (batch, n), kind, torch.float32)
    labels = None if groups is None else classes(seed, (batch, n), groups, -1)
    for actual, expected in zip(
        ops.nms_padded(b, s, labels, iou_threshold, most),
        reference.nms_padded(b, s, labels, iou_threshold, most),
        strict=True,
    ):
        assert actual.tolist() == expected.tolist()


@fuzzed(
    batch=st.integers(0, 3),
    sizes=feature_sizes,
    count=st.sampled_from((1, 2, 17)),
    dtype=dtypes,
    memory_format=formats,
    score=st.sampled_from(SCORES),
    score_threshold=st.sampled_from((0.0, 0.0513, 0.317)),
    threshold_on=st.sampled_from(THRESHOLDS),
    multi_label=st.booleans(),
    topk_candidates=st.sampled_from((1, 7, 1000)),
    topk_over=st.sampled_from(TOPK_OVER),
    topk_by=st.sampled_from(TOPK_BY),
    iou_threshold=st.sampled_from((0.0, 0.317, 0.617, 1.0)),
    class_agnostic=st.booleans(),
    max_detections=st.sampled_from((1, 10, 300)),
    inclusive_boxes=st.booleans(),
    clip=st.sampled_from(CLIPS),
    drop_empty=st.booleans(),
)
def postprocess(seed, batch, sizes, count, dtype, memory_format, **options):
    levels = pyramid(sizes, 8.0)
    # Scores must be equal or differ by more than rounding: distinct in float64, else with a constant centerness.
    kind = "plain" if dtype == "float64" else "steps"
    maps = [
        [
            lay(numbers(seed + 10 * part + i, (batch, channels, h, w), kind, DTYPES[dtype]), memory_format)
            for i, (h, w) in enumerate(sizes)
        ]
        for part, channels in enumerate((count, 4, 1))
    ]
    maps[1] = [x + 1 for x in maps[1]]
    if kind == "steps":
        maps[2] = [torch.full_like(x, 0.75) for x in maps[2]]
    image_sizes = torch.randint(20, 90, (batch, 2), generator=generator(seed + 5))
    options |= {"units": [level.stride for level in levels]}
    actual = ops.postprocess(*maps, levels, image_sizes, **options)
    expected = reference.postprocess(*maps, levels, image_sizes, **options)
    assert actual.counts.tolist() == expected.counts.tolist()
    assert actual.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-6, atol=1e-5)
