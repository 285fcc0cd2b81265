"""Build an sdist and a manylinux wheel into dist/, and test the wheel in empty environments.

``make wheel`` runs it in .venv, whose torch compiles the extensions. The wheel is built from the sdist, which
tests both. auditwheel chooses the oldest manylinux tag that the symbols of the binaries allow. The environments have
the oldest torch, the newest one, and none.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
BUILT = ROOT / "build" / "wheel"
TORCH = ("torch==2.10.*", "torch")
FOR_ONNX = ("numpy", "pillow", "onnxruntime")
"""What predicting from an ONNX file needs."""

NOT_BUNDLED = ("libtorch*", "libc10*", "libcuda*", "libcudart*")
"""Libraries that come with torch or the driver."""


def run(*command: str | Path, cwd: Path = ROOT, quiet: bool = False) -> str:
    """Run a command with the tools of this environment; exit if it fails. If quiet, return its output."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout or "")
        sys.exit(f"wheel: {' '.join(map(str, command))} failed with exit status {done.returncode}")
    return done.stdout


def build() -> Path:
    """Build the sdist, from it the wheel, and put both into dist/; return the wheel."""
    for folder in (BUILT, DIST):
        shutil.rmtree(folder, ignore_errors=True)
    print("== building the sdist, and the wheel from it", flush=True)
    log = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", BUILT, ROOT, quiet=True)
    print(
        "\n".join(re.findall(r"^(?:fcos_fast:|CPU operators|CUDA operators).*", log, re.MULTILINE)),
        flush=True,
    )
    (built,) = BUILT.glob("*.whl")
    excluded = [option for pattern in NOT_BUNDLED for option in ("--exclude", pattern)]
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", DIST, built)
    (sdist,) = BUILT.glob("*.tar.gz")
    shutil.copy(sdist, DIST)
    (wheel,) = DIST.glob("*.whl")
    return wheel


def check(wheel: Path, torch: str) -> None:
    """Install the wheel beside this torch, and nothing else, into an empty environment and test it there."""
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        python = environment(folder, torch, wheel)
        run(python, "-I", "-m", "pip", "check")
        (empty := Path(folder) / "empty").mkdir()
        run(python, "-I", ROOT / "tools" / "smoke_test.py", cwd=empty)


def check_without_torch(wheel: Path) -> None:
    """Install the wheel beside what ONNX files need, and predict from one there."""
    with tempfile.TemporaryDirectory(dir=BUILT) as folder, tempfile.TemporaryDirectory(dir=BUILT) as files:
        test = ROOT / "tools" / "onnx_smoke_test.py"
        run(sys.executable, test, "write", files)
        python = environment(folder, *FOR_ONNX)
        run(python, "-I", "-m", "pip", "install", "--quiet", "--no-deps", wheel)
        run(python, "-I", test, "read", files, cwd=Path(files))


def environment(folder: str, *requirements: str | Path) -> Path:
    """The Python of a new environment with these requirements and nothing else."""
    venv.create(folder, with_pip=True)
    python = Path(folder) / "bin" / "python"
    run(python, "-I", "-m", "pip", "install", "--quiet", *requirements)
    return python


def main() -> None:
    """Parse the command line; build; check with each torch."""
    parser = argparse.ArgumentParser(prog="python tools/wheel.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch", nargs="*", default=TORCH, help="requirements to test with (default: %(default)s)"
    )
    arguments = parser.parse_args()
    begin = time.monotonic()
    wheel = build()
    for torch in arguments.torch:
        print(f"== {wheel.name} with {torch}", flush=True)
        check(wheel, torch)
    print(f"== {wheel.name} without torch", flush=True)
    check_without_torch(wheel)
    print(
        f"== {wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB, {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
