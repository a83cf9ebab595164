"""A sweep on a real Ray: a worker that dies, a driver that is stopped or killed; nothing stays behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expc_runtime.state import alive, process_start

Wait = Callable[..., None]

TWO = (
    "run a 0",
    "stage read stage.py -- --do hang",
    "run b 0",
    "stage read stage.py -- --do hang --lr 2",
)


def hanging(project: Any, wait_for: Wait, name: str) -> tuple[int, int]:
    """Wait until stage ``name`` hangs; its process and when that began."""
    file = project.stage(name) / "hangs"
    wait_for(lambda: file.exists() and file.read_text(), f"hanging {name}")
    pid = int(file.read_text())
    return pid, process_start(pid)


def above(pid: int) -> list[int]:
    """The leash of a stage, its relay, and Ray's worker."""
    found = [pid]
    for _ in range(3):
        stat = Path(f"/proc/{found[-1]}/stat").read_text()
        found.append(int(stat.rpartition(")")[2].split()[1]))
    return found[1:]


def gone(*processes: tuple[int, int]) -> bool:
    return not any(alive(pid, start) and not zombie(pid) for pid, start in processes)


def zombie(pid: int) -> bool:
    """Dead, and nobody has asked how: a container may have no init that does."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_dead_worker_is_one_failed_attempt_and_a_signal_saves_the_rest(
    ray: None, project: Any, wait_for: Wait
) -> None:
    project.plan(*TWO)
    process = project.start("ray.sh", "--jobs", "2")
    first = hanging(project, wait_for, "a,seed=0/read")
    second = hanging(project, wait_for, "b,seed=0/read")
    os.kill(above(first[0])[-1], signal.SIGKILL)  # the worker; what it ran is asked to save
    wait_for(lambda: project.label("a,seed=0/read") == "done", "second attempt")
    assert project.status("a,seed=0/read").attempt == 2
    assert gone(first)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert project.label("b,seed=0/read") == "interrupted"
    assert project.status("b,seed=0/read").reason == "asked to stop at step 5; saved"
    assert gone(second)
    assert "the worker died" in (project.stage("a,seed=0/read") / "attempt-1.log").read_text()


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_behind(ray: None, project: Any, wait_for: Wait) -> None:
    project.plan(*TWO[:2])
    process = project.start("ray.sh")
    stage = hanging(project, wait_for, "a,seed=0/read")
    watched = [stage, *((pid, process_start(pid)) for pid in above(stage[0]))]
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: gone(*watched), "end of what it ran")
    assert project.label("a,seed=0/read") == "interrupted"  # it had the time to save
    code, out = project.run("ray.sh")
    assert code == 0, out
    assert project.status("a,seed=0/read").attempt == 2


@pytest.mark.slow
def test_what_no_node_carries_is_told_at_once(ray: None, project: Any) -> None:
    project.plan("run a 0", "stage read stage.py --")
    project.ask(ray=("job read --cpus 4096",))
    code, out = project.run("ray.sh")
    assert code == 2
    assert "no node of the cluster carries stage read: it asks for 4096 CPUs" in out
    code, out = project.run("ray.sh", RAY_ADDRESS="auto")
    assert code == 2
    assert "no cluster of Ray at auto" in out and "ray start --head" in out
