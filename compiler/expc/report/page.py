"""The report as the template prints it: every text, figure and drawing in its place."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from expc.report import curves, figures, pictures
from expc.report.failures import Failure, Remark, failures, skipped, warnings
from expc.report.figures import Condition, Figure
from expc.report.gather import Experiment, Run
from expc.report.svg import HUES, chart, number, strip
from expc_runtime.state.table import duration, tally

__all__ = ["Page", "page", "render"]

_GLYPHS = {
    "pending": "○", "running": "▶", "done": "●", "smoke": "◌", "failed": "✕", "blocked": "◆",
    "skipped": "–", "undefined": "?", "interrupted": "‖",
}  # fmt: skip
_BAR = (
    "done",
    "smoke",
    "running",
    "failed",
    "blocked",
    "undefined",
    "interrupted",
    "skipped",
    "pending",
)
_CHARTS, _MORE_CHARTS = 6, 30  # that are open, and that can be opened
_FEW = 12  # pictures that are not folded
_LARGE = 1e6  # from which a mean is told as a power of ten
_STRIPPED = 150  # rows from which a table has no strips
_BREAKS = str.maketrans({c: f"{c}\0" for c in ",/._"})


# ------------------------------------------------------------------------------------------- what is printed


@dataclass(frozen=True)
class Fact:
    """A term and what is known of it."""

    term: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Count:
    """How many stage instances are in a state."""

    state: str
    glyph: str
    label: str
    count: int


@dataclass(frozen=True)
class Verdict:
    """One declared question, answered."""

    answer: str  # yes, no, or open
    glyph: str
    stage: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table. ``sort`` orders it: a number, or empty for its text."""

    text: Markup | str
    kind: str = ""
    sort: str = ""
    title: str = ""
    spread: str = ""
    floor: str = ""
    mark: str = ""
    best: str = ""
    strip: Markup | str = ""
    glyph: str = ""

    @property
    def foot(self) -> str:
        """Whether anything stands below the figure."""
        return self.floor or self.best


@dataclass(frozen=True)
class Row:
    """A row of a table; its first cell names it."""

    head: Cell
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table, with a caption for those who cannot see it."""

    caption: str
    heads: tuple[Cell, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    summary: str = ""  # of one that is folded


@dataclass(frozen=True)
class Line:
    """One entry of a legend."""

    number: int
    hue: int
    dash: int
    name: str


@dataclass(frozen=True)
class Chart:
    """One metric's curves."""

    name: Markup
    note: str
    svg: Markup


@dataclass(frozen=True)
class Charts:
    """Charts that are shown, or folded under a summary."""

    charts: tuple[Chart, ...]
    summary: str = ""


@dataclass(frozen=True)
class Shot:
    """A picture with its caption."""

    source: str
    alt: str
    name: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Section:
    """One stage."""

    name: str
    anchor: str
    counts: str
    tables: tuple[Table, ...]
    lines: tuple[Line, ...]
    charts: tuple[Charts, ...]
    charts_note: str
    shots: tuple[Shot, ...]
    shots_summary: str
    shots_notes: tuple[str, ...]
    has_pictures: bool
    has_few_pictures: bool


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
        made=_when(time.time()),
        # Nothing is fetched, and no script but this very one runs, whatever a name or a log line holds.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=Markup(_asset("report.css")),
        script=Markup(script),
        facts=tuple(_facts(experiment, runs)),
        states=tuple(_states(runs)),
        verdicts=tuple(_verdicts(experiment)),
        notes=tuple(_notes(experiment)),
        sections=tuple(_sections(experiment)),
        failures=tuple(failures(experiment)),
        skipped=tuple(skipped(runs)),
        warnings=tuple(warnings(runs)),
        axes=tuple(_axes(experiment)),
        programs=tuple(_programs(experiment)),
        origin=tuple(_origin(experiment)),
        packages=_packages(experiment),
        specs=tuple(Text(name, text) for name, text in experiment.declared.texts),
    )


