"""What becomes of a training that memory ran out of: whose fault it is, and what is left of it."""

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from expc_runtime.errors import Leak, OutOfMemory, StageError, exhausted
from expc_runtime.log import Log
from expc_runtime.trace import source_of
from expc_runtime.training.state import Training

__all__ = ["Exhausted", "attempted", "out_of_memory"]

T = TypeVar("T")


@dataclass(frozen=True)
class Exhausted:
    """Memory ran out, and what the traceback held is free again."""

    short: str  # what was said of it, in a line
    source: str  # where in the spec


def attempted(work: Callable[[], T], log: Log) -> T | Exhausted:
    """What ``work`` gives, or that memory ran out.

    That is seen to only once this has returned: the exception keeps every tensor of what broke off.
    """
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not (short := exhausted(error)):
            raise
        log.note("".join(traceback.format_exception(error)))
        return Exhausted(short, source_of(error))


def out_of_memory(training: Training, end: Exhausted) -> OutOfMemory | Leak:
    """The verdict; an update that is not torn is undone, and what was before it is saved."""
    module = training.module
    doing = f"in update {module.updates}" if module.in_update else "beside an update"
    told = training.memory.exhausted(end.short, doing, training.feed, advice=_advice(training))
    # What has ended is saved, and has the best weights in place of the last.
    whole = not training.ended and module.take_back() and training.at.ranks.size == 1
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    verdict = told(_saved(training) if whole else _stands(training))
    verdict.source = end.source
    return verdict


def _advice(training: Training) -> str:
    module, microbatch = training.module, training.asked.microbatch
    if len(module.drive_names()) > 1 or not module.in_update:
        return "a smaller batch or net is needed, or a larger device"
    now = "" if microbatch == 1 else f"; it is {microbatch:g} now"
    return (
        "`retry: {oom: {microbatch: half}}` in the stage's `run` puts half as much of a batch "
        f"through the net at once{now}"
    )


def _saved(training: Training) -> str:
    """Save what is as it was before the update that broke off; says what the next attempt has."""
    try:
        training.save()
    except (StageError, OSError, RuntimeError, MemoryError) as error:
        return f"not saved ({str(error).partition(chr(10))[0]}); {_stands(training)}"
    return f"saved: the same command goes on from update {training.module.updates}"


def _stands(training: Training) -> str:
    return f"the same command goes on from the last checkpoint, update {training.saves.step}"
