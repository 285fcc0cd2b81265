import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_fast import ops, reference
from tests.ops.nms_agreement import assert_agree
from tests.ops.opcheck import opcheck


def make_boxes(count, device="cpu", dtype=torch.float32, spread=300.0, size=60.0, clusters=0):
    """Random boxes; with ``clusters``, many boxes around few centers."""
    if clusters:
        centers = torch.rand(clusters, 4) * spread
        boxes = centers[torch.randint(clusters, (count,))] + torch.randn(count, 4) * 3
    else:
        boxes = torch.rand(count, 4) * spread
    boxes[:, 2:] = boxes[:, :2] + 1 + torch.rand(count, 2) * size
    return boxes.to(device, dtype), torch.rand(count).to(device, dtype)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize(
    ("count", "clusters"), [(1, 0), (63, 0), (64, 3), (65, 0), (700, 0), (5000, 90), (3000, 0)]
)
def test_equals_torchvision(count, clusters, threshold, device, torchvision):
    boxes, scores = make_boxes(count, device, clusters=clusters)
    expected = torchvision.ops.nms(boxes.cpu(), scores.cpu(), threshold)
    assert torch.equal(ops.nms(boxes, scores, threshold).cpu(), expected)


def make_strange_boxes():
    """Enough for a grid: all sizes and aspect ratios, far outside, inverted, with zero area, not finite."""
    boxes = torch.rand(4000, 4) * 100
    boxes[:, 2:] = boxes[:, :2] + torch.exp(torch.rand(4000, 2) * 9 - 4)
    boxes[2000:] = boxes[:2000] + (torch.rand(2000, 4) - 0.5) * 0.3 * (
        boxes[:2000, 2:] - boxes[:2000, :2]
    ).repeat(1, 2)
    boxes[100:120] += 1e6
    boxes[120:140] = boxes[120:140, [2, 3, 0, 1]]
    boxes[140:160, 2] = boxes[140:160, 0]
    for value in (float("nan"), float("inf"), -float("inf"), 3e38):
        boxes[torch.randint(2000, (20,)), torch.randint(4, (20,))] = value
    return boxes[torch.randperm(4000)], torch.rand(4000)


@pytest.mark.parametrize("scale", [1.0, 1e-24])  # areas underflow, so IoUs are meaningless
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.2, 0.5, 0.501, 0.9, 1.0])
def test_strange_boxes_equal_torchvision(threshold, scale, device, torchvision):
    boxes, scores = make_strange_boxes()
    boxes *= scale
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert torch.equal(ops.nms(boxes.to(device), scores.to(device), threshold).cpu(), expected)


def test_boxes_whose_areas_underflow_equal_torchvision(device, torchvision):
    """Areas of 0.51 and 1.49 times the smallest float32 both round to it, so the IoU of a third becomes 1."""
    unit, height = 2.0**-149, 1e-22
    left, top = (
        torch.cartesian_prod(torch.arange(125), torch.arange(16)) * torch.tensor([3e-23, 2e-22])
    ).unbind(1)
    narrow, wide = (
        torch.stack((left, top, left + area * unit / height, top + height), dim=1) for area in (0.51, 1.49)
    )
    boxes, scores = torch.cat((narrow, wide)), 1 - torch.arange(4000) / 4000
    expected = torchvision.ops.nms(boxes, scores, 0.9)
    assert torch.equal(ops.nms(boxes.to(device), scores.to(device), 0.9).cpu(), expected)