@cache
def _asset(name: str) -> str:
    return files("expc_templates").joinpath(name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ head


def _facts(experiment: Experiment, runs: Sequence[Run]) -> Iterator[Fact]:
    names = len({run.run for run in runs})
    stages = f"{len(runs):,} stages" if len(runs) != 1 else "1 stage"
    yield Fact("Runs", f"{names:,}", stages)
    spent = sum(run.device_seconds for run in runs)
    hours = f"{number(spent / 3600, 3)}" if spent >= 36 else "under 0.01"
    yield Fact("Compute", duration(spent), f"{hours} device-hours")
    if experiment.began:
        day, clock = _when(experiment.began).split()
        last = _when(max(experiment.began, experiment.ended)).removeprefix(f"{day} ")
        yield Fact("When", day, f"{clock} to {last}")
    origin = experiment.origin
    if origin.devices:
        device, _ = origin.devices.most_common(1)[0]
        more = len(origin.devices) - 1
        yield Fact("Device", device, f"and {more} more kinds" if more else "")
    if origin.commits:
        commit, _ = origin.commits.most_common(1)[0]
        others = len(origin.commits) - 1
        parts = [f"and {others} other commits" if others > 1 else "and another commit"] * bool(
            others
        )
        parts += [f"{origin.dirty} results with local changes"] if origin.dirty else ["clean"]
        yield Fact("Commit", commit[:12], ", ".join(parts))
    peak = max((run.memory.get("device", 0) for run in runs), default=0)
    host = max((run.memory.get("host", 0) for run in runs), default=0)
    if peak or host:
        yield Fact("Peak memory", _bytes(peak or host), "of a device" if peak else "of a process")


def _states(runs: Sequence[Run]) -> Iterator[Count]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status.state] = counts.get(run.status.state, 0) + 1
    for state in sorted(counts, key=_BAR.index):
        yield Count(state, _GLYPHS[state], state, counts[state])


def _verdicts(experiment: Experiment) -> Iterator[Verdict]:
    for stage, runs in experiment.stages.items():
        conditions = figures.conditions(runs)
        yield from _accepted(stage, conditions)
        gated = [run for run in runs if run.gate]
        if gated:
            yield _gate(stage, gated, runs)


def _accepted(stage: str, conditions: Sequence[Condition]) -> Iterator[Verdict]:
    judged = [c for c in conditions if any(run.accept for run in c.runs)]
    if not judged:
        return
    yes = [c for c in judged if _answer(c)[0] == "yes"]
    still = [c for c in judged if _answer(c)[0] == "open"]
    said = next(run.accept for c in judged for run in c.runs if run.accept)
    bounds = " and ".join(f"{b['metric']} {b['wanted']}" for b in said.get("bounds", ()))
    wanted = (
        f"{bounds}, in {said.get('seeds', 1)} seeds or more" if said.get("seeds", 1) > 1 else bounds
    )
    text = f"accepted in {len(yes)} of {len(judged)} judged conditions"
    if yes:
        text += f": {_listed([c.name or 'the one there is' for c in yes])}"
    if still:
        text += f"; open in {len(still)}"
    unjudged = [c for c in conditions if c not in judged and set(c.states()) != {"skipped"}]
    if unjudged:
        text += f"; without an answer: {_listed([c.name for c in unjudged])}"
    answer = "yes" if yes else "open" if still else "no"
    yield Verdict(answer, _MARKS[answer], stage, text, wanted)


_MARKS = {"yes": "✓", "no": "✕", "open": "…"}


def _answer(condition: Condition) -> tuple[str, int, int, int]:
    """yes, no or open (seeds are missing that could still decide it); accepted, judged, wanted."""
    judged = [run for run in condition.runs if run.accept]
    met = sum(bool(run.accept.get("met")) for run in judged)
    wanted = max((int(run.accept.get("seeds", 1)) for run in judged), default=1)
    missing = len(condition.runs) - len(judged)
    answer = "yes" if met >= wanted else "open" if met + missing >= wanted else "no"
    return answer, met, len(judged), wanted


def _gate(stage: str, gated: Sequence[Run], runs: Sequence[Run]) -> Verdict:
    met = sum(bool(run.gate.get("met")) for run in gated)
    answer = "yes" if met == len(gated) == len(runs) else "no" if met < len(gated) else "open"
    left = f"; {len(runs) - len(gated)} not there yet" if len(runs) > len(gated) else ""
    missed = next((str(r.gate.get("message", "")) for r in gated if not r.gate.get("met")), "")
    first = " · ".join(line.strip() for line in missed.splitlines()[:2])
    return Verdict(
        answer, _MARKS[answer], stage, f"gate met by {met} of {len(gated)} runs{left}", first
    )


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _notes(experiment: Experiment) -> Iterator[str]:
    yield from experiment.notes
    if experiment.declared.changed_since:
        yield (
            f"{experiment.declared.spec} has changed since these results: its text below is of now, "
            "the results are of the text that their hash names."
        )
    changed = [run for run in experiment.runs if run.changed and not run.same_as]
    if changed:
        what = "1 stage" if len(changed) == 1 else f"{len(changed)} stages"
        yield f"{what} ran with settings that a retry changed; figures made so are marked †."


