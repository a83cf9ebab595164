"""A user's own class or function as a component: its declaration is its signature, read from source text."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, create_model

from expc.components.core import Column, Component, Family, Form, Params
from expc.components.data import COLUMN_PORTS, GROUP
from expc.findings import Edit, Finding, Span, suggest
from expc.fingerprint import fingerprint
from expc.ir import PORTS, Any_, Port
from expc.signatures import NotFound, Parameter, Signature, signature

_GIVEN: dict[Family, frozenset[str]] = {
    "loss": frozenset({"pred", "target", "reduction"}),
    "head": frozenset({"in_features"}),
    "optim": frozenset({"params"}),
    "schedule": frozenset(),
    "model": frozenset(),
    "metric": frozenset(),
    "data": frozenset(),
    "env": frozenset({"batch", "device"}),
    "encoder": frozenset(),
    "decoder": frozenset({"in_features"}),
}
"""Parameters that the generated code fills in: a spec may not set them."""

FAMILIES = frozenset(_GIVEN)
"""Families of which a component may be a user's own."""


def own_component(
    family: Family, target: str, root: Path, span: Span
) -> tuple[Component | None, Finding | None]:
    """The component behind `package.module:Name`, or what is wrong with it."""
    if family not in _GIVEN:
        return None, _not_yours(family, target, span)
    try:
        found = signature(target, root)
    except NotFound as error:
        return None, _not_found(target, error, span)
    try:
        forms = _forms(family, found)
        columns = dict(_columns(found)) if family == "data" else {}
        params = _params(family, found)
        actions = _actions(family, found)
        if family == "env":
            _environment(found)
    except ValueError as error:
        return None, Finding(
            "XC106", f"`{target}` {error}", span, help="change its signature, or wrap it"
        )
    taken = found.methods.get("forward", ())
    return (
        Component(
            family=family,
            name=target,
            about="your own",
            params=params,
            target=target,
            forms=forms,
            columns=columns,
            groups=tuple(_groups(found)) if family == "data" else (),
            inputs=tuple(parameter.name for parameter in taken if parameter.required),
            needs_width=any(p.name == "in_features" and p.required for p in found.parameters),
            optional=tuple(parameter.name for parameter in taken if not parameter.required),
            better=_better(found) if family == "metric" else "",
            actions=actions,
            events=_events(found) if family == "env" else (),
            own=True,
            fingerprint=fingerprint(target.partition(":")[0], root),
        ),
        None,
    )


def _not_yours(family: Family, target: str, span: Span) -> Finding:
    return Finding(
        "XC106",
        f"`{target}`: a {family} can't be your own",
        span,
        why="what it adds to the program can't be read from a signature",
        help="use one that is built in, or declare yours by the entry point `expc.components`",
    )


def _actions(family: Family, found: Signature) -> int | None:
    if family != "env":
        return None
    count = found.attributes.get("actions")
    if not isinstance(count, int):
        raise ValueError("has no class attribute `actions`, the number of its actions")  # noqa: TRY004
    return count


_ENVIRONMENT = (
    "advance", "batch", "can_pay", "cells", "events", "is_first", "is_last", "is_terminal", "like", "load_state_dict",
    "paint", "paint_unit", "settings", "state_dict", "to",
)  # fmt: skip
"""What a replay asks of an environment, beside `actions`: `expc_runtime.replay.environment` says what each is."""


def _environment(found: Signature) -> None:
    """Raises `ValueError` where a replay would fail; what comes from a base in another file can't be known."""
    if not found.open and all(parameter.name != "batch" for parameter in found.parameters):
        raise ValueError("takes no `batch`, how many games it plays side by side")
    lacks = [name for name in _ENVIRONMENT if name not in found.members]
    if lacks and found.whole and "__getattr__" not in found.members:
        raise ValueError(
            f"has no {', '.join(f'`{name}`' for name in lacks)}: "
            "`expc_runtime.replay.environment` says what a replay asks of an environment"
        )


def _events(found: Signature) -> tuple[str, ...]:
    declared = found.attributes.get("EVENTS")
    return tuple(map(str, declared)) if isinstance(declared, list | tuple) else ()


def _better(found: Signature) -> Literal["higher", "lower", ""]:
    said = found.attributes.get("higher_is_better")
    return "" if said is None else "higher" if said else "lower"


