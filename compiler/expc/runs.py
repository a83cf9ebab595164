"""The runs of a plan, one at a time: what the generated `sweep.sh` records, without a shell.

Memory does not grow with the grid. A test compares the words with those of the script itself.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, cast

from expc.emit.python import shell_value
from expc.emit.shell import policy
from expc.ir import Block, Loop, Name, Plan, StageRun
from expc.sweep import number


def records(plan: Plan) -> Iterator[list[str]]:
    """What is said of each stage, `limit ...` and `retry ...`; then `run CONDITION SEED`, and for each of its stages
    `stage NAME MODULE [--after PARENT]... -- FLAGS...` or `skip NAME REASON`; `end` is last."""
    yield from policy(plan)
    for block in plan.blocks:
        for point in _points(block):
            label = "".join(point[p.text] if isinstance(p, Name) else p for p in block.label)
            for seed in plan.seeds:
                yield ["run", label, str(seed)]
                for stage in block.stages:
                    yield stage_words(stage, point, seed)
    yield ["end"]


def stream(plan: Plan) -> BinaryIO:
    """The records as the pipe of a sweep carries them: NUL-ended words, each record led by its count."""
    return cast(BinaryIO, io.BufferedReader(_Pipe(_words(records(plan)))))


def telling_points(block: Block) -> Iterator[dict[str, str]]:
    """The first point of a block; and for each loop the points of its extremes, the other loops at their first.

    Of numbers these are the smallest and the largest, of all else every value.
    """
    firsts = [0] * len(block.loops)
    chosen = dict.fromkeys([tuple(firsts)])
    for place, loop in enumerate(block.loops):
        for row in _extremes(loop):
            chosen[*firsts[:place], row, *firsts[place + 1 :]] = None
    points = [_point(block, rows) for rows in chosen]
    wanted = [point for point in points if not _excluded(block, point)]
    yield from wanted or itertools.islice(_points(block), 1)


def _extremes(loop: Loop) -> list[int]:
    rows = range(len(loop.rows))
    chosen: set[int] = set()
    for column in range(len(loop.names)):
        cells = [row[column] for row in loop.rows]
        if all(isinstance(cell, int | float) for cell in cells):
            ends = (min(cells), max(cells))  # type: ignore[type-var]
            chosen |= {cells.index(end) for end in ends}
        else:
            chosen |= set(rows)
    return sorted(chosen)


def _points(block: Block) -> Iterator[dict[str, str]]:
    """Every combination of the block's loops that is not excluded, as the words a shell variable holds."""
    for rows in itertools.product(*(range(len(loop.rows)) for loop in block.loops)):
        point = _point(block, rows)
        if not _excluded(block, point):
            yield point


def _point(block: Block, rows: Sequence[int]) -> dict[str, str]:
    return {
        name: number(value)
        for loop, row in zip(block.loops, rows, strict=True)
        for name, value in zip(loop.names, loop.rows[row], strict=True)
    }


def _excluded(block: Block, point: Mapping[str, str]) -> bool:
    return any(all(point[name] == number(v) for name, v in rule) for rule in block.unless)


def stage_words(stage: StageRun, point: Mapping[str, str], seed: int) -> list[str]:
    """The record of one stage of a run at a point of its block's loops."""
    if stage.skip:
        return ["skip", stage.stage, stage.skip]
    after = [word for parent in stage.after for word in ("--after", parent)]
    flags = [word for flag, value in stage.flags for word in _flag(flag, value, point)]
    return ["stage", stage.stage, stage.module, *after, "--", *flags, "--seed", str(seed)]


def _flag(flag: str, value: object, point: Mapping[str, str]) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    text = point[value.text] if isinstance(value, Name) else shell_value(value)
    return [flag + text] if flag.endswith("=") else [flag, text]


def _words(recorded: Iterator[list[str]]) -> Iterator[bytes]:
    for words in recorded:
        yield b"".join(word.encode() + b"\0" for word in (str(len(words)), *words))


class _Pipe(io.RawIOBase):
    """Bytes that are made while they are read."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while len(self._rest) < len(buffer) and (part := next(self._parts, None)) is not None:
            self._rest += part
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
