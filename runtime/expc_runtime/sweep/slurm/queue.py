"""What is asked of Slurm, by its own commands."""

import re
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from expc_runtime.errors import BadValue

__all__ = ["Standing", "active", "array_limit", "cancel", "gpus", "requeue", "standing", "submit"]

_PATIENCE = 60.0  # seconds that a controller may be away, say for a restart


def submit(words: Sequence[str], script: str) -> int:
    """Submit ``script`` with the options ``words``; returns the job's id.

    Raises:
        BadValue: Slurm takes no such job; the message has its words.
    """
    done = _call(["sbatch", "--parsable", *words], text=script)
    if done.returncode:
        raise BadValue(f"sbatch took no job: {_said(done)}")
    return int(done.stdout.split(";")[0])


def active(jobs: Collection[int]) -> set[int]:
    """Those of ``jobs`` that have a task waiting or running; ids of arrays stand for all their tasks.

    Raises:
        BadValue: Slurm does not answer.
    """
    if not jobs:
        return set()
    until = time.monotonic() + _PATIENCE
    while True:
        done = _call(["squeue", "--noheader", "--format=%F", "--jobs", _list(jobs)])
        if not done.returncode:
            return {int(word) for word in done.stdout.split()} & set(jobs)
        if "Invalid job id" in done.stderr:  # said of one id, where the controller has forgotten it
            return set()
        if time.monotonic() > until:
            raise BadValue(f"squeue does not say what is in the queue: {_said(done)}")
        time.sleep(1.0)


class Standing(NamedTuple):
    """A job in the eyes of Slurm."""

    state: str  # such as RUNNING, NODE_FAIL; empty if Slurm does not say
    requeue: bool  # it may be put back into the queue


def standing(job: str) -> Standing:
    """How one job or ``ARRAY_TASK`` stands; Slurm forgets it some minutes after its end."""
    for _ in range(5):  # where a job is being ended, so are the commands that it calls
        done = _call(["scontrol", "--oneliner", "show", "job", job])
        if done.returncode >= 0:
            break
        time.sleep(0.2)
    values = dict(re.findall(r"(?:^|\s)(JobState|Requeue)=(\S+)", done.stdout))
    return Standing(values.get("JobState", ""), values.get("Requeue") == "1")


def requeue(job: str) -> bool:
    """Put one running ``ARRAY_TASK`` back into the queue; whether Slurm agreed."""
    return not _call(["scontrol", "requeue", job]).returncode


def cancel(jobs: Collection[int]) -> None:
    """Cancel ``jobs``, waiting or running."""
    if jobs:
        _call(["scancel", *map(str, sorted(jobs))])


def array_limit() -> int:
    """How many tasks an array may have."""
    for line in _call(["scontrol", "show", "config"]).stdout.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1000


def gpus(partition: str) -> bool:
    """Whether ``partition`` (empty: the default one) has nodes with GPUs."""
    done = _call(["sinfo", "--noheader", "--format=%P %G"])
    wanted = set(filter(None, partition.split(",")))
    for line in done.stdout.splitlines():
        name, _, resources = line.partition(" ")
        chosen = name.rstrip("*") in wanted if wanted else name.endswith("*")
        if chosen and "gpu" in resources:
            return True
    return bool(done.returncode)  # it can't say: let sbatch decide


def _call(words: Sequence[str], text: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            words, input=text, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        why = f"{words[0]} is not on this machine; Slurm's commands are needed here"
        return subprocess.CompletedProcess(list(words), 127, "", why)


def _list(jobs: Collection[int]) -> str:
    return ",".join(map(str, sorted(jobs)))


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return " ".join(lines) or f"exit {done.returncode}"
