"""For ``pytest -p tests.gpu_plugin``: writes outcomes immediately, and exits when the CUDA context is lost.

``GPU_CHECK_OUTCOMES`` names the file of JSON lines. An illegal access in a kernel destroys the CUDA context of the
process, so that all later tests would fail. Therefore the process exits; pytest-xdist starts a new one. Without
pytest-xdist the remaining tests do not run.
"""

from __future__ import annotations

import json
import os
import re

import pytest
import torch

OUTCOMES = os.environ["GPU_CHECK_OUTCOMES"]
is_worker = False  # a worker of pytest-xdist


def pytest_configure(config):
    global is_worker
    is_worker = hasattr(
        config, "workerinput"
    )  # not from the environment, which may be inherited from a worker


def tell(**line) -> None:
    """Append a line; with pytest-xdist, only in the controller."""
    if not is_worker:
        with open(OUTCOMES, "a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_collection_finish(session):
    if session.items:
        tell(selected=len(session.items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node, ids):
    tell(selected=len(ids))


def pytest_runtest_logstart(nodeid):
    tell(started=nodeid)


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        tell(test=report.nodeid, outcome=report.outcome, why=reason(report))


def pytest_collectreport(report):
    if not report.passed:
        tell(test=report.nodeid, outcome=report.outcome, why=reason(report))


def reason(report) -> str:
    """The error message or the reason for skipping."""
    if report.passed:
        return ""
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    errors = re.findall(r"^E +(.+)$", text, flags=re.MULTILINE)  # for a file that cannot be collected
    return (errors[-1] if errors else text.strip().partition("\n")[0])[:300]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and context_is_lost():
        item.session.stash[LOST] = True
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    result = yield
    if item.session.stash.get(LOST, False):
        if is_worker:
            os._exit(70)
        item.session.shouldstop = f"the CUDA context was lost in {item.nodeid}"
    return result


LOST = pytest.StashKey[bool]()


def context_is_lost() -> bool:
    """Whether the CUDA context is unusable after an illegal access."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
