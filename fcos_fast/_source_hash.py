"""The hash of the native sources, which setup.py builds into the binary and an editable install compares at import."""

import hashlib
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"


def source_hash() -> str | None:
    """Hash of everything under csrc, or None where the package stands without its sources."""
    if not (SOURCES / "library.cpp").exists():
        return None
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
