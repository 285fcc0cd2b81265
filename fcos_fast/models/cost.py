"""What a detector costs: parameters and floating-point operations, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fcos_fast.models.detector import Detector
from fcos_fast.models.transform import Size


@dataclass(frozen=True)
class Cost:
    """Of one part of a model, for one image.

    Attributes:
        part: dotted name of the module.
        parameters: number of them; those of frozen norms, which are buffers, are not counted.
        flops: multiplications and additions of its convolutions, counted separately. Torchvision and most papers call
            half of it FLOPs: multiply-adds.
    """

    part: str
    parameters: int
    flops: int


PARTS = (
    "backbone.body",
    "backbone.fpn",
    "backbone.fpn.extra_blocks",
    "head.classification_head",
    "head.regression_head",
)
"""The parts of every detector; one that stands within another is not counted there."""


def cost(model: Detector, size: Size) -> list[Cost]:
    """The cost of the network of ``model``, of each of :data:`PARTS` and, at the end, of all of it.

    Counted by torch's own ``FlopCounterMode``, which knows convolutions and matrix products; norms, activations and
    deformable convolutions count nothing. Transform and post-processing are left out.

    Args:
        model: on any device; on ``meta`` nothing is computed.
        size: (height, width) of the padded image that the backbone sees.
    """
    image = torch.zeros((1, 3, *size), device=model.transform.mean.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network(image)
    counts = counter.get_flop_counts()

    def flops(part: str) -> int:
        # The counter knows a module by its path below the one that was called, which it knows by its class.
        top, _, below = part.partition(".")
        return sum(counts.get(f"{type(model.get_submodule(top)).__name__}.{below}", {}).values())

    def parameters(part: str) -> int:
        return sum(p.numel() for p in model.get_submodule(part).parameters())

    present = [part for part in PARTS if _has(model, part)]
    costs = []
    for part in present:
        within = [other for other in present if other.startswith(part + ".")]
        own_parameters = parameters(part) - sum(map(parameters, within))
        costs.append(Cost(part, own_parameters, flops(part) - sum(map(flops, within))))
    return [*costs, Cost("all", parameters(""), counter.get_total_flops())]


def cost_table(costs: Sequence[Cost]) -> str:
    """Lines of parameters in millions and of multiply-adds in billions."""
    rows = [
        f"{c.part:26}{c.parameters / 1e6:12.3f}{c.flops / 2e9:12.3f}{c.flops / costs[-1].flops:10.1%}"
        for c in costs
    ]
    return "\n".join([f"{'part':26}{'M parameters':>12}{'G mult-adds':>12}{'share':>10}", *rows])


def _has(model: nn.Module, part: str) -> bool:
    try:
        return isinstance(model.get_submodule(part), nn.Module)
    except AttributeError:
        return False
