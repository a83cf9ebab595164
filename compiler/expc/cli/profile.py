"""`expc profile`: read the data once, and keep what is true of it beside the spec."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.facts import Column, Facts, StageFacts


@click.command(short_help="read the data once: what lint and plan then know of it")
@click.argument("spec", type=click.Path(path_type=Path))
def command(spec: Path) -> int:
    """Read the data of SPEC once and keep what is true of it in SPEC's NAME.facts.json, beside it.

    Rows and groups of each split, what each column holds, rows that are on both sides of a split,
    and the floors: what the best constant answer reaches on every loss and metric, as training
    logs it. Commit the file: lint and plan read it without torch and without the data.

    Facts hold for the data that they were made of. Lint compares the files by their SHA-256, those
    above 64 MiB by their size, and says when to profile again. A column is called two-peaked if
    (skew^2 + 1) / kurtosis is above 5/9 and there is a valley between two of its ten bins.

    Exits with 1 when the data can't be had, 2 when reading it broke down; older facts then stay.
    """
    from expc.build import compiled, folder_of, shown
    from expc.cli.needs import runtime
    from expc.emit.render import render
    from expc.emit.write import as_it_runs
    from expc.facts import place
    from expc.profiling import NotProfiled, profile, write

    runtime()
    made = compiled(spec)
    folder = folder_of(made.experiment)
    rendered = render(made.experiment, made.plan, shown(folder, made.experiment.root))
    try:
        facts = profile(made, as_it_runs(rendered, folder).files)
    except NotProfiled as error:
        stays = "; the facts stay as they were" if place(spec).is_file() else ""
        click.echo(f"expc: {made.experiment.file}: {error}{stays}", err=True)
        return 1 if error.foreseen else 2
    did = "wrote" if write(facts, spec) else "unchanged:"
    click.echo("\n\n".join([*_told(facts), f"{did} {os.path.relpath(place(spec))}"]))
    _say_findings(spec)
    return 0


def _say_findings(spec: Path) -> None:
    """What lint says of the spec now that it knows the data, in a line."""
    from expc.lint.engine import lint_files

    report = lint_files([spec])[0]
    count = len(report.findings)
    if count:
        what = "1 finding" if count == 1 else f"{count} findings"
        shows = f"expc lint {shlex.quote(str(spec))} shows {'it' if count == 1 else 'them'}"
        click.echo(f"{report.file}: {what}; {shows}", err=True)


def _told(facts: Facts) -> Iterator[str]:
    from expc.cli.floors import floors

    for stage in facts.stages:
        rows = [*_splits(stage), *((name, _column(each)) for name, each in stage.columns.items())]
        wide = max(len(name) for name, _ in rows)
        lines = [f"{stage.stage}: {_titled(stage)}", *(f"  {n:<{wide}}  {t}" for n, t in rows)]
        yield "\n".join(lines)
    yield floors(facts)


def _titled(stage: StageFacts) -> str:
    named = [file.path for file in stage.files]
    of = f" ({', '.join(named[:3])}{', ...' if len(named) > 3 else ''})" if named else ""
    distinct = stage.rows - stage.distinct
    again = f", {distinct:,} of them with the inputs of another" if distinct else ""
    return f"{stage.data.use}{of}, {stage.rows:,} rows{again}"


def _splits(stage: StageFacts) -> Iterator[tuple[str, str]]:
    for name, split in stage.splits.items():
        parts = [f"{split.rows:,} rows"]
        if name != "train":
            parts.append(f"{_share(split.repeated / split.rows)} with inputs that train has too")
        for key, count in split.groups.items():
            shared = split.shared.get(key, 0)
            parts.append(f"{count:,} of `{key}`" + (f", {shared:,} in train too" if shared else ""))
        yield name, "; ".join(parts)


def _column(column: Column) -> str:
    shape = f"({', '.join(map(str, column.shape))})" if column.shape else ""
    parts = [f"{column.port} {column.dtype}{shape}"]
    if column.constant == column.elements:
        parts.append("the same in every row")
    elif column.constant:
        parts.append(f"{column.constant:,} of {column.elements:,} numbers the same in every row")
    if column.unfit:
        parts.append(f"{column.unfit:,} numbers that can't be")
    if (shares := column.shares) is not None:
        peaks = "two-peaked" if shares.two_peaked else "not two-peaked"
        parts.append(f"mean {shares.mean:.4g}, variance {shares.variance:.4g}")
        parts.append(f"below .1 {_share(shares.below)}, above .9 {_share(shares.above)}, {peaks}")
    if (labels := column.labels) is not None:
        parts.append(
            f"{labels.mean:.4g} yes a row ({labels.fewest} to {labels.most}), "
            f"{labels.empty:,} rows without, {labels.never:,} labels never"
        )
    if (classes := column.classes) is not None:
        parts.append(
            f"{classes.seen:,} classes, the most frequent {_share(classes.share)}, "
            f"entropy {classes.entropy:.4g} nats"
        )
    if (sums := column.sums) is not None and (sums.zero or sums.off):
        parts.append(f"{sums.zero:,} rows of zeros, {sums.off:,} whose sum is not 1")
    return "; ".join(parts)


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"
