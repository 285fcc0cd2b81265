"""A copy of the tree for a build of another kind, which leaves the tree's own binaries as they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_SOURCES = (
    ".git",
    ".*_cache",
    "__pycache__",
    ".venv",
    ".hypothesis",
    "build",
    "runs",
    "*.so",
    "*.egg-info",
)


def copy_tree(folder: Path) -> None:
    """Make ``folder`` hold the sources as they are now; what was built there before stays, for a shorter build."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_SOURCES))


def package_environment(folder: Path, **variables: str) -> dict[str, str]:
    """For a Python whose ``fcos_fast`` is the one in the folder, with no FCOS_FAST_ variables but those given.

    The folder comes first on the path; what stood there stays behind it, for torch itself may be found by it.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_FAST_")}
    path = os.pathsep.join(filter(None, (str(folder), inherited.get("PYTHONPATH"))))
    return inherited | {"PYTHONPATH": path} | variables
