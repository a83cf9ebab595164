"""What a spec may hold, as JSON Schema (draft 2020-12): for editors, and for other tools that write specs.

Assembled from the models that validate: the header, the kinds' shapes, the components' parameters. It accepts every
spec that resolves; what relates two places of a spec is for `lint` to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from expc import components
from expc.components.core import Component
from expc.kinds import KINDS
from expc.resolve import slots_of
from expc.spec import Header, Named, Slot

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Json = dict[str, Any]

_OWN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_PARTIAL = "partial_"


@dataclass
class _Definitions:
    """Schemas by name, as `$defs` holds them."""

    found: Json = field(default_factory=dict)

    def of(self, model: type[BaseModel]) -> Json:
        """A model's own schema; those nested in it become definitions."""
        schema = model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        for name, nested in schema.pop("$defs", {}).items():
            self.found[name] = _untitled(nested)
        untitled: Json = _untitled(schema)
        return untitled


def spec() -> Json:
    """The schema of a whole spec. One that `extends` another may leave anything out."""
    definitions = _Definitions()
    definitions.found["spec"] = _header(definitions)
    strict = definitions.found
    partial = {f"{_PARTIAL}{name}": _loose(schema) for name, schema in strict.items()}
    return {
        "$schema": DRAFT,
        "title": "expc spec",
        "if": {"required": ["extends"], "properties": {"extends": {"type": "string"}}},
        "then": {"$ref": f"#/$defs/{_PARTIAL}spec"},
        "else": {"$ref": "#/$defs/spec"},
        "$defs": {**strict, **partial},
    }


def component(name: str) -> Json | None:
    """The schema of one component as it stands in a spec; None when there is none of that name."""
    definitions = _Definitions()
    found = [
        {"title": f"{slot.family} {name}", **_used(declared, slot, definitions)}
        for slot in _slots()
        if (declared := components.lookup(slot.family, name)) is not None
    ]
    if not found:
        return None
    head = {"$schema": DRAFT}
    tail = {"$defs": definitions.found} if definitions.found else {}
    return {**head, **(found[0] if len(found) == 1 else {"anyOf": found}), **tail}


def names() -> list[str]:
    """Every component that has a schema of its own."""
    return list(dict.fromkeys(name for slot in _slots() for name in components.names(slot.family)))


def _slots() -> Iterator[Slot]:
    seen: list[tuple[str, object]] = []
    for kind in KINDS.values():
        for slot in slots_of(kind.shape).values():
            for place in [_entry(slot, each) for each in slot.named] or [slot]:
                if (place.family, place.shape) not in seen:
                    seen.append((place.family, place.shape))
                    yield place


def _entry(slot: Slot, named: Named) -> Slot:
    """One entry of a map whose entries have names, as a place of its own."""
    return Slot(named.family, slot.shape)


# --------------------------------------------------------------------------------------------------- pieces


def _header(definitions: _Definitions) -> Json:
    schema = definitions.of(Header)
    kinds = {name: _stage(name, definitions) for name in KINDS}
    definitions.found["stage"] = {
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": {
                "description": "what the stage does",
                "oneOf": [{"const": k.name, "description": k.about} for k in KINDS.values()],
            }
        },
        "allOf": [_when("kind", name, {"$ref": f"#/$defs/{at}"}) for name, at in kinds.items()],
        "if": {"not": {"required": ["kind"]}},
        "then": {"anyOf": [{"$ref": f"#/$defs/{at}"} for at in kinds.values()]},
    }
    schema["properties"]["stages"]["additionalProperties"] = {"$ref": "#/$defs/stage"}
    for key, places in _shared_slots(definitions).items():
        shared = [{"$ref": f"#/$defs/{_PARTIAL}{at}"} for at in places]
        schema["properties"][key]["additionalProperties"] = {"anyOf": shared}
    return schema


