"""What is told beside the stages' own files: status.env for shells, notices for people."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from expc_runtime.notify import Notifier
from expc_runtime.state.files import read_env, write_env
from expc_runtime.state.plan import Task
from expc_runtime.state.records import Status, read_status
from expc_runtime.sweep import ends
from expc_runtime.sweep.slurm.submission import Submission

__all__ = ["begun", "finished", "note", "queued"]


def queued(root: Path, total: int) -> None:
    """Write status.env of a sweep whose ``total`` runs wait in the queue."""
    write_env(root / "status.env", _env(root, Task(0, "", "", "", ""), "pending", total, {}))


def begun(root: Path, task: Task, state: str) -> None:
    """Have status.env tell of ``task``; many tasks write it, each of them whole."""
    total = read_env(root / "status.env").get("total_runs", "0")
    write_env(root / "status.env", _env(root, task, state, int(total or 0), {}))


def finished(root: Path, last: Task, state: str, total: int, counts: Mapping[str, int]) -> None:
    """Write status.env at the end; ``counts`` are stages by state."""
    write_env(root / "status.env", _env(root, last, state, total, counts))


def _env(
    root: Path, task: Task, state: str, total: int, counts: Mapping[str, int]
) -> dict[str, object]:
    status = (read_status(root / task.name) if task.run else None) or Status()
    count = counts.get
    done = count("done", 0) + count("smoke", 0)
    return {
        "run_name": task.run,
        "run_index": task.index,
        "total_runs": total,
        "step": status.step,
        "steps_target": status.steps_target,
        "percent": 100 if status.state in ends.GOOD else status.percent,
        "updated": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "state": state,
        "stage": task.stage,
        "condition": task.condition,
        "seed": task.seed,
        "exit_code": "" if status.code is None else status.code,
        "eta_s": "",
        "pid": "",
        "running_count": "" if not counts else 0,
        "done_count": done if counts else "",
        "failed_count": count("failed", 0) if counts else "",
        "blocked_count": count("blocked", 0) if counts else "",
        "skipped_count": count("skipped", 0) if counts else "",
        "undefined_count": count("undefined", 0) if counts else "",
        "jobs": "",
        "host": socket.gethostname(),
        "runner_pid": "",
        "runner_start": "",
    }


def note(submission: Submission, event: str, text: str, **facts: object) -> None:
    """Tell people, if the spec names somebody."""
    if not submission.notify:
        return
    form, variable, *on = submission.notify
    name = submission.experiment
    notes = Notifier(form, variable, on, say=lambda line: print(line, flush=True))
    notes.send(event, f"{name}: {text}", experiment=name, **facts)
    notes.close()
