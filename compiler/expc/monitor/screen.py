"""A snapshot as a screen: lines that fit the terminal, whatever its size. Needs rich."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.text import Text

from expc.monitor import words
from expc.monitor.gpu import Gpu
from expc.monitor.snapshot import Failure, Running, Snapshot
from expc_runtime.state.table import duration

_STYLES: Mapping[str, str] = {
    "pending": "dim",
    "running": "cyan",
    "done": "green",
    "smoke": "green",
    "failed": "bold red",
    "blocked": "yellow",
    "skipped": "dim",
    "undefined": "magenta",
    "interrupted": "yellow",
    "gone": "bold red",
    "queued": "cyan",
    "silent": "yellow",
    "dead": "bold red",
}
_MARKS: Mapping[str, str] = {
    "pending": "·",
    "running": "◐",
    "done": "●",
    "smoke": "●",
    "failed": "✗",
    "blocked": "▪",
    "skipped": "–",
    "undefined": "?",
    "interrupted": "◌",
}
_LETTERS: Mapping[str, str] = {
    "pending": ".",
    "running": ">",
    "done": "o",
    "smoke": "o",
    "failed": "x",
    "blocked": "#",
    "skipped": "-",
    "undefined": "?",
    "interrupted": "/",
}
_BAR = 20
"""Cells of the bar of a running stage; of the sweep's, twice as many."""
_NARROW = 90


def frame(
    snapshot: Snapshot,
    width: int,
    height: int | None = None,
    *,
    gpus: Sequence[Gpu] = (),
    unicode: bool = True,
) -> Text:
    """The screen: at most ``width`` cells wide and ``height`` lines high, if that is given."""
    marks = _MARKS if unicode else _LETTERS
    head = [*_head(snapshot, width, unicode), *_gpus(gpus)]
    parts = [
        [
            *_running(snapshot.running, width, unicode, short=_tight(snapshot, height)),
            *(Text(words.waiting(one), "yellow") for one in snapshot.again),
        ],
        _grid(snapshot, width, marks),
        _failures(snapshot),
    ]
    room = None if height is None else max(0, height - len(head))
    lines = head
    for part in _fitting([part for part in parts if part], room):
        lines = [*lines, Text(), *part]
    shown = lines if height is None else lines[: max(1, height)]
    for line in shown:
        line.truncate(width, overflow="ellipsis" if unicode else "crop")
    return Text("\n").join(shown)


def _tight(snapshot: Snapshot, height: int | None) -> bool:
    return height is not None and 2 * len(snapshot.running) > height // 2


