"""Which data a stage reads: what facts are kept under, and how to tell that they are of other data by now."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from expc.components.core import Params, Use
from expc.experiment import Stage
from expc.facts import File, Identity, StageFacts
from expc.source import KeyPath

HASHED = 64 * 2**20
"""Bytes up to which lint hashes a file; of a larger one it compares the size. `expc profile` hashes all."""

_BATCHING = frozenset({"batch", "drop_last", "stream"})
"""How rows are handed out, not which there are."""


def identity(stage: Stage) -> Identity | None:
    """The data of a stage as the spec writes it; None for a stage that reads none."""
    use = stage.uses.get("data")
    if use is None:
        return None
    code = use.component.fingerprint if use.component.own else ""
    return Identity(use.name, _written(use.params), _written(use.slot, _BATCHING), code)


def _written(params: Params, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Parameters that are not their defaults, as JSON: a key that a later version adds changes nothing."""
    return params.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude_none=True, exclude=set(without)
    )


@dataclass(frozen=True)
class Named:
    """A file that a component names, from the project root, and the place in the spec.

    What stands under `files` may be a pattern, such as data/*.feather; what stands under `file` is a name.
    """

    name: str
    at: KeyPath
    pattern: bool

    def spread(self, root: Path) -> list[str]:
        """The name itself, whether or not it is there; or the files that a pattern finds, sorted."""
        if not self.pattern:
            return [self.name]
        found = glob.glob(self.name, root_dir=root, recursive=True)
        return [path for path in sorted(found, key=Path) if (root / path).is_file()]


def named(use: Use) -> Iterator[Named]:
    """Files and patterns that a component names under `file` and `files`."""
    for key in ("file", "files"):
        held = getattr(use.params, key, None)
        if isinstance(held, str):
            yield _named(held, key, (*use.path, key))
        elif isinstance(held, list):
            yield from (_named(name, key, (*use.path, key, n)) for n, name in enumerate(held))


def _named(name: str, key: str, at: KeyPath) -> Named:
    return Named(name, at, key == "files" and glob.has_magic(name))


def files(stage: Stage, root: Path) -> list[str]:
    """The files that the data of a stage is read from, each once, patterns spread out."""
    spread = (path for each in named(stage.uses["data"]) for path in each.spread(root))
    return list(dict.fromkeys(spread))


def hashed(name: str, root: Path) -> File:
    """A file with its size and hash. Raises `OSError` where it is not there."""
    path = root / name
    stat = path.stat()
    return File(name, stat.st_size, _sha256(path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed(facts: StageFacts, stage: Stage, root: Path) -> str:
    """What tells that facts are of other data than lies there now, for a message; empty when nothing does.

    A file that is not there tells nothing: facts are for machines that lack the data, too.
    """
    now = identity(stage)
    if now is not None and now.code != facts.data.code:
        return f"the code of `{now.use}`"
    before = [file.path for file in facts.files]
    there = files(stage, root)
    if there != before and all((root / path).is_file() for path in there) and there:
        names = ", ".join(each.name for each in named(stage.uses["data"]))
        return f"the list of files of `{names}`"
    return next((f"`{file.path}`" for file in facts.files if _differs(file, root)), "")


def _differs(known: File, root: Path) -> bool:
    try:
        size = (root / known.path).stat().st_size
        return size != known.bytes or (
            size <= HASHED and hashed(known.path, root).sha256 != known.sha256
        )
    except OSError:
        return False
