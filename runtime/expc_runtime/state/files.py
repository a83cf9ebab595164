"""Small files that a reader never sees half written."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "append_line",
    "plain",
    "read_env",
    "read_json",
    "sync",
    "write_env",
    "write_json",
    "write_text",
]


def plain(value: Any) -> Any:
    """``value`` as strict JSON: tuples become lists, NaN and infinities null (no figure)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace ``path`` as one step; ``durable`` also survives a power cut.

    Raises:
        OSError: no space, no permission; the old file is then still whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """What is in the file, or the names in the folder, survive a power cut when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace ``path`` by ``data``, one key a line; see `write_text`."""
    text = json.dumps(plain(data), indent=1, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None if there is none, or it is torn or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Add one JSON line in one write, so that lines of several writers do not mix."""
    line = json.dumps(plain(data), allow_nan=False, ensure_ascii=False) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def write_env(path: Path, values: Mapping[str, object]) -> None:
    """Replace ``path`` by ``key=value`` lines for shells to parse (not to source)."""
    lines = (f"{key}={' '.join(str(value).split())}\n" for key, value in values.items())
    write_text(path, "".join(lines))


def read_env(path: Path) -> dict[str, str]:
    """The ``key=value`` lines of ``path``; empty if there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value for key, found, value in (line.partition("=") for line in lines) if found}
