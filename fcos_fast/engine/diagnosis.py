"""Why a step was not finite: its forward and backward pass again, without changing the state of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fcos_fast.assignment import IGNORED, GroundTruth
from fcos_fast.engine.distributed import broadcast, gather, is_main
from fcos_fast.engine.files import WriteError, write_json
from fcos_fast.engine.random_state import random_state, set_random_state
from fcos_fast.engine.step import RunningStatistics
from fcos_fast.models import Detector, ImageBatch
from fcos_fast.models.assigned import AssignedTargets, split
from fcos_fast.precision import autocast
from fcos_fast.text import printable

if TYPE_CHECKING:
    from fcos_fast.engine.run import Run

FILE = "diagnosis.json"

Finding = dict[str, Any]


def diagnose(run: Run, batch: int) -> str:
    """Find what is not finite in the training batch with this number in the epoch, and write ``diagnosis.json``.

    The step of the batch and all after it were skipped, so the weights are those before it. The loader makes the batch
    again. All processes call this together.

    Returns:
        The cause in words, to append to a message: empty if none was found.
    """
    try:
        finding = _find(run, batch)
    except Exception as error:  # the loss that is not finite is the error to report
        finding = {"summary": "", "failed": f"{type(error).__name__}: {error}"}
    findings = gather(finding) or []
    found = next((f for f in findings if f["summary"]), None)
    text = f": {found['summary']}" if found else ""
    if is_main():
        position = {"epoch": run.state.epoch + 1, "step": run.state.epoch * len(run.loader) + batch + 1}
        try:
            write_json(run.folder / FILE, {**position, "processes": findings})
            text += f"; see {run.folder / FILE}"
        except WriteError as error:
            text += f"; {error}"
    return broadcast(text)


def _find(run: Run, number: int) -> Finding:
    names, images, gt = batch_again(run, number)
    model, state = run.state.model, random_state()
    statistics = RunningStatistics(model)
    statistics.keep()
    try:
        finding = find_cause(model, images, gt, run.dtype, run.config.train.accumulate)
    finally:
        statistics.restore_unless(torch.tensor(False, device=run.device))
        model.zero_grad()
        set_random_state(state)
    for place in finding["places"]:
        place["image"] = names[place.pop("index")]
    return {"summary": in_words(finding), "images": names, **finding}


def batch_again(run: Run, number: int) -> tuple[list[str], ImageBatch, GroundTruth]:
    """The names of the images of a batch of the current epoch, and the batch on the device of the run.

    A mosaic has the name of its first image.
    """
    loader: Any = run.loader
    keys = list(loader.batch_sampler)[number]
    images, gt = loader.collate_fn([loader.dataset[key] for key in keys])
    names = [printable(run.train_set.records[key.image].name) for key in keys]
    return names, images.to(run.device), gt.to(run.device)


def find_cause(
    model: Detector, images: ImageBatch, gt: GroundTruth, dtype: torch.dtype = torch.float32, parts: int = 1
) -> Finding:
    """What is not finite in a training step of ``model``, which keeps gradients and changed statistics of batch norms.

    Returns:
        ``weight``: name of the first parameter or buffer that is not finite. ``layer``: the first module with such an
        output. ``places``: index of the image, stride of the level, loss, its value, boxes and labels of each image and
        level with such a loss; ``what`` is ``gradient`` instead of ``loss`` if only the gradient of the head's outputs
        is not finite. ``parameter``: the first parameter with such a gradient, in the order of the backward pass.
        ``largest``: parameter with the largest gradient and its maximum.
    """
    finding: Finding = {"weight": _first_weight(model), "layer": None, "places": []}
    model.zero_grad()
    model._compiled_losses = None  # hooks see the layers of the model only without a compiled graph
    gradients: dict[str, Tensor] = {}
    assigned = model.assign_batch(images, gt)
    for start, (part, targets) in _numbered(split(images, assigned, parts)):
        with (
            _first_layer(model) as layers,
            _outputs_of(model) as outputs,
            autocast(dtype, images.tensor.device),
        ):
            losses = model(part, targets)
        finding["layer"] = finding["layer"] or next(iter(layers), None)
        finding["places"] += _places(model, outputs, part, targets, start)
        with _gradients_in_order(model, gradients):
            sum(losses.values()).backward()
    for place in finding["places"]:
        rows = slice(*gt.starts[place["index"] : place["index"] + 2].tolist())
        place |= {"boxes": gt.boxes[rows].tolist(), "labels": gt.labels[rows].tolist()}
    maxima = {name: float(g.abs().max()) for name, g in gradients.items() if g.numel()}
    finding["parameter"] = next((name for name, top in maxima.items() if not math.isfinite(top)), None)
    finite = {name: top for name, top in maxima.items() if math.isfinite(top)}
    finding["largest"] = max(finite.items(), key=lambda item: item[1], default=None)
    return finding


def in_words(finding: Finding) -> str:
    """One sentence about a finding whose places have the names of their images; empty if everything is finite."""
    said = []
    if finding["weight"]:
        said.append(f"the weights of {finding['weight']} were not finite before the step")
    elif finding["layer"]:
        said.append(f"the first layer whose output is not finite is {finding['layer']}")
    if finding["places"]:
        first = finding["places"][0]
        others = len({place["image"] for place in finding["places"]}) - 1
        more = f", and for {others} more image{'s' if others > 1 else ''}" if others else ""
        value = f"is {first['value']:g}" if first["what"] == "loss" else "has a gradient that is not finite"
        said.append(
            f"loss {first['loss']} {value} for image {first['image']} ({len(first['boxes'])} boxes) at the level of "
            f"stride {first['stride']}{more}"
        )
    if finding["parameter"]:
        said.append(f"the first gradient that is not finite is that of {finding['parameter']}")
    elif finding["largest"] and not said and finding["largest"][1] > 1e18:
        name, top = finding["largest"]
        said.append(f"the norm of the gradient overflows; its largest value is {top:g}, of {name}")
    return "; ".join(said)


def _first_weight(model: nn.Module) -> str | None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return next((n for n, t in tensors if t.is_floating_point() and not t.isfinite().all()), None)


def _numbered(
    parts: Sequence[tuple[ImageBatch, AssignedTargets]],
) -> Iterator[tuple[int, tuple[ImageBatch, AssignedTargets]]]:
    """Each part with the index of its first image."""
    start = 0
    for part in parts:
        yield start, part
        start += len(part[0].tensor)


@contextmanager
def _first_layer(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules without children whose output is not finite, in the order of the forward pass."""
    names: list[str] = []

    def hook(name: str) -> Any:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                names.append(name)

        return check

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs_of(model: Detector) -> Iterator[list[Any]]:
    """The outputs of the head."""
    outputs: list[Any] = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def _gradients_in_order(model: nn.Module, gradients: dict[str, Tensor]) -> Iterator[None]:
    """Fill ``gradients`` with the gradient of each parameter, by name, in the order of the backward pass."""

    def hook(name: str) -> Any:
        return lambda parameter: gradients.__setitem__(name, parameter.grad)

    handles = [
        p.register_post_accumulate_grad_hook(hook(n)) for n, p in model.named_parameters() if p.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(
    model: Detector, outputs: Sequence[Any], images: ImageBatch, targets: AssignedTargets, start: int
) -> list[Finding]:
    """The images and levels with a loss that is not finite, or else those with such a gradient of the head's outputs.

    Each is computed alone, from the outputs of the whole batch and with its normalizers.
    """
    places = []
    for index, (_, alone) in enumerate(split(images, targets, len(images.tensor))):
        maps = [[x[index : index + 1].detach().float() for x in levels] for levels in outputs[0]]
        if _check(model, maps, alone.targets):
            for level, stride in enumerate(model.config.strides):
                for place in _check(model, maps, _of_level(alone.targets, maps[0], level)):
                    places.append({"index": start + index, "stride": stride, **place})
    wrong = [place for place in places if place["what"] == "loss"]
    return wrong or places


def _of_level(targets: Any, maps: Sequence[Tensor], level: int) -> Any:
    """The targets with the locations or anchors of all other levels ignored."""
    cells = [x[0, 0].numel() for x in maps]
    anchors = targets.labels.shape[1] // sum(cells)  # per cell; 1 for FCOS
    other = torch.ones_like(targets.labels, dtype=torch.bool)
    other.split([n * anchors for n in cells], dim=1)[level].fill_(False)
    labels, matched = (x.masked_fill(other, IGNORED) for x in (targets.labels, targets.matched))
    return replace(targets, labels=labels, matched=matched)


def _check(model: Detector, maps: list[list[Tensor]], targets: Any) -> list[Finding]:
    """The losses of these outputs of the head that are not finite, or whose gradient is not."""
    leaves = [[x.detach().requires_grad_() for x in levels] for levels in maps]
    vars(model)["network"] = lambda _: leaves  # instead of the method
    try:
        losses = model.losses(maps[0][0], targets)
    finally:
        del vars(model)["network"]
    found = []
    flat = [x for levels in leaves for x in levels]
    for name, loss in losses.items():
        if not loss.isfinite():
            found.append({"what": "loss", "loss": name, "value": loss.item()})
            continue
        gradients = torch.autograd.grad(loss, flat, allow_unused=True, retain_graph=True)
        if not all(g is None or g.isfinite().all() for g in gradients):
            found.append({"what": "gradient", "loss": name, "value": loss.item()})
    return found
