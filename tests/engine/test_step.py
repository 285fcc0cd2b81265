"""The training step: equal to plain torch, skipped if not finite, and without reading a value from the device."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fcos_fast.engine import step as step_module
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.optimizer import OptimizerConfig, build_optimizer, set_learning_rate
from fcos_fast.engine.prefetch import prefetch
from fcos_fast.engine.step import TrainStep
from fcos_fast.engine.train import loss_columns, non_finite_error, train
from fcos_fast.models import FCOS, BatchPacker, DetectorConfig, build_detector
from tests.engine.small import MODEL, RETINANET, packed, samples, with_nan

OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.01, weight_decay=0.01),
    "adamw": OptimizerConfig(name="adamw", lr=0.001),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def build(
    name: str, device: str = "cpu", config: DetectorConfig = MODEL, double: bool = False, **options
) -> TrainStep:
    torch.manual_seed(0)
    model = build_detector(config).to(device).train()
    model = model.double() if double else model
    optimizer = build_optimizer(model, OPTIMIZERS[name])
    return TrainStep(model, optimizer, ExponentialMovingAverage(model, 0.5), **({"clip_norm": 1.0} | options))


def state_of(step: TrainStep) -> dict[str, torch.Tensor]:
    """Copies of everything that a step can change, by name."""
    optimizer = {
        f"optimizer.{i}.{k}": v
        for i, state in step.optimizer.state_dict()["state"].items()
        for k, v in state.items()
    }
    tensors = step.model.state_dict() | {f"ema.{k}": v for k, v in step.ema.model.state_dict().items()}
    return {k: v.clone() for k, v in (tensors | optimizer).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], keys) -> None:
    for key in keys:
        assert torch.equal(a[key], b[key]), key


@each_optimizer
def test_equals_plain_torch(name):
    """Compared with lists instead of packed batches, torch's for-loop optimizers, and clipping and EMA by hand."""
    step = build(name)
    model = copy.deepcopy(step.model)
    config = OPTIMIZERS[name]
    groups = [
        {k: v for k, v in group.items() if k in ("weight_decay", "lr")}
        | {"params": [dict(model.named_parameters())[n] for n in names]}
        for group, names in zip(step.optimizer.param_groups, _names(step), strict=True)
    ]
    plain = (
        torch.optim.SGD(groups, momentum=config.momentum, foreach=False)
        if name == "sgd"
        else torch.optim.AdamW(groups, betas=config.betas, foreach=False)
    )
    average = {k: v.clone() for k, v in model.state_dict().items()}
    losses = []
    for t in range(1, 4):
        set_learning_rate(step.optimizer, 1 / t)
        step(*packed(t))
        for group in plain.param_groups:
            group["lr"] = config.lr / t
        found = model(*samples(t))
        losses.append([found[key].item() for key in FCOS.LOSSES])
        plain.zero_grad()
        sum(found.values()).backward()
        gradients = [p.grad for p in model.parameters()]
        norm = sum(g.double().square().sum() for g in gradients).sqrt().float()
        assert norm > 1
        for gradient in gradients:
            gradient.mul_(1 / norm)
        plain.step()
        d = min(0.5, (1 + t) / (10 + t))
        for k, v in model.state_dict().items():
            average[k] = d * average[k] + (1 - d) * v if v.is_floating_point() else v.clone()
    for ours, theirs in (
        (step.model.state_dict(), model.state_dict()),
        (step.ema.model.state_dict(), average),
    ):
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=2e-4, msg=key)
    tally = step.tally()
    torch.testing.assert_close(torch.tensor(tally.sums), torch.tensor(losses).sum(0), rtol=1e-4, atol=0)
    assert (tally.skipped, tally.finite) == (0, 3)
    step.begin_epoch()
    assert step.tally().finite == 0


def _names(step: TrainStep) -> list[list[str]]:
    names = {p: n for n, p in step.model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in step.optimizer.param_groups]


def nan_batch(step: TrainStep) -> tuple:
    """A batch with NaN losses and NaN statistics of batch norms."""
    images, targets = packed(7)
    return with_nan(images, step.model), targets


