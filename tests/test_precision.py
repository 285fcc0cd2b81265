"""The precision that `auto` selects on different hardware."""

from __future__ import annotations

import pytest
import torch

from fcos_fast.precision import autocast, choose_device, choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("amx", "bf16", "expected", "reason"),
    [
        (True, True, torch.bfloat16, "AMX"),
        (False, True, torch.bfloat16, "AVX512-BF16"),
        (False, False, torch.float32, "neither"),
    ],
)
def test_cpu(monkeypatch, amx, bf16, expected, reason):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    dtype, why = choose_precision("auto", CPU)
    assert dtype == expected
    assert reason in why


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_cuda(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", CUDA)[0] == expected


def test_explicit_precision():
    assert choose_precision("float32", CUDA) == (torch.float32, "as requested")
    assert choose_precision("bfloat16", CPU) == (torch.bfloat16, "as requested")


def test_autocast_changes_what_a_convolution_returns():
    conv, x = torch.nn.Conv2d(3, 4, 1), torch.rand(1, 3, 8, 8)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(dtype, CPU):
            assert conv(x).dtype == dtype


def test_unavailable_device():
    assert choose_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"device 'cuda:99' is not available here; use auto, cpu"):
        choose_device("cuda:99")
    with pytest.raises(ValueError, match="device 'gpu' is not available"):
        choose_device("gpu")
