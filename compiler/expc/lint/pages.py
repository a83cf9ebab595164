"""Manual pages: a rule's docstring, and the specs in it."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from expc.findings import suggest
from expc.lint.core import DryRule, Rule, ToldRule, rule, rules

EXAMPLE = """\
expc: 1
name: example
about: Can a small net read digits?
model:
  backbone: {use: conv_net, channels: [16, 32]}
stages:
  read:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2, test: 0.2}}
    heads:
      digit: {use: linear_head, out: 10}
    loss:
      digit: {use: cross_entropy}
    metrics:
      accuracy: {use: accuracy, of: digit}
    optim: {use: adamw, lr: 3.0e-3}
    until: {epochs: 12}
"""
"""The spec that the blocks of a page complete: a key of a block takes the place of the one here."""

WORLD = """\
expc: 1
name: example
about: Do learned boundaries fall on events?
stages:
  train:
    kind: world_model
    env: {use: pinpad, layout: three, time_limit: 1000}
    model:
      encoder: {use: conv_encoder}
      dynamics: {use: vta, force_scale: 0.0, obs_action_input: true}
      decoder: {use: conv_decoder}
    loss:
      image: {use: mse_sum}
      reward: {use: twohot_symlog}
      cont: {use: bce}
    behaviour: {use: actor_critic}
    replay: {batch: 12, length: 40, train_ratio: 320.0, prefill: {env_steps: 1200}}
    optim:
      world: {use: adam, lr: 1.0e-4, clip: 1000.0}
      actor: {use: adam, lr: 3.0e-5, clip: 100.0}
      critic: {use: adam, lr: 3.0e-5, clip: 100.0}
    until: {env_steps: 43200}
    evaluate: {every: {env_steps: 6000}, episodes: 4}
  boundaries:
    kind: evaluate
    of: train
    measure: {use: boundary_alignment, events: [pad_enter]}
    accept: {all: [{metric: boundary_ratio_eval, below: 0.5}]}
"""
"""The same for blocks marked `world`: keys of its second stage go there, all others to the first."""

_FACTS = "specs/example.facts.json"

_KNOWN: dict[str, Any] = {
    "stage": "read",
    "data": {"use": "digits", "params": {}, "settings": {"split": {"val": 0.2, "test": 0.2}}},
    "files": [],
    "content": "",
    "rows": 1797,
    "distinct": 1797,
    "inputs": ["image"],
    "splits": {
        "train": {"rows": 1079, "repeated": 0, "groups": {}, "shared": {}},
        "val": {"rows": 359, "repeated": 0, "groups": {}, "shared": {}},
        "test": {"rows": 359, "repeated": 0, "groups": {}, "shared": {}},
    },
    "columns": {},
    "floors": [],
}
_COLUMN: dict[str, Any] = {
    "dtype": "float32", "shape": [], "elements": 1, "constant": 0, "unfit": 0, "lowest": 0.0, "highest": 1.0,
}  # fmt: skip
_BELOW: dict[str, dict[str, Any]] = {
    "shares": {
        "mean": 0.5, "variance": 0.25, "histogram": [0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.5], "below": 0.5, "above": 0.5,
        "zero": 0.5, "half": 0.0, "one": 0.5, "bimodality": 1.0, "two_peaked": True,
    },
    "classes": {"seen": 10, "highest": 9, "common": 3, "share": 0.1, "entropy": 2.3},
    "sums": {"lowest": 1.0, "highest": 1.0, "zero": 0, "off": 0},
}  # fmt: skip
"""What the `facts` blocks of a page complete, as its specs complete the example."""

_TOP = frozenset({"expc", "name", "about", "extends", "model", "stages", "run", "sweep"})
_BLOCK = re.compile(
    r"^```(?P<kind>\w+)(?: (?P<label>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_KEY = re.compile(r"([A-Za-z_]\w*) *:")


@dataclass(frozen=True)
class Case:
    """A spec of a page, and the files that lie beside it."""

    spec: str
    files: dict[str, str] = field(default_factory=dict)


def page(code: str) -> str:
    """The manual page of a rule, as Markdown. Raises KeyError, with a suggestion, for a code that is not one."""
    found = rule(code)
    if found is None:
        choices = [word for each in rules() for word in (each.code, each.name)]
        hint = suggest(code, choices)
        raise KeyError(
            f"there is no rule `{code}`"
            + (f"; {hint}" if hint else "; `expc rule --all` lists them")
        )
    fix = "; `expc lint --fix` mends it" if found.fixable else ""
    head = f"# {found.code} {found.name}\n\n{found.severity}{fix}\n"
    return f"{head}\n{text_of(found)}\n\n## Allow\n{_allow(found)}\n"


def _allow(found: type[Rule]) -> str:
    if issubclass(found, DryRule):
        return (
            "Not possible: the stage would not train. `expc plan --check` finds it, lint does not."
        )
    if issubclass(found, ToldRule):
        return "Not possible: nothing could be compiled from it."
    return f"```yaml\n# expc: allow {found.name} -- why it is right here\n```"


def text_of(found: type[Rule]) -> str:
    """A rule's docstring, without its indent."""
    return inspect.cleandoc(found.__doc__ or "")