@contextlib.contextmanager
def infinite_loss(step: TrainStep):
    """An infinite loss with finite gradients."""
    losses = step.model.losses
    step.model.losses = lambda *arguments: {k: v + torch.inf for k, v in losses(*arguments).items()}
    yield
    del step.model.losses


@contextlib.contextmanager
def infinite_gradient(step: TrainStep):
    """Infinite gradients with finite losses."""
    hook = step.model.head.classification_head.cls_logits.bias.register_hook(lambda g: g / 0)
    yield
    hook.remove()


@pytest.mark.parametrize(
    ("name", "config"),
    [("sgd", MODEL), ("adamw", MODEL), ("sgd", RETINANET)],
    ids=["sgd", "adamw", "retinanet"],
)
@pytest.mark.parametrize("what", ["pixel", "loss", "gradient"])
@pytest.mark.parametrize("before", [0, 2], ids=["first_step", "later"])
def test_a_step_that_is_not_finite_changes_nothing(name, config, what, before):
    step, undisturbed = build(name, config=config), build(name, config=config)
    for t in range(before):
        step(*packed(t))
        undisturbed(*packed(t))
    # AdamW creates its state, zeros, in the first step
    kept, zeros = state_of(step), (lambda v: torch.zeros_like(v))
    if what == "pixel":
        step(*nan_batch(step))
    else:
        with infinite_loss(step) if what == "loss" else infinite_gradient(step):
            step(*packed(7))
    after = state_of(step)
    assert_same(after, {k: kept.get(k, zeros(v)) for k, v in after.items()}, after)
    tally = step.tally()
    assert (tally.skipped, tally.finite) == (1, before)
    assert all(map(torch.isfinite, torch.tensor(tally.sums))) == (what == "gradient")

    step(*packed(8))  # skipped too, so that the weights are still those of the step before
    assert_same(state_of(step), after, after)
    assert (step.tally().skipped, step.tally().finite) == (2, before)
    step.begin_epoch()
    step(*packed(8))
    undisturbed(*packed(8))
    a, b = state_of(step), state_of(undisturbed)
    assert_same(a, b, [k for k in a if not k.startswith("ema.")])  # the average counted the skipped steps
    assert (step.tally().skipped, step.tally().finite) == (0, 1)


def test_the_message_names_the_step_and_the_kind(tiny):
    tally = step_module.Tally(sums=(1.0, 1.0, 1.0), floors=(0.0, 0.0, 0.0), skipped=2, finite=4)
    error = non_finite_error(loss_columns(FCOS.LOSSES, tally, 6), 5, "epoch 2/9", tiny, ": because")
    assert re.match(r"epoch 2/9, step 5: the gradient is not finite .*: because; lower", str(error))


EQUAL_IN_PARTS = {
    "group norm": replace(MODEL, norm="group"),
    "frozen norm": replace(MODEL, norm="frozen", trainable_stages=3),
    "per image": replace(MODEL, norm="group", normalizer="image"),
    "positives": replace(MODEL, norm="group", normalizer="positives", ignore_padding=True),
    "retinanet": replace(RETINANET, norm="group"),
    "retinanet, per image": replace(RETINANET, norm="group", normalizer="image"),
}


@pytest.mark.parametrize(
    ("name", "parts"), [*((name, 2) for name in EQUAL_IN_PARTS), ("group norm", 4), ("per image", 4)]
)
def test_a_batch_in_parts_equals_the_whole_batch(name, parts):
    """Images of four sizes, one without a box. Clipping, moving average and floors see the sum of the parts."""
    images, targets = samples(0, ((64, 96), (60, 80), (64, 96), (50, 90)))
    targets[2] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    batch = BatchPacker(MODEL).collate(list(zip(images, targets, strict=True)))
    whole, accumulated = (
        build("sgd", config=EQUAL_IN_PARTS[name], double=True, accumulate=n) for n in (1, parts)
    )
    for step in (whole, accumulated):
        step(*batch)
    for sums in ("sums", "floors"):
        a, b = (torch.tensor(getattr(step.tally(), sums)) for step in (whole, accumulated))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    for (key, a), b in zip(state_of(whole).items(), state_of(accumulated).values(), strict=True):
        # float64, except the normalizers, which are float32 sums
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-9, msg=key)


