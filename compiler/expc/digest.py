"""Content hashes of programs: what a file, a run and a result are compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from expc.findings import Span
from expc.ir import Flag, Program

_TEXT_ONLY = {"about", "doc", "says", "shape"}
"""Prose: it changes what a reader sees, never what a run does."""


def structure(program: Program) -> str:
    """Equal exactly when two programs are the same code: flags count by name and type, spans and prose do not."""
    return _digest(_plain(program, values=False))


def identity(program: Program) -> str:
    """Names a program together with its values: results carry it."""
    return _digest(_plain(program, values=True))


def text(content: str) -> str:
    """Names the bytes of a file."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _digest(data: Any) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _plain(node: Any, *, values: bool) -> Any:
    if isinstance(node, Span):
        return None
    if isinstance(node, Flag):
        default = _plain(node.default, values=values) if values else _kind(node.default)
        return ["flag", node.field, default]
    if is_dataclass(node) and not isinstance(node, type):
        return {
            "is": type(node).__name__,
            **{
                item.name: _plain(getattr(node, item.name), values=values)
                for item in fields(node)
                if item.name not in _TEXT_ONLY and item.name not in ("span", "structural", "swept")
            },
        }
    if isinstance(node, Mapping):
        return {str(key): _plain(value, values=values) for key, value in node.items()}
    if isinstance(node, frozenset):
        return sorted(map(str, node))
    if isinstance(node, tuple | list):
        return [_plain(item, values=values) for item in node]
    if isinstance(node, float):
        return repr(node)
    return node


def _kind(value: object) -> str:
    return "tuple" if isinstance(value, tuple) else type(value).__name__
