import functools
import platform
import re
import shutil
import subprocess

import pytest
import torch

from fcos_fast import reference
from fcos_fast.assignment import Level
from tests.child import assert_runs, run_python

LEVELS = ["baseline", "avx2", "avx512"]  # narrowest first
RUNNABLE = LEVELS[: 1 + ["DEFAULT", "AVX2", "AVX512"].index(torch.backends.cpu.get_cpu_capability())]

COMPUTE = """
import sys
import torch
from fcos_fast import _C, ops
from fcos_fast.assignment import GroundTruth, Level
from fcos_fast.models.winograd import _Convolution

print(_C.simd())
data, results = torch.load({inputs!r}), {{}}
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    logits, dense, pred, target, ltrb, nchw, channels_last = (
        data[name].to(dtype).requires_grad_(name != "dense")
        for name in ("logits", "dense", "pred", "target", "ltrb", "nchw", "channels_last")
    )
    losses = {{
        "focal": ops.sigmoid_focal_loss(logits, dense),
        "focal_rows": ops.sigmoid_focal_loss(logits, data["classes"], reduction="sum"),
        "focal_planes": ops.sigmoid_focal_loss(nchw.permute(0, 2, 3, 1), data["map_classes"], reduction="sum"),
        "star": ops.sigmoid_focal_loss_star(logits, data["classes"]),
        "centerness": ops.centerness(ltrb),
        "group_norm_nchw": ops.group_norm_relu(nchw, 5),
        "group_norm_channels_last": ops.group_norm_relu(channels_last, 5),
        **{{kind: ops.box_loss(pred, target, kind) for kind in ("iou", "linear_iou", "giou", "diou", "ciou")}},
    }}
    for name, loss in losses.items():
        wanted = [t for t in (logits, pred, target, ltrb, nchw, channels_last) if t.requires_grad]
        grads = torch.autograd.grad(loss.sum(), wanted, allow_unused=True)
        results[name, dtype] = [loss.detach(), *(g for g in grads if g is not None)]
for threshold in (0.3, 0.6):
    results["nms", threshold] = ops.nms(data["boxes"], data["scores"], threshold)
levels = [Level(19, 53, 8.0, (8.0, 8.0), (4.0, 4.0), (0.0, 1.0))]
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    maps = [[data[name].to(dtype)] for name in ("maps", "distances", "centerness")]
    results["postprocess", dtype] = tuple(ops.postprocess(*maps, levels, [(152, 424)], units=[8], score_threshold=0.7))
gt = GroundTruth.pack([data["boxes"][:40].round()], [torch.zeros(40).long()])
results["match"] = ops.match_anchors(data["boxes"].round(), gt).matched[0]
images, kernel = data["channels_last"].requires_grad_(), data["kernel"].requires_grad_()
maps = _Convolution.apply(images, kernel, None)
results["winograd"] = [maps.detach(), *torch.autograd.grad(maps.square().sum(), (images, kernel))]
torch.save(results, {outputs!r})
"""


