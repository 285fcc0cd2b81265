"""A copy of the source tree, for a build that must not replace the tree's own binaries."""

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
    """Copy the current sources to ``folder``; earlier build results stay there, so that the build is faster."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_SOURCES))


def package_environment(folder: Path, **variables: str) -> dict[str, str]:
    """Environment of a Python whose ``fcos_fast`` is the one in the folder, with only the given FCOS_FAST_ variables.

    The folder is first in PYTHONPATH. The inherited path follows, because torch may be found through it.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FCOS_FAST_")}
    path = os.pathsep.join(filter(None, (str(folder), inherited.get("PYTHONPATH"))))
    return inherited | {"PYTHONPATH": path} | variables
