"""The report as the template prints it: every text, figure and drawing in its place."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from expc.report.failures import Failure, Remark, failures, skipped, warnings
from expc.report.gather import Experiment
from expc.report.head import Count, Fact, Verdict, facts, notes, states, verdicts
from expc.report.sections import Section, sections
from expc.report.tables import Table, programs
from expc.report.words import listed, on_day

__all__ = ["Page", "page", "render"]


@dataclass(frozen=True)
class Text:
    """A file, printed."""

    name: str
    body: str


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    about: str
    made: str
    policy: str
    style: Markup
    script: Markup
    facts: tuple[Fact, ...]
    states: tuple[Count, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[Remark, ...]
    warnings: tuple[Remark, ...]
    axes: tuple[Fact, ...]
    programs: tuple[Table, ...]
    origin: tuple[Fact, ...]
    packages: str
    specs: tuple[Text, ...]


def render(experiment: Experiment) -> str:
    """The report of an experiment, as the text of one HTML file."""
    environment = Environment(
        loader=PackageLoader("expc_templates", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    return environment.get_template("report.html.j2").render(page=page(experiment))


def page(experiment: Experiment) -> Page:
    """Everything that the template prints."""
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = list(experiment.runs)
    return Page(
        title=experiment.name,
        about=" ".join(experiment.declared.about.split()),
        made=on_day(time.time()),
        # Nothing is fetched, and no script but this very one runs, whatever a name or a log line holds.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=Markup(_asset("report.css")),
        script=Markup(script),
        facts=tuple(facts(experiment, runs)),
        states=tuple(states(runs)),
        verdicts=tuple(verdicts(experiment)),
        notes=tuple(notes(experiment)),
        sections=tuple(sections(experiment)),
        failures=tuple(failures(experiment)),
        skipped=tuple(skipped(runs)),
        warnings=tuple(warnings(runs)),
        axes=tuple(_axes(experiment)),
        programs=tuple(programs(experiment)),
        origin=tuple(_origin(experiment)),
        packages=_packages(experiment),
        specs=tuple(Text(name, text) for name, text in experiment.declared.texts),
    )


@cache
def _asset(name: str) -> str:
    return files("expc_templates").joinpath(name).read_text(encoding="utf-8")


def _axes(experiment: Experiment) -> Iterator[Fact]:
    for axis, values in experiment.declared.axes:
        told = f"{len(values)} values" if len(values) > 1 else ""
        yield Fact(axis, listed(values, 40), told)


def _origin(experiment: Experiment) -> Iterator[Fact]:
    origin = experiment.origin
    several: list[tuple[str, Any]] = [
        ("commit", origin.commits), ("spec, sha256", origin.specs), ("device", origin.devices),
        ("host", origin.hosts), ("system", origin.systems),
    ]  # fmt: skip
    for term, counter in several:
        if counter:
            parts = [f"{k} ({n})" if len(counter) > 1 else k for k, n in counter.most_common(8)]
            more = len(counter) - 8
            yield Fact(term, ", ".join(parts), f"and {more} more" if more > 0 else "")
    if origin.commits:
        clean = f"{origin.dirty} of {sum(origin.commits.values())} results were made with changes that no commit holds"
        yield Fact("local changes", clean if origin.dirty else "none")


def _packages(experiment: Experiment) -> str:
    found = experiment.origin.packages
    return ", ".join(f"{name} {' or '.join(versions)}" for name, versions in sorted(found.items()))