def _stage(kind: str, definitions: _Definitions) -> str:
    shape = KINDS[kind].shape
    schema = definitions.of(shape)
    for key, slot in slots_of(shape).items():
        shared = key in Header.model_fields
        raw = schema["properties"][key]
        if slot.named:
            entries = {each.name: _entry(slot, each) for each in slot.named}
            raw["properties"] = {n: _reference(p, definitions, shared) for n, p in entries.items()}
            raw["additionalProperties"] = False
            if not shared:
                raw["required"] = [each.name for each in slot.named if not each.default]
        elif slot.many:
            raw["additionalProperties"] = _reference(slot, definitions, shared or slot.brought)
        else:
            reference = _reference(slot, definitions, shared)
            schema["properties"][key] = {**reference, "description": raw["description"]}
    schema["required"] = [k for k in schema["required"] if k not in Header.model_fields]
    definitions.found[f"stage_{kind}"] = schema
    return f"stage_{kind}"


def _reference(slot: Slot, definitions: _Definitions, partial: bool) -> Json:
    """A place, or one that may leave things out: what it lacks stands elsewhere."""
    return {"$ref": f"#/$defs/{_PARTIAL if partial else ''}{_slot(slot, definitions)}"}


def _shared_slots(definitions: _Definitions) -> dict[str, list[str]]:
    """Keys that stages may share at the top of a spec, and what may stand there."""
    found: dict[str, list[str]] = {}
    for kind in KINDS.values():
        for key, slot in slots_of(kind.shape).items():
            if key in Header.model_fields:
                for place in [_entry(slot, each) for each in slot.named] or [slot]:
                    found.setdefault(key, []).append(_slot(place, definitions))
    return {key: list(dict.fromkeys(places)) for key, places in found.items()}


def _slot(slot: Slot, definitions: _Definitions) -> str:
    """A place for a component: which names it takes, and for each what may stand beside it."""
    place = slot.shape.__name__ if slot.shape else slot.family
    if place in definitions.found:
        return place
    declared = [_declared(slot, name) for name in components.names(slot.family)]
    definitions.found[place] = {}  # taken: a component may hold a place of the same kind
    cases = [_when("use", each.name, _used(each, slot, definitions)) for each in declared]
    definitions.found[place] = {
        "type": "object",
        "required": ["use"],
        "properties": {
            "use": {
                "description": f"a {slot.family}, or your own as `package.module:Name`",
                "oneOf": [
                    *({"const": each.name, "description": each.about} for each in declared),
                    {"type": "string", "pattern": _OWN, "description": "your own"},
                ],
            }
        },
        "allOf": cases,
    }
    return place


def _declared(slot: Slot, name: str) -> Component:
    found = components.lookup(slot.family, name)
    assert found is not None
    return found


def _used(declared: Component, slot: Slot, definitions: _Definitions) -> Json:
    """A component with its parameters and the keys of the place that it stands in."""
    params = definitions.of(declared.params)
    here = definitions.of(slot.shape) if slot.shape else {}
    name = {"const": declared.name}
    return {
        "type": "object",
        "description": declared.about,
        "properties": {"use": name, **params.get("properties", {}), **here.get("properties", {})},
        "required": ["use", *params.get("required", []), *here.get("required", [])],
        "additionalProperties": False,
    }


def _when(key: str, value: str, then: Json) -> Json:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}


# ------------------------------------------------------------------------------------------------ rewriting


def _untitled(node: Any) -> Any:
    """A schema without the titles that only repeat a key; a property may be called `title`."""
    if isinstance(node, list):
        return [_untitled(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: {name: _untitled(inner) for name, inner in value.items()}
        if key == "properties"
        else _untitled(value)
        for key, value in node.items()
        if key != "title" or not isinstance(value, str)
    }


def _loose(node: Any) -> Any:
    """A schema that asks for nothing: a spec laid over another writes only what differs."""
    if isinstance(node, list):
        return [_loose(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    kept = {}
    for key, value in node.items():
        if key == "if":
            kept[key] = value
        elif key == "$ref":
            kept[key] = _partial(value)
        elif not _asks(key, value):
            kept[key] = _loose(value)
    return kept


def _asks(key: str, value: Any) -> bool:
    """Whether a keyword asks for something; a property may be called `required`."""
    return (key == "required" and isinstance(value, list)) or key == "minProperties"


def _partial(reference: str) -> str:
    name = reference.removeprefix("#/$defs/").removeprefix(_PARTIAL)
    return f"#/$defs/{_PARTIAL}{name}"


def text(found: dict[str, Any]) -> str:
    """A schema as a file holds it."""
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
