"""Manual pages: a rule's docstring, and the specs in it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

from expc.findings import suggest
from expc.lint.core import Rule, ToldRule, rule, rules

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

_TOP = frozenset({"expc", "name", "about", "extends", "model", "stages", "sweep"})
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
    shared = _files(about)
    return _case(bad, shared), _case(good, shared)


def _case(text: str, shared: dict[str, str]) -> Case:
    spec = next(match for match in _BLOCK.finditer(text) if match["kind"] == "yaml")
    whole = spec["label"] == "whole"
    return Case(spec["text"] if whole else completed(spec["text"]), {**shared, **_files(text)})


def _files(text: str) -> dict[str, str]:
    return {
        match["label"]: match["text"]
        for match in _BLOCK.finditer(text)
        if match["label"] and match["label"] != "whole"
    }


def completed(fragment: str) -> str:
    """A fragment as a whole spec: its top-level keys, and its stage keys, take the place of the example's."""
    head, stage = _chunks(EXAMPLE.partition("stages:\n")[0]), _example_stage()
    for key, text in _chunks(fragment).items():
        (head if key in _TOP else stage)[key] = text
    body = "".join(
        "".join(f"    {line}" for line in text.splitlines(True)) for text in stage.values()
    )
    stages = head.pop("stages", f"stages:\n  read:\n{body}")
    sweep = head.pop("sweep", "")
    return "".join(head.values()) + stages + sweep


def _example_stage() -> dict[str, str]:
    return _chunks(inspect.cleandoc(EXAMPLE.partition("  read:\n")[2]) + "\n")


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