def test_a_part_that_is_not_finite_skips_the_batch():
    """The first of two parts; the second is finite."""
    step = build("adamw", accumulate=2)
    step(*packed(0))
    before = state_of(step)
    step(*nan_batch(step))
    assert_same(state_of(step), before, before)
    assert (step.tally().skipped, step.tally().finite) == (1, 1)


def test_the_floor_of_centerness_is_its_loss_for_the_best_logits():
    """Calculated by torch from the targets of each location."""
    for normalizer in ("weights", "positives", "image", "moving_average"):
        model = FCOS(replace(MODEL, normalizer=normalizer)).train()
        images, gt = packed(3)
        targets = model.assign(images, gt)
        found = model.losses(model.transform.normalize(images).tensor, targets)["bbox_ctrness"]
        floor = model.loss_floors(targets)["bbox_ctrness"]
        positive = targets.labels >= 0
        centerness = targets.centerness.double()
        best = F.binary_cross_entropy(centerness, centerness, reduction="none").where(positive, 0.0)
        expected = {
            "image": (best.sum(1) / positive.sum(1).clamp(min=1)).mean(),
            "moving_average": best.sum() / (0.9 * 300 + 0.1 * positive.sum()),
        }.get(normalizer, best.sum() / positive.sum())
        torch.testing.assert_close(floor.double(), expected, rtol=1e-5, atol=0)
        assert 0 < floor < found


def test_losses_that_can_reach_0_have_no_floor():
    model = FCOS(replace(MODEL, quality="iou"))
    assert model.loss_floors(model.assign(*packed(0))) == {}
    step = build("sgd", config=RETINANET)
    step(*packed(0))
    assert step.tally().floors == (0.0, 0.0)


