"""Components as data: what a spec may name after `use:`.

A family's declarations are imported when a spec first names one of them; third parties' (entry point
`expc.components`) only when no built-in has the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from expc.components.core import Component, Family

_BUILT_IN: Mapping[Family, tuple[str, str]] = {
    "data": ("expc.components.data", "DATA"),
    "model": ("expc.components.models", "MODELS"),
    "head": ("expc.components.models", "HEADS"),
    "loss": ("expc.components.losses", "LOSSES"),
    "metric": ("expc.components.metrics", "METRICS"),
    "optim": ("expc.components.optimizers", "OPTIMIZERS"),
    "schedule": ("expc.components.optimizers", "SCHEDULES"),
    "env": ("expc.components.environments", "ENVIRONMENTS"),
    "encoder": ("expc.components.worlds", "ENCODERS"),
    "dynamics": ("expc.components.worlds", "DYNAMICS"),
    "decoder": ("expc.components.worlds", "DECODERS"),
    "layers": ("expc.components.worlds", "LAYERS"),
    "behaviour": ("expc.components.worlds", "BEHAVIOURS"),
    "evaluation": ("expc.components.evaluations", "EVALUATIONS"),
}

FAMILIES: tuple[Family, ...] = tuple(_BUILT_IN)


@cache
def built_in(family: Family) -> Mapping[str, Component]:
    """The components of a family that ship with expc, by name."""
    module, attribute = _BUILT_IN[family]
    declared: tuple[Component, ...] = getattr(import_module(module), attribute)
    return {component.name: component for component in declared}


@cache
def third_party(family: Family) -> Mapping[str, Component]:
    """Components that installed packages declare under the entry point `expc.components`."""
    from importlib.metadata import entry_points

    found: dict[str, Component] = {}
    for entry in entry_points(group="expc.components"):
        for component in entry.load():
            if component.family == family:
                found[component.name] = component
    return found


def lookup(family: Family, name: str) -> Component | None:
    """The component of that name, or None."""
    return built_in(family).get(name) or third_party(family).get(name)


def names(family: Family) -> list[str]:
    """Every name a spec may use for a family."""
    return [*built_in(family), *third_party(family)]
