"""Content hashes of programs: what a file, a run and a result are compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from expc.findings import Span
from expc.ir import Flag, Program

_TEXT_ONLY = {"about", "doc", "says", "shape"}
"""Prose: it changes what a reader sees, never what a run does."""


def structure(program: Program) -> str:
    """Equal exactly when two programs are the same code: flags count by name and type, spans and prose do not."""
    return _digest(_plain(program, values=False))


def identity(program: Program) -> str:
    """Names a program together with its flags' defaults: a file is fresh when it is the same."""
    return _digest(_plain(program, values=True))


def text(content: str) -> str:
    """Names the bytes of a file."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _digest(data: Any) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_ATOMS = frozenset({str, int, bool, type(None)})


def _plain(node: Any, *, values: bool) -> Any:
    kind = type(node)
    if kind in _ATOMS:
        return node
    if kind is Span:
        return None
    if kind is float:
        return repr(node)
    if kind is Flag:
        default = _plain(node.default, values=values) if values else _kind(node.default)
        return ["flag", node.field, default]
    if kind is tuple or kind is list:
        return [_plain(item, values=values) for item in node if values or not _idle(item)]
    if is_dataclass(kind):
        made = {name: _plain(getattr(node, name), values=values) for name in _telling(kind)}
        return {"is": kind.__name__, **made}
    if isinstance(node, Mapping):
        return {str(key): _plain(value, values=values) for key, value in node.items()}
    if isinstance(node, frozenset):
        return sorted(map(str, node))
    return node


def _idle(item: Any) -> bool:
    """A flag, or an argument that is one, which is there for a retry alone: results of the program without it stand."""
    flag = item[-1] if type(item) is tuple and len(item) == 2 else item
    return type(flag) is Flag and flag.idle


def same_kind(one: Flag, other: Flag) -> bool:
    """Whether two flags are the same field of the same code, at what values ever."""
    return one.path == other.path and _kind(one.default) == _kind(other.default)


@cache
def _telling(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass that make a difference to what runs."""
    left_out = {*_TEXT_ONLY, "span", "structural", "swept", "logged", "idle"}
    return tuple(item.name for item in fields(kind) if item.name not in left_out)


def _kind(value: object) -> str:
    if isinstance(value, tuple):
        return f"tuple of {' | '.join(sorted({_kind(item) for item in value})) or 'int'}"
    return type(value).__name__
