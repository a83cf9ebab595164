"""One attempt at a stage: its folder and key at the start, a state and an exit code at the end.

What every driver of a stage (`fit`, `evaluate`) has around its own work.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from expc_runtime.errors import CRASH, Preempted, known
from expc_runtime.flags import Run
from expc_runtime.log import Log
from expc_runtime.provenance import project_root
from expc_runtime.ranks import ALONE, Note, Ranks, meet
from expc_runtime.signals import nothing_to_save
from expc_runtime.state import (
    SMOKE,
    Claim,
    Result,
    Status,
    claim,
    identity,
    read_status,
    write_status,
)
from expc_runtime.state.claim import Held, Verdict
from expc_runtime.state.identity import planned
from expc_runtime.trace import annotate

__all__ = ["Attempt", "attempt"]


@dataclass(frozen=True)
class Attempt:
    """A stage folder that is ours, not done yet."""

    root: Path  # of the project
    stage: Claim
    parents: Mapping[str, str]  # key of each stage whose product this one takes, by name
    ranks: Ranks  # the processes that work at it together


def attempt(
    cfg: Run,
    work: Callable[[Attempt], int],
    *,
    parents: Callable[[Path], Mapping[str, str]],
    file: str,
    program: str,
) -> int:
    """Claim the stage's folder and do ``work`` there, unless it is done; returns the exit code.

    Args:
        cfg: its values and ``program`` and the parents make the stage's key.
        work: leaves a result in the folder, or raises why not.
        parents: given the stage's folder, the keys of the stages that it takes from, by name;
            raises MissingInput for one without a result.
        file: the caller's ``__file__``; the project root is the nearest folder above it with a
            pyproject.toml or .git, and ``cfg.out`` is relative to that.

    A smoke run works in ``<out>.smoke``, unless that is in a smoke sweep's folder already. Nothing
    that happens in ``work`` is raised: a failure is a state, a message, a line in ``log`` and an
    exit code (`expc_runtime.errors`).

    Of several ranks the first has the folder and writes; the others do ``work`` beside it.
    """
    root = project_root(Path(file))
    out = root / _folder(cfg)
    ranks, told = ALONE, False
    try:
        ranks = meet()
        if not ranks.first:
            return _beside(out, ranks, lambda at: work(Attempt(root, at, parents(out), ranks)))
        made_by = parents(out)
        key = identity(program, asdict(cfg), made_by)
        changed = {name: getattr(cfg, name) for name in planned(asdict(cfg))}
        module = _relative(file, root)
        with claim(out, key, program=program, module=module, changed=changed) as stage:
            if stage.verdict == "done":
                print(f"{cfg.out}: done already, nothing to do", flush=True)
                ranks.of_first((stage.verdict, stage.status, 0))
                ranks.close()
                return 0
            if stage.moved:
                print(f"{cfg.out} held other work, which is now {stage.moved.name}", flush=True)
            if stage.back:
                print(f"{cfg.out} goes on from what lay in {stage.back.name}", flush=True)
            told = True
            ranks.of_first((stage.verdict, stage.status, None))
            return _work(stage, ranks, lambda at: work(Attempt(root, at, made_by, ranks)))
    except Exception as error:
        # Before the folder was ours (locked, a parent missing) there is no state to write.
        stage_error = known(error)
        if stage_error is None:
            raise
        if not told and ranks.first:
            ranks.of_first(("fresh", Status(), stage_error.code))
        print(f"{cfg.out}: {stage_error}", flush=True)
        return stage_error.code


def _work(stage: Claim, ranks: Ranks, work: Callable[[Claim], int]) -> int:
    """Do ``work``, with the other ranks if there are any; returns the exit code."""
    try:
        with nothing_to_save():
            ranks.heed(stage.folder, lambda note: _ended(note, stage, ranks))
            code = work(stage)
            ranks.close()
        return code
    except Exception as error:  # noqa: BLE001  any failure becomes a state
        return _failed(error, stage, ranks)


def _beside(out: Path, ranks: Ranks, work: Callable[[Claim], int]) -> int:
    """Do ``work`` as a rank that does not have the folder, once the first has it."""
    nothing: tuple[Verdict, Status, int | None] = ("fresh", Status(), None)
    verdict, status, code = ranks.of_first(nothing)
    if code is not None:
        if not code:
            ranks.close()
        return code
    return _work(_Beside(out, verdict, status), ranks, work)


class _Beside(Claim):
    """A stage folder that another rank holds: what is said of it is that rank's to write."""

    def __init__(self, folder: Path, verdict: Verdict, status: Status) -> None:
        super().__init__(folder, -1, status, verdict, Held(), "", "")

    def beat(self, *, step: int, steps_target: int, epoch: int, force: bool = False) -> None:
        pass

    def finish(self, result: Result) -> Result:
        return result

    def _end(self, **changes: Any) -> None:
        pass


def _folder(cfg: Run) -> str:
    """Where the stage works: a smoke run beside a real one, never in its place."""
    apart = any(part.endswith(SMOKE) for part in Path(cfg.out).parts)
    return f"{cfg.out}{SMOKE}" if cfg.smoke and not apart else cfg.out


def _relative(file: str, root: Path) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _failed(error: Exception, stage: Claim, ranks: Ranks) -> int:
    """Write the failure where it belongs and say it; returns the exit code."""
    source = annotate(error)
    who = f"rank {ranks.rank}\n" if ranks.size > 1 else ""
    Log(stage.folder).note(who + "".join(traceback.format_exception(error)))
    note = ranks.cause(error)
    if note is None:
        note = _note(error, source, ranks)
        if known(error) is None:
            traceback.print_exception(error)
    return _ended(note, stage, ranks)


def _note(error: Exception, source: str, ranks: Ranks) -> Note:
    """What there is to say of an error of this rank's own."""
    stage_error = known(error)
    if stage_error is None:
        return Note(ranks.rank, "crash", CRASH, f"{type(error).__name__}: {error}", source)
    return Note(ranks.rank, stage_error.failure, stage_error.code, str(stage_error), source)


def _ended(note: Note, stage: Claim, ranks: Ranks) -> int:
    """Write the state and say it, or leave that to the first rank; returns the exit code."""
    ranks.leave(note)
    where = f"\nfrom {note.source}" if note.source else ""
    text = f"failed({note.failure}): {note.reason}{where}"
    if note.code == Preempted.code:
        stage.interrupt(note.reason)
        text = note.reason
    else:
        stage.fail(note.failure, note.reason, code=note.code, source=note.source)
    if ranks.first or _spoke_for_the_first(note, stage.folder):
        Log(stage.folder).say(text)
    return note.code


def _spoke_for_the_first(note: Note, folder: Path) -> bool:
    """Whether the first rank was gone before it could write the state, which then is written here."""
    status = read_status(folder)
    if note.follows != 0 or status is None or status.state != "running":
        return False
    ended = replace(
        status,
        state="failed",
        failure=note.failure,
        reason=note.reason,
        code=note.code,
        source=note.source,
        heartbeat=time.time(),
    )
    write_status(folder, ended)
    return True