def test_a_box_suppresses_the_widest_boxes_that_the_threshold_allows(device, torchvision):
    """Their centers are far outside the box."""
    boxes, scores = make_boxes(3000)
    narrow = torch.tensor([[100.0, 100.0, 121.0, 140.0]]).repeat(20, 1) + torch.arange(20)[:, None] * 7
    wide = narrow + torch.tensor([0.0, 0.0, 79.0, 0.0])  # IoU 0.21
    boxes, scores = (
        torch.cat((boxes, narrow, wide)),
        torch.cat((scores, torch.full((20,), 3.0), torch.full((20,), 2.0))),
    )
    expected = torchvision.ops.nms(boxes, scores, 0.2)
    assert torch.equal(ops.nms(boxes.to(device), scores.to(device), 0.2).cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
@pytest.mark.parametrize(("count", "clusters"), [(700, 0), (5000, 90), (20_000, 300)])
def test_equals_torchvision_on_cuda_except_near_the_threshold(count, clusters, threshold, torchvision):
    """torchvision's CUDA kernel rounds differently from its CPU operator, which ours is equal to."""
    boxes, _ = make_boxes(count, "cuda", clusters=clusters)
    scores = torch.randperm(count, device="cuda") / count  # distinct: the order of equal scores is undefined
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert_agree(ops.nms(boxes, scores, threshold), expected, boxes, scores, threshold)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [400, 2500])
def test_other_types_equal_the_reference(dtype, count, device):
    boxes, scores = make_boxes(count, device, dtype, clusters=count // 10)
    assert torch.equal(ops.nms(boxes, scores, 0.5), reference.nms(boxes, scores, 0.5))
    assert torch.equal(ops.nms(boxes, scores.float(), 0.5), reference.nms(boxes, scores.float(), 0.5))


@pytest.mark.parametrize("count", [0, 1, 50, 2000, 6000])
@pytest.mark.parametrize("classes", [1, 7, 91])
def test_batched_equals_nms_per_class(count, classes, device, torchvision):
    boxes, scores = make_boxes(count, device)
    idxs = torch.randint(-3, classes, (count,), device=device)
    kept = torch.zeros(count, dtype=torch.bool)
    for value in idxs.unique().tolist():
        members = (idxs == value).nonzero()[:, 0].cpu()
        kept[members[torchvision.ops.nms(boxes.cpu()[members], scores.cpu()[members], 0.5)]] = True
    order = scores.cpu().argsort(descending=True, stable=True)
    assert torch.equal(ops.batched_nms(boxes, scores, idxs, 0.5).cpu(), order[kept[order]])


def test_large_coordinates_and_classes_need_no_offset(device):
    # With a per-class offset, float32 would round these boxes to the same coordinates.
    boxes = torch.tensor([[1e7, 1e7, 1e7 + 8, 1e7 + 8]] * 3, device=device)
    kept = ops.batched_nms(
        boxes, torch.tensor([0.9, 0.8, 0.7], device=device), torch.tensor([0, 10**12, 0], device=device), 0.5
    )
    assert kept.tolist() == [0, 1]


def test_classes_are_separate_at_negative_coordinates(device, torchvision):
    """torchvision's per-class offset, the greatest coordinate plus 1, is 0 here, so its classes suppress each other."""
    boxes = torch.tensor([[-50.0, -50.0, -1.0, -1.0], [-50.0, -50.0, -1.0, -2.0]], device=device)
    scores, idxs = torch.tensor([0.9, 0.8], device=device), torch.tensor([0, 1], device=device)
    assert torchvision.ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == [0]
    assert ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == [0, 1]


def test_a_box_with_iou_equal_to_the_threshold_is_kept(device, torchvision):
    # The IoU of the two is exactly 1/2. The float32 number 0.6 is greater than the float64 number 0.6.
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert len(ops.nms(boxes, scores, 0.5)) == 2
    assert len(ops.nms(boxes, scores, 0.4999999)) == 1
    boxes = torch.tensor([[0.0, 0, 5, 1], [0, 0, 3, 1]], device=device)
    expected = torchvision.ops.nms(boxes.cpu(), scores.cpu(), 0.6)
    assert torch.equal(ops.nms(boxes, scores, 0.6).cpu(), expected)


def test_equal_scores_keep_their_order(device):
    boxes, _ = make_boxes(300, device)
    scores = torch.randint(0, 4, (300,), device=device).float()
    kept = ops.nms(boxes, scores, 0.4)
    assert torch.equal(kept, reference.nms(boxes, scores, 0.4))
    assert torch.equal(
        ops.nms(boxes, torch.ones(300, device=device), 0.4),
        torch.sort(ops.nms(boxes, torch.ones(300, device=device), 0.4))[0],
    )


def test_nan_infinite_and_negative_zero_scores(device):
    boxes = torch.arange(6, device=device).float()[:, None] * 10 + torch.tensor([0.0, 0, 5, 5], device=device)
    scores = torch.tensor([0.0, float("inf"), -0.0, float("nan"), -float("inf"), -1.0], device=device)
    assert (
        ops.nms(boxes, scores, 0.5).tolist() == torch.argsort(scores, descending=True, stable=True).tolist()
    )


def test_boxes_with_nan_or_zero_area_are_not_suppressed_and_suppress_nothing(device):
    nan = float("nan")
    boxes = torch.tensor(
        [[0, 0, 10, 10], [nan, 0, 10, 10], [3, 3, 3, 3], [3, 3, 3, 3], [0, 0, 10, 9], [9, 9, 1, 1]],
        device=device,
        dtype=torch.float32,
    )
    scores = torch.linspace(1, 0.5, 6, device=device)
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1, 2, 3, 5]


