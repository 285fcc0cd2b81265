"""``match_anchors`` with ``low_quality="last_claim"`` and ``min_pos_iou``, against a loop over boxes and anchors."""

import pytest
import torch

from fcos_fast import ops, reference
from tests.ops.test_match_anchors import pack, random_boxes, whole_boxes


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
def test_bad_arguments_are_named(options, message):
    anchors = torch.tensor([[0.0, 0, 4, 4]])
    with pytest.raises(ValueError, match=message):
        ops.match_anchors(anchors, pack([anchors]), **options)
