"""Where a project lies."""

from __future__ import annotations

from pathlib import Path


def project_root(path: Path) -> Path:
    """The nearest folder above with `pyproject.toml` or `.git`; the file's own folder when there is none."""
    start = path.resolve()
    start = start if start.is_dir() else start.parent
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return start
