import pytest
import torch

from fcos_fast import ops, reference
from fcos_fast.assignment import GroundTruth
from tests.ops.opcheck import assert_compiles, opcheck


def random_boxes(count, extent=200, smallest=4, largest=90):
    corner = torch.rand(count, 2) * extent
    return torch.cat((corner, corner + smallest + torch.rand(count, 2) * (largest - smallest)), dim=1)


def whole_boxes(count, extent=24, largest=12):
    """Integer coordinates: many IoUs are equal, and many are simple fractions."""
    corner = torch.randint(extent, (count, 2))
    return torch.cat((corner, corner + torch.randint(1, largest + 1, (count, 2))), dim=1).float()


def pack(boxes, classes=7):
    return GroundTruth.pack(boxes, [torch.randint(classes, (len(b),)) for b in boxes])


def box_iou(boxes, anchors):
    return pytest.importorskip("torchvision.ops", reason="torchvision is not installed").box_iou(
        boxes, anchors
    )


def by_torchvision(anchors, boxes, high, low, allow):
    """(A,) row of boxes, -1 or -2."""
    iou = box_iou(boxes, anchors)
    utils = pytest.importorskip("torchvision.models.detection._utils", reason="torchvision is not installed")
    return utils.Matcher(high, low, allow)(iou)


def assert_like_torchvision(anchors, boxes, device, high=0.5, low=0.4, allow=True):
    gt = pack(boxes)
    matches = ops.match_anchors(
        anchors.to(device),
        gt.to(device),
        high_threshold=high,
        low_threshold=low,
        low_quality="own_match" if allow else "none",
    )
    positive = 0
    for image, own in enumerate(boxes):
        first = gt.starts[image]
        expected = by_torchvision(anchors, own, high, low, allow)
        rows = torch.where(expected >= 0, expected + first, expected)
        assert torch.equal(matches.matched[image].cpu().long(), rows)
        labels = torch.where(rows >= 0, gt.labels[rows.clamp(min=0)], rows)
        assert torch.equal(matches.labels[image].cpu().long(), labels)
        positive += (rows >= 0).sum().item()
    assert matches.num_positive.dtype == torch.float32
    assert matches.num_positive.shape == ()
    assert matches.num_positive.item() == positive
    return matches


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize("count", [1, 127, 128, 1000, 5003])
def test_equals_torchvision(count, allow, device):
    boxes = [random_boxes(n) for n in (3, 1, 40, 300)]
    assert_like_torchvision(random_boxes(count), boxes, device, allow=allow)


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("high", "low"), [(0.5, 0.4), (0.5, 0.5), (1 / 3, 0.2), (0.7, 0.3), (1.0, 0.0)])
def test_ties_and_exact_thresholds_equal_torchvision(high, low, seed, allow, device):
    torch.manual_seed(seed)
    boxes = [whole_boxes(n) for n in (1, 9, 60)]
    anchors = torch.cat((whole_boxes(3000), *boxes, *boxes))  # each box has at least two best anchors
    iou = box_iou(torch.cat(boxes), anchors)
    assert (iou == high).any()
    assert ((iou == iou.amax(1, keepdim=True)).sum(1) > 1).any()
    assert_like_torchvision(anchors, boxes, device, high, low, allow)


@pytest.mark.parametrize("shift", [0.0, 1e-3, 7777.7])
def test_ious_have_torchvisions_bits(shift, device):
    # The low-quality matches of a box are the anchors whose IoU is bitwise equal to the maximum: all of the copies, but
    # only some of the shifted copies, whose IoU differs in the last bits.
    box = random_boxes(30, 900) + shift
    anchors = torch.cat([box + torch.rand(1) * 1e-4 for _ in range(60)] + [box.clone(), box.clone()])
    assert_like_torchvision(anchors, [box * 1.01, box + 0.3], device, 0.99, 0.98)


def test_a_box_that_overlaps_nothing_matches_as_in_torchvision(device):
    anchors = random_boxes(700)
    far = torch.tensor([[5000.0, 5000, 5010, 5010]])
    boxes = [torch.cat((random_boxes(2), far)), far]
    matches = assert_like_torchvision(anchors, boxes, device)
    assert (matches.matched[1] == 3).all()


