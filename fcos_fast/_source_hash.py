"""Hash of the C++ and CUDA sources. setup.py compiles it into the extension; editable installs compare it on import."""

import hashlib
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"


def source_hash() -> str | None:
    """Hash of all files in csrc, or None if the package is installed without its sources."""
    if not (SOURCES / "library.cpp").exists():
        return None
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
