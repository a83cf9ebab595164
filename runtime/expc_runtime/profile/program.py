"""A generated module, as its text: what it would train, and on what, without training."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expc_runtime.errors import StageError
from expc_runtime.flags import Run
from expc_runtime.generated import configured, imported, only

__all__ = ["Meant", "meant"]


@dataclass(frozen=True)
class Meant:
    """What a module's ``main`` hands to `fit`."""

    build: Callable[[Any], Any]
    cfg: Run
    feed: Any
    until: Any


def meant(name: str, text: str, values: Mapping[str, Any]) -> Meant:
    """Run ``main`` of the module of that text, with these values of its Config, as far as `fit`.

    Raises StageError for a module that hands nothing over.
    """
    with tempfile.TemporaryDirectory(prefix="expc-") as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        python = imported(path)
    handed: list[Meant] = []

    def take(build: Callable[[Any], Any], cfg: Run, feed: Any, **rest: Any) -> int:
        handed.append(Meant(build, cfg, feed, rest.get("until")))
        return 0

    python.fit = take  # type: ignore[attr-defined]  # hides the one that trains
    python.main(configured(only(python, Run), values))
    if len(handed) != 1:
        raise StageError(f"{name} trains nothing, so its data can't be read")
    return handed[0]
