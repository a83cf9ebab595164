"""Train a module, measure it, and leave a result that proves it.

`fit` takes the stage's folder and turns what happens into a state and an exit code. One attempt goes
one way: `preparing` makes a `Training`, `loop` trains it, `conclusion` writes its result; where memory
runs out `breakdown` says what is left.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from expc_runtime.attempt import Attempt, attempt
from expc_runtime.checkpoint import Checkpoint
from expc_runtime.clocks import Updates
from expc_runtime.diagnosis import devices
from expc_runtime.errors import OutOfMemory
from expc_runtime.feeds import TrainingFeed
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.log import Log, Unwritten
from expc_runtime.module import Module
from expc_runtime.parts import Origin, parents
from expc_runtime.progress import Silent, progress
from expc_runtime.training.breakdown import Exhausted, attempted, out_of_memory
from expc_runtime.training.conclusion import conclude
from expc_runtime.training.loop import Loop
from expc_runtime.training.measuring import NormStatistics
from expc_runtime.training.preparing import prepare
from expc_runtime.training.state import Asked
from expc_runtime.training.words import Words

__all__ = ["fit"]

DEFAULT_CHECKPOINT = Checkpoint()
R = TypeVar("R", bound=Run)


def fit(
    build: Callable[[R], Module],
    cfg: R,
    feed: TrainingFeed,
    *,
    until: Until,
    precision: str = "32",
    compile: bool = False,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    monitor: Mapping[str, str] | None = None,
    init: Mapping[str, Origin] | None = None,
    frozen: Mapping[str, Origin] | None = None,
    norm_statistics: NormStatistics = "running",
    microbatch: float = 1.0,
    file: str,
    program: str,
) -> int:
    """Train ``build(cfg)`` on ``feed`` until its budget or gate ends it; returns the exit code.

    Args:
        build: makes the module; called after seeding, before anything else draws a number.
        until: the budget and the gate.
        monitor: checkpoints kept for the best value, tag -> metric. The first one's weights are
            those that the result's figures are about; without any, the last weights are.
        init: parts that start from a file or another stage; see `load_parts`.
        frozen: the same of parts that are not trained: no gradient, always in eval mode, their
            statistics as they came.
        norm_statistics: ``reestimated`` replaces the running statistics of batch norm, before each
            measurement, by their mean over at most `norms.AVERAGED` rows of the train split.
            Training goes on from these, and they are in what is saved and handed on.
        microbatch: the share of a batch that goes through the net at once; gradients are gathered,
            and each optimizer steps once for the batch. Of a loss that is a mean over rows they are
            those of the whole batch, to rounding; batch norm reads the parts, and so does a mean
            over something else than rows.
        file: the caller's ``__file__``; the project root is the nearest folder above it with a
            pyproject.toml or .git, and ``cfg.out`` is relative to that.
        program: names the program; with the values and parents it makes the stage's key.

    The same command resumes an unfinished stage and leaves a finished one alone. A smoke run works
    in ``<out>.smoke``, unless that is in a smoke sweep's folder already. Nothing is raised:
    a failure is a state, a message, a line in ``log`` and an exit code (`expc_runtime.errors`).
    """
    asked = Asked(
        build=build,
        cfg=cfg,
        feed=feed,
        until=Until(Updates(2)) if cfg.smoke else until,
        precision=precision,
        compile=compile,
        checkpoint=checkpoint,
        monitor=dict(monitor or {}),
        init=dict(init or {}),
        frozen=dict(frozen or {}),
        norm_statistics=norm_statistics,
        microbatch=microbatch,
        file=file,
        program=program,
    )
    return attempt(
        cfg,
        lambda at: _train(asked, at),
        parents=lambda out: parents((asked.init, asked.frozen), out),
        file=file,
        program=program,
    )


def _train(asked: Asked, at: Attempt) -> int:
    """Prepare, train, measure, write the result; returns 0 or raises why not."""
    first, folder = at.ranks.first, at.stage.folder
    log = (Log if first else Unwritten)(folder)
    shown = progress(folder.name) if first else Silent()
    try:
        return _carried_out(asked, at, Words(log, shown))
    finally:
        shown.close()


def _carried_out(asked: Asked, at: Attempt, words: Words) -> int:
    training = attempted(lambda: prepare(asked, at, words), words.log)
    if isinstance(training, Exhausted):
        error = OutOfMemory(f"out of memory before the first update: {training.short}")
        error.source = training.source
        raise error
    with devices.told(training.module, training.device):
        for work in (Loop(training).run, lambda: conclude(training)):
            if isinstance(end := attempted(work, words.log), Exhausted):
                raise out_of_memory(training, end)
    return 0
