"""From an exception to the line of the spec it came from.

`expc compile` leaves ``expc.lock.json`` beside the modules it writes: for each file its hash and a
map of its lines to the spec. The deepest frame that lies in such a file is the one that counts: what
is below it is the runtime or torch, at work for that line. Standard library only.
"""

import hashlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from expc_runtime.state.files import read_json

__all__ = ["annotate", "source_at", "source_of"]

LOCK = "expc.lock.json"


def source_of(error: BaseException) -> str:
    """``specs/x.yaml:41:9 (read.loss.loop)``; empty if no line of a generated file was at work.

    The causes of ``error`` are looked at where its own frames say nothing. A file that was edited
    since it was compiled has no map any more: ``generated/x/read.py:70 (edited)``. Never raises.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if known := getattr(current, "source", ""):
            return str(known)
        for path, line in reversed(list(_frames(current.__traceback__))):
            source = source_at(path, line)
            if source:
                return source
        current = current.__cause__ or current.__context__
    return ""


def annotate(error: BaseException) -> str:
    """Make the traceback of ``error`` end with ``from <source>``; returns the source."""
    source = source_of(error)
    note = f"from {source}"
    if source and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return source


def _frames(trace: TracebackType | None) -> Iterator[tuple[Path, int]]:
    for frame, line in traceback.walk_tb(trace):
        yield Path(frame.f_code.co_filename), line


def source_at(path: Path, line: int) -> str:
    """What `source_of` says of one line of a file."""
    lock = read_json(path.parent / LOCK)
    files = lock.get("files") if lock else None
    entry = files.get(path.name) if isinstance(files, dict) else None
    if not isinstance(entry, dict):
        return ""
    if not _unchanged(path, entry.get("sha256")):
        return f"{'/'.join(path.parts[-3:])}:{line} (edited)"
    return _lookup(entry.get("map"), line)


def _unchanged(path: Path, digest: Any) -> bool:
    try:
        whole = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False
    return isinstance(digest, str) and digest != "" and whole.startswith(digest)


def _lookup(lines: Any, line: int) -> str:
    """The narrowest range that holds ``line``: ranges nest, a method around its statements."""
    best, width = "", float("inf")
    for entry in lines if isinstance(lines, list) else ():
        try:
            first, last, place, name = entry
            if first <= line <= last and last - first < width:
                best, width = f"{place} ({name})", last - first
        except (TypeError, ValueError):
            continue  # a map of another version
    return best
