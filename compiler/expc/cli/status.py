"""`expc status`: where runs stand, beside the floors that a constant answer reaches."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.monitor.planned import Source
    from expc.monitor.snapshot import Snapshot

_SHOWN = 12
"""Stages at work that are told one by one."""


@click.command(short_help="show where runs stand and what they reached")
@click.argument("experiment", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def command(experiment: str | None, as_json: bool) -> int:
    """Show where EXPERIMENT stands, or every experiment that has runs.

    What the sweep does, what runs now and how far it is, what failed last. Then a table with one row for each
    condition: states, figures as mean and deviation over seeds, and in brackets the floor that a
    constant answer reaches. Reads files only, so it may be asked at any time.

    docs/watching.md lists the keys of --json.
    """
    from expc.monitor.watch import Watch

    found = chosen(experiment)
    if as_json:
        told = [Watch(source).look().json() for source in found]
        click.echo(json.dumps(told[0] if experiment else {"experiments": told}, indent=1))
        return 0
    if experiment is None:
        found = [source for source in found if not _rehearsed(source)]
    if not found:
        click.echo("nothing has run yet")
    click.echo("\n\n".join(_text(source) for source in found), nl=bool(found))
    return 0


def chosen(experiment: str | None) -> list[Source]:
    """The experiments that a person means. Raises `click.UsageError` for one that is not there."""
    from expc.cli.project import near, project
    from expc.monitor.planned import Source, script_of, sources

    root = project()
    if experiment is None:
        return list(sources(root))
    name = Path(experiment).name
    script, known = script_of(root, name), [source.experiment for source in sources(root)]
    if name not in known and script is None:
        raise click.UsageError(f"There is no experiment `{name}` under runs/.{near(name, known)}")
    return [Source(root, name, script)]


def _rehearsed(source: Source) -> bool:
    """Smoke runs that went well, of an experiment that is told itself."""
    from expc.monitor.watch import Watch
    from expc_runtime.state.identity import SMOKE

    itself = source.experiment.removesuffix(SMOKE)
    if itself == source.experiment or not (source.root / "runs" / itself).is_dir():
        return False
    return not Watch(source).look().bad


def _text(source: Source) -> str:
    from expc.monitor.watch import Gathered, Watch
    from expc_runtime.state.table import table

    watch, gathered = Watch(source), Gathered()
    body = table(watch.through(source.tasks(), gathered), source.runs).rstrip("\n")
    snapshot = watch.told(gathered)
    if not snapshot.stages:
        return "\n".join([f"{source.experiment}: no runs of a sweep", *_trouble(snapshot)])
    return "\n".join([*above(snapshot), "", body])


def above(snapshot: Snapshot) -> Iterator[str]:
    """What is said before the table: the sweep, what runs, what failed last."""
    from expc.monitor import words

    yield from words.header(snapshot)
    here = socket.gethostname()
    busy = [words.running(one, here) for one in snapshot.running]
    busy += [words.waiting(one) for one in snapshot.again]
    if busy:
        yield ""
    yield from (f"  {line}" for line in busy[:_SHOWN])
    if len(busy) > _SHOWN:
        yield f"  and {len(busy) - _SHOWN} more"
    if snapshot.failures:
        yield ""
        last = "last to stop" if snapshot.failures[0].state == "interrupted" else "last to fail"
        yield f"{last}: {words.failure(snapshot.failures[0], snapshot.time)}"
        reason = snapshot.failures[0].reason.partition("\n")[0]
        yield from (f"    {line}" for line in (reason, snapshot.failures[0].log) if line)


def _trouble(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.trouble:
        yield snapshot.trouble
