"""Processes that tests start import this tree, even if packages of the same names are installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tree import ROOT, package_environment


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder on the path with another package ``tests`` and a module of its own."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").write_text("raise ImportError('another package named tests')")
    (tmp_path / "only_there.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_an_installed_package_named_tests_does_not_shadow(elsewhere, tmp_path):
    code = "import only_there, tests.gpu_check, fcos_fast; print(tests.__file__, fcos_fast.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path.parent,
        env=package_environment(ROOT),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT / "tests/__init__.py"), str(ROOT / "fcos_fast/__init__.py")]
