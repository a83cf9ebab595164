"""A generated module, read back: imported from its file, its class, its Config with other values."""

import importlib.util
import sys
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from expc_runtime.errors import MissingInput

__all__ = ["configured", "imported", "only"]


def imported(path: Path) -> ModuleType:
    """The module of a file, run anew under a name of its own: the file may have changed."""
    name = f"_expc_generated_{path.stem}_{abs(hash(str(path)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    python = importlib.util.module_from_spec(spec)
    sys.modules[name] = python  # dataclasses and type hints look themselves up there
    try:
        spec.loader.exec_module(python)
    except BaseException:
        del sys.modules[name]
        raise
    return python


def only(python: ModuleType, base: type) -> type[Any]:
    """The one class of ``base`` that the module defines. Raises MissingInput for none, or several."""
    own = [c for c in vars(python).values() if isinstance(c, type) and issubclass(c, base)]
    own = [c for c in own if c.__module__ == python.__name__]
    if len(own) != 1:
        raise MissingInput(
            f"{python.__file__} defines {len(own)} classes of {base.__name__}, not one"
        )
    return own[0]


def configured(config: type[Any], values: Mapping[str, Any]) -> Any:
    """A ``config`` with values as JSON has them; names that it does not have are left out."""
    hints = typing.get_type_hints(config)
    known = {f.name for f in fields(config)}
    return config(**{k: _typed(v, hints[k]) for k, v in values.items() if k in known})


def _typed(value: Any, hint: Any) -> Any:
    """JSON has neither tuples nor a difference between 1 and 1.0."""
    kinds = [typing.get_origin(k) or k for k in (*typing.get_args(hint), hint)]
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    return float(value) if hint is float else value
