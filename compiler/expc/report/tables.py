"""The tables of a report, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from expc.report import figures
from expc.report.figures import Condition, Figure, answered
from expc.report.gather import Experiment, Run
from expc.report.svg import number, strip
from expc.report.words import GLYPHS, MARKS, breakable, counted, in_bytes, listed
from expc_runtime.state.table import duration, tally

__all__ = ["Cell", "Row", "Table", "every_run", "programs", "tables"]


_LARGE = 1e6  # from which a mean is told as a power of ten
_STRIPPED = 150  # rows from which a table has no strips
_DIRECTION = {"higher": "higher is better", "lower": "lower is better"}
_ARROWS = {"higher": "↑", "lower": "↓"}


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


_Columns = tuple[list[Cell], list[list[Cell]]]  # heads, and the cells of each row


def tables(
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
        tables[1] = replace(tables[1], summary=counted(len(rest), "more metric"))
    return tuple(tables)


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
            Cell(breakable(c.name or "all runs"), "name", title=_shared(c)),
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
    return Cell(breakable(name), kind, title=title, mark=_ARROWS.get(way, ""))


def _number_cell(value: int) -> Cell:
    return Cell(f"{value:,}" if value else "", "number", sort=str(value))


def _state(condition: Condition) -> Cell:
    counts = condition.states()
    worst = max(counts, key=_weight)
    text = worst if len(counts) == 1 else tally(counts)
    reasons = [f"{run.run}: {run.status.reason}" for run in condition.runs if run.status.reason]
    state = worst.partition("(")[0]
    title = "\n".join(reasons[:6])
    return Cell(breakable(text), f"state {state}", str(-_weight(worst)), title, glyph=GLYPHS[state])


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
    return f"the same runs as {listed(same, 4)}" if same else ""


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
                glyph=MARKS["yes" if whole else "no"])  # fmt: skip


def _accept_cell(condition: Condition) -> Cell:
    if not any(run.accept for run in condition.runs):
        return Cell("")
    answer, met, judged, wanted = answered(condition)
    title = "\n".join(
        f"seed {r.seed}: {r.accept.get('message', '')}" for r in condition.runs if r.accept
    )
    text = f"{answer}, {met} of {judged}" + (f" ({wanted} wanted)" if wanted > 1 else "")
    return Cell(text, f"answer {answer}", str(met / max(1, judged)), title, glyph=MARKS[answer])


def _changed_cell(condition: Condition) -> Cell:
    told = list(dict.fromkeys(_changes(run) for run in condition.runs if run.changed))
    return Cell("; ".join(told), "changed", mark="†" if told else "")  # no break within 0.5


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
    both = [
        f"{in_bytes(size)} {name}" for name, size in (("device", device), ("host", host)) if size
    ]
    return Cell(
        in_bytes(device or host) if both else "", "number", str(device or host), ", ".join(both)
    )


def every_run(stage: str, runs: Sequence[Run]) -> Table:
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
        breakable(run.run), "name", title=f"the same as {run.same_as}" if run.same_as else ""
    )


def _run_cells(run: Run) -> list[Cell]:
    state = run.status.state
    return [
        Cell(breakable(run.status.label), f"state {state}", str(-_weight(state)), run.status.reason, glyph=GLYPHS[state]),
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


def programs(experiment: Experiment) -> Iterator[Table]:
    order = list(experiment.stages)
    rows = [
        Row(
            Cell(breakable(module), "name"),
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
