from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fcos_fast import backend, ops, reference
from fcos_fast.assignment import IGNORED, RULES, GroundTruth, Targets
from fcos_fast.ops.box_loss import KINDS
from tests.ops.opcheck import CHECKS

STRIDES = (8, 16, 32)
SIZE = (100, 132)
FEATURE_SIZES = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]  # some are odd
RULE = replace(RULES["official-improved"], sizes_of_interest=(48.0, 96.0))
BOXES = [
    torch.tensor([[10.0, 12, 50, 60], [0, 0, 132, 100], [70, 20, 90, 50]]),
    torch.zeros(0, 4),
    torch.tensor([[30.0, 30, 64, 64]]),
]
LABELS = [torch.tensor([0, 2, 4]), torch.zeros(0, dtype=torch.int64), torch.tensor([1])]
MEMORY_FORMATS = ["nchw", "channels_last", "sliced", "sliced_channels_last", "transposed", "mixed"]


def make_targets(device="cpu", boxes=BOXES, labels=LABELS, ignored=0.05) -> Targets:
    levels = RULE.levels(FEATURE_SIZES, SIZE, STRIDES)
    targets = reference.assign_targets(GroundTruth.pack(boxes, labels), levels, RULE)
    targets.labels[torch.rand(targets.labels.shape) < ignored] = IGNORED
    return Targets(*(getattr(targets, name).to(device) for name in Targets.__dataclass_fields__))


def lay(x, memory_format, level=0):
    if memory_format == "sliced":
        return torch.cat((x, x), dim=3)[..., : x.shape[3]]
    if memory_format == "sliced_channels_last":
        return torch.cat((x, x), dim=1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]]
    if memory_format == "transposed":
        return x.mT.contiguous().mT
    last = memory_format == "channels_last" or (memory_format == "mixed" and level % 2)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def make_maps(dtype=torch.float32, device="cpu", memory_format="nchw", classes=5, batch=3):
    def maps(channels, positive=False):
        values = [torch.randn(batch, channels, *size) * 2 for size in FEATURE_SIZES]
        values = [x.abs() + 0.1 if positive else x for x in values]
        return [lay(x.to(device, dtype), memory_format, i).requires_grad_() for i, x in enumerate(values)]

    return maps(classes), maps(4, positive=True), maps(1)


def losses_and_grads(function, maps, targets, weights=(1.0, 1.0, 1.0), **options):
    losses = function(*maps, targets, units=STRIDES, **options)
    total = sum(loss * weight for loss, weight in zip(losses.values(), weights, strict=True))
    inputs = [x for part in maps for x in part]
    return [x.detach() for x in losses.values()], torch.autograd.grad(total, inputs)


def exact(maps):
    return tuple([x.detach().double().contiguous().requires_grad_() for x in part] for part in maps)


def compare(maps, targets, dtype, **options):
    """Compare with the reference in float64, on the same numbers."""
    losses, grads = losses_and_grads(ops.detection_loss, maps, targets, **options)
    targets = replace(targets, ltrb=targets.ltrb.double(), centerness=targets.centerness.double())
    true_losses, true_grads = losses_and_grads(reference.detection_loss, exact(maps), targets, **options)
    for loss, true in zip(losses, true_losses, strict=True):
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            loss.double(), true, rtol=1e-11 if dtype == torch.float64 else 1e-5, atol=1e-7
        )
    rounding = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[
        dtype
    ]
    for x, grad, true in zip([x for part in maps for x in part], grads, true_grads, strict=True):
        assert grad.dtype == dtype
        assert grad.shape == x.shape
        torch.testing.assert_close(grad.double(), true, rtol=rounding, atol=rounding * 1e-2)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_follows_the_reference(dtype, memory_format, quality, device):
    compare(make_maps(dtype, device, memory_format), make_targets(device), dtype, quality=quality)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_box_loss(kind, smooth, weighted, device):
    options = {"box_loss": kind, "box_loss_smooth": smooth, "centerness_weighted": weighted}
    compare(make_maps(device=device), make_targets(device), torch.float32, **options)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (-1.0, 2.0), (0.5, 0.0)])
