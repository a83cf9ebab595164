"""One attempt at a stage: its folder and key at the start, a state and an exit code at the end.

What every driver of a stage (`fit`, `evaluate`) has around its own work.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.errors import CRASH, Preempted, known
from expc_runtime.flags import Run
from expc_runtime.log import Log
from expc_runtime.provenance import project_root
from expc_runtime.state import SMOKE, Claim, claim, identity
from expc_runtime.state.identity import planned
from expc_runtime.trace import annotate

__all__ = ["Attempt", "attempt"]


@dataclass(frozen=True)
class Attempt:
    """A stage folder that is ours, not done yet."""

    root: Path  # of the project
    stage: Claim
    parents: Mapping[str, str]  # key of each stage whose product this one takes, by name


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
    """
    root = project_root(Path(file))
    out = root / _folder(cfg)
    try:
        made_by = parents(out)
        key = identity(program, asdict(cfg), made_by)
        changed = {name: getattr(cfg, name) for name in planned(asdict(cfg))}
        module = _relative(file, root)
        with claim(out, key, program=program, module=module, changed=changed) as stage:
            if stage.verdict == "done":
                print(f"{cfg.out}: done already, nothing to do", flush=True)
                return 0
            if stage.moved:
                print(f"{cfg.out} held other work, which is now {stage.moved.name}", flush=True)
            if stage.back:
                print(f"{cfg.out} goes on from what lay in {stage.back.name}", flush=True)
            try:
                return work(Attempt(root, stage, made_by))
            except Exception as error:  # noqa: BLE001  any failure becomes a state
                return _failed(error, stage)
    except Exception as error:
        # Before the folder was ours (locked, a parent missing) there is no state to write.
        stage_error = known(error)
        if stage_error is None:
            raise
        print(f"{cfg.out}: {stage_error}", flush=True)
        return stage_error.code


def _folder(cfg: Run) -> str:
    """Where the stage works: a smoke run beside a real one, never in its place."""
    apart = any(part.endswith(SMOKE) for part in Path(cfg.out).parts)
    return f"{cfg.out}{SMOKE}" if cfg.smoke and not apart else cfg.out


def _relative(file: str, root: Path) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _failed(error: Exception, stage: Claim) -> int:
    """Write the failure where it belongs and say it; returns the exit code."""
    source = annotate(error)
    log = Log(stage.folder)
    log.note("".join(traceback.format_exception(error)))
    if isinstance(error, Preempted):
        stage.interrupt(str(error))
        log.say(str(error))
        return error.code
    stage_error = known(error)
    where = f"\nfrom {source}" if source else ""
    if stage_error is None:
        reason = f"{type(error).__name__}: {error}"
        stage.fail("crash", reason, code=CRASH, source=source)
        traceback.print_exception(error)
        log.say(f"failed(crash): {reason}{where}")
        return CRASH
    stage.fail(stage_error.failure, str(stage_error), code=stage_error.code, source=source)
    log.say(f"failed({stage_error.failure}): {stage_error}{where}")
    return stage_error.code