def _not_found(target: str, error: NotFound, span: Span) -> Finding:
    module, _, name = target.partition(":")
    hint = suggest(name, error.near)
    fix = (Edit(span, f"{module}:{hint.split('`')[1]}"),) if hint else ()
    return Finding(
        "XC106",
        str(error),
        span,
        why="the generated module would fail at its first import",
        help=hint or "own code is found from the project root, or installed",
        fix=fix,
    )


def _params(family: Family, found: Signature) -> type[Params]:
    """The parameters that a spec may set. Raises `ValueError` where one must be set, and can't."""
    fields: dict[str, Any] = {}
    for parameter in found.parameters:
        if parameter.name in _GIVEN[family]:
            continue
        if parameter.name.startswith("_") or parameter.name in _UNSETTABLE:
            if parameter.required:
                raise ValueError(f"takes `{parameter.name}`, a name that a spec can't set")
            continue
        given_later = family == "model" and parameter.name == "in_features"
        default = ... if parameter.required and not given_later else parameter.default
        fields[parameter.name] = (_annotation(parameter), Field(default))
    extra: Literal["allow", "forbid"] = "allow" if found.open else "forbid"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a parameter may be called `copy` or `schema`
        model: type[Params] = create_model(found.name, __base__=Params, **fields)
        model.model_config = ConfigDict({**Params.model_config, "extra": extra})
        model.model_rebuild(force=True)
    return model


_UNSETTABLE = frozenset(name for name in dir(Params) if name.startswith("model_"))
"""Names of the validator itself."""


def _finite(value: Any) -> Any:
    """A value that can be written down in a module."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _finite(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("takes a finite number")
    return value


_Anything = Annotated[Any, AfterValidator(_finite)]


_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}


def _annotation(parameter: Parameter) -> Any:
    """A type that the spec's value is checked against; anything where the source is not plain."""
    try:
        found = _type_of(ast.parse(parameter.annotation, mode="eval").body)
    except SyntaxError:
        found = Any
    return _Anything if found is Any else found


def _type_of(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _TYPES.get(node.id, Any)
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _type_of(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _type_of(node.left), _type_of(node.right)
        return Any if Any in (left, right) else left | right
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("tuple", "list", "Sequence"):
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        item = _type_of(inner)
        return list[_Anything if item is Any else item]  # type: ignore[misc]
    return Any


def _forms(family: Family, found: Signature) -> tuple[Form, ...]:
    if family == "loss":
        return (Form((_port(found.parameters, "pred"), _port(found.parameters, "target"))),)
    if family == "metric":
        update = found.methods.get("update")
        if update is None or len(update) < 2:
            raise ValueError("has no `update(self, pred, target)`, which a metric needs")
        return (Form((_named_port(update[0]), _named_port(update[1]))),)
    if family == "head" and not (
        found.open or any(p.name == "in_features" for p in found.parameters)
    ):
        raise ValueError("takes no `in_features`, the width of what the head reads")
    if family == "model" and "forward" not in found.methods:
        raise ValueError("has no `forward`, which a model needs")
    return (Form((Any_,)),)


def _port(parameters: tuple[Parameter, ...], name: str) -> Port:
    for parameter in parameters:
        if parameter.name == name:
            return _named_port(parameter)
    raise ValueError(f"takes no `{name}`; a loss is `name(pred, target, *, reduction='mean', ...)`")


def _named_port(parameter: Parameter) -> Port:
    return PORTS.get(parameter.annotation.rsplit(".", 1)[-1], Any_)


def _columns(found: Signature) -> Iterator[tuple[str, Column]]:
    declared = found.attributes.get("columns")
    if not isinstance(declared, dict) or not declared:
        raise ValueError(
            "has no class attribute `columns`, a literal map such as "
            '`{"image": "features", "label": "class"}`'
        )
    for name, meaning in declared.items():
        if meaning == GROUP:
            continue
        if meaning not in COLUMN_PORTS:
            words = ", ".join((*COLUMN_PORTS, GROUP))
            raise ValueError(f"says column `{name}` is `{meaning}`; a column is one of {words}")
        yield str(name), Column(COLUMN_PORTS[meaning])


def _groups(found: Signature) -> Iterator[str]:
    declared = found.attributes.get("columns")
    named = declared.items() if isinstance(declared, dict) else ()
    return (str(name) for name, meaning in named if meaning == GROUP)
