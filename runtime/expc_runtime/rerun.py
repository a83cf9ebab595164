"""Run an update that met a NaN again, in its own precision and in float32, and show each module.

python -m expc_runtime.rerun runs/EXPERIMENT/RUN/STAGE
python -m expc_runtime.rerun runs/EXPERIMENT/RUN/STAGE --update 37 --device cuda

Reads what the run left in checkpoints/diverged-<update>.pt; on the CPU unless told otherwise,
wherever the run was. A generator of a GPU cannot be repeated on a CPU: dropout then draws others.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from expc_runtime.checkpoint import Store
from expc_runtime.diagnosis.blame import Seen, Sight, look, told
from expc_runtime.diagnosis.evidence import Evidence, find
from expc_runtime.diagnosis.incident import Incident
from expc_runtime.errors import BadValue, MissingInput, StageError
from expc_runtime.export import built
from expc_runtime.module import Module
from expc_runtime.state import Result
from expc_runtime.training.trainer import device_of

__all__ = ["main", "rerun"]


def rerun(folder: Path, *, update: int | None = None, device: str = "cpu") -> Iterator[str]:
    """The lines to print.

    Raises MissingInput if nothing was left, or the module was compiled anew since.
    """
    folder = folder.resolve()
    left = find(Store(folder / "checkpoints"), update)
    if left is None:
        raise MissingInput(
            f"no {'update' if update is None else f'update {update}'} that met a NaN was left in "
            f"{folder / 'checkpoints'}"
        )
    where = device_of(device)
    module, incident = _as_it_was(folder, left, where)
    yield (
        f"update {incident.update} of optimizer `{incident.drive}`: {left.precision} on {left.device}, "
        f"here on {where}"
    )
    half = module.half_dtype is not None
    for name, is_half in ((left.precision, True), ("32", False)) if half else (("32", True),):
        sight = look(module, incident, half=is_half)
        yield f"\nprecision {name}"
        yield from _table(sight)
        yield from (told(sight) if sight.fault else ["  all of it is finite"])


def _as_it_was(folder: Path, left: Evidence, device: torch.device) -> tuple[Module, Incident]:
    stage = Result(module=left.file, program=left.program, config=left.config)
    module = built(folder, stage).to(device)
    left.take_place(module)
    try:
        module.start(
            left.precision, total_updates=1, updates_per_epoch=1, microbatch=left.microbatch
        )
    except ValueError as error:
        raise BadValue(str(error)) from error
    batch = tuple(column.to(device) for column in left.incident.batch)
    return module, replace(left.incident, batch=batch)


_HEAD = ("module", "", "dtype", "min", "max", "mean", "finite")


def _table(sight: Sight) -> Iterator[str]:
    """What each module gave, a line for each; from where gradients begin, what came back to it."""
    rows = [_HEAD, *map(_row, sight.seen)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()


def _row(seen: Seen) -> tuple[str, ...]:
    values = seen.value.double()
    finite = values.isfinite()
    good = values[finite]
    figures = [good.min(), good.max(), good.mean()] if good.numel() else []
    shown = [f"{float(figure):.4g}" for figure in figures] or ["-"] * 3
    share = "yes" if bool(finite.all()) else f"{int(finite.sum())} of {values.numel()}"
    return seen.name, seen.kind, str(seen.value.dtype).removeprefix("torch."), *shown, share


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m expc_runtime.rerun", description=__doc__)
    parser.add_argument("stage", type=Path, help="folder of a stage that diverged")
    parser.add_argument(
        "--update", type=int, help="which, if more than one was left; else the last"
    )
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    try:
        for line in rerun(given.stage, update=given.update, device=given.device):
            print(line)
    except StageError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