def _head(snapshot: Snapshot, width: int, unicode: bool) -> list[Text]:
    style = _STYLES.get(snapshot.state, "")
    title = Text.assemble((snapshot.experiment, "bold"), "  ", (words.state(snapshot), style))
    settled = snapshot.stages - sum(
        snapshot.counts[state] for state in ("pending", "running", "interrupted")
    )
    percent = settled * 100 // snapshot.stages if snapshot.stages else 0
    overall = _bar(percent, min(2 * _BAR, max(4, width // 3)), "green", unicode)
    overall.append(f" {settled:,}/{snapshot.stages:,}")
    if snapshot.eta is not None and snapshot.state == "running" and snapshot.eta.seconds >= 1:
        overall.append(f"  {words.remaining(snapshot.eta)}", "bold")
    tally = Text()
    for state, count in snapshot.counts.items():
        if count:
            tally.append("  " if tally else "").append(f"{count:,} {state}", _STYLES[state])
    lines = [title, overall, tally]
    if text := words.outdated(snapshot):
        lines.append(Text(text, "yellow"))
    if snapshot.trouble:
        lines.append(Text(f"the plan cannot be read: {snapshot.trouble}", "yellow"))
    return lines


def _bar(percent: int, cells: int, style: str, unicode: bool) -> Text:
    filled = percent * cells // 100
    full, empty = ("━", "─") if unicode else ("#", "-")
    return Text.assemble((full * filled, style), (empty * (cells - filled), "dim"))


def _running(stages: Sequence[Running], width: int, unicode: bool, short: bool) -> list[Text]:
    """Two lines each, of the second what its log says; one where there is little room."""
    here, lines = socket.gethostname(), []
    cells = _BAR if width >= _NARROW else 8
    longest = min(max(16, width // 3), max((len(one.name) for one in stages), default=0))
    for one in stages:
        style = _STYLES[one.state]
        line = _bar(one.percent, cells, style, unicode)
        line.append(f" {one.percent:3d}%  " if one.steps_target else "       ")
        line.append(_middle(one.name, longest).ljust(longest), "bold")
        line.append(f"  {words.heartbeat(one)}", style)
        if again := words.again(one.attempt, one.changed):
            line.append(f"  {again}", "yellow")
        if one.left and one.state != "dead":
            line.append(f"  {duration(one.left)} left")
        line.append(f"  {words.pace(one)}")
        if place := words.place(one, here):
            line.append(f"  {place}", "dim")
        lines.append(line)
        if not short and one.last:
            lines.append(Text(f"{' ' * (cells + 7)}{one.last}", "dim"))
    return lines


def _grid(snapshot: Snapshot, width: int, marks: Mapping[str, str]) -> list[Text]:
    """A row for each condition, a column for each stage, a mark for each seed."""
    rows: dict[str, dict[str, list[str]]] = {}
    for one in snapshot.each:
        rows.setdefault(one.condition, {}).setdefault(one.stage, []).append(one.state)
    if not rows:
        return []
    stages = list(dict.fromkeys(stage for row in rows.values() for stage in row))
    wide = {
        stage: max(len(stage), *(len(row.get(stage, ())) for row in rows.values()))
        for stage in stages
    }
    name = min(max(len(condition) for condition in [*rows, "-"]), max(12, width // 2))
    head = Text(f"{'':<{name}}", "dim")
    for stage in stages:
        head.append(f"  {stage:<{wide[stage]}}")
    lines = [head]
    for condition, row in rows.items():
        line = Text(_middle(condition or "-", name).ljust(name))
        for stage in stages:
            states = row.get(stage, [])
            line.append("  ")
            for state in states:
                line.append(marks[state], _STYLES[state])
            line.append(" " * (wide[stage] - len(states)))
        lines.append(line)
    return [*lines, _legend(snapshot, marks)]


def _legend(snapshot: Snapshot, marks: Mapping[str, str]) -> Text:
    legend = Text()
    for state, count in snapshot.counts.items():
        if count:
            legend.append("  " if legend else "")
            legend.append(marks[state], _STYLES[state]).append(f" {state}", "dim")
    return legend


def _failures(snapshot: Snapshot) -> list[Text]:
    """The latest first; those of one stage and one reason together."""
    alike: dict[tuple[str, str, str], list[Failure]] = {}
    for one in snapshot.failures:
        key = one.stage, one.state, one.reason.partition("\n")[0]
        alike.setdefault(key, []).append(one)
    lines = []
    for (_, state, reason), failures in alike.items():
        one = failures[0]
        line = Text.assemble((state, _STYLES[state.partition("(")[0]]), f"  {one.run}/{one.stage}")
        line.append(f" and {len(failures) - 1} more" if len(failures) > 1 else "")
        line.append(f"  {words.ago(one, snapshot.time)}")
        if again := words.again(one.attempt, one.changed):
            line.append(f"  {again}", "yellow")
        lines.append(line)
        if reason:
            lines.append(Text(f"    {reason}", "dim"))
    return lines


def _gpus(gpus: Sequence[Gpu]) -> list[Text]:
    line = Text()
    for one in gpus:
        line.append("   " if line else "")
        line.append(f"GPU {one.index}")
        line.append(f" {one.percent:3d}%" if one.percent is not None else "    ?", "cyan")
        if one.used is not None and one.total is not None:
            line.append(f" {one.used / 1024:.1f}/{one.total / 1024:.0f} GiB", "dim")
    return [line] if line else []


def _fitting(parts: list[list[Text]], room: int | None) -> list[list[Text]]:
    """Parts cut until they fit, with a blank line before each: the longest first, its last line says how much is gone."""
    if room is None:
        return parts
    sizes = [len(part) for part in parts]
    while sizes and sum(sizes) + len(sizes) > room:
        longest = max(range(len(sizes)), key=lambda i: sizes[i])
        if sizes[longest] <= 2:
            sizes.pop()  # no room for all: what failed is in `expc status` as well
            continue
        sizes[longest] -= 1
    return [
        part if len(part) <= size else [*part[: size - 1], Text(f"and {len(part) - size + 1} more lines", "dim")]
        for part, size in zip(parts, sizes, strict=False)
    ]  # fmt: skip


def _middle(text: str, most: int) -> str:
    """``text`` with its middle left out where it is too long: a name's ends tell it from others."""
    if cell_len(text) <= most:
        return text
    keep = most - 3
    return text[: keep // 2] + "..." + text[len(text) - (keep - keep // 2) :]
