"""Load test of ``fcos-fast serve``: throughput and latency with 1, 8 and 32 clients, with bad input in between.

    python -m benchmarks.serving --checkpoint runs/train/best.pt --images FOLDER

Starts a server in a process of its own. Every client sends one image after the other; one in ten is truncated, not an
image or a decompression bomb, which the server must reject. The first row is the same detector without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from PIL import Image

import fcos_fast
from fcos_fast.cli.benchmark import find_images
from fcos_fast.machine import machine

BAD_EVERY = 10
PNG = {"content-type": "image/png"}


def bad_files(good: bytes) -> list[bytes]:
    """Files that are no usable image."""
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")  # 81 million pixels in 10 kB
    return [good[: len(good) // 2], b"not an image", bomb.getvalue()]


@contextmanager
def server(checkpoint: str, threads: int) -> Iterator[str]:
    """The address of a running server."""
    command = [sys.executable, "-m", "fcos_fast.cli", "serve", "--checkpoint", checkpoint]
    command += ["--port", "0", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()
            process.communicate()


def in_a_loop(checkpoint: str, files: list[Path], threads: int, seconds: float) -> dict[str, Any]:
    """One image after the other without a server: decoding and detection."""
    detector = fcos_fast.load(checkpoint, threads=threads)
    detector.predict(files[0])
    taken: list[float] = []
    start = time.perf_counter()
    for file in itertools.cycle(files):
        begin = time.perf_counter()
        detector.predict(file)
        taken.append(time.perf_counter() - begin)
        if (total := time.perf_counter() - start) > seconds:
            return summary("no server", taken, total)


async def load(
    address: str, good: list[bytes], bad: list[bytes], clients: int, seconds: float
) -> dict[str, Any]:
    """Requests of several clients at a time."""
    taken: list[float] = []
    statuses: Counter[str] = Counter()
    start = time.perf_counter()

    async def client(number: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=120) as session:
            for i in itertools.count(number):
                if time.perf_counter() - start > seconds:
                    return
                is_bad = i % BAD_EVERY == BAD_EVERY - 1
                content = bad[i // BAD_EVERY % len(bad)] if is_bad else good[i % len(good)]
                begin = time.perf_counter()
                try:
                    answer = await session.post("/detect", content=content, headers=PNG)
                except httpx.HTTPError as error:
                    statuses[type(error).__name__] += 1
                    continue
                expected = 400 <= answer.status_code < 500 if is_bad else answer.status_code == 200
                statuses["rejected" if is_bad and expected else str(answer.status_code)] += 1
                if not is_bad and expected:
                    taken.append(time.perf_counter() - begin)

    await asyncio.gather(*map(client, range(clients)))
    row = summary(f"{clients} clients", taken, time.perf_counter() - start)
    rejected = statuses.pop("rejected", 0)
    statuses.pop("200", None)
    return {**row, "rejected": rejected, "errors": dict(statuses)}


def summary(name: str, taken: list[float], seconds: float) -> dict[str, Any]:
    """Throughput in images/s and latency in ms of the good images."""
    cuts = quantiles(taken, n=100, method="inclusive")
    return {
        "name": name,
        "images": len(taken),
        "images_per_second": len(taken) / seconds,
        **{f"p{p}_ms": 1000 * cuts[p - 1] for p in (50, 99)},
    }


def main() -> None:
    """Run all rows; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", required=True, help="folder of images, or one file")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20, help="duration of a row")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the detector")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()

    paths = find_images(options.images)
    files = [path.read_bytes() for path in paths[:200]]
    bad = bad_files(files[0])
    rows = [in_a_loop(options.checkpoint, paths, options.threads, options.seconds)]
    facts = machine()
    with server(options.checkpoint, options.threads) as address:
        for clients in options.clients:
            rows.append(asyncio.run(load(address, files, bad, clients, options.seconds)))
        healthy = httpx.get(f"{address}/health").json()["ready"]
    print("\n".join(f"{name:9} {value}" for name, value in facts.items()))
    print("\n            images/s   p50 ms   p99 ms  rejected  errors")
    for row in rows:
        times = f"{row['images_per_second']:8.1f} {row['p50_ms']:8.0f} {row['p99_ms']:8.0f}"
        print(f"{row['name']:11} {times} {row.get('rejected', 0):9}  {row.get('errors') or 'none'}")
    print(f"\nthe server is {'ready' if healthy else 'not ready'} at the end")
    if options.output:
        options.output.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
