"""Print a plan as a shell script. Every value passes one filter."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expc.emit.python import shell_value
from expc.ir import Backend, Block, Loop, Name, Plan, StageRun
from expc.sweep import number


class Quoted(str):
    """Shell text that is safe to print as it is."""

    __slots__ = ()


def quote(value: object) -> Quoted:
    """The one filter: a value as a single shell word, never one that the shell itself knows."""
    if isinstance(value, Quoted):
        return value
    word = number(value)
    return Quoted(f"'{word}'" if word in _RESERVED else shlex.quote(word))


_RESERVED = frozenset(
    {
        "if", "then", "else", "elif", "fi", "do", "done", "case", "esac", "while", "until", "for",
        "in", "function", "select", "time", "coproc",
    }
)  # fmt: skip


def comment(value: object) -> Quoted:
    """Text inside a comment: it can't leave its line."""
    return Quoted(" ".join(str(value).split()))


@dataclass(frozen=True, slots=True)
class ShellFile:
    """What the sweep template prints."""

    spec: str
    experiment: str
    folder: str
    up: str
    summary: str
    seeds: Quoted
    variables: Quoted
    lines: tuple[Quoted, ...]
    policy: tuple[Quoted, ...]
    notify: Quoted


def shell_file(plan: Plan, folder: str) -> ShellFile:
    """A sweep script's text, piece by piece, for the template."""
    loops = [loop for block in plan.blocks for loop in block.loops]
    names = dict.fromkeys(name for loop in loops for name in loop.names)
    zipped = any(len(loop.names) > 1 for loop in loops)
    return ShellFile(
        spec=plan.spec,
        experiment=plan.experiment,
        folder=folder,
        up="/".join([".."] * len(folder.split("/"))),
        summary=summary(plan),
        seeds=Quoted(" ".join(quote(seed) for seed in plan.seeds)),
        variables=Quoted(" ".join([*names, "seed", *(["row"] if zipped else [])])),
        lines=tuple(line for block in plan.blocks for line in _block(block)),
        policy=tuple(_words(words) for words in policy(plan)),
        notify=_words(notice(plan)),
    )


def policy(plan: Plan) -> Iterator[list[str]]:
    """What is said of each stage before its runs, in words.

    `limit STAGE [--timeout SECONDS] [--devices N]`, `retry STAGE CLASS [--times N] [--delay SECONDS] [-- FLAG VALUE...]`.
    """
    for one in plan.policies:
        limits = ["--timeout", number(one.timeout)] if one.timeout is not None else []
        limits += ["--devices", number(one.devices)] if one.devices > 1 else []
        if limits:
            yield ["limit", one.stage, *limits]
        for retry in one.retries:
            words = ["retry", one.stage, retry.failure, "--times", number(retry.times)]
            words += ["--delay", number(retry.delay)] if retry.delay is not None else []
            changes = [word for change in retry.changes for word in change]
            yield [*words, *(["--", *changes] if changes else [])]


def asks(backend: Backend) -> tuple[Quoted, ...]:
    """What each stage asks of a cluster: `STAGE --option value...`, in the spec's words and units of seconds."""
    return tuple(
        _words([stage, *(word for key, value in options for word in (f"--{key}", number(value)))])
        for stage, options in backend.stages
    )


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """What the template of a back end prints, beside what it shares with that of the sweep."""

    name: str
    asks: tuple[Quoted, ...]
    address: str


def cluster_file(backend: Backend) -> ClusterFile:
    """A cluster script's text, piece by piece, for its template."""
    return ClusterFile(backend.name, asks(backend), str(dict(backend.whole).get("address", "")))


def notice(plan: Plan) -> list[str]:
    """Who is told, in words: the form, the variable that holds the address, when. Empty where nobody is."""
    told = plan.notify
    return [told.form, told.webhook, *told.on] if told is not None else []


def _words(words: Sequence[str]) -> Quoted:
    return Quoted(" ".join(map(quote, words)))


def summary(plan: Plan) -> str:
    """How many runs there are, and of what."""
    runs = f"{plan.runs:,} run{'s' if plan.runs != 1 else ''}"
    if not plan.axes:
        return runs
    less = f", less {plan.excluded:,} excluded" if plan.excluded else ""
    return f"{runs}: {' x '.join(plan.axes)}{less}"


def _block(block: Block) -> Iterator[Quoted]:
    indent = "  "
    for loop in block.loops:
        for text in _open(loop):
            yield Quoted(indent + text)
            indent += "  " if text.endswith("; do") else ""
    for rule in block.unless:
        test = " && ".join(f'"${name}" == {quote(value)}' for name, value in rule)
        yield Quoted(f"{indent}[[ {test} ]] && continue")
    yield Quoted(f'{indent}for seed in "${{seeds[@]}}"; do')
    yield Quoted(f'{indent}  run {_label(block.label)} "$seed"')
    for stage in block.stages:
        yield Quoted(f"{indent}  {_stage(stage)}")
    yield Quoted(f"{indent}done")
    for _ in block.loops:
        indent = indent[:-2]
        yield Quoted(f"{indent}done")


def _open(loop: Loop) -> Iterator[str]:
    if len(loop.rows) == 1:
        yield "# shellcheck disable=SC2041,SC2043 # one value now, room for more"
    if len(loop.names) == 1:
        words = " ".join(quote(row[0]) for row in loop.rows)
        yield f"for {loop.names[0]} in {words}; do"
        return
    rows = " ".join(quote(" ".join(number(value) for value in row)) for row in loop.rows)
    yield f"for row in {rows}; do"
    yield f'read -r {" ".join(loop.names)} <<<"$row"'


def _label(label: Sequence[str | Name]) -> str:
    return (
        '"'
        + "".join(
            f"${{{part.text}}}" if isinstance(part, Name) else _inside(part) for part in label
        )
        + '"'
    )


def _inside(text: str) -> str:
    """Text inside double quotes: nothing in it is expanded."""
    return re.sub(r'([\\"$`])', r"\\\1", text)


def _stage(stage: StageRun) -> str:
    if stage.skip:
        return f"skip {quote(stage.stage)} {quote(stage.skip)}"
    words = ["stage", quote(stage.stage), quote(stage.module)]
    for parent in stage.after:
        words += ["--after", quote(parent)]
    words.append("--")
    for flag, value in stage.flags:
        words += _flag(flag, value)
    return " ".join([*words, "--seed", '"$seed"'])


def _flag(flag: str, value: object | Name) -> list[str]:
    if isinstance(value, Name):
        return _worded(flag, f'"${value.text}"')
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return _worded(flag, quote(shell_value(value)))


def _worded(flag: str, value: str) -> list[str]:
    return [flag + value] if flag.endswith("=") else [flag, value]
