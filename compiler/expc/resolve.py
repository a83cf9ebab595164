"""From text to an `Experiment`: follow `extends`, share the model, apply overrides, bind components, fill defaults."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from expc import components
from expc.components.core import WORDS, Family, Params, Use
from expc.components.own import FAMILIES as OWN
from expc.components.own import own_component
from expc.experiment import Experiment, Stage
from expc.findings import Edit, Finding, Note, Span, SpecError, an, listed, suggest
from expc.kinds import KINDS
from expc.kinds.names import TAKEN
from expc.shape import missing_key, nested, not_brought, retell, unknown_key
from expc.source import KeyPath, Source, read
from expc.spec import FAILURES, Header, Shape, Slot
from expc.tree import Tree, Where, extend, from_source, paths

_NAME = re.compile(r"[a-z][a-z0-9_]*$")


@dataclass(frozen=True)
class Document:
    """A spec and those it extends, laid over each other, before anything is bound."""

    tree: Tree
    sources: tuple[Source, ...]
    file: str
    root: Path


@dataclass(frozen=True, slots=True)
class Override:
    """A value that a sweep sets at a path such as `train.model.dynamics`."""

    path: str
    value: Any
    span: Span


def document(path: Path, root: Path) -> Document:
    """Read a spec and follow `extends`. Raises `SpecError`."""
    sources = _sources(path, root, ())
    tree = from_source(sources[0], "spec")
    for source in sources[1:]:
        tree = extend(tree, from_source(source, "extends"))
    return Document(tree, tuple(sources), sources[0].file, root)


def _sources(path: Path, root: Path, seen: tuple[Path, ...]) -> list[Source]:
    source = read(path, root)
    base = source.data.get("extends")
    if not isinstance(base, str):
        return [source]
    span = source.values[("extends",)]
    target = (path.parent / base).resolve()
    if target in (*seen, path.resolve()):
        raise SpecError(
            Finding("XC201", f"`extends` leads back to `{base}`", span, help="break the circle")
        )
    if not target.is_file():
        raise SpecError(
            Finding(
                "XC201",
                f"`extends` names `{base}`, which is not there",
                span,
                help=f"paths are relative to `{source.file}`",
            )
        )
    return [source, *_sources(target, root, (*seen, path.resolve()))]


def resolve(document: Document, overrides: Iterable[Override] = ()) -> Experiment:
    """Bind and check a document, with a sweep's overrides. Raises `SpecError` with all shape findings at once."""
    tree = document.tree
    header, findings = _header(tree)
    for override in overrides:
        path = spec_path(override.path)
        where = Where(override.span, override.span, "sweep")
        tree = tree.override(path, override.value, where)
    stages: dict[str, Stage] = {}
    raw_stages = tree.get(("stages",))
    for name in raw_stages if isinstance(raw_stages, dict) else {}:
        tree, stage, more = _stage(tree, str(name), document)
        findings += more
        if stage is not None:
            stages[str(name)] = stage
    if findings or header is None:
        raise SpecError(*findings)
    tree = _with_defaults(tree, [((), header)], leave=frozenset({"stages", "model"}))
    return Experiment(
        name=header.name,
        about=header.about,
        file=document.file,
        root=document.root,
        tree=tree,
        stages=stages,
        sweep=header.sweep,
        sources=document.sources,
        run=header.run,
    )


def spec_path(path: str) -> KeyPath:
    """The place in a spec that a sweep's path names: `train.optim.lr` stands under `stages`."""
    parts = tuple(path.split("."))
    return parts if parts[0] == "model" else ("stages", *parts)


