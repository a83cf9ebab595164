"""A generated module, as its text: what it would train, and on what, without training."""

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from expc_runtime.errors import StageError
from expc_runtime.export import _config, _only
from expc_runtime.flags import Run

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
    python = _imported(name, text)
    handed: list[Meant] = []

    def take(build: Callable[[Any], Any], cfg: Run, feed: Any, **rest: Any) -> int:
        handed.append(Meant(build, cfg, feed, rest.get("until")))
        return 0

    python.fit = take  # type: ignore[attr-defined]  # hides the one that trains
    own = [c for c in vars(python).values() if isinstance(c, type)]
    own = [c for c in own if c.__module__ == python.__name__]
    python.main(_config(_only(own, Run, Path(name)), values))
    if len(handed) != 1:
        raise StageError(f"{name} trains nothing, so its data can't be read")
    return handed[0]


def _imported(name: str, text: str) -> ModuleType:
    with tempfile.TemporaryDirectory(prefix="expc-") as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        title = f"_expc_profiled_{path.stem}"
        spec = importlib.util.spec_from_file_location(title, path)
        assert spec is not None and spec.loader is not None
        python = importlib.util.module_from_spec(spec)
        sys.modules[title] = python  # dataclasses and type hints look themselves up there
        spec.loader.exec_module(python)
    return python