# ---------------------------------------------------------------------------------------------------- stages


def _sections(experiment: Experiment) -> Iterator[Section]:
    left = pictures.BUDGET
    for index, (stage, runs) in enumerate(experiment.stages.items(), start=1):
        conditions = figures.conditions(runs)
        album = pictures.album(runs, experiment.root, left)
        left -= album.size
        lines, charts, note = _charts(experiment, stage, conditions, runs)
        yield Section(
            name=stage,
            anchor=f"stage-{index}",
            counts=tally(_labels(runs)),
            tables=(*_tables(experiment, stage, conditions), _seeds(stage, runs)),
            lines=lines,
            charts=tuple(_folded(charts)),
            charts_note=note,
            shots=tuple(_shot(picture) for picture in album.pictures),
            shots_summary=_counted(len(album.pictures), "picture"),
            shots_notes=album.left_out,
            has_pictures=bool(album.pictures or album.left_out),
            has_few_pictures=len(album.pictures) <= _FEW,
        )


def _folded(charts: tuple[Chart, ...]) -> Iterator[Charts]:
    if charts:
        yield Charts(charts[:_CHARTS])
    if rest := charts[_CHARTS:]:
        yield Charts(rest, f"{_counted(len(rest), 'more curve')} of training and its settings")


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"


def _labels(runs: Iterable[Run]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status.label] = counts.get(run.status.label, 0) + 1
    return counts


def _shot(picture: pictures.Picture) -> Shot:
    seed = f", seed {picture.seed}" if picture.seed else ""
    where = f"{picture.condition or 'the run'}{seed}"
    return Shot(
        picture.source,
        f"{picture.name} of {where}",
        picture.name,
        where,
        picture.width,
        picture.height,
    )


