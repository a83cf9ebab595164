"""What a report says of each stage: tables, curves, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from expc.report import curves, figures, pictures
from expc.report.figures import Condition
from expc.report.gather import Experiment, Run
from expc.report.svg import HUES, chart
from expc.report.tables import Table, every_run, tables
from expc.report.words import breakable, counted, listed
from expc_runtime.state.table import tally

__all__ = ["Section", "sections"]


_CHARTS, _MORE_CHARTS = 6, 30  # that are open, and that can be opened
_FEW = 12  # pictures that are not folded


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


def sections(experiment: Experiment) -> Iterator[Section]:
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
            tables=(*tables(experiment, stage, conditions), every_run(stage, runs)),
            lines=lines,
            charts=tuple(_folded(charts)),
            charts_note=note,
            shots=tuple(_shot(picture) for picture in album.pictures),
            shots_summary=counted(len(album.pictures), "picture"),
            shots_notes=album.left_out,
            has_pictures=bool(album.pictures or album.left_out),
            has_few_pictures=len(album.pictures) <= _FEW,
        )


def _folded(charts: tuple[Chart, ...]) -> Iterator[Charts]:
    if charts:
        yield Charts(charts[:_CHARTS])
    if rest := charts[_CHARTS:]:
        yield Charts(rest, f"{counted(len(rest), 'more curve')} of training and its settings")


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
        made.append(Chart(breakable(name), picture.note, picture.svg))
    lines = tuple(Line(i, i % HUES, i // HUES % 4, name or "all runs") for name, i in hues.items())
    left = ranked[_CHARTS + _MORE_CHARTS :]
    note = f"Not drawn: {listed(left, 12)}." if left else ""
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
