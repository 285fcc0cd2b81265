"""When is another process called dead?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcos_fast.engine import distributed


def test_a_process_that_runs_and_one_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not distributed._is_gone(process.pid)
    process.communicate(b"\n")
    assert distributed._is_gone(process.pid)


def test_a_zombie_is_gone():
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()  # to its end; nobody has asked for its status
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert distributed._is_gone(process.pid)
    process.wait()


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_without_procfs_nobody_is_called_dead(error, monkeypatch):
    def unreadable(*_, **__):
        raise error

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert not distributed._is_gone(os.getpid())
    assert distributed._namespace() is None
    monkeypatch.undo()
    monkeypatch.setattr(os, "readlink", unreadable)
    assert distributed._namespace() is None
