"""`expc plan`: what would be written and run, and what an edit puts out of date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.build import Compiled
    from expc.emit.render import Rendered
    from expc.standing import Instances, Standing

_MANY = 100_000
"""Runs from which a plan without results is not counted out: nothing could be said but `all of them`."""


@click.command(short_help="say what would run, what an edit makes out of date, and why")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--check", is_flag=True, help="Build and run every stage on shapes alone; needs torch."
)
def command(spec: Path, check: bool) -> int:
    """Say what compiling and running SPEC would do. Nothing is written and nothing runs.

    The runs, and how they are carried out; the files against those that were generated before; the stages against the results
    under runs/: what is proved done, what would run, which results no longer count and why.

    With --check: what would fail hours later, each at its line, with exit code 1; else the memory
    that each stage needs. Every structural variant is built and driven through one batch, and so are the
    extremes of what is swept; no data is read.
    """
    if check:
        return _check(spec)
    from expc.build import compiled, folder_of, shown
    from expc.emit.render import render

    made = compiled(spec)
    folder = folder_of(made.experiment)
    name = shown(folder, made.experiment.root)
    rendered = render(made.experiment, made.plan, name)
    click.echo("\n\n".join(_parts(made, rendered, folder, name)))
    return 0


def _check(spec: Path) -> int:
    """Try every stage on shapes alone, and say what would fail."""
    from expc.cli.dry_table import told
    from expc.cli.needs import runtime
    from expc.cli.told import refuse, tell

    runtime()
    if refuse(spec):
        return 1
    from expc.build import compiled
    from expc.child import ChildFailed
    from expc.dry import dry

    try:
        (found,) = dry([compiled(spec)])
    except ChildFailed as error:
        click.echo(f"expc: the dry run gave no answer: {error}", err=True)
        return 2
    if found.findings:
        tell(found.findings)
        return 1
    click.echo(told(found))
    return 0


def _parts(made: Compiled, rendered: Rendered, folder: Path, name: str) -> Iterator[str]:
    from expc.emit.conduct import told
    from expc.emit.shell import summary
    from expc.emit.write import as_it_runs
    from expc.standing import compare

    plan, root = made.plan, made.experiment.root
    yield f"{plan.experiment}: {summary(plan)}"
    yield f"Files in {name}\n{_aligned(_files(made, rendered, folder))}"
    if conduct := told(plan):
        yield f"How runs are carried out\n{_aligned(conduct)}"
    yield from _floors(made)
    if plan.runs > _MANY and not (root / "runs" / plan.experiment).is_dir():
        yield "Nothing has run yet"
        return
    standing = compare(plan, as_it_runs(rendered, folder), root)
    rows = {stage: _instances(there) for stage, there in standing.stages.items()}
    yield f"Stages against runs/{plan.experiment}\n{_aligned(rows)}"
    yield from _lost(standing)


def _floors(made: Compiled) -> Iterator[str]:
    """What a constant answer reaches, where the data was profiled, and which of it no longer holds."""
    from expc.cli.floors import floors
    from expc.facts import Facts
    from expc.identity import identity
    from expc.lint.facts import facts_of, holds

    facts = facts_of(made.experiment)
    if isinstance(facts, Facts):
        every = [stage for stage in made.experiment.stages.values() if identity(stage) is not None]
        old = [stage.name for stage in every if not holds(stage, made.experiment)]
        known = f"  of other data than `{'`, `'.join(old)}` now reads: `expc lint` says more"
        yield "\n".join([floors(facts), *([known] if old else [])])


def _files(made: Compiled, rendered: Rendered, folder: Path) -> dict[str, str]:
    from expc.emit.write import read_lock, stale

    differing = stale(rendered, folder)
    owned = read_lock(folder).get("owned", [])
    shared = {module.file: _sharers(made, module.file) for module in made.plan.modules}
    rows = {}
    for file in dict.fromkeys((*rendered.files, *differing)):
        there, wanted = differing.get(file, ("", ""))
        if file in owned:
            said = "yours"
        elif file not in differing:
            said = "unchanged"
        elif wanted is None:
            said = "would be removed"
        else:
            said = "new" if there is None else "would change"
        rows[file] = said
    wide = max((len(said) for file, said in rows.items() if file in shared), default=0)
    return {
        file: f"{said:<{wide}}  ({shared[file]})" if file in shared else said
        for file, said in rows.items()
    }


def _sharers(made: Compiled, file: str) -> str:
    runs = sum(
        block.runs for block in made.plan.blocks if any(s.module == file for s in block.stages)
    )
    return f"{runs:,} run{'s' if runs != 1 else ''}"


def _instances(there: Instances) -> str:
    if not there.total:
        return "no instances"
    if there.states.keys() == {"pending"}:
        return f"{there.total:,} to run"
    counts = ", ".join(f"{n:,} {state}" for state, n in there.states.most_common())
    left = f"{there.left:,} to run" if there.left else "nothing to run"
    return f"{left}: {counts}"


def _lost(standing: Standing) -> Iterator[str]:
    if standing.lost:
        total = standing.lost.total()
        what = "1 result no longer counts" if total == 1 else f"{total:,} results no longer count"
        lines = [
            f"  {count:>4,}  {stage}: {why}"
            for (stage, why), count in standing.lost.most_common(_REASONS)
        ]
        more = len(standing.lost) - _REASONS
        lines += [f"        and {more} reasons more"] if more > 0 else []
        yield "\n".join([f"{what}; running again puts them aside", *lines])
    if standing.unplanned:
        count = len(standing.unplanned)
        runs = "1 run" if count == 1 else f"{count:,} runs"
        yield f"{runs} on disk that this plan does not have, such as {standing.unplanned[0]}"


_REASONS = 12


def _aligned(rows: Mapping[str, str]) -> str:
    wide = max(map(len, rows), default=0)
    return "\n".join(f"  {name:<{wide}}  {said}" for name, said in rows.items())