@pytest.fixture(scope="module")
def data():
    """Sizes that are not multiples of a vector, so that every loop has a remainder."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    corner = random(1003, 2) * 200
    boxes = torch.cat((corner, corner + 1 + random(1003, 2) * 60), dim=1)
    target = boxes + random(1003, 4) * 4
    images = random(2, 35, 9, 23) * 5
    return {
        "logits": (random(37, 29) - 0.5) * 20,
        "dense": random(37, 29),
        "classes": torch.randint(-2, 29, (37,), generator=generator),
        "pred": boxes[:303],
        "target": target[:303],
        "ltrb": random(333, 4) * 50 - 2,
        "nchw": images,
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "kernel": random(21, 35, 3, 3) - 0.5,
        "map_classes": torch.randint(-2, 35, (2, 9, 23), generator=generator),
        "boxes": boxes,
        "scores": torch.randperm(1003, generator=generator) / 1003,
        # Multiples of 1/8, which are exact in all dtypes.
        "maps": (random(1, 7, 19, 53) * 60).round() / 8 - 5,
        "distances": (random(1, 4, 19, 53) * 20).round() / 8,
        "centerness": (random(1, 1, 19, 53) * 20).round() / 8,
    }


@pytest.fixture(scope="module", params=LEVELS)
def results(request, data, tmp_path_factory):
    """Results of a process that uses this instruction set."""
    level = request.param
    if level not in RUNNABLE:
        pytest.skip(f"this CPU does not support {level}")
    folder = tmp_path_factory.mktemp(level)
    inputs, outputs = str(folder / "inputs.pt"), str(folder / "outputs.pt")
    torch.save(data, inputs)
    printed = assert_runs(COMPUTE.format(inputs=inputs, outputs=outputs), FCOS_FAST_SIMD=level)
    assert printed.split() == [level]
    return torch.load(outputs)


BOX_KINDS = ("iou", "linear_iou", "giou", "diou", "ciou")
EXPECTED = {  # operator -> (arguments, reference in float64)
    "focal": (("logits", "dense"), reference.sigmoid_focal_loss),
    "focal_rows": (("logits", "classes"), functools.partial(reference.sigmoid_focal_loss, reduction="sum")),
    "focal_planes": (
        ("nchw", "map_classes"),
        lambda x, y: reference.sigmoid_focal_loss(x.permute(0, 2, 3, 1), y, reduction="sum"),
    ),
    "star": (("logits", "classes"), reference.sigmoid_focal_loss_star),
    "centerness": (("ltrb",), reference.centerness),
    "group_norm_nchw": (("nchw",), lambda x: reference.group_norm_relu(x, 5)),
    "group_norm_channels_last": (("channels_last",), lambda x: reference.group_norm_relu(x, 5)),
    **{
        kind: (("pred", "target"), lambda pred, target, kind=kind: reference.box_loss(pred, target, kind))
        for kind in BOX_KINDS
    },
}
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 5e-6},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
    torch.float16: {"rtol": 2**-9, "atol": 1e-5},
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", EXPECTED)
def test_equals_the_reference_in_float64(results, data, name, dtype):
    names, function = EXPECTED[name]
    arguments = []
    for key in names:
        value = data[key]
        if value.is_floating_point():
            value = value.to(dtype).double().requires_grad_(key != "dense")
        arguments.append(value)
    loss = function(*arguments)
    grads = torch.autograd.grad(loss.sum(), [t for t in arguments if t.requires_grad])
    for actual, expected in zip(results[name, dtype], [loss, *grads], strict=True):
        torch.testing.assert_close(actual.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_nms_equals_torchvision(results, data, threshold, torchvision):
    expected = torchvision.ops.nms(data["boxes"], data["scores"], threshold)
    assert torch.equal(results["nms", threshold], expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_postprocess_equals_the_reference(results, data, dtype):
    found = results["postprocess", dtype]
    maps = [[data[name].double()] for name in ("maps", "distances", "centerness")]
    levels = [Level(19, 53, 8.0, (8.0, 8.0), (4.0, 4.0), (0.0, 1.0))]
    expected = reference.postprocess(*maps, levels, [(152, 424)], units=[8], score_threshold=0.7)
    for actual, value in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.to(value.dtype), value, rtol=1e-6, atol=1e-5)


def test_matches_equal_torchvision(results, data, torchvision):
    anchors = data["boxes"].round()
    matcher = torchvision.models.detection._utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    assert torch.equal(results["match"].long(), matcher(torchvision.ops.box_iou(anchors[:40], anchors)))


def test_winograds_method_equals_the_convolution_in_float64(results, data):
    images, kernel = (data[name].double().requires_grad_() for name in ("channels_last", "kernel"))
    maps = torch.nn.functional.conv2d(images, kernel, padding=1)
    expected = [maps, *torch.autograd.grad(maps.square().sum(), (images, kernel))]
    for actual, exact in zip(results["winograd"], expected, strict=True):
        assert (actual - exact).norm() / exact.norm() < 5e-6


def instruction_sets_of_functions(binary) -> dict[str, str]:
    """The widest instruction set used in each function, except functions that only use the baseline."""
    options = ("--disassemble", "--demangle", "--wide")
    listing = subprocess.run(["objdump", *options, binary], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    function = ""
    for line in listing.splitlines():
        if start := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = start[1]
        # Address, bytes, mnemonic. In 64-bit code, 62 always starts an EVEX instruction, and c4 or c5 a VEX one.
        elif code := re.match(r"\s*[0-9a-f]+:\t(?:(?:2e|3e|6[457]) )*(62|c4|c5) [0-9a-f ]+\t(\w)", line):
            is_avx512 = code[1] == "62" or code[2] == "k"  # mask instructions
            if is_avx512 or function not in found:
                found[function] = "avx512" if is_avx512 else "avx2"
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only for x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump on the PATH")
def test_wide_instructions_only_occur_in_their_namespaces():
    """In an inline function of the standard library, they could be linked into code for all CPUs."""
    from fcos_fast import _C

    found = instruction_sets_of_functions(_C.__file__)
    for level in ("avx2", "avx512"):
        assert any(f"fcos_fast::{level}::" in name for name in found), (
            f"no symbol of {level}: is it stripped?"
        )
    stray = {
        name: level
        for name, level in found.items()
        if not any(f"fcos_fast::{made_for}::" in name for made_for in ("avx512", level))
    }
    assert stray == {}


@pytest.mark.parametrize("call", ["fcos_fast._C.simd()", "fcos_fast.ops.centerness(torch.ones(1, 4))"])
def test_unknown_instruction_set_raises_and_lists_the_available_ones(call):
    done = run_python(f"import torch, fcos_fast.ops, fcos_fast._C; {call}", FCOS_FAST_SIMD="avx1024")
    assert done.returncode != 0
    widest_first = ", ".join(reversed(RUNNABLE))
    assert f"FCOS_FAST_SIMD=avx1024 is not supported on this CPU; available: {widest_first}" in done.stderr
