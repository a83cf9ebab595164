"""The table of a sweep: one row for each condition and stage, figures over seeds beside floors."""

import math
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import cast

from expc_runtime.state.identity import resolve
from expc_runtime.state.plan import Task
from expc_runtime.state.program import shown
from expc_runtime.state.records import STATES, Result, State, Status, read_result, read_status

__all__ = ["changes", "duration", "standing", "table", "tally"]

_WIDTH = 120
_NAME = 46  # widest condition
_NOTES = 20
_RUNS = 8  # that are named where a setting was changed
_LARGE = 1e6


@dataclass
class _Figure:
    """Running mean and spread of one metric (Welford), and of its floor."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    floors: int = 0
    floor: float = 0.0

    def add(self, value: float, floor: float | None) -> None:
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.squares += step * (value - self.mean)
        if floor is not None:
            self.floors += 1
            self.floor += (floor - self.floor) / self.floors

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for fewer than two."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else None


@dataclass
class _Row:
    condition: str
    seeds: int = 0
    states: dict[str, int] = field(default_factory=dict)
    figures: dict[str, _Figure] = field(default_factory=dict)
    tries: int = 0
    seconds: float = 0.0
    ran: int = 0
    gated: int = 0  # results with a gate, and those that met it
    met: int = 0
    judged: int = 0  # results with an answer, how many of them are a yes, and how many it takes
    accepted: int = 0
    wanted: int = 0
    asked: tuple[str, ...] = ()  # metrics that the answer is about
    changed: bool = False  # a run had a setting changed by a retry, here or in a stage before

    def add(self, status: Status, result: Result | None) -> None:
        self.seeds += 1
        self.states[status.label] = self.states.get(status.label, 0) + 1
        self.tries = max(self.tries, status.attempt)
        if status.seconds:
            self.seconds += status.seconds
            self.ran += 1
        if result and result.gate:
            self.gated += 1
            self.met += bool(result.gate.get("met"))
        if result and (verdict := result.extra.get("accept")):
            self.judged += 1
            self.accepted += bool(verdict["met"])
            self.wanted = verdict["seeds"]
            self.asked = tuple(bound["metric"] for bound in verdict["bounds"])
        for name, value in (result.metrics if result else {}).items():
            if value is not None and result:
                self.figures.setdefault(name, _Figure()).add(value, result.floors.get(name))

    @property
    def gate(self) -> str:
        """``met``, or how many runs met it."""
        if self.met == self.gated:
            return "met" if self.gated else "-"
        return f"{self.met} of {self.gated}"

    @property
    def answer(self) -> str:
        """How many seeds were accepted, of those that were measured."""
        seeds = f"{self.judged} seed" + "s" * (self.judged != 1)
        missing = self.seeds - self.judged
        more = f"; {missing} not measured" if missing else ""
        return f"accepted in {self.accepted} of {seeds} ({self.wanted} wanted{more})"

    @property
    def state(self) -> str:
        if len(self.states) == 1:
            return next(iter(self.states))
        words: dict[str, int] = {}  # details are in the notes, and there is little room
        for label, count in self.states.items():
            word = label.partition("(")[0]
            words[word] = words.get(word, 0) + count
        return tally(words)


@dataclass
class _Note:
    """One remark below the table, and the runs it is true of."""

    label: str
    text: str
    run: str
    log: str
    count: int = 0

    @property
    def heading(self) -> str:
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return f"{self.label} of {self.run}{more}:"

    @property
    def body(self) -> str:
        log = f"\n    {self.log}" if self.log else ""
        return "    " + self.text.replace("\n", "\n    ") + log


def table(tasks: Iterable[Task], root: Path) -> str:
    """Plain text, at most 120 columns wide: states and figures of ``tasks`` under ``root``.

    A figure is the mean over seeds, ``±`` the standard deviation, and in brackets the floor that a
    constant answer reaches. A condition whose figures were made with a setting that a retry changed,
    in that stage or in one it takes from, has a star, and the changes stand below. Memory grows with
    conditions, not with runs.
    """
    stages: dict[str, dict[str, _Row]] = {}
    changed = _Changed()
    notes: dict[tuple[str, str], _Note] = {}
    for task in tasks:
        rows = stages.setdefault(task.stage, {})
        row = rows.setdefault(task.condition, _Row(task.condition))
        status, result = standing(task, root)
        row.add(status, result)
        row.changed |= changed.add(task, changes(task, status, result))
        said: set[tuple[str, str]] = set()
        for label, text, log in _remarks(task, status, result, root):
            key = label, text.partition("\n")[0]  # what follows are this run's own figures
            if key in said:  # once for each episode, say: it is one run all the same
                continue
            said.add(key)
            note = notes.get(key) or _Note(label, text, task.run, log)
            note.count += 1
            if len(notes) < _NOTES:
                notes[key] = note
    parts = [_block(stage, list(rows.values())) for stage, rows in stages.items()]
    if changed.runs:
        parts.append(changed.text)
    if notes:
        told = groupby(notes.values(), key=lambda note: note.heading)
        lines = [line for heading, of in told for line in (heading, *(note.body for note in of))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def changes(task: Task, status: Status, result: Result | None) -> str:
    """``precision=32 (was 16-mixed)``: the settings of ``task`` that retries changed; empty for none."""
    now = result.changed if result is not None else status.changed
    planned = task.planned() if now else {}
    turned = {name: value for name, value in now.items() if name in planned}
    told = [f"{name}={shown(value)} (was {shown(planned[name])})" for name, value in turned.items()]
    return ", ".join(told)


@dataclass
class _Changed:
    """Which runs had settings changed, by stage and change."""

    runs: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # the first few
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _index: int = 0  # of the run that is being read
    _touched: set[str] = field(default_factory=set)  # its stages whose figures come of a change

    def add(self, task: Task, told: str) -> bool:
        """Whether what ``task`` measured comes of a change, its own or that of a stage before."""
        if task.index != self._index:
            self._index, self._touched = task.index, set()
        if told:
            key = (task.stage, told)
            self.counts[key] = self.counts.get(key, 0) + 1
            if self.counts[key] <= _RUNS:
                self.runs.setdefault(key, []).append(task.run)
        if told or self._touched & set(task.after):
            self._touched.add(task.stage)
        return task.stage in self._touched

    @property
    def text(self) -> str:
        lines = ["* made with settings that a retry changed, here or in a stage before:"]
        for (stage, told), runs in self.runs.items():
            more = self.counts[stage, told] - len(runs)
            where = "; ".join(runs) + (f"; and {more} more" if more else "")
            lines += textwrap.wrap(
                f"{stage}: {told} in {where}",
                _WIDTH,
                initial_indent="    ",
                subsequent_indent=" " * 8,
                break_long_words=False,
                break_on_hyphens=False,
            )
        return "\n".join(lines)


def standing(task: Task, root: Path) -> tuple[Status, Result | None]:
    """Where ``task`` stands, and its result if that is of this very instance."""
    if task.skip:
        return Status(state="skipped", reason=task.skip), None
    folder = root / task.name
    status = read_status(folder)
    if status is None or status.key != task.key:
        status = Status()
    result = read_result(resolve(folder))
    if result is not None and result.key == task.key:
        return replace(status, state=result.state, failure=""), result
    return replace(status, state="interrupted") if status.gone else status, None


def _remarks(
    task: Task, status: Status, result: Result | None, root: Path
) -> Iterator[tuple[str, str, str]]:
    """What there is to say of one stage: label, text, log file; those equal in two are one note."""
    if status.same_as:
        return
    if status.reason:
        apart = "\n" if "\n" in status.reason else " "  # a last line may be a command to be copied
        source = f"{apart}(from {status.source})" if status.source else ""
        tried = status.state == "failed" and status.attempt
        log = f"{root / task.name}/attempt-{status.attempt}.log" if tried else ""
        yield f"{status.label} {task.stage}", f"{status.reason}{source}", log
    for warning in result.warnings if result else ():
        yield f"warning {task.stage}", warning, ""


def _block(stage: str, rows: list[_Row]) -> str:
    total: dict[str, int] = {}
    for row in rows:
        for state, count in row.states.items():
            total[state] = total.get(state, 0) + count
    counts = tally(total)
    common, names = _conditions([row.condition for row in rows])
    names = [f"{name} *" if row.changed else name for name, row in zip(names, rows, strict=True)]
    left = [["condition", *names], ["seeds", *(str(row.seeds) for row in rows)]]
    right = [["time", *(duration(row.seconds / row.ran) if row.ran else "-" for row in rows)]]
    if any(row.tries > 1 for row in rows):
        right.insert(0, ["tries", *(str(row.tries or "-") for row in rows)])
    if any(row.gated for row in rows):
        right.insert(0, ["gate", *(row.gate for row in rows)])
    if len(total) > 1:  # else the heading has said it
        right.insert(0, ["state", *(row.state for row in rows)])
    figures, also = _metrics(rows)
    lines = [f"{stage}: {counts}" + (f"   (all: {common})" if common else "")]
    while True:
        shown, figures = _fitting(figures, _WIDTH - _wide([*left, *right]))
        lines += _align([*left, *shown, *right], numeric=range(1, len(left) + len(shown)))
        if not figures:
            break
        left, right = left[:1], []
        lines.append("")
    tail = [f"  also recorded: {some(also, _WIDTH - 40)}"] if also else []
    tail += [
        f"  {name}: {row.answer}" if len(rows) > 1 else f"  {row.answer}"
        for name, row in zip(names, rows, strict=True)
        if row.judged
    ]
    return "\n".join(_clip(line) for line in [*lines, *tail])


def _conditions(conditions: list[str]) -> tuple[str, list[str]]:
    """What all conditions share, and what is left of each."""
    split = [condition.split(",") for condition in conditions]
    same = [p for p in split[0] if p and all(p in parts for parts in split)]
    if len(conditions) == 1:
        same = []
    left = [",".join(p for p in parts if p not in same) or "-" for parts in split]
    clipped = [name if len(name) <= _NAME else name[: _NAME - 3] + "..." for name in left]
    return ",".join(same), clipped


def _metrics(rows: list[_Row]) -> tuple[list[list[str]], list[str]]:
    """Columns of figures, and the names of the others.

    What an answer is about; without one, the last split that was measured.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    asked = dict.fromkeys(name for row in rows for name in row.asked if name in names)
    splits = [split for split in ("test/", "val/", "") if any(n.startswith(split) for n in names)]
    told = list(asked) or [name for name in names if splits and name.startswith(splits[0])]
    columns = [[name, *_figures([row.figures.get(name) for row in rows])] for name in told]
    return columns, [name for name in names if name not in told]


