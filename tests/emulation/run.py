"""Runs the operators' tests on the emulated CUDA kernels: ``python -m tests.emulation.run [operator ...]``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.emulation.build import FRONTS, HERE, OPERATORS, ROOT, build

SKIPPED = {
    "any_number_of_threads": "tests CPU threads, with large inputs",
    "does_not_grow": "measures the process, whose shadow memory grows",
    "memory_is_that_of_the_gradients": "kernels allocate scratch memory that the CPU operator does not need",
    "unchecked_nonsense or decreasing": "the CPU operator reads values; a GPU would have to synchronize",
}
"""Skipped tests (expressions for pytest's -k) and the reason."""


def run_tests(
    library: Path, *arguments: str | Path, capture_output: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run pytest with the emulation plugin."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.emulation.plugin", "-q", "--tb=short"),
            *("-W", "ignore", "-m", "not gpu and not large", "-k", f"not ({' or '.join(SKIPPED)})"),
            *arguments,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "EMULATED_CUDA": str(library), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        text=True,
        capture_output=capture_output,
    )


def main(names: list[str]) -> int:
    """Build the emulation and run the tests of these operators (default: all)."""
    tests = [ROOT / "tests" / "ops" / f"test_{name}.py" for name in names or [o.stem for o in OPERATORS]]
    if not names:
        tests += [HERE / "every_operator.py", HERE / "hostile.py"]
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder) / "emulation", [*OPERATORS, FRONTS])
        parallel = ("-n", "2", "--dist", "worksteal", "--durations=10", "--timeout=300")
        return run_tests(library, *parallel, *tests).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