def _charts(
    experiment: Experiment, stage: str, conditions: Sequence[Condition], runs: Sequence[Run]
) -> tuple[tuple[Line, ...], tuple[Chart, ...], str]:
    named = _apart(experiment, conditions)
    steps = max((run.step for run in runs), default=0)
    series, floors = curves.collect(list(named.items()), steps)
    ranked = curves.rank(series, figures.asked(runs))
    drawn = {curve.condition for each in series.values() for curve in each.curves}
    hues = {name: i for i, name in enumerate(name for name in named if name in drawn)}
    made = []
    for name in ranked[: _CHARTS + _MORE_CHARTS]:
        picture = chart(series[name], hues, floors.get(name, ()))
        made.append(Chart(_breakable(name), picture.note, picture.svg))
    lines = tuple(Line(i, i % HUES, i // HUES % 4, name or "all runs") for name, i in hues.items())
    left = ranked[_CHARTS + _MORE_CHARTS :]
    note = f"Not drawn: {_listed(left, 12)}." if left else ""
    return lines, tuple(made), note


def _apart(experiment: Experiment, conditions: Sequence[Condition]) -> dict[str, list[Path]]:
    """Conditions with the folders of their runs; those that share every run are one line."""
    alike: dict[tuple[Path, ...], list[str]] = {}
    for condition in conditions:
        there = (experiment.root / run.product for run in condition.runs if run.began)
        folders = tuple(dict.fromkeys(there))
        if folders:
            alike.setdefault(folders, []).append(condition.name)
    return {
        names[0] + (f" (and {len(names) - 1} with the same runs)" if len(names) > 1 else ""): list(
            f
        )
        for f, names in alike.items()
    }


# ---------------------------------------------------------------------------------------------------- tables


def _tables(
    experiment: Experiment, stage: str, conditions: Sequence[Condition]
) -> tuple[Table, ...]:
    """The table of what was asked, and one with all other metrics."""
    found = {condition.name: condition.figures() for condition in conditions}
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    runs = [run for condition in conditions for run in condition.runs]
    better = figures.directions(names, experiment.declared.better.get(stage, {}), runs)
    first = figures.told(names, figures.asked(runs))
    rest = [name for name in names if name not in first]
    several = any(len(condition.runs) > 1 for condition in conditions)
    left = [_head("state"), *([_head("seeds", "number")] if several else [])]
    plain = [[_state(c), *([_number_cell(len(c.runs))] if several else [])] for c in conditions]
    right, extra = _right(conditions)
    tables = [
        _table(stage, conditions, found, first, better, left=(left, plain), right=(right, extra))
    ]
    if rest:
        empty: list[list[Cell]] = [[] for _ in conditions]
        tables.append(
            _table(stage, conditions, found, rest, better, left=([], empty), right=([], empty))
        )
        tables[1] = replace(tables[1], summary=_counted(len(rest), "more metric"))
    return tuple(tables)


_Columns = tuple[list[Cell], list[list[Cell]]]  # heads, and the cells of each row


def _table(
    stage: str,
    conditions: Sequence[Condition],
    found: Mapping[str, Mapping[str, Figure]],
    names: Sequence[str],
    better: Mapping[str, str],
    *,
    left: _Columns,
    right: _Columns,
) -> Table:
    ways = [better.get(name, "") for name in names]
    columns = [
        _column([found[c.name].get(name) for c in conditions], way)
        for name, way in zip(names, ways, strict=True)
    ]
    heads = [
        _head(name, "figure", title=_DIRECTION.get(way, ""), way=way)
        for name, way in zip(names, ways, strict=True)
    ]
    rows = [
        Row(
            Cell(_breakable(c.name or "all runs"), "name", title=_shared(c)),
            (*left[1][i], *(column[i] for column in columns), *right[1][i]),
        )
        for i, c in enumerate(conditions)
    ]
    cells = [cell for column in columns for cell in column]
    return Table(
        f"Stage {stage}: conditions and their figures",
        (_head("condition", "name"), *left[0], *heads, *right[0]),
        tuple(rows),
        tuple(_legend(cells, conditions)),
    )


_DIRECTION = {"higher": "higher is better", "lower": "lower is better"}
_ARROWS = {"higher": "↑", "lower": "↓"}


def _legend(cells: Sequence[Cell], conditions: Sequence[Condition]) -> Iterator[str]:
    """What the marks of a table mean."""
    if any(cell.spread for cell in cells):
        yield "Mean over seeds ± standard deviation; hold the pointer over a figure for each seed."
    if any(cell.floor for cell in cells):
        yield "floor: what the best constant answer, or chance, reaches."
    if any(cell.best for cell in cells):
        yield (
            "best: better than its floor, and ahead of every other condition by more than both "
            "deviations together, √(s₁² + s₂²). Where nothing is marked, nothing is."
        )
    if any(cell.mark for cell in cells):
        for told in dict.fromkeys(_told_change(r) for c in conditions for r in c.runs if r.changed):
            yield f"† {told}"


def _told_change(run: Run) -> str:
    seed = f", seed {run.seed}" if run.seed else ""
    return f"{run.condition or 'all runs'}{seed}: a retry changed {_changes(run)}"


def _changes(run: Run) -> str:
    parts = []
    for name, value in run.changed.items():
        before = f"{run.planned[name]} → " if name in run.planned else ""
        parts.append(f"{name} {before}{value}")
    return ", ".join(parts)


def _column(column: Sequence[Figure | None], better: str) -> list[Cell]:
    low, high = _scale([figure for figure in column if figure is not None])
    leader = figures.best(column, better)
    strips = len(column) <= _STRIPPED and high > low
    return [
        _figure(figure, i == leader, strip(figure, low, high) if strips and figure else "")
        for i, figure in enumerate(column)
    ]


def _scale(column: Sequence[Figure]) -> tuple[float, float]:
    values = [value for figure in column for value in figure.values]
    floors = [figure.floor for figure in column if figure.floor is not None]
    if not values:
        return 0.0, 0.0
    low, high = min(values), max(values)
    wide = (high - low) or abs(high)
    near = [floor for floor in floors if low - 3 * wide <= floor <= high + 3 * wide]
    return min([low, *near]), max([high, *near])


def _figure(figure: Figure | None, best: bool, drawn: Markup | str) -> Cell:
    if figure is None:
        return Cell("", "figure none")
    deviation, floor = figure.deviation, figure.floor
    each = "\n".join(f"seed {s}: {number(v, 6)}" if s else number(v, 6) for s, v in figure.seeds)
    changed = f"\n† changed by a retry: seed {', '.join(figure.changed)}" if figure.changed else ""
    return Cell(
        _mean(figure),
        "figure" + (" best" if best else ""),
        sort=f"{figure.mean:.10g}",
        title=f"{each}{changed}",
        spread="" if deviation is None else f"±{_deviation(deviation)}",
        floor="" if floor is None else number(floor, 3),
        mark="†" if figure.changed else "",
        best="best" if best else "",
        strip=drawn,
    )


def _mean(figure: Figure) -> str:
    """With as many places as its deviation bears: two digits of that."""
    deviation, mean = figure.deviation, figure.mean
    told = _deviation(deviation) if deviation else ""
    if not told or "e" in told or abs(mean) >= _LARGE:
        return number(mean)
    return f"{mean:.{len(told.partition('.')[2])}f}".replace("-", "\u2212")


def _deviation(deviation: float) -> str:
    """Two digits, the last of which may be a zero."""
    if not 1e-6 <= deviation < 100:
        return number(deviation, 2)
    return f"{deviation:#.2g}".rstrip(".")


def _head(name: str, kind: str = "", *, title: str = "", way: str = "") -> Cell:
    return Cell(_breakable(name), kind, title=title, mark=_ARROWS.get(way, ""))


def _number_cell(value: int) -> Cell:
    return Cell(f"{value:,}" if value else "", "number", sort=str(value))


def _state(condition: Condition) -> Cell:
    counts = condition.states()
    worst = max(counts, key=_weight)
    text = worst if len(counts) == 1 else tally(counts)
    reasons = [f"{run.run}: {run.status.reason}" for run in condition.runs if run.status.reason]
    state = worst.partition("(")[0]
    title = "\n".join(reasons[:6])
    return Cell(
        _breakable(text), f"state {state}", str(-_weight(worst)), title, glyph=_GLYPHS[state]
    )


def _weight(label: str) -> int:
    """The state of a condition is that of its worst run."""
    order = (
        "done",
        "smoke",
        "skipped",
        "pending",
        "running",
        "interrupted",
        "undefined",
        "blocked",
        "failed",
    )
    return order.index(label.partition("(")[0])


def _shared(condition: Condition) -> str:
    same = [run.same_as for run in condition.runs if run.same_as]
    return f"the same runs as {_listed(same, 4)}" if same else ""


def _right(conditions: Sequence[Condition]) -> _Columns:
    """The columns after the figures; those in which nothing would stand are left out."""
    columns: list[tuple[Cell, list[Cell]]] = [
        (_head("gate"), [_gate_cell(c) for c in conditions]),
        (_head("accepted"), [_accept_cell(c) for c in conditions]),
        (_head("changed by retries"), [_changed_cell(c) for c in conditions]),
        (_head("attempts", "number"), [_attempts(c) for c in conditions]),
        (
            _head("time", "number", title="mean over runs, all attempts"),
            [_time(c) for c in conditions],
        ),
        (_head("peak memory", "number"), [_memory(c.runs) for c in conditions]),
    ]
    kept = [(head, cells) for head, cells in columns if any(cell.text for cell in cells)]
    rows = [[cells[i] for _, cells in kept] for i in range(len(conditions))]
    return [head for head, _ in kept], rows


def _gate_cell(condition: Condition) -> Cell:
    gated = [run for run in condition.runs if run.gate]
    if not gated:
        return Cell("")
    met = sum(bool(run.gate.get("met")) for run in gated)
    title = "\n".join(
        f"seed {run.seed}: {run.gate['message']}" for run in gated if run.gate.get("message")
    )
    whole = met == len(gated)
    return Cell("met" if whole else f"{met} of {len(gated)}", "answer " + ("yes" if whole else "no"), str(met), title,
                glyph=_MARKS["yes" if whole else "no"])  # fmt: skip


def _accept_cell(condition: Condition) -> Cell:
    if not any(run.accept for run in condition.runs):
        return Cell("")
    answer, met, judged, wanted = _answer(condition)
    title = "\n".join(
        f"seed {r.seed}: {r.accept.get('message', '')}" for r in condition.runs if r.accept
    )
    text = f"{answer}, {met} of {judged}" + (f" ({wanted} wanted)" if wanted > 1 else "")
    return Cell(text, f"answer {answer}", str(met / max(1, judged)), title, glyph=_MARKS[answer])


def _changed_cell(condition: Condition) -> Cell:
    told = list(dict.fromkeys(_changes(run) for run in condition.runs if run.changed))
    return Cell(_breakable("; ".join(told)), "changed", mark="†" if told else "")


def _attempts(condition: Condition) -> Cell:
    most = max((run.status.attempt for run in condition.runs), default=0)
    if most < 2:
        return Cell("", "number", str(most))
    spent: dict[str, int] = {}
    for run in condition.runs:
        for failure, count in run.status.tries.items():
            spent[failure] = spent.get(failure, 0) + count
    total = sum(run.status.attempt for run in condition.runs)
    title = f"{total} in all runs" + "".join(
        f"; {n} after {failure}" for failure, n in spent.items()
    )
    return Cell(str(most), "number", str(most), title)


def _time(condition: Condition) -> Cell:
    spent = [run.seconds for run in condition.runs if run.seconds]
    if not spent:
        return Cell("", "number", "0")
    mean = sum(spent) / len(spent)
    return Cell(duration(mean), "number", f"{mean:.3f}", f"{duration(sum(spent))} in all")


def _memory(runs: Sequence[Run]) -> Cell:
    device = max((run.memory.get("device", 0) for run in runs), default=0)
    host = max((run.memory.get("host", 0) for run in runs), default=0)
    both = [f"{_bytes(size)} {name}" for name, size in (("device", device), ("host", host)) if size]
    return Cell(
        _bytes(device or host) if both else "", "number", str(device or host), ", ".join(both)
    )


def _bytes(size: float) -> str:
    power = min(4, int(math.log10(max(size, 1))) // 3)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _seeds(stage: str, runs: Sequence[Run]) -> Table:
    """Every run of a stage with all of its figures."""
    names = list(dict.fromkeys(n for run in runs for n, v in run.metrics.items() if v is not None))
    heads = ["state", "attempts", "time", "peak memory", "changed by retries"]
    rows = [
        Row(_run_name(run), (*_run_cells(run), *(_value(run, n) for n in names))) for run in runs
    ]
    shown = [i for i in range(len(heads)) if any(row.cells[i].text for row in rows)]
    shown += range(len(heads), len(heads) + len(names))
    kinds = ["", "number", "number", "number", "", *("figure" for _ in names)]
    every = [_head(name, kind) for name, kind in zip([*heads, *names], kinds, strict=True)]
    trimmed = [Row(row.head, tuple(row.cells[i] for i in shown)) for row in rows]
    return Table(
        f"Stage {stage}: every run",
        (_head("run", "name"), *(every[i] for i in shown)),
        tuple(trimmed),
        summary=f"Every run ({len(rows):,})",
    )


def _run_name(run: Run) -> Cell:
    return Cell(
        _breakable(run.run), "name", title=f"the same as {run.same_as}" if run.same_as else ""
    )


def _run_cells(run: Run) -> list[Cell]:
    state = run.status.state
    return [
        Cell(_breakable(run.status.label), f"state {state}", str(-_weight(state)), run.status.reason, glyph=_GLYPHS[state]),
        _number_cell(run.status.attempt),
        Cell(duration(run.seconds) if run.seconds else "", "number", f"{run.seconds:.3f}"),
        _memory([run]),
        Cell(_changes(run), "changed"),
    ]  # fmt: skip


def _value(run: Run, name: str) -> Cell:
    value = run.metrics.get(name)
    if value is None:
        return Cell("", "figure none", title=run.reasons.get(name, ""))
    return Cell(number(value, 5), "figure", f"{value:.10g}", mark="†" if run.changed else "")


def _breakable(text: str) -> Markup:
    """A long name that may be broken after its separators."""
    return Markup("<wbr>").join(escape(part) for part in text.translate(_BREAKS).split("\0"))


# ------------------------------------------------------------------------------------------------ provenance


def _axes(experiment: Experiment) -> Iterator[Fact]:
    for axis, values in experiment.declared.axes:
        told = f"{len(values)} values" if len(values) > 1 else ""
        yield Fact(axis, _listed(values, 40), told)


def _programs(experiment: Experiment) -> Iterator[Table]:
    order = list(experiment.stages)
    rows = [
        Row(
            Cell(_breakable(module), "name"),
            (Cell(stage), Cell(program, "code"), _number_cell(count)),
        )
        for (stage, module, program), count in sorted(
            experiment.origin.programs.items(), key=lambda each: order.index(each[0][0])
        )
    ]
    if rows:
        heads = (
            _head("module", "name"),
            _head("stage"),
            _head("program"),
            _head("results", "number"),
        )
        yield Table("Programs that made the results", heads, tuple(rows))


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


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