@pytest.mark.parametrize("classes", [5, 16, 91])
def test_alpha_gamma_and_class_counts(alpha, gamma, classes, device):
    for memory_format in ("nchw", "channels_last"):
        maps = make_maps(device=device, classes=classes, memory_format=memory_format)
        compare(maps, make_targets(device), torch.float32, alpha=alpha, gamma=gamma)


def test_one_class(device):
    labels = [torch.zeros_like(x) for x in LABELS]
    compare(make_maps(device=device, classes=1), make_targets(device, labels=labels), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_incoming_gradient_scales_each_loss_separately(dtype, device):
    compare(make_maps(dtype, device), make_targets(device), dtype, weights=(0.5, 2.0, 0.0))


def _giou_loss(p, t, smooth):
    """IoU of two ltrb boxes at one location, smoothed as in the official code."""
    intersection = (min(p[0], t[0]) + min(p[2], t[2])) * (min(p[1], t[1]) + min(p[3], t[3]))
    union = (p[0] + p[2]) * (p[1] + p[3]) + (t[0] + t[2]) * (t[1] + t[3]) - intersection
    enclosing = (max(p[0], t[0]) + max(p[2], t[2])) * (max(p[1], t[1]) + max(p[3], t[3]))
    return 1 - (intersection + smooth) / (union + smooth) + (enclosing - union) / enclosing


def sums_by_definition(maps, targets, weighted, smooth):
    """Sums of the three losses per image, one location at a time; number of positives; sum of their weights."""
    images = []
    for b in range(3):
        sums, num_positive, weights, p = [0.0, 0.0, 0.0], 0, 0.0, 0
        for level, (h, w) in enumerate(FEATURE_SIZES):
            cls_logits, regression, quality_logits = (part[level][b].detach().double() for part in maps)
            for y in range(h):
                for x in range(w):
                    label = int(targets.labels[b, p])
                    for c, logit in enumerate(cls_logits[:, y, x].tolist()):
                        probability = 1 / (1 + math.exp(-(logit if c == label else -logit)))
                        alpha = 0.25 if c == label else 0.75
                        if label != IGNORED:
                            sums[0] -= alpha * (1 - probability) ** 2 * math.log(probability)
                    if label >= 0:
                        left, top, right, bottom = targets.ltrb[b, p].tolist()
                        quality = math.sqrt(
                            min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                        )
                        weight = quality if weighted else 1.0
                        wanted = [d / STRIDES[level] for d in (left, top, right, bottom)]
                        sums[1] += weight * _giou_loss(regression[:, y, x].tolist(), wanted, smooth)
                        predicted = 1 / (1 + math.exp(-quality_logits[0, y, x].item()))
                        sums[2] -= quality * math.log(predicted) + (1 - quality) * math.log(1 - predicted)
                        num_positive, weights = num_positive + 1, weights + weight
                    p += 1
        images.append((sums, num_positive, weights))
    return images


def published_divisors(images):
    """Divisors per image (classification, box, centerness) of the published implementations, by name."""
    batch, locations = len(images), sum(h * w for h, w in FEATURE_SIZES)
    n = sum(image[1] for image in images)
    weights = sum(image[2] for image in images)
    per_image = [max(image[1], 1) for image in images]
    return {
        "official": [[n] * batch, [weights] * batch, [n] * batch],
        "moving average of detectron2": [[0.9 * 300 + 0.1 * n] * batch] * 3,
        "all locations of AdelaiDet": [[batch * locations] * batch, [weights] * batch, [n] * batch],
        "per image, mean over images": [[batch * k for k in per_image]] * 3,
        "sum over images of at least one": [[sum(per_image)] * batch] * 3,
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_definitions_and_every_published_normalizer(weighted, device):
    maps, targets = make_maps(), make_targets()
    images = sums_by_definition(maps, targets, weighted, 1.0)
    # Locations that make_targets ignores are no longer positive.
    totals = torch.tensor([sum(image[1] for image in images), sum(image[2] for image in images)])
    targets = replace(targets, totals=totals.float())
    on_device = Targets(*(getattr(targets, name).to(device) for name in Targets.__dataclass_fields__))
    maps = tuple([x.detach().to(device) for x in part] for part in maps)
    options = {"units": STRIDES, "box_loss_smooth": 1.0, "centerness_weighted": weighted}
    for name, divisors in published_divisors(images).items():
        expected = [
            sum(sums[part] / divisors[part][b] for b, (sums, *_) in enumerate(images)) for part in range(3)
        ]
        normalizers = torch.tensor(divisors, dtype=torch.float32, device=device)
        losses = ops.detection_loss(*maps, on_device, **options, normalizers=normalizers)
        assert [x.item() for x in losses.values()] == pytest.approx(expected, rel=1e-5), name
        if name == "official":
            default = ops.detection_loss(*maps, on_device, **options)
            of_batch = ops.detection_loss(*maps, on_device, **options, normalizers=normalizers[:, 0])
            assert [x.item() for x in default.values()] == pytest.approx(expected, rel=1e-5)
            assert [x.item() for x in of_batch.values()] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_without_positives_losses_are_finite_and_have_a_graph(kind, weighted, device):
    maps = make_maps(device=device)
    targets = make_targets(device, [torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3)
    with torch.no_grad():  # outputs outside all boxes do not matter
        maps[1][0].fill_(torch.inf)
        maps[2][0].fill_(torch.nan)
    options = {"box_loss": kind, "centerness_weighted": weighted}
    losses, grads = losses_and_grads(ops.detection_loss, maps, targets, **options)
    assert losses[0] > 0
    assert losses[1] == losses[2] == 0
    assert all(grad.isfinite().all() for grad in grads)
    assert all((grad == 0).all() for grad in grads[len(STRIDES) :])


def test_ignored_locations_have_no_gradient_for_any_output(device):
    for memory_format in ("nchw", "channels_last"):
        maps, targets = (
            make_maps(device=device, memory_format=memory_format),
            make_targets(device, ignored=0.3),
        )
        start = 0
        for x in maps[0]:
            n = x.shape[2] * x.shape[3]
            ignored = (targets.labels[:, start : start + n] == IGNORED).unflatten(1, x.shape[2:])
            with torch.no_grad():
                x.permute(0, 2, 3, 1)[ignored] = torch.inf
            start += n
        losses, grads = losses_and_grads(ops.detection_loss, maps, targets)
        assert losses[0].isfinite()
        for x, grad in zip(maps[0], grads, strict=False):
            assert (grad[x == torch.inf] == 0).all()
            assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_backward_twice(dtype, factor, device):
    maps, targets = make_maps(dtype, device), make_targets(device)
    inputs = [x for part in maps for x in part]
    total = sum(ops.detection_loss(*maps, targets, units=STRIDES).values()) * factor
    first = [x.clone() for x in torch.autograd.grad(total, inputs, retain_graph=True)]
    second = torch.autograd.grad(total, inputs)
    # The stored gradient is scaled after rounding, the recomputed one before.
    torch.testing.assert_close(first, list(second), rtol=0 if factor == 1 else 1e-6, atol=0)


def test_accumulated_gradients_are_not_overwritten(device):
    maps, targets = make_maps(device=device), make_targets(device)
    total = sum(ops.detection_loss(*maps, targets, units=STRIDES).values())
    total.backward(retain_graph=True)
    once = [x.grad.clone() for part in maps for x in part]
    total.backward()
    for x, grad in zip([x for part in maps for x in part], once, strict=True):
        torch.testing.assert_close(x.grad, 2 * grad)


def test_a_gradient_scaler_saves_small_half_gradients(device):
    """With 1e5 positives, the gradient of a confident background logit underflows in float16."""
    maps, targets = make_maps(torch.float16, device), make_targets(device)
    with torch.no_grad():
        maps[0][0].fill_(-5.0)
    normalizers = torch.full((3,), 1e5, device=device)
    options = {"normalizers": normalizers, "weights": (65536.0,) * 3}
    compare(maps, targets, torch.float16, **options)
    _, grads = losses_and_grads(ops.detection_loss, maps, targets, **options)
    background = targets.labels[:, : maps[0][0][0, 0].numel()] == -1
    assert (grads[0].flatten(2).mT[background] != 0).all()


def test_the_whole_gradient(device):
    """Finite differences of the sum, in float64. Not for IoU quality and ciou, which stop the gradient of a part."""
    maps = make_maps(torch.float64, device, classes=2, batch=3)
    targets = make_targets(device, labels=[x.clamp(max=1) for x in LABELS])
    flat = [x for part in maps for x in part]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(device) for x in flat]

    def value(step):
        moved = [x.detach() + step * d for x, d in zip(flat, direction, strict=True)]
        n = len(STRIDES)
        losses = ops.detection_loss(moved[:n], moved[n : 2 * n], moved[2 * n :], targets, units=STRIDES)
        return sum(losses.values()).item()

    _, grads = losses_and_grads(ops.detection_loss, maps, targets)
    slope = sum((g * d).sum().item() for g, d in zip(grads, direction, strict=True))
    assert (value(1e-6) - value(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_the_same_bits_each_run_and_for_any_number_of_threads():
    targets = make_targets()
    maps = make_maps(classes=91)
    before = torch.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(30):
                losses, grads = losses_and_grads(ops.detection_loss, maps, targets)
                results.add(tuple(x.detach().contiguous().numpy().tobytes() for x in (*losses, *grads)))
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


def test_autocast_keeps_the_maps_type(device):
    maps, targets = make_maps(torch.bfloat16, device), make_targets(device)
    expected = losses_and_grads(ops.detection_loss, maps, targets)
    with torch.autocast(device, torch.bfloat16):
        result = losses_and_grads(ops.detection_loss, maps, targets)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_maps_of_different_types(device):
    maps, targets = make_maps(torch.bfloat16, device), make_targets(device)
    mixed = (maps[0], *([x.detach().float().requires_grad_() for x in part] for part in maps[1:]))
    losses, grads = losses_and_grads(ops.detection_loss, mixed, targets)
    true_losses, _ = losses_and_grads(reference.detection_loss, exact(maps), targets)
    torch.testing.assert_close([x.double() for x in losses], true_losses, rtol=1e-5, atol=1e-6)
    assert [x.dtype for x in grads] == [torch.bfloat16] * 3 + [torch.float32] * 6


def test_equals_torchvision():
    fcos = pytest.importorskip("torchvision.models.detection.fcos", reason="torchvision is not installed")
    maps, targets = make_maps(), make_targets(ignored=0.0)
    head = fcos.FCOSHead(8, 1, 5, num_convs=0)
    levels = RULE.levels(FEATURE_SIZES, SIZE, STRIDES)
    points = torch.cat([level.points() for level in levels])
    half = torch.cat([torch.full((len(level.points()), 1), level.stride / 2) for level in levels])
    anchors = torch.cat((points - half, points + half), dim=1)
    outputs = {
        name: torch.cat([x.detach().flatten(2).mT for x in part], dim=1)
        for name, part in zip(("cls_logits", "bbox_regression", "bbox_ctrness"), maps, strict=True)
    }
    starts = [0, 3, 3]
    matched = [(row - start).clamp(min=-1).long() for row, start in zip(targets.matched, starts, strict=True)]
    truth = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(BOXES, LABELS, strict=True)]
    expected = head.compute_loss(truth, outputs, [anchors] * 3, matched)
    losses = ops.detection_loss(*maps, targets, units=STRIDES, centerness_weighted=False)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].detach(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("batch", "height"), [(0, 3), (2, 0), (2, 1)])
def test_an_empty_batch_and_an_empty_level_beside_a_full_one(batch, height, device):
    sizes = [(height, 4), (2, 3)]
    locations = sum(h * w for h, w in sizes)

    def maps(channels):
        return [torch.rand(batch, channels, h, w, device=device, requires_grad=True) for h, w in sizes]

    parts = maps(3), maps(4), maps(1)
    labels = torch.zeros(batch, locations, dtype=torch.int32, device=device)
    zeros = torch.zeros(batch, locations, device=device)
    ltrb = torch.ones(batch, locations, 4, device=device)
    targets = Targets(labels, labels, ltrb, zeros + 1, torch.tensor([6.0, 6.0], device=device))
    losses = ops.detection_loss(*parts, targets, units=[8, 16])
    expected = reference.detection_loss(*parts, targets, units=[8, 16])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-7)
    sum(losses.values()).backward()
    assert [x.grad.shape for x in parts[0]] == [x.shape for x in parts[0]]


@pytest.mark.parametrize("used", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_unused_loss_has_no_gradients(used, dtype, device):
    """Its maps get no gradient, as in torchvision, so that an optimizer with weight decay skips these layers."""
    maps, targets = make_maps(dtype, device), make_targets(device)
    with torch.no_grad():
        for part in range(3):
            if part != used:
                maps[part][0].fill_(torch.nan)
    losses = ops.detection_loss(*maps, targets, units=STRIDES)
    loss = list(losses.values())[used]
    loss.backward(retain_graph=True)
    loss.backward()  # the second backward recomputes the gradients
    for part in range(3):
        for x in maps[part]:
            assert x.grad is None if part != used else x.grad.isfinite().all()


def test_a_loss_times_zero_gives_gradients_of_zero(device):
    maps, targets = make_maps(device=device), make_targets(device)
    with torch.no_grad():
        maps[1][0].fill_(torch.nan)
    losses = ops.detection_loss(*maps, targets, units=STRIDES)
    (losses["classification"] + 0 * losses["bbox_regression"]).backward()
    assert all((x.grad == 0).all() for x in maps[1])
    assert all(x.grad is None for x in maps[2])


@pytest.mark.parametrize("factor", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rescaling_gradients_at_any_alignment(dtype, factor, device):
    """Any size and address, without touching adjacent memory; 0 times NaN is 0 here."""
    memory = torch.arange(1, 3000, device=device).remainder(251).to(dtype)
    parts, sizes = [], [(0, 1), (3, 1), (9, 40), (77, 1001)]
    for begin, size in sizes:
        parts.append(memory[begin : begin + size].view(1, 1, 1, size))
    memory[100] = torch.nan
    expected = memory.clone()
    for begin, size in sizes:
        expected[begin : begin + size] = expected[begin : begin + size] * factor if factor else 0
    factors = torch.tensor([factor, 1.0, 1.0], device=device)
    torch.ops.fcos_fast.detection_loss_rescale_(parts, [], [], factors)
    torch.testing.assert_close(memory, expected, rtol=0, atol=0, equal_nan=True)


def test_only_some_maps_require_a_gradient(device):
    maps, targets = make_maps(device=device), make_targets(device)
    expected = losses_and_grads(ops.detection_loss, maps, targets)[1]
    fixed = maps[0], [x.detach() for x in maps[1]], maps[2]
    sum(ops.detection_loss(*fixed, targets, units=STRIDES).values()).backward()
    assert torch.equal(maps[0][0].grad, expected[0])
    assert torch.equal(maps[2][0].grad, expected[6])
    assert fixed[1][0].grad is None


def _arguments(device, with_grad, memory_format="nchw"):
    maps, t = make_maps(device=device, memory_format=memory_format), make_targets(device)
    maps = tuple([x.detach() for x in part] for part in maps)
    numbers = ([float(s) for s in STRIDES], 0.25, 2.0, "giou", 0.0, 1e-7, True, False)
    return (
        *maps,
        t.labels,
        t.ltrb,
        t.centerness,
        t.totals,
        None,
        *numbers,
        *([with_grad] if with_grad else []),
    )


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_opcheck(memory_format, device):
    forward = _arguments(device, True, memory_format)
    torch.library.opcheck(torch.ops.fcos_fast.detection_loss.default, forward, test_utils=CHECKS)
    upstream = torch.ones(3, device=device)
    torch.library.opcheck(
        torch.ops.fcos_fast.detection_loss_backward.default, (upstream, *forward[:-1]), test_utils=CHECKS
    )
    grads = tuple([x.clone() for x in part] for part in forward[:3])
    torch.library.opcheck(
        torch.ops.fcos_fast.detection_loss_rescale_.default, (*grads, 2 * upstream), test_utils=CHECKS
    )


def test_compiles_with_its_gradient(device):
    maps, targets = make_maps(device=device), make_targets(device)

    def step(cls_logits, box_regression, centerness):
        return 2 * sum(
            ops.detection_loss(cls_logits, box_regression, centerness, targets, units=STRIDES).values()
        )

    inputs = [x for part in maps for x in part]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*maps), inputs),
        torch.autograd.grad(step(*maps), inputs),
        rtol=1e-5,
        atol=1e-8,
    )


