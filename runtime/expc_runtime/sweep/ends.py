"""What the end of one stage means for those that take from it."""

from pathlib import Path
from typing import NamedTuple

from expc_runtime.state.plan import Task, proof
from expc_runtime.state.records import Result, State, Status, read_status

__all__ = ["BAD", "GOOD", "Refusal", "end", "ended", "hindrance", "written"]

GOOD = frozenset({"done", "smoke"})  # dependants may run
BAD = frozenset({"failed", "blocked", "undefined", "interrupted"})  # the sweep exits 1


class Refusal(NamedTuple):
    """Why a stage is not started; see `Status`."""

    state: State
    reason: str
    failure: str = ""
    by: str = ""


def ended(result: Result) -> str:
    """How a stage with ``result`` ended: its state, or ``stopped``: done, but its gate stops others."""
    return "stopped" if result.stops else result.state


def written(state: str) -> State:
    """What status.json calls it."""
    return "done" if state == "stopped" else state  # type: ignore[return-value]


def end(task: Task, folder: Path) -> tuple[str, str]:
    """How the instance of ``task`` that ``folder`` holds stands, by its files: the end, and its label.

    A stage that nobody has begun is ``pending``.
    """
    if task.skip:
        return "skipped", "skipped"
    if (result := proof(folder, task.key)) is not None:
        return ended(result), ended(result)
    status = read_status(folder)
    if status is None or status.key != task.key or status.state in GOOD:
        status = Status()
    return status.state, status.label


def hindrance(stage: str, state: str, label: str) -> Refusal | None:
    """Why a dependant of ``stage``, which ended as ``state``, cannot run; None if it can.

    ``label`` is the state with what belongs to it, such as ``failed(oom)``.
    """
    if state in GOOD:
        return None
    if state == "stopped":
        return Refusal("skipped", f"{stage} ended without meeting its gate", failure="gate")
    if state == "skipped":
        return Refusal("skipped", f"{stage} is skipped", failure="gate")
    return Refusal("blocked", f"{stage} is {label}", by=stage)
