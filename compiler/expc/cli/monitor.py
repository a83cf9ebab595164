"""`expc monitor`: what a sweep does, as it does it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from expc.monitor.planned import Source
    from expc.monitor.snapshot import Snapshot


@click.command(short_help="watch a sweep while it runs")
@click.argument("experiment", required=False)
@click.option("--once", is_flag=True, help="Say where it stands now, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: one JSON object, for scripts.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=2.0,
    metavar="SECONDS",
    help="Between two looks; 2 if not given.",
)
def command(experiment: str | None, once: bool, as_json: bool, every: float) -> int:
    """Watch EXPERIMENT, or the one that last ran, until its sweep ends.

    A live screen on a terminal; elsewhere (nohup, tee) a line for each thing that changes. It reads files only:
    start it before, after or beside a sweep, as often as you like, and kill it as you like.

    Exits with 1 if anything failed, was blocked or has no answer, as `expc run` does, or if the runner is gone; with 0
    else, and when Ctrl-C ends it. docs/watching.md lists the keys of --json.
    """
    from expc.monitor.watch import Watch

    if as_json and not once:
        raise click.UsageError("--json goes with --once: one object is one moment.")
    source = _chosen(experiment)
    if as_json:
        snapshot = Watch(source).look()
        click.echo(json.dumps(snapshot.json(), indent=1))
        return int(snapshot.bad)
    rich = _terminal() and _rich()
    if once:
        snapshot = Watch(source, each=True).look()
        _print(snapshot, rich)
        return int(snapshot.bad)
    try:
        signal.signal(signal.SIGTERM, _terminated)
        return (_live if rich else _lines)(source, every)
    except KeyboardInterrupt:
        return 0


def _chosen(experiment: str | None) -> Source:
    """The one that a person means: by its name, else the one whose runner wrote last."""
    from expc.cli.status import chosen

    found = chosen(experiment)
    if not found:
        raise click.UsageError("Nothing has run yet: there is no experiment under runs/.")
    return max(found, key=lambda source: _written(source)) if experiment is None else found[0]


def _written(source: Source) -> float:
    try:
        return (source.runs / "status.env").stat().st_mtime
    except OSError:
        return 0.0


def _terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _rich() -> bool:
    """Whether there is rich; says so if not."""
    if find_spec("rich") is not None:
        return True
    click.echo(
        "expc monitor: plain lines, since rich is not installed; `pip install 'expc[runtime]'` "
        "brings the live screen",
        err=True,
    )
    return False


def _terminated(*_: object) -> None:
    raise SystemExit(143)  # through the display, which gives the terminal back


def _live(source: Source, every: float) -> int:
    """A screen, renewed; what it showed last stays on the terminal."""
    from rich.live import Live

    from expc.monitor.gpu import Gpus
    from expc.monitor.screen import frame

    console, gpus, end = _console(), Gpus(), _End(source)
    snapshot = None
    try:
        with Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live:
            while True:
                snapshot = end.look()
                wide, high = console.size
                shown = frame(snapshot, wide, high, gpus=gpus.seen, unicode=_unicode(console))
                live.update(shown, refresh=True)
                if end.reached:
                    break
                time.sleep(every)
    finally:
        gpus.close()
        if snapshot is not None:
            console.print(frame(snapshot, console.width, unicode=_unicode(console)))
    return int(snapshot.bad)


def _lines(source: Source, every: float) -> int:
    """Lines that say what is new."""
    from expc.monitor.changes import Changes

    changes, end = Changes(), _End(source)
    while True:
        snapshot = end.look()
        for line in changes.lines(snapshot):
            click.echo(line)
        if end.reached:
            return int(snapshot.bad)
        time.sleep(every)


class _End:
    """Looks until there is nothing more to come: the sweep has ended, or was seen to run and does not any more."""

    def __init__(self, source: Source) -> None:
        from expc.monitor.planned import Held
        from expc.monitor.watch import Watch

        self._held, self._watch = Held(source), Watch(source, each=True)
        self._ran = False
        self.reached = False

    def look(self) -> Snapshot:
        """The next snapshot."""
        snapshot = self._watch.look(self._held.tasks())
        busy = snapshot.state in (
            "running",
            "queued",
        )  # between two stages, a cluster may queue all
        self.reached = snapshot.ended or (self._ran and not busy)
        self._ran = self._ran or snapshot.state == "running"
        return snapshot


def _print(snapshot: Snapshot, rich: bool) -> None:
    from expc.cli.status import above

    if not rich:
        click.echo("\n".join(above(snapshot)))
        return
    from expc.monitor.screen import frame

    console = _console()
    console.print(frame(snapshot, console.width, unicode=_unicode(console)))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def _unicode(console: Any) -> bool:
    return str(console.encoding).lower().startswith("utf")