def cases(found: type[Rule]) -> tuple[Case, Case]:
    """The bad and the good spec of a rule's page, completed, with the files that each needs."""
    about, _, rest = text_of(found).partition("## Bad\n")
    bad, _, good = rest.partition("## Good\n")
    return _case(bad, about), _case(good, about)


def _case(text: str, about: str) -> Case:
    spec = next(match for match in _BLOCK.finditer(text) if match["kind"] == "yaml")
    label, files = spec["label"], {**_files(about), **_files(text)}
    files |= _facts(files, about, text)
    if label == "whole":
        return Case(spec["text"], files)
    return Case(completed(spec["text"], WORLD if label == "world" else EXAMPLE), files)


def _files(text: str) -> dict[str, str]:
    return {
        match["label"]: match["text"]
        for match in _BLOCK.finditer(text)
        if match["label"] and match["label"] not in ("whole", "world", "facts")
    }


def _facts(files: Mapping[str, str], *texts: str) -> dict[str, str]:
    """The file of facts that the `facts` blocks of texts make, each laid over those before it."""
    laid = [
        json.loads(match["text"])
        for text in texts
        for match in _BLOCK.finditer(text)
        if match["label"] == "facts"
    ]
    if not laid:
        return {}
    known = _KNOWN
    for each in laid:
        known = _over(known, each)
    columns = {name: _column(column) for name, column in known["columns"].items()}
    stage = {
        **known,
        "data": {"code": "", **known["data"]},
        "files": [_file(name, text) for name, text in files.items() if not name.endswith(".json")],
        "columns": columns,
        "floors": _floors(known, columns),
    }
    return {_FACTS: json.dumps({"facts": 1, "tests": {}, "stages": [stage]})}


def _file(name: str, text: str) -> dict[str, Any]:
    held = text.encode()
    return {"path": name, "bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Maps in maps, those of `above` laid over those of `below`; `data` is taken whole."""
    laid = {
        key: _over(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict) and key != "data"
        else value
        for key, value in above.items()
    }
    return {**below, **laid}


def _column(fragment: Mapping[str, Any]) -> dict[str, Any]:
    below = {key: _over(_BELOW[key], value) for key, value in fragment.items() if key in _BELOW}
    return {**_COLUMN, **fragment, **below}


def _floors(known: Mapping[str, Any], columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The page's own, and those of the example, where the page keeps its data."""
    if known["data"]["use"] != _KNOWN["data"]["use"]:
        return list(known["floors"])
    columns.setdefault("image", _column({"port": "features", "shape": [1, 8, 8], "elements": 64}))
    columns.setdefault("digit", _column({"port": "class", "dtype": "int64", "classes": {}}))
    digit: dict[str, Any] = {"params": {}, "reads": "ClassLogits", "column": "digit"}
    named = {floor["figure"] for floor in known["floors"]}
    example = [
        {"figure": "digit", "use": "cross_entropy", "values": {"val": 2.3026}, **digit},
        {"figure": "accuracy", "use": "accuracy", "values": {"val": 0.117}, **digit},
    ]
    return [*known["floors"], *(floor for floor in example if floor["figure"] not in named)]


def completed(fragment: str, example: str = EXAMPLE) -> str:
    """A fragment as a whole spec: its top-level keys, and its stage keys, take the place of the example's."""
    head = _chunks(example.partition("stages:\n")[0])
    named = _chunks(_left(example.partition("stages:\n")[2]))
    stages = {name: _chunks(_left(text.partition("\n")[2])) for name, text in named.items()}
    first, *others = stages.values()
    for key, text in _chunks(fragment).items():
        stage = next((each for each in others if key in each and key not in first), first)
        (head if key in head or (key in _TOP and key not in stage) else stage)[key] = text
    written = head.pop("stages", "stages:\n" + "".join(map(_stage, stages, stages.values())))
    sweep = head.pop("sweep", "")
    return "".join(head.values()) + written + sweep


def _stage(name: str, keys: Mapping[str, str]) -> str:
    lines = "".join(keys.values()).splitlines(keepends=True)
    return f"  {name}:\n" + "".join(f"    {line}" for line in lines)


def _left(text: str) -> str:
    """Lines without their first two blanks."""
    return "".join(line[2:] for line in text.splitlines(keepends=True))


def _chunks(text: str) -> dict[str, str]:
    """Text by the key that each stretch of it starts with; a comment belongs to the key below it."""
    found: dict[str, str] = {}
    waiting, current = "", ""
    for line in text.splitlines(keepends=True):
        match = _KEY.match(line)
        if match and match[1] in found:  # a duplicate is part of what the page shows
            match = None
        if match:
            current = match[1]
            found[current] = waiting + line
            waiting = ""
        elif line.startswith("#"):
            waiting += line
        else:
            found[current] += line
    return found
