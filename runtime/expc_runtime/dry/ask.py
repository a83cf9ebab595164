"""The question of ``expc plan --check`` and its answer: one child looks at every stage of every spec."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expc_runtime.dry.look import Look, Seen

__all__ = ["answer"]


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """What became of every build of every spec.

    ``question``: ``specs``, each with the project's ``root``, the ``folder`` its modules were written to,
    and ``builds`` in an order in which parents come first; a build is what `Look` is asked. The answer
    has the same two lists, a build as ``faults``, ``unchecked`` and ``sizes``.
    """
    return {"specs": [{"builds": _builds(spec)} for spec in question["specs"]]}


def _builds(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    root, folder = Path(spec["root"]), Path(spec["folder"])
    seen: list[Seen] = []
    with _project(root):
        for asked in spec["builds"]:
            seen.append(Look(asked, root=root, folder=folder, before=seen).seen())
    return [_told(each) for each in seen]


@contextmanager
def _project(root: Path) -> Iterator[None]:
    """The root on the path; after it, modules of the project are forgotten, as another may have the same names."""
    path, loaded = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - loaded:
            file = getattr(sys.modules[name], "__file__", None)
            if name.startswith("_expc_dry_") or (file and Path(file).is_relative_to(root)):
                del sys.modules[name]


def _told(seen: Seen) -> dict[str, Any]:
    sizes = None
    if seen.sizes is not None:
        kept = seen.sizes.kept or {}
        peak = {precision: seen.sizes.peak(precision) for precision in kept}
        sizes = asdict(seen.sizes) | {"peak": peak}
    return {
        "faults": [asdict(fault) for fault in seen.faults],
        "unchecked": seen.unchecked,
        "sizes": sizes,
    }
