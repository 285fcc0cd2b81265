"""A fresh Python process: for what is decided once, when the package is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.tree import ROOT, package_environment


def run_python(code: str, *, package_in: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` with the ``fcos_fast`` that lies in the folder, and with no FCOS_FAST_ variables but those given."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=package_environment(package_in, **environment),
        cwd=package_in,
        capture_output=True,
        text=True,
        timeout=240,  # a busy machine imports torch slowly
    )


def assert_runs(code: str, **kwargs) -> str:
    """What the code prints, once it has run to its end without an error."""
    done = run_python(code, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout
