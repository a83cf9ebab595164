"""`expc report`: an experiment as one HTML file that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.report.gather import Experiment


@click.command(short_help="write an experiment's results as one HTML file")
@click.argument("experiment", required=False)
@click.option(
    "-o", "out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to; runs/EXPERIMENT/report.html if not given.",
)  # fmt: skip
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; exit with 1 if a run has neither a result nor a reason, and say which.",
)
def command(experiment: str | None, out: Path | None, check: bool) -> int:
    """Write what EXPERIMENT found as one HTML file, or that of every experiment that has runs.

    It opens from a disk or a mail, without a network: conditions with their states, figures over seeds beside floors,
    learning curves, pictures, the reason and the last log lines of each failure, and what computed it all.
    """
    from expc.cli.project import project

    root = project()
    names = [_named(experiment, root)] if experiment else _every(root)
    if out is not None and len(names) != 1:
        raise click.UsageError(
            f"-o takes one report, and here are {len(names)}: name an experiment."
        )
    if check and out is not None:
        raise click.UsageError("--check writes nothing: leave out -o.")
    codes = [(_check if check else _write)(name, root, out) for name in names]
    return max(codes, default=0)


def _every(root: Path) -> list[str]:
    from expc.report.gather import experiments

    names = experiments(root)
    if not names:
        raise click.UsageError("Nothing has run yet: there is no experiment under runs/.")
    return names


def _named(given: str, root: Path) -> str:
    from expc.cli.project import near
    from expc.report.gather import experiments

    name, known = Path(given).name, experiments(root)
    script = root / "generated" / name.removesuffix(".smoke") / "sweep.sh"
    if name not in known and not script.is_file():
        raise click.UsageError(f"There is no experiment `{name}` under runs/.{near(name, known)}")
    return name


def _gathered(name: str, root: Path) -> Experiment:
    from expc.report.gather import gather

    return gather(name, root)


def _write(name: str, root: Path, out: Path | None) -> int:
    from expc.cli.project import seen
    from expc.report.page import render
    from expc_runtime.state.files import write_text

    file = out or root / "runs" / name / "report.html"
    found = _gathered(name, root)
    if not found.stages:
        click.echo(f"expc: nothing of {name} is on disk, so there is nothing to report", err=True)
        return 1
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, render(found))
    click.echo(f"{seen(file)}: {_said(found)}, {file.stat().st_size / 1e6:.1f} MB")
    return 0


def _said(found: Experiment) -> str:
    from expc_runtime.state.table import tally

    counts: dict[str, int] = {}
    for run in found.runs:
        counts[run.status.label] = counts.get(run.status.label, 0) + 1
    return tally(counts)


def _check(name: str, root: Path, out: Path | None) -> int:
    from expc.report.check import missing

    found = _gathered(name, root)
    open_ = list(missing(found))
    for line in open_:
        click.echo(line)
    if open_:
        what = "1 stage has" if len(open_) == 1 else f"{len(open_)} stages have"
        click.echo(f"{name}: {what} neither a result nor a reason", err=True)
        return 1
    click.echo(f"{name}: {_said(found)}")
    return 0
