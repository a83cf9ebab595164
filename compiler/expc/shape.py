"""Shape errors in the user's words. No pydantic wording gets past this module."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from expc import components
from expc.components.core import Use
from expc.findings import Edit, Finding, Span, listed, suggest
from expc.source import KeyPath
from expc.tree import Tree


def retell(
    error: ValidationError,
    tree: Tree,
    path: KeyPath,
    owner: str,
    fields: Mapping[str, type[BaseModel]],
) -> list[Finding]:
    """The findings of one failed validation. `owner` is what the keys belong to; `fields` maps a key to its model."""
    found: dict[KeyPath, Finding] = {}
    for detail in error.errors(include_url=False, include_input=True):
        finding_path = _existing(tree, (*path, *detail["loc"]))
        found.setdefault(finding_path, _finding(detail, tree, path, owner, fields))
    return list(found.values())


def unknown_key(key: str, tree: Tree, path: KeyPath, owner: str, choices: list[str]) -> Finding:
    """A key that its owner does not take."""
    place = tree.at((*path, key)).key
    takes = f"{owner} takes {listed(choices)}" if choices else f"{owner} takes no keys"
    hint = "" if key in _MEANT else suggest(key, choices)
    if not hint:
        takes = "; ".join(filter(None, [_MEANT.get(key) or _ELSEWHERE.get(key), takes]))
    fix = (Edit(place, hint.split("`")[1]),) if hint else ()
    return Finding(
        "XC101",
        f"`{key}` is not a key of {owner}",
        place,
        help=f"{hint} ({takes})" if hint else takes,
        fix=fix,
    )


_ELSEWHERE = {
    "env_steps": "only a stage with an environment counts its steps, in `until`, `evaluate` and `prefill`",
    "epochs": "only a stage with data counts passes over it",
    "microbatch": "only a stage that trains on rows can take a batch in parts",
    "notify": "who is told is said once, under `run` at the top",
    "address": "the address of a Ray cluster is said once, in `ray` under `run` at the top",
    **dict.fromkeys(("retry", "timeout", "devices", "slurm"), "it is said under `run`"),
}
"""Keys that others have."""

_MEANT = {
    **dict.fromkeys(("gpus", "gres", "num_gpus"), "GPUs of a run are `devices`, said under `run`"),
    "mem": "memory is `memory_gb`, a number",
    "out_of_memory": "it is called `oom`",
    "nan": "losses that are not finite are `diverged`",
}
"""Keys that are called otherwise here, though another key may look like them."""


def not_brought(key: str, place: Span, uses: Iterable[Use]) -> Finding:
    """A loss without `use`, or a dynamics' own, that no component of the stage brings."""
    every = [use for use in uses if use.component.terms is not None]
    terms = [key for use in every for key in use.component.terms(use.params)]  # type: ignore[misc]
    could = next((use for use in every if key in use.component.terms_of), None)
    if could is not None:
        help = f"set `{key}` of `{could.name}`, and the term is there"
    else:
        hint = suggest(key, terms)
        known = f"terms that come without `use:` are {listed(terms)}"
        help = f"{hint} ({known})" if hint else f"say which loss it is with `use:`; {known}"
    return Finding(
        "XC102",
        f"nothing brings a loss `{key}`",
        place,
        why=f"`{could.name}` has it only where its `{key}` is set" if could is not None else "",
        help=help,
    )


def missing_key(key: str, tree: Tree, path: KeyPath, owner: str, about: str = "") -> Finding:
    """A key that its owner must have."""
    name = path[-1] if path else owner
    says = f": {about}" if about else ""
    return Finding(
        "XC102",
        f"{owner} needs `{key}`",
        tree.at(path).key,
        help=f"add `{key}:` to `{name}`{says}" if path else f"add `{key}:` at the top{says}",
    )


def _finding(
    detail: ErrorDetails,
    tree: Tree,
    path: KeyPath,
    owner: str,
    fields: Mapping[str, type[BaseModel]],
) -> Finding:
    loc = detail["loc"]
    here = (*path, *loc)
    key = str(loc[-1]) if loc else ""
    model = _model_at(fields, loc)
    names = list(model.model_fields) if model is not None else []
    inner = owner if len(loc) < 2 else _entry(loc[:-1])
    match detail["type"]:
        case "extra_forbidden":
            choices = list(fields) if len(loc) == 1 else names
            return unknown_key(key, tree, here[:-1], inner, choices)
        case "missing":
            about = _about(fields, model, loc)
            return missing_key(key, tree, here[:-1], inner, about)
        case _:
            name = _entry(loc) if loc else owner
            said = ("value_error", "too_short", "string_too_short")
            given = "" if detail["type"] in said else f", not {_shown(detail['input'])}"
            where = tree.at(_existing(tree, here))
            whole = detail["type"] == "value_error" and isinstance(detail["input"], Mapping)
            return Finding(
                "XC103",
                f"{name} {_expected(detail)}{given}",
                where.key if whole else where.value,
                help=_help(detail, fields, loc),
            )


def _existing(tree: Tree, path: KeyPath) -> KeyPath:
    while path and path not in tree.where:
        path = path[:-1]
    return path


def _entry(loc: tuple[int | str, ...]) -> str:
    """The key that a location ends at, or the list it is an entry of."""
    name = next((part for part in reversed(loc) if isinstance(part, str)), "")
    return f"an entry of `{name}`" if isinstance(loc[-1], int) else f"`{name}`"


