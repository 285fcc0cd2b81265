"""Parameters, multiply-adds and latency on a CPU of the detectors of ``--size``: ``python -m benchmarks.sizes``.

A sample is one image of 3:4, from the array to the boxes, by the model of ``optimize_for_inference``; models in turns.
Weights are random, with many candidates for NMS. ``OMP_NUM_THREADS`` sets the number of threads. ``--seconds 0`` times
nothing and keeps the times in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import Result, percentile, write_json
from benchmarks.timing import Call, time_in_turns
from fcos_fast.data import SyntheticConfig
from fcos_fast.data.synthetic import synthetic_image
from fcos_fast.engine.benchmark import make_talkative
from fcos_fast.models import SIZES, FCOSConfig, build_detector
from fcos_fast.models.cost import cost
from fcos_fast.models.sizes import largest_size
from tests.machine import machine


def cost_of(name: str, config: FCOSConfig) -> Result:
    """The line of a size, without times."""
    size = largest_size(config)
    with torch.device("meta"):
        *_, total = cost(build_detector(config).eval(), size)
    return {
        "size": name,
        "backbone": config.backbone,
        "image_size": list(size),
        "parameters": total.parameters,
        "multiply_adds": total.flops // 2,
    }


def detection(config: FCOSConfig) -> Call:
    """A call that detects in one image."""
    torch.manual_seed(0)
    width = config.max_size
    image: Tensor = torch.from_numpy(synthetic_image(0, 0, SyntheticConfig((width * 3 // 4, width))).image)
    model = make_talkative(build_detector(config).eval(), image).optimize_for_inference("float32")
    return lambda: model([image])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--seconds", type=float, default=20.0, help="time per size")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sizes.json"))
    options = parser.parse_args(arguments)
    old = (
        json.loads(options.output.read_text())
        if options.output.exists()
        else {"machine": machine(), "sizes": []}
    )
    rows = {name: cost_of(name, SIZES[name]) for name in options.sizes}
    if options.seconds > 0:
        calls = {name: detection(SIZES[name]) for name in rows}
        for name, samples in time_in_turns(calls, "cpu", 1000 * options.seconds).items():
            rows[name] |= {f"p{q}_ms": percentile(samples, q / 100) for q in (20, 50, 80)}
        old["machine"] = machine()
    else:
        before = {
            row["size"]: {key: x for key, x in row.items() if key.endswith("_ms")} for row in old["sizes"]
        }
        rows = {name: row | before.get(name, {}) for name, row in rows.items()}
    write_json(options.output, {"machine": old["machine"], "sizes": list(rows.values())})


if __name__ == "__main__":
    main()