def _wide(columns: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in columns)


def _fitting(columns: list[list[str]], room: int) -> tuple[list[list[str]], list[list[str]]]:
    """The first columns that fit into ``room`` characters, one at least, and the rest."""
    count = 1
    while count < len(columns) and _wide(columns[: count + 1]) <= room:
        count += 1
    return columns[:count], columns[count:]


def _figures(figures: list[_Figure | None]) -> list[str]:
    """One column of figures, each part of equal width so that points stand under points."""
    places = _places([f for f in figures if f])
    parts = [_parts(figure, places) for figure in figures]
    widths = [max(len(part[i]) for part in parts) for i in range(3)]
    return [
        " ".join(text.rjust(width) for text, width in zip(part, widths, strict=True) if width)
        for part in parts
    ]


def _parts(figure: _Figure | None, places: int) -> tuple[str, str, str]:
    if figure is None:
        return "-", "", ""
    spread = "" if figure.spread is None else f"±{_number(figure.spread, places)}"
    floor = f"[{_number(figure.floor, places)}]" if figure.floors else ""
    return _number(figure.mean, places), spread, floor


def _number(value: float, places: int) -> str:
    """A figure at that many places; one too large to be read so as a power of ten."""
    return f"{value:.{places}f}" if abs(value) < _LARGE else f"{value:.2e}"


def _places(figures: list[_Figure]) -> int:
    """Decimal places: two figures of the typical spread, else four of the largest mean."""
    spreads = [figure.spread for figure in figures if figure.spread]
    if spreads:
        digits = 1 - math.floor(math.log10(statistics.median(spreads)))
    else:
        largest = max((abs(figure.mean) for figure in figures), default=0.0)
        digits = 3 - math.floor(math.log10(largest)) if largest else 3
    return min(6, max(0, digits))


def _align(columns: list[list[str]], numeric: range) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        line = "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append(f"  {line}".rstrip())
    return lines


def some(names: Sequence[str], width: int) -> str:
    """Names that fit ``width``, and how many more there are."""
    shown = list(names)
    while len(shown) > 1 and len(", ".join(shown)) > width:
        shown.pop()
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more} more in result.json" if more else "")


def _clip(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


def tally(counts: Mapping[str, int]) -> str:
    """``12 done, 1 failed(crash)``: states in their usual order."""
    labels = sorted(counts, key=lambda label: STATES.index(cast("State", label.partition("(")[0])))
    return ", ".join(f"{counts[label]} {label}" for label in labels)


def duration(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 04 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60:02d} min"
    return f"{whole // 86400} d {whole // 3600 % 24:02d} h"
