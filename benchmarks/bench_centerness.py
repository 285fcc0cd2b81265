"""Centerness and its gradient: for the positives of a batch, and for every location of 16 images."""

from __future__ import annotations

import functools

import torch

from benchmarks.case import COMPILED, OURS, Case, close, loss_and_gradients, nbytes
from fcos_fast import ops, reference


def make(device, count):
    return ((torch.rand(count, 4) * 100 + 1).to(device).requires_grad_(),)


def total(centerness):
    return loss_and_gradients(lambda ltrb: centerness(ltrb).sum())


CASES = [
    Case(
        "centerness",
        f"{count:,} locations float32",
        functools.partial(make, count=count),
        {
            "reference": total(reference.centerness),
            COMPILED: total(torch.compile(reference.centerness)),
            OURS: total(ops.centerness),
            "floor: copy of the distances": lambda ltrb: ltrb.detach().clone(),
        },
        close(rtol=1e-5, atol=1e-6),
        bytes_moved=lambda ltrb: 2 * nbytes(ltrb),
    )
    for count in (2_000, 358_400)
]


def test_centerness(time_row):
    time_row()
