"""Runs code in a new Python process, for tests of decisions made when the package is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.tree import ROOT, package_environment


def run_python(code: str, *, package_in: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` with the ``fcos_fast`` in the folder and only the given FCOS_FAST_ variables."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=package_environment(package_in, **environment),
        cwd=package_in,
        capture_output=True,
        text=True,
        timeout=240,  # importing torch is slow on a busy machine
    )


def assert_runs(code: str, **kwargs) -> str:
    """Assert that the code runs without an error, and return its output."""
    done = run_python(code, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout
