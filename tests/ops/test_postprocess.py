import itertools
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fcos_fast import backend, ops, reference
from fcos_fast.assignment import RULES
from tests.ops.opcheck import assert_compiles, opcheck

STRIDES = (8, 16, 32, 64, 128)
SIZE = (64, 96)
SIZES = [(64, 96), (50, 70)]
FEATURE_SIZES = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]
LEVELS = RULES["torchvision"].levels(FEATURE_SIZES, SIZE)
CLASSES = 3


def make_outputs(
    levels=LEVELS, batch=2, classes=CLASSES, dtype=torch.float32, device="cpu", seed=0, memory_format=None
):
    """Head outputs in steps of 1/8, exact in all dtypes: scores are equal or differ by more than rounding."""
    generator = torch.Generator().manual_seed(seed)

    def random(channels, level):
        values = torch.randn(batch, channels, level.height, level.width, generator=generator)
        return (values * 8).round() / 8

    maps = (
        [random(classes, level) - 1 for level in levels],
        [(random(4, level) + 1.5).relu() for level in levels],
        [random(1, level) + 1 for level in levels],
    )
    memory_format = memory_format or torch.contiguous_format
    return [[x.to(device, dtype).contiguous(memory_format=memory_format) for x in kind] for kind in maps]


def assert_same(found, expected):
    """Assert the same detections in the same order."""
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.labels.equal(expected.labels)
    assert found.scores.dtype == expected.scores.dtype
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-6, atol=1e-5, equal_nan=True)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def clipped(box, height, width, pixel):
    limits = (width - pixel, height - pixel, width - pixel, height - pixel)
    return [min(max(side, 0), limit) for side, limit in zip(box, limits, strict=True)]


def overlap(a, b, pixel):
    width = min(a[2], b[2]) - max(a[0], b[0]) + pixel
    height = min(a[3], b[3]) - max(a[1], b[1]) + pixel
    if width <= 0 or height <= 0:
        return 0.0
    area = lambda box: (box[2] - box[0] + pixel) * (box[3] - box[1] + pixel)  # noqa: E731
    return width * height / (area(a) + area(b) - width * height)


def brute_force(outputs, b, levels, settings):
    """An independent implementation of all rules, one candidate at a time: (score, label, box), best first."""
    height, width = SIZES[b]
    pixel = 1 if settings["inclusive_boxes"] else 0
    groups = []
    for i, (level, unit) in enumerate(zip(levels, STRIDES, strict=True)):
        own = []
        for y, x in itertools.product(range(level.height), range(level.width)):
            logits = outputs[0][i][b, :, y, x].tolist()
            classes = range(CLASSES) if settings["multi_label"] else [logits.index(max(logits))]
            for c in classes:
                probability = sigmoid(logits[c])
                product = probability * sigmoid(outputs[2][i][b, 0, y, x].item())
                rules = {"sqrt": math.sqrt(product), "product": product, "classification": probability}
                score = rules[settings["score"]]
                tested = score if settings["threshold_on"] == "score" else probability
                if tested <= settings["score_threshold"]:
                    continue
                left, top, right, bottom = (d * unit for d in outputs[1][i][b, :, y, x].tolist())
                at_y, at_x = level.offset[0] + y * level.step[0], level.offset[1] + x * level.step[1]
                box = [at_x - left, at_y - top, at_x + right, at_y + bottom]
                if settings["clip"] == "before_nms":
                    box = clipped(box, height, width, pixel)
                own.append((score, c, box, probability if settings["topk_by"] == "classification" else score))
        groups.append(own)
    if settings["topk_over"] == "image":
        groups = [list(itertools.chain(*groups))]
    best = []
    for own in groups:
        taken = sorted(range(len(own)), key=lambda i: falling(own[i][3]))[: settings["topk_candidates"]]
        best += [own[i] for i in sorted(taken)]
    if settings["drop_empty"]:
        best = [found for found in best if has_area(found[2], pixel)]
    kept = []
    for score, label, box, _ in sorted(best, key=lambda found: falling(found[0])):
        others = (taken for _, other, taken in kept if settings["class_agnostic"] or other == label)
        if all(overlap(box, taken, pixel) <= settings["iou_threshold"] for taken in others):
            kept.append((score, label, box))
    return [
        (score, label, clipped(box, height, width, pixel))
        for score, label, box in kept[: settings["max_detections"]]
    ]