class NeverWaits(TorchDispatchMode):
    """Raises if an operator reads values from the device, or copies pageable host memory to it.

    Tensors on ``meta`` represent those on a GPU: torch itself cannot read them. Numbers among an operator's arguments
    are 0-d CPU tensors, which are allowed unless torch copies them to the device first.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._fused_sgd_, torch.ops.aten._fused_adamw_):
            return None  # not implemented for meta
        result = func(*args, **(kwargs or {}))
        taken, given = (
            {t.device.type for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        copies = (torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.where)
        indices = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else ()
        if any(index is not None and index.dtype == torch.bool for index in indices):
            raise RuntimeError(f"{func} counts the elements of a mask")
        if "cpu" in taken | given and ("meta" not in given or func.overloadpacket in copies):
            raise RuntimeError(f"{func} between the host and the device")
        return result


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: x + torch.ones(4).to(x.device),
        lambda x: x.index_put_((x > 0,), x[:1]),
        lambda x: bool((x > 0).all()),
    ],
    ids=["item", "tolist", "cpu", "nonzero", "mask", "where", "to", "put", "bool"],
)
def test_never_waits_detects_reads(read):
    x = torch.ones(4, device="meta")
    with NeverWaits():
        x * 2 + x.masked_fill(x > 0, 1.0)
    with pytest.raises((RuntimeError, NotImplementedError)), NeverWaits():
        read(x)


@each_optimizer
@pytest.mark.parametrize(
    "config",
    [
        MODEL,
        replace(MODEL, norm="frozen"),
        RETINANET,
        replace(RETINANET, normalizer="image", box_loss="l1"),
    ],
    ids=["batch norm", "frozen norm", "retinanet", "retinanet, image by image"],
)
def test_never_reads_a_value_from_the_device(name, config, monkeypatch):
    monkeypatch.setattr(step_module, "autocast", lambda *_: contextlib.nullcontext())  # meta has none
    for module in ("sgd", "adam"):
        monkeypatch.setattr(
            sys.modules[f"torch.optim.{module}"], "_device_dtype_check_for_fused", lambda *_, **__: None
        )
    with torch.device("meta"):
        model = build_detector(config).train()
    optimizer = build_optimizer(model, OPTIMIZERS[name])
    step = TrainStep(model, optimizer, ExponentialMovingAverage(model, 0.5), clip_norm=1.0)
    images, targets = packed(0)
    assert images.is_padded
    images, targets = images.to("meta"), targets.to("meta")
    with NeverWaits():
        step(images, targets)
        step(images, targets)


def test_prefetching_on_the_cpu_does_nothing():
    batches = [packed(0), packed(1)]
    for (images, targets), (same_images, same_targets) in zip(
        batches, prefetch(batches, torch.device("cpu")), strict=True
    ):
        assert same_images.tensor is images.tensor
        assert same_targets.boxes is targets.boxes


def test_cuda_graphs_on_the_cpu_print_a_line(tiny, capsys):
    config = replace(
        tiny, data=replace(tiny.data, val=""), train=replace(tiny.train, epochs=1, cuda_graphs=True)
    )
    train(config)
    assert "train.cuda_graphs: the steps run without graphs: the device is cpu" in capsys.readouterr().out


def test_step_calls_the_compiled_losses(monkeypatch):
    """One graph of network and losses, after the all-reduce of the totals."""
    calls = []

    def compiled(function, fullgraph):
        assert fullgraph
        return lambda *arguments: calls.append("graph") or function(*arguments)

    monkeypatch.setattr(torch, "compile", compiled)
    plain, step = build("adamw"), build("adamw")
    step.model.compile_losses()
    monkeypatch.setattr(
        step.model,
        "_sum_totals",
        lambda _: SimpleNamespace(wait=lambda: calls.append("wait")),
    )
    plain(*packed(0))
    step(*packed(0))
    assert calls == ["wait", "graph"]
    assert_same(state_of(step), state_of(plain), state_of(plain))


@pytest.mark.gpu
@each_optimizer
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("config", [MODEL, RETINANET], ids=["fcos", "retinanet"])
def test_never_waits_for_the_gpu(name, cuda_graphs, config, monkeypatch):
    monkeypatch.delenv("FCOS_FAST_CHECK", raising=False)
    step = build(name, "cuda", config, dtype=torch.bfloat16, cuda_graphs=cuda_graphs)
    batches = list(prefetch([tuple(part.pin_memory() for part in packed(t)) for t in range(6)], step.device))
    for batch in batches[:5]:  # initialization of libraries and the capture wait
        step(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        set_learning_rate(step.optimizer, 0.5)
        step(*batches[5])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.tally().finite == 6


@pytest.mark.gpu
@each_optimizer
def test_graphed_steps_equal_eager_steps(name, monkeypatch):
    """With two alternating sizes, a changing learning rate and a skipped batch."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    sizes = [((64, 96), (60, 80)), ((128, 96), (100, 90))]
    eager, graphed = build(name, "cuda"), build(name, "cuda", cuda_graphs=True)
    for t in range(16):
        batch = [part.to("cuda") for part in packed(t, sizes=sizes[t % 2])]
        if t in (3, 14):
            eager.begin_epoch()
            graphed.begin_epoch()
        if t in (1, 13):
            batch[0] = with_nan(batch[0], eager.model)
        for step in (eager, graphed):
            set_learning_rate(step.optimizer, 1 / (1 + t))
            step(*batch)
    assert len(graphed._graphed._graphs._graphs) == 2
    assert eager.tally().finite == graphed.tally().finite == 2
    for (key, a), b in zip(state_of(eager).items(), state_of(graphed).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.gpu
def test_prefetched_batches_equal_the_loaded_ones():
    """While the current stream is busy and memory of the copies is reused."""
    batches = [tuple(part.pin_memory() for part in packed(t)) for t in range(8)]
    sums = []
    for images, _ in prefetch(batches, torch.device("cuda")):
        torch.cuda._sleep(10_000_000)
        sums.append(images.tensor.long().sum())
        del images
    assert [s.item() for s in sums] == [images.tensor.long().sum().item() for images, _ in batches]


def test_a_copy_of_a_compiled_model_is_not_bound_to_the_original():
    model = FCOS(MODEL)
    model.compile_losses()
    assert model._compiled_losses is not None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._compiled_losses is None
        assert other.losses.__self__ is other