def _model_at(
    fields: Mapping[str, type[BaseModel]], loc: tuple[int | str, ...]
) -> type[BaseModel] | None:
    """The model that holds the last key of a location."""
    model = fields.get(str(loc[0])) if loc else None
    for part in loc[1:-1]:
        if model is None:
            return None
        info = model.model_fields.get(str(part))
        inner = nested(info.annotation) if info is not None else None
        model = inner or (model if info is None else None)
    return nested(model) if len(loc) == 1 else model


def nested(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `Clock | None` or `dict[str, Clock]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = nested(argument)
        if found is not None:
            return found
    return None


def _about(
    fields: Mapping[str, type[BaseModel]], model: type[BaseModel] | None, loc: tuple[int | str, ...]
) -> str:
    owner = fields.get(str(loc[0])) if len(loc) == 1 else model
    info = owner.model_fields.get(str(loc[-1])) if owner is not None else None
    return info.description or "" if info is not None else ""


_KINDS = {
    "int_type": "takes a whole number",
    "int_from_float": "takes a whole number",
    "float_type": "takes a number",
    "finite_number": "takes a finite number",
    "bool_type": "takes `true` or `false`",
    "string_type": "takes text",
    "list_type": "takes a list",
    "dict_type": "takes a map",
    "model_type": "takes a map of keys",
    "model_attributes_type": "takes a map of keys",
    "too_short": "needs more entries",
    "too_long": "has too many entries",
    "string_pattern_mismatch": "must be a plain name",
}


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "literal_error":
            several = " or " in _choices(context)
            return f"is one of {_choices(context)}" if several else f"is {_choices(context)}"
        case "greater_than":
            return f"must be above {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than":
            return f"must be below {context['lt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "too_short":
            short = f"needs {context['min_length']} entries or more"
            return short if context.get("actual_length") else "is empty"
        case "string_too_short" if context["min_length"] == 1:
            return "is empty"
        case "too_long":
            return f"takes at most {context['max_length']} of them"
        case "value_error":
            return _told(detail)[0]
        case other:
            return _KINDS.get(other, "has a value of the wrong kind")


def _choices(context: Mapping[str, Any]) -> str:
    return str(context.get("expected", "")).replace("'", "`")


def _help(
    detail: ErrorDetails, fields: Mapping[str, type[BaseModel]], loc: tuple[int | str, ...]
) -> str:
    value = detail["input"]
    if detail["type"] == "literal_error" and isinstance(value, str):
        words = [
            part.strip("'")
            for part in _choices(detail.get("ctx", {}))
            .replace("`", "'")
            .replace(" or ", ", ")
            .split(", ")
        ]
        hint = suggest(value, words)
        if hint:
            return hint
    if detail["type"] in ("float_type", "int_type") and isinstance(value, str):
        return "write a number without quotes" + (
            "; an exponent needs a point, as in `3.0e-4`" if "e" in value.lower() else ""
        )
    if detail["type"] == "dict_type" and isinstance(value, str) and _is_component(value):
        return f"write `{{use: {value}}}`"
    if detail["type"] == "list_type" and loc and loc[-1] == "seeds":
        return "name each one, such as `[0, 1, 2]`"  # `3` may mean one of them, or how many
    if detail["type"] == "list_type" and isinstance(value, int | float | str):
        return f"write `[{_quoted(value)}]`"
    if detail["type"] == "value_error" and (advice := _told(detail)[1]):
        return advice
    model = _model_at(fields, loc)
    about = _about(fields, model, loc) if loc else ""
    if (
        not about
        and detail["type"] in ("model_type", "model_attributes_type")
        and model is not None
    ):
        more = ", and settings by their paths" if model.model_config["extra"] == "allow" else ""
        return f"it takes {listed(model.model_fields)}{more}"
    return about or "see `expc schema`"


def _told(detail: ErrorDetails) -> tuple[str, str]:
    """What a validator says is wrong, and in a second line, if it has one, what to do."""
    said = str(detail.get("ctx", {}).get("error", "has a value that does not fit"))
    wrong, _, advice = said.partition("\n")
    return wrong, advice


def _quoted(value: float | str) -> str:
    """A scalar as YAML takes it: text that would read as a number keeps its quotes."""
    numeric = isinstance(value, str) and value.replace(".", "", 1).isdigit()
    return f"'{value}'" if numeric else str(value)


def _is_component(name: str) -> bool:
    return any(components.lookup(family, name) for family in components.FAMILIES)


def _shown(value: object) -> str:
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case None:
            return "nothing"
        case str():
            text = value if len(value) <= 40 else value[:37] + "..."
            return f"the text `{text}`"
        case dict():
            return "a map"
        case list():
            nested = len(value) > 4 or any(isinstance(each, dict | list) for each in value)
            return "a list" if nested else f"the list `{value}`"
        case _:
            return f"`{value}`"


def says(annotation: Any) -> str:
    """An annotation in words, for schema pages and help lines."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return says(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(says(arg) for arg in get_args(annotation) if arg is not type(None))
    if origin is list:
        return f"list of {says(get_args(annotation)[0])}"
    if origin is dict:
        return "map"
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "map of " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    return plain.get(annotation, "value")