def has_area(box, pixel):
    return box[2] + pixel > box[0] and box[3] + pixel > box[1]


def falling(score):
    return -round(score, 12)  # equal scores may differ in the last bits of float64


CHOICES = {
    "score": ["sqrt", "product", "classification"],
    "threshold_on": ["score", "classification"],
    "multi_label": [True, False],
    "topk_over": ["level", "image"],
    "inclusive_boxes": [False, True],
}
OTHERS = {
    "topk_by": ["score", "classification"],
    "class_agnostic": [False, True],
    "clip": ["before_nms", "after_nms"],
    "drop_empty": [False, True],
}


def combinations(choices):
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


# Each option in combination with each score and threshold rule.
ALL_RULES = [rule | combinations(OTHERS)[(i + i // 16) % 16] for i, rule in enumerate(combinations(CHOICES))]


@pytest.mark.parametrize("function", [reference.postprocess, ops.postprocess], ids=["reference", "ops"])
@pytest.mark.parametrize(("threshold", "topk", "most"), [(0.2, 1000, 100), (0.0, 20, 1000)])
@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_every_rule_equals_brute_force(rule, threshold, topk, most, function):
    levels = RULES["official" if rule["inclusive_boxes"] else "torchvision"].levels(FEATURE_SIZES, SIZE)
    outputs = make_outputs()
    settings = rule | {
        "score_threshold": threshold,
        "topk_candidates": topk,
        "max_detections": most,
        "iou_threshold": 0.617,  # not 3/5, which IoUs attain
    }
    detections = function(*outputs, levels, SIZES, units=STRIDES, **settings).split()
    for b, found in enumerate(detections):
        scores, labels, boxes = zip(*brute_force(outputs, b, levels, settings), strict=True)
        assert len(scores) >= 10
        torch.testing.assert_close(found["scores"], torch.tensor(scores))
        assert found["labels"].tolist() == list(labels)
        torch.testing.assert_close(found["boxes"], torch.tensor(boxes), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 91])
@pytest.mark.parametrize("rule", [ALL_RULES[0], ALL_RULES[-1], ALL_RULES[5]], ids=str)
def test_types_and_memory_formats_equal_the_reference(dtype, memory_format, classes, rule, device):
    levels = [replace(LEVELS[0], height=23, width=37), replace(LEVELS[1], height=1, width=5), LEVELS[2]]
    outputs = make_outputs(levels, classes=classes, dtype=dtype, device=device, memory_format=memory_format)
    arguments = (*outputs, levels, [(180, 290), (150, 260)])
    settings = rule | {
        "units": STRIDES[:3],
        "score_threshold": 0.3,
        "topk_candidates": 200,
        "max_detections": 50,
    }
    found, expected = (
        function(*arguments, **settings) for function in (ops.postprocess, reference.postprocess)
    )
    assert found.boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.counts.min() > 5
    assert_same(found, expected)


def by_torchvision(detection, outputs, levels, sizes, score_threshold, topk, iou_threshold, most):
    fcos = SimpleNamespace(
        score_thresh=score_threshold,
        topk_candidates=topk,
        nms_thresh=iou_threshold,
        detections_per_img=most,
        box_coder=detection._utils.BoxLinearCoder(normalize_by_size=True),
    )
    names = ("cls_logits", "bbox_regression", "bbox_ctrness")
    head_outputs = {
        name: [x.flatten(2).transpose(1, 2) for x in maps] for name, maps in zip(names, outputs, strict=True)
    }
    anchors = [
        torch.cat((level.points() - level.stride / 2, level.points() + level.stride / 2), dim=1)
        for level in levels
    ]
    return detection.FCOS.postprocess_detections(fcos, head_outputs, [anchors] * len(sizes), sizes)


@pytest.mark.parametrize(("threshold", "topk", "most"), [(0.2, 1000, 100), (0.5, 30, 1000), (0.0, 400, 7)])
def test_equals_torchvision(threshold, topk, most, device, torchvision):
    # Distinct scores, since torchvision's top-k picks any of equal ones.
    size = (160, 224)
    levels = RULES["torchvision"].levels(
        [(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in STRIDES], size
    )
    outputs = make_outputs(levels, classes=11)
    outputs[0] = [x + torch.rand(x.shape) for x in outputs[0]]
    sizes = [size, (160, 130)]
    expected = by_torchvision(
        torchvision.models.detection, outputs, levels, sizes, threshold, topk, 0.6, most
    )
    found = ops.postprocess(
        *([x.to(device) for x in maps] for maps in outputs),
        levels,
        torch.tensor(sizes, device=device),
        units=STRIDES,
        score_threshold=threshold,
        threshold_on="score",
        topk_candidates=topk,
        max_detections=most,
    )
    for ours, theirs in zip(found.split(), expected, strict=True):
        assert len(theirs["scores"]) == min(most, len(theirs["scores"]))
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"].cpu(), theirs["scores"], rtol=1e-6, atol=0)
        torch.testing.assert_close(ours["boxes"].cpu(), theirs["boxes"], rtol=1e-6, atol=1e-5)


def test_scores_are_exact_to_rounding_for_every_logit(device):
    # Locations are so far apart that nothing is suppressed; scores from the smallest float32 sigmoid to 1.
    logits = torch.linspace(-100, 100, 4001)
    level = replace(LEVELS[0], height=1, width=len(logits), step=(10.0, 10.0), offset=(5.0, 5.0))
    found = ops.postprocess(
        [logits.reshape(1, 1, 1, -1).to(device)],
        [torch.ones(1, 4, 1, len(logits), device=device)],
        None,
        [level],
        [(10, 10 * len(logits))],
        units=[1],
        score="classification",
        score_threshold=0.0,
        topk_candidates=10_000,
        max_detections=len(logits),
    )
    exact = logits.double().sigmoid().flip(0)
    count = found.counts.item()
    assert count > 3700  # below -88.7 the float32 sigmoid is 0, which is not above the threshold 0
    assert (exact[count:] < 1e-38).all()
    torch.testing.assert_close(found.scores[0, :count].cpu().double(), exact[:count], rtol=3e-7, atol=0)


@pytest.mark.parametrize("threshold_on", ["score", "classification"])
def test_scores_next_to_the_threshold_are_compared_exactly(threshold_on, device):
    # 400 adjacent float32 logits: exactly those with a score above the threshold are found.
    bits = torch.tensor([math.log(0.3 / 0.7)]).view(torch.int32) + torch.arange(400, dtype=torch.int32)
    logits = bits.view(torch.float32).reshape(1, 1, 1, 400).to(device)
    level = replace(LEVELS[0], height=1, width=400, step=(10.0, 10.0), offset=(5.0, 5.0))

    def detect(threshold):
        return ops.postprocess(
            [logits],
            [torch.ones(1, 4, 1, 400, device=device)],
            None,
            [level],
            [(10, 4000)],
            units=[1],
            score="classification",
            threshold_on=threshold_on,
            score_threshold=threshold,
            max_detections=400,
        )

    scores = detect(0.0).scores[0]
    assert scores.unique().numel() > 50
    for threshold in scores[50::100].tolist():
        assert detect(threshold).counts.item() == (scores > threshold).sum()


def test_of_equal_scores_the_first_locations_are_kept(device):
    maps = [[torch.zeros(1, k, *size, device=device) for size in FEATURE_SIZES] for k in (2, 4, 1)]
    levels = RULES["official"].levels(FEATURE_SIZES, SIZE)
    for topk_over, expected in (
        ("level", [[2, 0], [2, 1], [10, 0], [10, 1], [18, 0], [4, 0], [4, 1], [20, 0], [20, 1], [36, 0]]),
        ("image", [[2, 0], [2, 1], [10, 0], [10, 1], [18, 0]]),
    ):
        found = ops.postprocess(
            maps[0], [x + 0.25 for x in maps[1]], maps[2], levels, [SIZE], units=STRIDES, topk_candidates=5,
            topk_over=topk_over,
        )  # fmt: skip
        first = torch.stack((found.boxes[0, :, 0], found.labels[0]), dim=1)[: len(expected)]
        assert first.tolist() == expected


@pytest.mark.parametrize("topk_by", ["score", "classification"])
@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("topk_over", ["level", "image"])
def test_more_candidates_than_fit_into_a_list(multi_label, topk_over, topk_by, device):
    levels = [replace(LEVELS[0], height=61, width=83), replace(LEVELS[1], height=31, width=42)]
    outputs = make_outputs(levels, batch=1, classes=40, device=device)
    outputs[0][0][0, :, 20:40] = 1.0  # many equal ones at the cutoff
    outputs[2][0][0, :, 20:40] = 1.0
    arguments = (*outputs, levels, [(400, 600)])
    settings = {
        "score_threshold": 0.0,
        "multi_label": multi_label,
        "topk_over": topk_over,
        "topk_by": topk_by,
        "units": STRIDES[:2],
    }
    for topk, most in ((3000, 300), (100, 1)):
        settings |= {"topk_candidates": topk, "max_detections": most, "iou_threshold": 0.3}
        assert_same(ops.postprocess(*arguments, **settings), reference.postprocess(*arguments, **settings))
    settings |= {"max_detections": 10}
    unlimited, all_pairs = (
        ops.postprocess(*arguments, **settings | {"topk_candidates": topk})
        for topk in (2**40, 61 * 83 * 40 * 2)
    )
    assert_same(unlimited, all_pairs)


@pytest.mark.parametrize("topk", [1, 7, 1000, 9000, 20_000, 39_999])
def test_the_topk_of_more_than_fit_into_a_list_is_exact(topk, device):
    """The candidates on both sides of the cutoff by classification have the best scores."""
    side = 200
    logits = torch.randperm(side * side) / (side * side) - 1
    order = logits.argsort(descending=True)
    centerness = torch.full_like(logits, -20.0)
    centerness[order[max(0, topk - 10) : topk + 10]] = 20.0
    found = ops.postprocess(
        [logits.reshape(1, 1, side, side).to(device)],
        [torch.ones(1, 4, side, side, device=device)],
        [centerness.reshape(1, 1, side, side).to(device)],
        [replace(LEVELS[0], height=side, width=side, step=(10.0, 10.0), offset=(5.0, 5.0))],
        [(10 * side, 10 * side)],
        units=[1],
        score="product",
        score_threshold=0.0,
        topk_candidates=topk,
        topk_by="classification",
        max_detections=min(10, topk),
    )
    corners = found.boxes[0, :, :2].cpu()
    assert found.counts.item() == min(10, topk)
    assert (corners[:, 1] // 10 * side + corners[:, 0] // 10).tolist() == order[
        max(0, topk - 10) : topk
    ].tolist()


def test_nan_scores_are_dropped_and_boxes_with_nan_are_kept(device):
    outputs = make_outputs(device=device)
    generator = torch.Generator().manual_seed(1)
    for maps, share in zip(outputs, (0.3, 0.05, 0.3), strict=True):
        for x in maps:
            x[(torch.rand(x.shape, generator=generator) < share).to(device)] = math.nan
    outputs[0][0][0, 0, 0, :3] = math.inf
    outputs[1][0][0, :, 0, 1] = math.inf
    outputs[0][1][1, :, 1] = -math.inf
    for rule in ALL_RULES[::3]:
        settings = rule | {"units": STRIDES, "score_threshold": 0.1}
        found = ops.postprocess(*outputs, LEVELS, SIZES, **settings)
        assert found.counts.min() > 10
        assert not found.scores.isnan().any()
        assert_same(found, reference.postprocess(*outputs, LEVELS, SIZES, **settings))


@pytest.mark.parametrize("clip", ["before_nms", "after_nms"])
def test_empty_boxes_are_dropped_before_max_detections_and_suppress_nothing(clip, device):
    outputs = make_outputs(batch=2, device=device)
    for x in outputs[1]:
        x[:, 2] = torch.where(x[:, 1] > 1.5, -x[:, 0], x[:, 2])  # x2 = x1
        x[:, 3] = torch.where(x[:, 0] > 2, -x[:, 1] - 1, x[:, 3])  # y2 < y1
        x[:, 0, :, ::5] = math.nan
    settings = {"units": STRIDES, "score_threshold": 0.01, "iou_threshold": 0.3, "clip": clip}
    everything = ops.postprocess(*outputs, LEVELS, SIZES, max_detections=1000, **settings)
    empty = ~(everything.boxes[..., 2:] > everything.boxes[..., :2]).all(dim=2)
    assert int((empty & (everything.labels >= 0)).sum()) > 20
    for most in (7, 1000):
        settings |= {"max_detections": most, "drop_empty": True}
        found = ops.postprocess(*outputs, LEVELS, SIZES, **settings)
        assert_same(found, reference.postprocess(*outputs, LEVELS, SIZES, **settings))
        if clip == "before_nms":  # boxes that become empty by later clipping are kept
            for image in found.split():
                assert (image["boxes"][:, 2:] > image["boxes"][:, :2]).all()
        if most == 7:
            assert found.counts.tolist() == [7, 7]


def test_no_detections_and_no_images(device):
    outputs = make_outputs(device=device)
    outputs[0] = [x - 100 for x in outputs[0]]
    found = ops.postprocess(*outputs, LEVELS, SIZES, units=STRIDES, max_detections=5)
    assert found.counts.tolist() == [0, 0]
    assert found.boxes.equal(torch.zeros(2, 5, 4, device=device))
    assert found.scores.equal(torch.zeros(2, 5, device=device))
    assert found.labels.equal(torch.full((2, 5), -1, device=device))
    assert [len(image["boxes"]) for image in found.split()] == [0, 0]

    outputs = make_outputs(batch=0, device=device)
    found = ops.postprocess(*outputs, LEVELS, [], units=STRIDES)
    assert [tuple(x.shape) for x in found] == [(0, 100, 4), (0, 100), (0, 100), (0,)]

    no_classes = make_outputs(classes=0, device=device)
    assert ops.postprocess(*no_classes, LEVELS, SIZES, units=STRIDES).counts.tolist() == [0, 0]


def test_empty_levels_and_one_empty_image(device):
    levels = [replace(LEVELS[0], height=0), LEVELS[1], replace(LEVELS[2], width=0)]
    outputs = make_outputs(levels, device=device)
    outputs[0][1][0] = -20
    arguments = (*outputs, levels, SIZES)
    found = ops.postprocess(*arguments, units=STRIDES[:3])
    assert found.counts[0] == 0
    assert found.counts[1] > 5
    assert_same(found, reference.postprocess(*arguments, units=STRIDES[:3]))


def test_views_are_read_without_a_copy(device):
    levels, settings = LEVELS[:2], {"units": STRIDES[:2], "score_threshold": 0.2}
    outputs = make_outputs(levels, device=device)
    expected = ops.postprocess(*outputs, levels, SIZES, **settings)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        # Slices of the output of one convolution, and of larger maps, whose rows are not contiguous.
        whole = [
            torch.cat(of_level, dim=1).contiguous(memory_format=memory_format)
            for of_level in zip(*outputs, strict=True)
        ]
        sliced = [[x[:, a:b] for x in whole] for a, b in ((0, CLASSES), (CLASSES, CLASSES + 4), (-1, None))]
        assert_same(ops.postprocess(*sliced, levels, SIZES, **settings), expected)
        cropped = [
            [
                torch.nn.functional.pad(x, (1, 2, 1, 1)).contiguous(memory_format=memory_format)[
                    ..., 1:-1, 1:-2
                ]
                for x in maps
            ]
            for maps in outputs
        ]
        assert_same(ops.postprocess(*cropped, levels, SIZES, **settings), expected)
    transposed = [
        [x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in maps] for maps in outputs
    ]
    assert_same(ops.postprocess(*transposed, levels, SIZES, **settings), expected)


def test_maps_of_different_types(device):
    outputs = make_outputs(device=device)
    expected = ops.postprocess(*outputs, LEVELS, SIZES, units=STRIDES)
    mixed = [
        [x.to(dtype) for x in maps]
        for maps, dtype in zip(outputs, (torch.bfloat16, torch.float64, torch.float16), strict=True)
    ]
    assert_same(ops.postprocess(*mixed, LEVELS, SIZES, units=STRIDES), expected)


def test_the_same_bits_each_run_and_for_any_number_of_threads(device):
    levels = [replace(LEVELS[0], height=60, width=80), LEVELS[1]]
    outputs = make_outputs(levels, classes=20, device=device)
    run = lambda: ops.postprocess(*outputs, levels, SIZES, units=STRIDES[:2], score_threshold=0.3)  # noqa: E731
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [run() for _ in range(34)]
    finally:
        torch.set_num_threads(threads)
    for found in results:
        assert all(x.equal(y) for x, y in zip(found, results[0], strict=True))


def test_backend_reference_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference, "postprocess", lambda *args, **kwargs: "reference")
    with backend("reference"):
        assert ops.postprocess(*make_outputs(), LEVELS, SIZES, units=STRIDES) == "reference"


def test_opcheck(device):
    levels = LEVELS[:2]
    outputs = make_outputs(levels, device=device)
    geometry = [float(x) for level in levels for x in (*level.step, *level.offset, 8)]
    sizes = torch.tensor(SIZES, device=device)
    rule = ("sqrt", 0.2, True, True, 100, True, False, 0.6, False, 10, False, True, False)
    opcheck("postprocess", *outputs, sizes, geometry, *rule)
    rule = ("classification", 0.2, True, False, 100, False, True, 0.6, True, 10, True, False, True)
    opcheck("postprocess", *outputs[:2], [], sizes, geometry, *rule)


def test_compiles_and_exports(device):
    levels = LEVELS[:2]
    outputs = make_outputs(levels, device=device)

    def detect(cls_logits, box_regression, centerness, sizes):
        return ops.postprocess(cls_logits, box_regression, centerness, levels, sizes, units=STRIDES[:2])

    sizes = torch.tensor(SIZES, device=device)
    assert_compiles(detect, *outputs, sizes)
    assert_compiles(lambda *maps: detect(*maps, SIZES), *outputs)

    class Detect(torch.nn.Module):
        forward = staticmethod(detect)

    exported = torch.export.export(Detect(), (*outputs, sizes)).module()
    assert_same(exported(*outputs, sizes), detect(*outputs, sizes))


def test_sizes_must_be_a_tensor_in_a_cuda_graph(monkeypatch):
    """A replay would copy them again from host memory, which may have been reused."""
    like = SimpleNamespace(is_cuda=True, device="cuda:0", shape=(2,))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(
        ValueError,
        match=r"sizes is a sequence, which cannot be captured in a CUDA graph; .* tensor on cuda:0",
    ):
        sys.modules[ops.postprocess.__module__]._sizes_on("postprocess", like, SIZES)


@pytest.mark.gpu
def test_works_in_a_cuda_graph_and_never_synchronizes():
    outputs = make_outputs(device="cuda")
    sizes = torch.tensor(SIZES, device="cuda")
    run = lambda: ops.postprocess(*outputs, LEVELS, sizes, units=STRIDES, score_threshold=0.2)  # noqa: E731
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.postprocess(*outputs, LEVELS, SIZES, units=STRIDES)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(ValueError, match="sizes is a sequence, which cannot be captured"):
            ops.postprocess(*outputs, LEVELS, SIZES, units=STRIDES)
        found = run()
    for maps, others in zip(outputs, make_outputs(device="cuda", seed=1), strict=True):
        for x, other in zip(maps, others, strict=True):
            x.copy_(other)
    graph.replay()
    assert_same(found, run())


@pytest.mark.gpu
def test_the_same_bits_on_both_devices():
    outputs = make_outputs()
    outputs[0] = [x + torch.rand(x.shape) for x in outputs[0]]
    on_gpu = ops.postprocess(
        *([x.cuda() for x in maps] for maps in outputs), LEVELS, SIZES, units=STRIDES, max_detections=500
    )
    on_cpu = ops.postprocess(*outputs, LEVELS, SIZES, units=STRIDES, max_detections=500)
    assert all(x.cpu().equal(y) for x, y in zip(on_gpu, on_cpu, strict=True))


def change(maps, kind, level, value):
    changed = [list(of_kind) for of_kind in maps]
    changed[kind][level] = value
    return changed


@pytest.mark.parametrize(
    ("maps", "options", "error", "message"),
    [
        (None, {"score": "mean"}, ValueError, "score='mean'; expected one of sqrt, product, classification"),
        (None, {"threshold_on": "box"}, ValueError, "threshold_on='box'"),
        (None, {"topk_by": "area"}, ValueError, "topk_by='area'; expected one of score, classification"),
        (None, {"clip": "never"}, ValueError, "clip='never'; expected one of before_nms, after_nms"),
        (None, {"topk_over": "batch"}, ValueError, "topk_over='batch'; expected one of level, image"),
        (None, {"score_threshold": 1.5}, ValueError, "score_threshold=1.5; expected a number in [0, 1]"),
        (None, {"iou_threshold": math.nan}, ValueError, "iou_threshold=nan"),
        (None, {"topk_candidates": 0}, ValueError, "topk_candidates=0; expected a positive integer"),
        (None, {"max_detections": 2.5}, TypeError, "max_detections=2.5; expected a positive integer"),
        (None, {"units": STRIDES[:4]}, ValueError, "5 levels, 4 units; expected the same number of each"),
        (None, {"sizes": SIZES[:1]}, ValueError, "sizes has shape (1, 2); expected (2, 2)"),
        (None, {"sizes": torch.zeros(2, 2, device="meta")}, ValueError, "sizes is on meta"),
        ((0, 0, torch.zeros(3)), {}, ValueError, "cls_logits[0] has shape (3,); expected (B, C, H, W)"),
        ((0, 1, torch.zeros(2, 3, 4, 5)), {}, ValueError, "cls_logits[1] has shape (2, 3, 4, 5); expected (2, 3,"),
        ((1, 0, torch.zeros(2, 3, 8, 12)), {}, ValueError, "box_regression[0] has shape (2, 3, 8, 12); expected"),
        ((2, 4, torch.zeros(1, 1, 1, 1)), {}, ValueError, "centerness[4] has shape (1, 1, 1, 1); expected (2, 1"),
        ((0, 0, torch.zeros(2, 3, 8, 12).int()), {}, TypeError, "cls_logits[0] has dtype torch.int32"),
        ((1, 2, torch.zeros(2, 4, 2, 3).double()), {}, TypeError, "box_regression[2] is torch.float64"),
        ((2, 0, torch.zeros(2, 1, 8, 12, device="meta")), {}, ValueError, "centerness[0] is on meta"),
        ((2, 0, None), {}, TypeError, "centerness[0] must be a tensor"),
    ],
)  # fmt: skip
def test_invalid_arguments_raise(maps, options, error, message):
    outputs = make_outputs() if maps is None else change(make_outputs(), *maps)
    options = {"units": STRIDES, "sizes": SIZES} | options
    with pytest.raises(error) as raised:
        ops.postprocess(*outputs, LEVELS, **options)
    assert message in str(raised.value)


def test_centerness_is_required_by_the_score():
    cls_logits, box_regression, _ = make_outputs()
    with pytest.raises(TypeError, match="centerness is None; score='sqrt' requires one map per level"):
        ops.postprocess(cls_logits, box_regression, None, LEVELS, SIZES, units=STRIDES)