def _header(tree: Tree) -> tuple[Header | None, list[Finding]]:
    findings = _strange_failures(tree, ())
    name = tree.get(("name",))
    if isinstance(name, str) and not _NAME.match(name):
        findings.append(_bad_name(name, tree, ("name",), value=True))
    try:
        header = Header.model_validate(tree.data)
    except ValidationError as error:
        return None, findings + retell(error, tree, (), "a spec", _owners(Header))
    for axis in (*header.sweep.grid, *header.sweep.zip):
        if not axis or ".." in axis:
            findings.append(_bad_name(axis, tree, ("sweep", "grid", axis)))
    for part in header.model:
        findings += _checked_name(part, tree, ("model", part))
    for condition in header.sweep.conditions:
        if not _NAME.match(condition):
            findings.append(_bad_name(condition, tree, ("sweep", "conditions", condition)))
    return header, findings


def _owners(shape: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Key -> the model that describes it, for messages: the shape itself, or the model inside the field."""
    return {
        info.alias or name: nested(info.annotation) or shape
        for name, info in shape.model_fields.items()
    }


def _checked_name(name: str, tree: Tree, path: KeyPath) -> list[Finding]:
    if _NAME.match(name) and not keyword.iskeyword(name) and name not in _TAKEN:
        return []
    return [_bad_name(name, tree, path)]


_TAKEN = TAKEN.union(dir(builtins)) - {
    "input", "filter", "hash", "map", "type", "range", "format", "id", "object", "sum", "min", "max",
}  # fmt: skip


def _bad_name(name: str, tree: Tree, path: KeyPath, *, value: bool = False) -> Finding:
    place = tree.at(path)
    why = "names become variables, flags and folders of the generated code"
    if name in _TAKEN or keyword.iskeyword(name):
        return Finding(
            "XC105", f"`{name}` is a word of Python", place.key, why, "choose another name"
        )
    return Finding(
        "XC105",
        f"`{name}` is not a name",
        place.value if value else place.key,
        why,
        "use lower-case letters, digits and `_`, starting with a letter",
    )


def _strange_failures(tree: Tree, path: KeyPath) -> list[Finding]:
    """Failure classes under `retry` that there are not, or that no other try would mend."""
    here = (*path, "run", "retry")
    raw = tree.get(here)
    strange = [name for name in raw if name not in FAILURES] if isinstance(raw, dict) else []
    return [
        _in_vain(name, tree.at((*here, name)).key)
        if name in _IN_VAIN
        else unknown_key(str(name), tree, here, "`retry`", list(FAILURES))
        for name in strange
    ]


_IN_VAIN = {
    "gate": (
        "its budget is used up: another try would begin at the end",
        "leave it out, and give the stage a larger budget",
    ),
    "bad_value": ("the same value would be refused again", "leave it out, and mend the value"),
    "missing_input": (
        "what was not there is not there a moment later",
        "leave it out: a stage waits for those that it starts from anyway",
    ),
    "locked": (
        "another process has the run",
        "leave it out: the other process carries the run on",
    ),
    "preempted": ("it did not fail", "leave it out: it was saved, and goes on anyway"),
}
"""Why no other try would help, and what to do."""


def _in_vain(name: str, place: Span) -> Finding:
    why, help = _IN_VAIN[name]
    return Finding(
        "XC509",
        f"a run that ended by `{name}` is not tried again",
        place,
        why=why,
        help=help,
    )


# --------------------------------------------------------------------------------------------------- stages


def _stage(tree: Tree, name: str, document: Document) -> tuple[Tree, Stage | None, list[Finding]]:
    path: KeyPath = ("stages", name)
    raw = tree.get(path)
    findings = [*_checked_name(name, tree, path), *_strange_failures(tree, path)]
    if not isinstance(raw, dict):
        place = tree.at(path).value
        return (
            tree,
            None,
            [
                *findings,
                Finding(
                    "XC103", f"stage `{name}` is a map of keys", place, help="start with `kind:`"
                ),
            ],
        )
    kind = KINDS.get(str(raw.get("kind", "")))
    if kind is None:
        return tree, None, [*findings, _unknown_kind(raw, tree, path, name)]
    slots = slots_of(kind.shape)
    if "model" in slots and isinstance(tree.get(("model",)), dict):
        tree = _share_model(tree, path)
        raw = tree.get(path)
    tree, misnamed = _named_entries(tree, path, slots)
    findings += misnamed
    raw = tree.get(path)
    shape = None
    try:
        shape = kind.shape.model_validate(raw)
    except ValidationError as error:
        findings += retell(error, tree, path, f"{an(kind.name)} stage", _owners(kind.shape))
    uses: dict[str, Use] = {}
    maps: dict[str, dict[str, Use]] = {}
    for key, slot in slots.items():
        if slot.brought:
            tree = _with_terms(tree, (*path, key), maps)
        raw = tree.get(path)
        if not isinstance(raw.get(key), dict):
            continue
        if slot.is_map:
            maps[key] = {}
            for entry in raw[key]:
                if slot.named and not slot.takes(entry):
                    continue  # told
                findings += _checked_name(entry, tree, (*path, key, entry))
                written = raw[key][entry]
                if slot.brought and isinstance(written, dict) and set(written) <= set(slot.keys):
                    place = tree.at((*path, key, entry)).key
                    parts = [each for many in maps.values() for each in many.values()]
                    findings.append(not_brought(entry, place, parts))
                    continue
                use, more = _use(tree, (*path, key, entry), slot, document.root)
                findings += more
                if use is not None:
                    maps[key][entry] = use
        else:
            use, more = _use(tree, (*path, key), slot, document.root)
            findings += more
            if use is not None:
                uses[key] = use
    if shape is None:
        return tree, None, findings
    every = (*uses.values(), *(use for many in maps.values() for use in many.values()))
    given = [(use.path, model) for use in every for model in (use.params, use.slot) if model]
    tree = _with_defaults(_with_defaults(tree, given), [(path, shape)], leave=frozenset(slots))
    parents = tuple(dict.fromkeys(kind.parents(shape)))
    stage = Stage(name, kind, shape, uses, maps, str(tree.get(("name",), "")), parents)
    return tree, None if findings else stage, findings


def _named_entries(
    tree: Tree, path: KeyPath, slots: Mapping[str, Slot]
) -> tuple[Tree, list[Finding]]:
    """Maps whose entries have names of their own: what is left out is filled in, what is not known is told."""
    findings = []
    for key, slot in slots.items():
        raw = tree.get((*path, key))
        if not slot.named or not isinstance(raw, dict):
            continue
        known = [each.name for each in slot.named]
        if isinstance(raw.get("use"), str) and len({each.family for each in slot.named}) == 1:
            findings.append(_one_for_several(tree, (*path, key), known))
            tree = tree.replaced((*path, key), {name: {"use": raw["use"]} for name in known})
            continue
        strange = [entry for entry in raw if entry not in known]
        findings += [unknown_key(each, tree, (*path, key), f"`{key}`", known) for each in strange]
        meant = {each.fix[0].text for each in findings if each.fix}
        for each in slot.named:
            if each.name in raw or each.name in meant:
                continue
            if not each.default:
                about = f"{_family(each.family)}: {listed(components.names(each.family))}"
                findings.append(missing_key(each.name, tree, (*path, key), f"`{key}`", about))
                continue
            tree = tree.override(
                (*path, key, each.name), {"use": each.default}, _default(tree, (*path, key))
            )
    return tree, findings


def _one_for_several(tree: Tree, path: KeyPath, names: list[str]) -> Finding:
    """One component where each entry has its own."""
    use = tree.get((*path, "use"))
    return Finding(
        "XC103",
        f"`{path[-1]}` takes one for each of {listed(names)}, not one for all",
        tree.at((*path, "use")).key,
        help=f"write `{path[-1]}: {{{', '.join(f'{name}: {{use: {use}}}' for name in names)}}}`",
    )


def _family(family: Family) -> str:
    """A family in a message, with its article."""
    return an(WORDS.get(family, family))


def _with_terms(tree: Tree, path: KeyPath, maps: Mapping[str, Mapping[str, Use]]) -> Tree:
    """The loss map with the terms that components bring; what the spec writes of them wins."""
    for uses in maps.values():
        for use in uses.values():
            if use.component.terms is None:
                continue
            found = use.component.terms(use.params)
            terms = {key: {"use": name, "weight": weight} for key, (name, weight) in found.items()}
            base = Tree({}, {(): tree.where[()]})
            base = base.override(path, terms, _default(tree, use.path))
            tree = tree.under(path, base)
    return tree


def _default(tree: Tree, path: KeyPath) -> Where:
    """The place of what nobody wrote: that of what it belongs to."""
    above = tree.at(path)
    return Where(above.key, above.value, "default")


def _unknown_kind(raw: Mapping[str, Any], tree: Tree, path: KeyPath, name: str) -> Finding:
    if "kind" not in raw:
        return missing_key("kind", tree, path, f"stage `{name}`", f"one of {listed(KINDS)}")
    given = str(raw["kind"])
    hint = suggest(given, KINDS)
    return Finding(
        "XC104",
        f"there is no kind of stage `{given}`",
        tree.at((*path, "kind")).value,
        help=f"{hint} (kinds: {listed(KINDS)})" if hint else f"kinds are {listed(KINDS)}",
    )


def slots_of(shape: type[Shape]) -> dict[str, Slot]:
    """The places for components in a stage's shape."""
    return {
        name: marker
        for name, info in shape.model_fields.items()
        for marker in info.metadata
        if isinstance(marker, Slot)
    }


def _share_model(tree: Tree, path: KeyPath) -> Tree:
    """Fill a stage's `model` from the one declared at the top; the stage's own keys win."""
    shared = tree.get(("model",))
    places = {
        (*path, "model", *known[1:]): place
        for known, place in tree.where.items()
        if known[:1] == ("model",)
    }
    base_data: dict[str, Any] = {"stages": {path[-1]: {"model": shared}}}
    base = Tree(base_data, {**places, (): tree.where[()]})
    here = (*path, "model")
    if "model" not in tree.get(path):
        return tree.override(here, shared, tree.where[("model",)]).relocated(places)
    return tree.under(here, base)


def _use(tree: Tree, path: KeyPath, slot: Slot, root: Path) -> tuple[Use | None, list[Finding]]:
    raw = tree.get(path)
    family = slot.family_of(str(path[-1]))
    if not isinstance(raw, dict):
        return None, []  # told, by the shape of the stage
    if not isinstance(raw.get("use"), str):
        owner = f"`{path[-1]}`"
        if "use" in raw:
            place = tree.at((*path, "use")).value
            return None, [Finding("XC103", "`use` takes the name of a component", place)]
        return None, [missing_key("use", tree, path, owner, f"{_family(family)}: {_some(family)}")]
    name = raw["use"]
    if ":" in name:
        component, problem = own_component(family, name, root, tree.at((*path, "use")).value)
    else:
        component, problem = components.lookup(family, name), None
    if component is None:
        return None, [problem or _unknown_component(name, tree, path, family)]
    slot_fields = list(slot.shape.model_fields) if slot.shape else []
    own = {key: value for key, value in raw.items() if key != "use" and key not in slot_fields}
    of_slot = {key: raw[key] for key in slot_fields if key in raw}
    owner = f"`{name}`"
    findings = []
    if component.params.model_config.get("extra") == "allow":
        findings = [_bad_name(key, tree, (*path, key)) for key in own if not _is_argument(key)]
    params = _validated(component.params, own, tree, path, owner, slot_fields, findings)
    findings = [_picked(each, tree, path) for each in findings]
    shape = _validated(slot.shape, of_slot, tree, path, owner, [], findings) if slot.shape else None
    if findings or params is None:
        return None, findings
    return Use(component, params, path, shape), []


def _picked(found: Finding, tree: Tree, path: KeyPath) -> Finding:
    """A key that the spec writes for one component, and a sweep picks another: the key is no slip of the pen."""
    use = tree.at((*path, "use"))
    if found.code != "XC101" or use.origin != "sweep" or found.span in (use.key, use.value):
        return found
    name, whole = tree.get((*path, "use")), ".".join(map(str, path[path[0] == "stages" :]))
    return replace(
        found,
        help=f"let the sweep set all of it, keys and all: `{whole}: {{use: {name}}}`",
        notes=(*found.notes, Note(use.value, f"`{name}` is picked here")),
        fix=(),
    )


def _is_argument(key: str) -> bool:
    """Whether a key can be printed as a keyword argument."""
    return key.isidentifier() and not keyword.iskeyword(key)


def _validated(
    model: type[Params],
    data: Mapping[str, Any],
    tree: Tree,
    path: KeyPath,
    owner: str,
    also: list[str],
    findings: list[Finding],
) -> Params | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        owners = _owners(model)
        choices = [*owners, *also]
        for finding in retell(error, tree, path, owner, owners):
            key = _unknown(finding)
            findings.append(
                unknown_key(key, tree, path, owner, choices) if key in data and key else finding
            )
        return None


def _unknown(finding: Finding) -> str:
    return finding.message.split("`")[1] if finding.code == "XC101" else ""


def _some(family: Family) -> str:
    return listed(components.names(family))


def _unknown_component(name: str, tree: Tree, path: KeyPath, wanted: Family) -> Finding:
    place = tree.at((*path, "use")).value
    hint = suggest(name, components.names(wanted))
    elsewhere = [family for family in components.FAMILIES if components.lookup(family, name)]
    notes: tuple[Note, ...] = ()
    if elsewhere:
        notes = (Note(place, f"`{name}` is {_family(elsewhere[0])}, not {_family(wanted)}"),)
    own = ", or your own as `package.module:Name`" if wanted in OWN else ""
    choices = _some(wanted) + own
    fix = (Edit(place, hint.split("`")[1]),) if hint else ()
    return Finding(
        "XC104",
        f"there is no {WORDS.get(wanted, wanted)} `{name}`",
        place,
        help=f"{hint} ({choices})" if hint else choices,
        notes=notes,
        fix=fix,
    )


def _with_defaults(
    tree: Tree, models: Iterable[tuple[KeyPath, BaseModel]], leave: frozenset[str] = frozenset()
) -> Tree:
    """The tree with checked models' values in it: written ones as checked, defaults marked as such."""
    tree = Tree(tree.data, where := dict(tree.where))
    for path, model in models:
        tree = tree.replaced(path, _filled(tree, path, model, where, leave))
    return tree


def _filled(
    tree: Tree,
    path: KeyPath,
    model: BaseModel,
    where: dict[KeyPath, Where],
    leave: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    data = dict(tree.get(path) or {})
    above = tree.at(path)
    default = Where(above.key, above.value, "default")
    for name, key in _keys(type(model)):
        if key in leave:
            continue
        value = getattr(model, name)
        here = (*path, key)
        if name not in model.model_fields_set:
            data[key] = _plain(value)
            where.update(dict.fromkeys(paths(data[key], here), default))
        elif isinstance(value, BaseModel):
            data[key] = _filled(tree, here, value, where)
        elif isinstance(value, dict) and all(isinstance(v, BaseModel) for v in value.values()):
            data[key] = {k: _filled(tree, (*here, k), v, where) for k, v in value.items()}
        else:
            data[key] = _plain(value)
    return data


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The fields of a model, each with the key that a spec has for it."""
    for name, info in model.__pydantic_fields__.items():
        yield name, info.alias or name


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {key: _plain(getattr(value, name)) for name, key in _keys(type(value))}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