def test_anchors_of_retinanet(device, torchvision):
    detection = torchvision.models.detection
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128))
    features = [torch.zeros(1, 1, 320 // s, 480 // s) for s in (8, 16, 32)]
    generator = detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    (anchors,) = generator(
        detection.image_list.ImageList(torch.zeros(1, 3, 320, 480), [(320, 480)]), features
    )
    boxes = [random_boxes(n, 300, 8, 180) for n in (20, 5)]
    matches = assert_like_torchvision(anchors, boxes, device)
    assert ((matches.labels == -2).any(1) & (matches.labels == -1).any(1)).all()


def test_the_reference_equals_torchvision():
    anchors, boxes = whole_boxes(400), whole_boxes(25)
    for allow in (True, False):
        matches = reference.match_anchors(
            anchors, pack([boxes]), low_quality="own_match" if allow else "none"
        )
        assert torch.equal(matches.matched[0].long(), by_torchvision(anchors, boxes, 0.5, 0.4, allow))


@pytest.mark.parametrize("allow", [True, False])
def test_images_without_boxes_are_background(allow, device):
    none, some = torch.zeros(0, 4), random_boxes(4)
    for boxes in ([none], [none, some, none]):
        matches = ops.match_anchors(
            random_boxes(300).to(device), pack(boxes).to(device), low_quality="own_match" if allow else "none"
        )
        assert (matches.labels[0] == -1).all()
        assert (matches.matched[-1] == -1).all()
        assert matches.num_positive == (matches.matched >= 0).sum()


def test_no_anchors(device):
    matches = ops.match_anchors(torch.zeros(0, 4, device=device), pack([random_boxes(3)]).to(device))
    assert matches.labels.shape == matches.matched.shape == (1, 0)
    assert matches.num_positive == 0


@pytest.mark.parametrize("allow", [True, False])
def test_degenerate_boxes_and_anchors_are_skipped(allow, device, monkeypatch):
    from fcos_fast.ops import _checks

    monkeypatch.setattr(_checks, "checks_values", lambda tensor: False)
    nan, inf = float("nan"), float("inf")
    wrong = [
        [5, 5, 5, 9],
        [5, 5, 9, 5],
        [9, 9, 5, 5],
        [nan, 0, 9, 9],
        [0, 0, nan, 9],
        [0, 0, inf, 9],
        [0] * 4,
    ]
    proper = whole_boxes(6)
    anchors = torch.cat((whole_boxes(500), torch.tensor(wrong)))
    mixed = torch.cat((torch.tensor(wrong[:4]), proper[:3], torch.tensor(wrong[4:]), proper[3:]))
    gt = pack([mixed, torch.tensor(wrong)]).to(device)
    matches = ops.match_anchors(anchors.to(device), gt, low_quality="own_match" if allow else "none")
    expected = reference.match_anchors(anchors.to(device), gt, low_quality="own_match" if allow else "none")
    assert torch.equal(matches.matched, expected.matched)
    assert torch.equal(matches.labels, expected.labels)
    assert (matches.matched[1] == -1).all()

    rows = torch.tensor([4, 5, 6, 10, 11, 12])  # the valid boxes
    own = by_torchvision(anchors[:500], proper, 0.5, 0.4, allow)
    assert torch.equal(
        matches.matched[0, :500].cpu().long(), torch.where(own >= 0, rows[own.clamp(min=0)], own)
    )


def test_strided_inputs(device):
    anchors, boxes = random_boxes(300), random_boxes(9)
    gt = pack([boxes]).to(device)
    expected = ops.match_anchors(anchors.to(device), gt)
    wide = torch.cat((anchors, anchors), dim=1).to(device)[:, :4]
    columns = GroundTruth(gt.boxes.t().contiguous().t(), gt.labels.repeat_interleave(2)[::2], gt.starts)
    actual = ops.match_anchors(wide, columns)
    assert torch.equal(actual.labels, expected.labels)
    assert torch.equal(actual.matched, expected.matched)


def test_the_same_for_any_number_of_threads():
    anchors, gt = whole_boxes(20_000), pack([whole_boxes(30), whole_boxes(2)])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(ops.match_anchors(anchors, gt))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result.matched, results[0].matched)
        assert result.num_positive == results[0].num_positive


def test_its_labels_are_the_targets_of_the_focal_loss(device):
    matches = ops.match_anchors(whole_boxes(200).to(device), pack([whole_boxes(5)]).to(device))
    logits = torch.randn(1, 200, 7, device=device, requires_grad=True)
    ops.sigmoid_focal_loss(logits, matches.labels, reduction="sum").backward()
    assert ((logits.grad == 0).all(-1) == (matches.labels == -2)).all()


@pytest.mark.parametrize("allow", [True, False])
def test_opcheck(allow, device):
    gt = pack([whole_boxes(3), whole_boxes(2)]).to(device)
    anchors = whole_boxes(40).to(device)
    opcheck(
        "match_anchors",
        anchors,
        gt.boxes,
        gt.labels,
        gt.starts,
        0.5,
        0.4,
        "last_claim" if allow else "none",
        0.0,
    )


def test_compiles_as_one_graph(device):
    gt = pack([whole_boxes(3), whole_boxes(2)]).to(device)

    def function(anchors, boxes, labels, starts):
        matches = ops.match_anchors(anchors, GroundTruth(boxes, labels, starts))
        return matches.labels, matches.matched, matches.num_positive

    assert_compiles(function, whole_boxes(40).to(device), gt.boxes, gt.labels, gt.starts)


ANCHORS, GT = torch.tensor([[0.0, 0, 4, 4]]), pack([torch.tensor([[0.0, 0, 4, 4]])])


@pytest.mark.parametrize(
    ("anchors", "gt", "kwargs", "error", "message"),
    [
        (ANCHORS.double(), GT, {}, TypeError, r"anchors has dtype torch.float64 and shape \(1, 4\)"),
        (ANCHORS[0], GT, {}, TypeError, r"anchors has dtype torch.float32 and shape \(4,\)"),
        ([[0, 0, 4, 4]], GT, {}, TypeError, "anchors must be a tensor, got list"),
        (ANCHORS, GT, {"low_threshold": 0.6}, ValueError, "low_threshold=0.6 and high_threshold=0.5"),
        (
            ANCHORS,
            GroundTruth(ANCHORS.double(), GT.labels, GT.starts),
            {},
            TypeError,
            "boxes has dtype torch.float64",
        ),
        (ANCHORS, GroundTruth(ANCHORS * -1, GT.labels, GT.starts), {}, ValueError, "box 0 is"),
        (ANCHORS, GroundTruth(ANCHORS, GT.labels - 9, GT.starts), {}, ValueError, "expected classes 0..C-1"),
        (
            ANCHORS,
            GroundTruth(ANCHORS, GT.labels, GT.starts + 1),
            {},
            RuntimeError,
            "expected non-decreasing starts",
        ),
    ],
)
def test_invalid_arguments_raise(anchors, gt, kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.match_anchors(anchors, gt, **kwargs)


def by_a_loop(anchors, boxes, high, low, low_quality, min_pos_iou):
    """(A,) row of boxes, -1 or -2: each box in turn takes its best anchors, in float64 where IoUs are exact."""
    iou = pytest.importorskip("torchvision.ops", reason="torchvision is not installed").box_iou(
        boxes, anchors
    )
    best, own = iou.max(dim=0)
    result = []
    for a in range(len(anchors)):
        match = int(own[a]) if best[a] >= high else -2 if best[a] >= low else -1
        for b in range(len(boxes)):
            greatest = iou[b].max()
            if low_quality != "none" and greatest >= min_pos_iou and iou[b, a] == greatest:
                match = b if low_quality == "last_claim" else int((iou[:, a] == best[a]).nonzero()[0])
        result.append(match)
    return torch.tensor(result)


@pytest.mark.parametrize("low_quality", ["none", "own_match", "last_claim"])
@pytest.mark.parametrize("min_pos_iou", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop(seed, low_quality, min_pos_iou, device):
    torch.manual_seed(seed)
    boxes = whole_boxes(12)
    far = torch.tensor([[5000.0, 5000, 5010, 5010]])  # overlaps no anchor
    for own in (boxes, random_boxes(5), torch.cat((boxes[:3], far, boxes[3:5])), far):
        anchors = torch.cat((whole_boxes(300), random_boxes(50), boxes))
        expected = by_a_loop(anchors, own, 0.5, 0.4, low_quality, min_pos_iou)
        options = {"low_quality": low_quality, "min_pos_iou": min_pos_iou}
        found = ops.match_anchors(anchors.to(device), pack([own]).to(device), **options)
        assert torch.equal(found.matched[0].cpu().long(), expected)
        assert torch.equal(
            reference.match_anchors(anchors, pack([own]), **options).matched[0].long(), expected
        )


def test_the_last_of_two_boxes_claims_their_common_best_anchor(device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 12, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    gt = pack([boxes]).to(device)
    matched = {
        low_quality: ops.match_anchors(anchors.to(device), gt, low_quality=low_quality).matched[0].tolist()
        for low_quality in ("own_match", "last_claim")
    }
    assert matched == {"own_match": [0, -1], "last_claim": [1, -1]}


def test_rows_of_a_second_image(device):
    boxes, anchors = [whole_boxes(3), whole_boxes(9)], whole_boxes(200)
    found = ops.match_anchors(anchors.to(device), pack(boxes).to(device), low_quality="last_claim")
    expected = by_a_loop(anchors, boxes[1], 0.5, 0.4, "last_claim", 0.0)
    assert torch.equal(found.matched[1].cpu().long(), torch.where(expected >= 0, expected + 3, expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low_quality": "own"}, "low_quality='own'; expected one of none, own_match, last_claim"),
        ({"min_pos_iou": -0.1}, "min_pos_iou"),
        ({"min_pos_iou": float("nan")}, "min_pos_iou"),
    ],
)
def test_bad_rules_of_low_quality_matches(options, message):
    anchors = torch.tensor([[0.0, 0, 4, 4]])
    with pytest.raises(ValueError, match=message):
        ops.match_anchors(anchors, pack([anchors]), **options)
