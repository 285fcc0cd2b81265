import pytest
import torch

from fcos_fast import ops, reference
from tests.ops.opcheck import assert_compiles, opcheck
from tests.ops.test_nms import make_boxes


def make_batch(images, count, classes, device="cpu", dtype=torch.float32):
    boxes = torch.stack([make_boxes(count, clusters=max(1, count // 50))[0] for _ in range(images)])
    scores = torch.stack([torch.randperm(count) / max(1, count) for _ in range(images)])
    labels = torch.randint(-2, max(1, classes), (images, count))
    return boxes.to(device, dtype), scores.to(device, dtype), labels.to(device)


def by_torchvision(torchvision, boxes, scores, labels, threshold, most):
    """One image, class by class, without per-class offsets."""
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for value in labels.unique().tolist():
        members = ((labels == value) & (scores != -torch.inf)).nonzero()[:, 0]
        kept[members[torchvision.ops.nms(boxes[members], scores[members], threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]][:most]


@pytest.mark.parametrize("most", [1, 100, 6000])
@pytest.mark.parametrize(("count", "classes"), [(0, 1), (1, 1), (63, 7), (700, 1), (2500, 91), (5000, 3)])
def test_equals_torchvision_per_image_and_class(count, classes, most, device, torchvision):
    boxes, scores, labels = make_batch(3, count, classes, device)
    scores[1, ::2] = -torch.inf
    scores[2] = -torch.inf
    for threshold in (0.3, 0.6):
        indices, counts = ops.nms_padded(boxes, scores, labels, threshold, most)
        assert indices.shape == (3, most)
        for b in range(3):
            one = (boxes[b].cpu(), scores[b].cpu(), labels[b].cpu())
            expected = by_torchvision(torchvision, *one, threshold, most)
            assert counts[b] == len(expected)
            assert indices[b, : counts[b]].tolist() == expected.tolist()
            assert (indices[b, counts[b] :] == -1).all()


@pytest.mark.parametrize("scores_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_types_equal_the_reference(dtype, scores_dtype, device):
    boxes, scores, labels = make_batch(2, 400, 5, device, dtype)
    scores = scores.to(scores_dtype)  # many are equal in bfloat16
    for classes in (labels, labels.to(torch.int8), None):
        found, expected = (
            f(boxes, scores, classes, 0.5, 150) for f in (ops.nms_padded, reference.nms_padded)
        )
        assert all(x.equal(y) for x, y in zip(found, expected, strict=True))


def test_without_labels_it_is_nms(device):
    boxes, scores, _ = make_batch(2, 900, 1, device)
    indices, counts = ops.nms_padded(boxes, scores, None, 0.5, 900)
    for b in range(2):
        assert indices[b, : counts[b]].equal(ops.nms(boxes[b], scores[b], 0.5))


def test_order_of_special_scores_is_that_of_nms(device):
    boxes = torch.arange(7, device=device).float()[:, None] * 10 + torch.tensor([0.0, 0, 5, 5], device=device)
    nan, infinity = float("nan"), float("inf")
    for dtype in (torch.float32, torch.float64):
        scores = torch.tensor([0.0, infinity, -0.0, nan, -infinity, -1.0, nan], device=device, dtype=dtype)
        indices, counts = ops.nms_padded(boxes[None], scores[None], None, 0.5, 8)
        assert indices.tolist() == [[3, 6, 1, 0, 2, 5, -1, -1]]  # -inf is padding
        assert counts.tolist() == [6]


def test_large_labels_and_coordinates_need_no_offset(device):
    boxes = torch.tensor([[[1e7, 1e7, 1e7 + 8, 1e7 + 8]] * 3], device=device)
    scores = torch.tensor([[0.9, 0.8, 0.7]], device=device)
    labels = torch.tensor([[0, 10**12, 0]], device=device)
    assert ops.nms_padded(boxes, scores, labels, 0.5, 3)[0].tolist() == [[0, 1, -1]]


def test_boxes_with_nan_are_not_suppressed_and_suppress_nothing(device):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [float("nan"), 0, 10, 10], [0, 0, 10, 9]]], device=device)
    scores = torch.tensor([[0.9, 0.8, 0.7]], device=device)
    assert ops.nms_padded(boxes, scores, None, 0.5, 3)[0].tolist() == [[0, 1, -1]]


def test_views_and_tensors_that_require_grad(device):
    boxes, scores, labels = make_batch(2, 200, 3, device)
    wide = torch.cat([boxes, boxes], dim=2)[..., :4].requires_grad_()
    found = ops.nms_padded(wide, scores.t().contiguous().t(), labels.repeat(1, 2)[:, :200], 0.5, 50)
    expected = ops.nms_padded(boxes, scores, labels, 0.5, 50)
    assert all(x.equal(y) for x, y in zip(found, expected, strict=True))


def test_no_images(device):
    indices, counts = ops.nms_padded(*make_batch_of_none(device), 0.5, 4)
    assert indices.shape == (0, 4)
    assert counts.shape == (0,)


def make_batch_of_none(device):
    return (
        torch.zeros(0, 9, 4, device=device),
        torch.zeros(0, 9, device=device),
        torch.zeros(0, 9, device=device, dtype=torch.int64),
    )


def test_the_same_result_each_run_and_for_any_number_of_threads(device):
    batch = make_batch(5, 1500, 7, device)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [ops.nms_padded(*batch, 0.5, 200) for _ in range(34)]
    finally:
        torch.set_num_threads(threads)
    assert all(x.equal(y) for found in results for x, y in zip(found, results[0], strict=True))


def test_opcheck(device):
    boxes, scores, labels = make_batch(2, 30, 3, device)
    opcheck("nms_padded", boxes, scores, labels, 0.5, 10)
    opcheck("nms_padded", boxes, scores, None, 0.5, 10)


def test_compiles_and_exports(device):
    batch = make_batch(2, 30, 3, device)

    class Suppress(torch.nn.Module):
        def forward(self, boxes, scores, labels):
            return ops.nms_padded(boxes, scores, labels, 0.5, 10)

    assert_compiles(Suppress(), *batch)
    exported = torch.export.export(Suppress(), batch).module()
    assert all(x.equal(y) for x, y in zip(exported(*batch), Suppress()(*batch), strict=True))


@pytest.mark.gpu
def test_works_in_a_cuda_graph_and_never_synchronizes():
    boxes, scores, labels = make_batch(3, 2000, 5, "cuda")
    ops.nms_padded(boxes, scores, labels, 0.5, 100)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.nms_padded(boxes, scores, labels, 0.5, 100)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.nms_padded(boxes, scores, labels, 0.5, 100)
    scores.copy_(scores.flip(1))
    graph.replay()
    expected = ops.nms_padded(boxes, scores, labels, 0.5, 100)
    assert all(x.equal(y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"boxes": torch.zeros(3, 4)}, ValueError, r"boxes has shape \(3, 4\); expected \(B, N, 4\)"),
        ({"scores": torch.zeros(2, 4)}, ValueError, r"scores has shape \(2, 4\); expected \(2, 3\)"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels has shape \(3,\)"),
        ({"labels": torch.zeros(2, 3)}, TypeError, "labels has dtype torch.float32"),
        ({"boxes": torch.zeros(2, 3, 4).long()}, TypeError, "boxes has dtype torch.int64"),
        ({"labels": torch.zeros(2, 3, device="meta").long()}, ValueError, "labels is on meta"),
        ({"iou_threshold": -0.1}, ValueError, "iou_threshold=-0.1"),
        ({"max_detections": 0}, ValueError, "max_detections=0; expected a positive integer"),
    ],
)
def test_invalid_arguments_raise(arguments, error, message):
    good = {
        "boxes": torch.zeros(2, 3, 4),
        "scores": torch.zeros(2, 3),
        "labels": None,
        "iou_threshold": 0.5,
        "max_detections": 4,
    }
    with pytest.raises(error, match=message):
        ops.nms_padded(**(good | arguments))