def test_memory_is_that_of_the_gradients():
    """Everything that forward and backward allocate, as counted by the allocator."""
    maps, targets = make_maps(classes=91), make_targets()
    gradients = sum(x.numel() * 4 for part in maps for x in part)
    with torch.profiler.profile(profile_memory=True) as profile:
        losses_and_grads(ops.detection_loss, maps, targets)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert gradients <= allocated < gradients * 1.1


def test_backend_reference_is_differentiable(device):
    maps, targets = make_maps(device=device), make_targets(device)
    native = losses_and_grads(ops.detection_loss, maps, targets)
    with backend("reference"):
        plain = losses_and_grads(ops.detection_loss, maps, targets)
    torch.testing.assert_close(native, plain, rtol=1e-4, atol=1e-6)


def _wrong(change):
    maps, targets, options = change(make_maps(), make_targets(), {"units": STRIDES})
    return lambda: ops.detection_loss(*maps, targets, **options)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda m, t, o: ([m[0][:2], *m[1:]], t, o),
            ValueError,
            "2 levels of cls_logits, 3 of box_regression",
        ),
        (lambda m, t, o: (m, t, {"units": (8, 16)}), ValueError, "2 units"),
        (
            lambda m, t, o: ([m[0], m[2], m[2]], t, o),
            ValueError,
            r"box_regression\[0\] has shape .*; expected \(3, 4",
        ),
        (
            lambda m, t, o: ([[x.int() for x in m[0]], *m[1:]], t, o),
            TypeError,
            r"cls_logits\[0\] has dtype torch.int32",
        ),
        (
            lambda m, t, o: ([[m[0][0], m[0][1].double(), m[0][2]], *m[1:]], t, o),
            TypeError,
            r"cls_logits\[1\] has dtype torch.float64",
        ),
        (lambda m, t, o: ([[x[0] for x in m[0]], *m[1:]], t, o), ValueError, r"expected \(B, C, H, W\)"),
        (lambda m, t, o: ([[None] * 3, *m[1:]], t, o), TypeError, "must be a tensor"),
        (lambda m, t, o: (m, t, {"units": (8, 0, 32)}), ValueError, "units=.*expected positive"),
        (lambda m, t, o: (m, replace(t, labels=t.labels[:, 1:]), o), ValueError, "targets.labels has shape"),
        (lambda m, t, o: (m, replace(t, labels=t.labels.long()), o), TypeError, "targets.labels has dtype"),
        (lambda m, t, o: (m, replace(t, ltrb=t.ltrb.double()), o), TypeError, "targets.ltrb has dtype"),
        (lambda m, t, o: ([x * 3 for x in m], t, {"units": (8,) * 9}), ValueError, "at most 8"),
        (
            lambda m, t, o: (m, t, o | {"normalizers": torch.ones(3, requires_grad=True)}),
            ValueError,
            "normalizers require a gradient",
        ),
        (lambda m, t, o: (m, replace(t, labels=t.labels + 3), o), ValueError, "label .* with 5 classes"),
        (lambda m, t, o: (m, t, o | {"normalizers": torch.ones(4)}), ValueError, "normalizers has dtype"),
        (
            lambda m, t, o: (m, t, o | {"box_loss": "eiou"}),
            ValueError,
            "box_loss='eiou'; expected one of iou",
        ),
        (lambda m, t, o: (m, t, o | {"quality": "score"}), ValueError, "quality='score'"),
        (lambda m, t, o: (m, t, o | {"gamma": -1}), ValueError, "gamma=-1"),
        (lambda m, t, o: (m, t, o | {"alpha": 2}), ValueError, "alpha=2"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        _wrong(change)()


def test_double_backward_raises(device):
    maps, targets = make_maps(device=device), make_targets(device)
    total = sum(ops.detection_loss(*maps, targets, units=STRIDES).values()) * 2
    (grad,) = torch.autograd.grad(total, maps[0][0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