def test_views_and_tensors_that_require_grad(device):
    boxes, scores = make_boxes(200, device)
    wide = torch.cat([boxes, boxes], dim=1)[:, :4]
    strided = scores.repeat_interleave(2)[::2]
    assert torch.equal(ops.nms(wide.requires_grad_(), strided, 0.5), ops.nms(boxes, scores, 0.5))


def test_the_same_result_each_run_and_for_any_number_of_threads():
    boxes, scores = make_boxes(6000, clusters=300)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [ops.nms(boxes, scores, 0.5) for _ in range(10)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


corner = st.floats(0, 40, width=32)
extent = st.floats(0.5, 30, width=32)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(corner, corner, extent, extent, st.floats(0, 1, width=32)), max_size=40),
    st.floats(0.05, 0.95),
)
def test_idempotent_and_separated(torchvision, rows, threshold):
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
    kept = ops.nms(boxes, table[:, 4], threshold)
    assert torch.equal(ops.nms(boxes[kept], table[kept, 4], threshold), torch.arange(len(kept)))
    iou = torchvision.ops.box_iou(boxes, boxes)
    assert (iou[kept][:, kept].fill_diagonal_(0) <= threshold + 1e-6).all()
    fallen = sorted(set(range(len(boxes))) - set(kept.tolist()))
    assert (iou[fallen][:, kept].amax(1) > threshold - 1e-6).all() if fallen else True


def test_opcheck(device):
    boxes, scores = make_boxes(30, device)
    opcheck("nms", boxes, scores, None, 0.5)
    opcheck("nms", boxes, scores, torch.randint(0, 3, (30,), device=device), 0.5)


def test_compiles_as_one_graph(device):
    boxes, scores = make_boxes(30, device)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(
            lambda b, s: b[ops.nms(b, s, 0.5)], fullgraph=True, dynamic=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(boxes, scores), boxes[ops.nms(boxes, scores, 0.5)])


@pytest.mark.parametrize(
    ("boxes", "scores", "idxs", "threshold", "error", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3), None, 0.5, ValueError, r"boxes has shape \(3, 5\)"),
        (torch.zeros(3, 4), torch.zeros(2), None, 0.5, ValueError, r"scores has shape \(2,\)"),
        (torch.zeros(3, 4).long(), torch.zeros(3), None, 0.5, TypeError, "boxes has dtype torch.int64"),
        (torch.zeros(3, 4), torch.zeros(3), None, 1.5, ValueError, "iou_threshold=1.5"),
        (torch.zeros(3, 4), torch.zeros(3), None, float("nan"), ValueError, "iou_threshold=nan"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(3), 0.5, TypeError, "idxs has dtype torch.float32"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(4).long(), 0.5, ValueError, r"idxs has shape \(4,\)"),
        (torch.zeros(3, 4), torch.zeros(3, device="meta"), None, 0.5, ValueError, "scores is on meta"),
    ],
)
def test_invalid_arguments_raise(boxes, scores, idxs, threshold, error, message):
    arguments = (boxes, scores, threshold) if idxs is None else (boxes, scores, idxs, threshold)
    with pytest.raises(error, match=message):
        (ops.nms if idxs is None else ops.batched_nms)(*arguments)
