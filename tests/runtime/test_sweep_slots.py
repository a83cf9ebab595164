"""Where runs go: GPUs of their own, none that is sick, and no farther than the disk reaches."""

import importlib.util
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from expc_runtime.state.plan import Layout, Policy, Task
from expc_runtime.sweep.book import Attempt, Book
from expc_runtime.sweep.breaker import Breaker
from expc_runtime.sweep.slots import Slots, gpus


def _retries() -> ModuleType:
    """The fake stages of the tests of retries."""
    path = Path(__file__).with_name("test_sweep_retry.py")
    spec = importlib.util.spec_from_file_location("retries", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["retries"] = module
    spec.loader.exec_module(module)
    return module


retries = _retries()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Any]:
    project = retries.Project(tmp_path)
    yield project
    for process in project.begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc)
  MIG 3g.20gb     Device  1: (UUID: MIG-dddd)
"""


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    """An environment whose nvidia-smi is that."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_gpus_are_those_that_the_machine_or_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = nvidia_smi(tmp_path, f"cat <<'END'\n{LISTED}END")
    monkeypatch.setenv("PATH", listed["PATH"])
    assert gpus({}) == ["0", "MIG-cccc", "MIG-dddd"]
    assert gpus({"CUDA_VISIBLE_DEVICES": "1,GPU-aaaa"}) == ["1", "GPU-aaaa"]
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert gpus({"CUDA_VISIBLE_DEVICES": "0,-1,1"}) == ["0"]
    assert gpus({"GPUS": "2, 3", "CUDA_VISIBLE_DEVICES": "0"}) == ["2", "3"]
    nvidia_smi(tmp_path, "echo 'no driver' >&2; exit 9")
    assert gpus({}) == []


def test_there_are_as_many_jobs_as_fit_and_more_only_if_somebody_says_so() -> None:
    def at_once(slots: Slots, devices: int = 1) -> list[str]:
        taken = []
        while len(taken) < slots.jobs and (place := slots.take(slots.wanted(devices, cpu=False))):
            taken.append(",".join(slot.gpu for slot in place))
        return taken

    assert at_once(Slots([], None)) == [""]
    assert at_once(Slots([], 3)) == ["", "", ""]
    assert at_once(Slots(["0", "1", "2"], None)) == ["0", "1", "2"]
    assert at_once(Slots(["0", "1", "2"], None), devices=2) == ["0,1"]
    assert at_once(Slots(["0", "1"], 3)) == ["0", "1", "0"]
    assert at_once(Slots(["0", "1"], 1)) == ["0"]
    assert Slots(["0", "1"], None).wanted(2, cpu=True) == 0  # such a run needs no GPU


def test_each_run_gets_gpus_of_its_own_and_its_status_says_which(project: Any) -> None:
    project.plan(
        *(f"run {i} 0; stage read stage.py -- --seed {i}" for i in range(4)),
        "run cpu 0; stage read stage.py -- --device cpu --seed 9",
    )
    code, out = project.sweep(GPUS="2,5", OMP_NUM_THREADS="")
    assert code == 0, out
    given = [project.result(f"{i},seed=0/read").config["CUDA_VISIBLE_DEVICES"] for i in range(4)]
    assert sorted(set(given)) == ["2", "5"]
    assert [project.status(f"{i},seed=0/read").devices for i in range(4)] == given
    cores = len(os.sched_getaffinity(0))
    threads = project.result("0,seed=0/read").config["OMP_NUM_THREADS"]
    assert threads == str(max(1, cores // 2))
    log = (project.stage("0,seed=0/read") / "attempt-1.log").read_text()
    assert log.startswith(f"$ CUDA_VISIBLE_DEVICES={given[0]} {sys.executable} ")
    assert project.result("cpu,seed=0/read").config["CUDA_VISIBLE_DEVICES"] is None


def test_without_gpus_nothing_is_said_of_them(project: Any) -> None:
    project.plan("run '' 0; stage read stage.py --")
    code, _ = project.sweep(**nvidia_smi(project.root / "bin", "exit 9"))
    assert code == 0
    assert project.result("seed=0/read").config["CUDA_VISIBLE_DEVICES"] is None
    assert project.status("seed=0/read").devices == ""


def test_a_stage_for_more_gpus_than_there_are_fails_alone(project: Any) -> None:
    project.plan(
        "run '' 0; stage read stage.py --",
        "stage big stage.py -- --seed 3",
        "stage two stage.py --after big -- --parent big --seed 1",
    )
    project.policy("limit big --devices 2")
    code, out = project.sweep(GPUS="0")
    assert code == 1
    assert project.status("seed=0/read").label == "done"
    assert project.status("seed=0/big").label == "failed(bad_value)"
    assert "big takes 2 GPUs, and there are 1" in out
    assert project.status("seed=0/two").label == "blocked(big)"


def test_several_devices_are_torchruns(tmp_path: Path) -> None:
    task = Task(1, "r", "", "0", "s", argv=("py", "m.py", "--lr", "1"), policy=Policy(devices=2))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    book = Book(Layout("x", "generated/x"))
    assert book.command(Attempt(task, 1)) == ("py", *torchrun, "m.py", "--lr", "1")


DEAD = """\
$ python -m torch.distributed.run --standalone --nproc-per-node 2 m.py
ValueError: no such column: digit
E1121 21:03:28.95 26861 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {0})
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
======================================================
m.py FAILED
------------------------------------------------------
Failures:
[1]:
  exitcode  : -15 (pid: 26992)  (SIGTERM)
------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_21:03:28
  rank      : 0 (local_rank: 0)
  exitcode  : {0} (pid: 26991)
  error_file: <N/A>
======================================================
"""


@pytest.mark.parametrize(
    ("code", "label", "reason"),
    [
        (-9, "failed(killed)", "ended by SIGKILL"),
        (1, "failed(crash)", "ValueError: no such column: digit"),
        (75, "interrupted", "ValueError: no such column: digit"),
    ],
)
def test_what_ended_the_ranks_is_what_ended_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, label: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    book = Book(Layout("x", "generated/x"))
    task = Task(1, "r", "", "0", "s", key="k", policy=Policy(devices=2))
    attempt = book.begin(task)
    book.log(attempt).write_text(DEAD.format(code))
    status = book.verdict(attempt, 1)
    assert (status.label, status.reason) == (label, reason)


def test_a_sick_gpu_is_taken_out_and_loses_nothing(project: Any) -> None:
    project.plan(
        *(f"run {i} 0; stage read stage.py -- --do sick --seed {i}; "
          f"stage two stage.py --after read -- --parent read --seed {i}" for i in range(8)),
    )  # fmt: skip
    code, out = project.sweep(GPUS="0,1")
    assert code == 0, out
    assert "GPU 1 is out: crash 3 times in a row there, while GPU 0 finished others" in out
    assert "3 run again elsewhere" in out
    assert len(project.events("requeued")) == 3
    assert "crash on GPU 1, which is out" in project.events("requeued")[0]["reason"]
    assert "16 done in" in out


def test_a_bad_module_costs_no_gpu(project: Any) -> None:
    project.plan(
        *(f"run {i} 0; stage read stage.py -- --do bad --seed {i}; "
          f"stage good stage.py -- --seed {i}" for i in range(6)),
    )  # fmt: skip
    code, out = project.sweep(GPUS="0,1")
    assert code == 1
    assert "6 done, 6 failed in" in out
    assert out.count(" is out: ") == out.count(" is back: ")


def test_where_all_fail_alike_the_sweep_goes_on(project: Any) -> None:
    project.plan(*(f"run {i} 0; stage read stage.py -- --do bad --seed {i}" for i in range(7)))
    for jobs in ("1", "2"):
        code, out = project.sweep(JOBS=jobs)
        assert code == 1
        assert "7 failed in" in out and "is out" not in out
        assert all(n == int(jobs) for n in Counter(project.started()).values())


def test_a_full_disk_stops_the_sweep_and_leaves_the_rest_pending(project: Any) -> None:
    project.plan(*(f"run {i} 0; stage read stage.py -- --do full --seed {i}" for i in range(5)))
    code, out = project.sweep()
    assert code == 1
    assert len(project.started()) == 2
    assert "the disk is full (No space left on device); what has not begun is left" in out
    assert "3 pending, 2 failed in" in out


def test_nohup_keeps_a_sweep_alive_when_its_terminal_goes(project: Any) -> None:
    project.plan("run '' 0; stage read stage.py -- --do slow")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it to its child
    try:
        process = project.start()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    running = project.stage("seed=0/read") / "began-0"
    retries.sweeps.wait_for(running.exists, "running stage")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    log = project.root / "runs/fake/sweep.log"
    retries.sweeps.wait_for(lambda: "Status  0 of 1 settled" in log.read_text(), "status line")
    assert "Stop" not in log.read_text()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def judged(*runs: tuple[int, str, str]) -> tuple[Breaker, Slots, list[str], list[list[str]]]:
    """What comes of runs that end one after another: slot, stage, failure (or none)."""
    slots = Slots(["0", "1", "2"], None)
    breaker, settled, again = Breaker(slots), [], []
    for now, (number, key, failure) in enumerate(runs):
        place = (slots.all[number],)
        if not failure:
            breaker.worked(place, key, float(now))
            continue
        task = Task(1, key, "", "", "s", key=key)
        breaker.acquit(task, failure)
        trip = breaker.failed(place, task, failure, now - 0.5, lambda key=key: settled.append(key))
        if trip is not None:
            again.append([task.key for task in trip.tasks])
    return breaker, slots, settled, again


def test_a_breaker_blames_a_slot_only_for_what_others_do_not() -> None:
    sick = [(1, "a", "crash"), (0, "x", ""), (1, "b", "crash"), (1, "c", "crash")]
    _, slots, settled, again = judged(*sick)
    assert ([slot.name for slot in slots.good], settled) == (["GPU 0", "GPU 2"], [])
    assert again == [["a", "b", "c"]]

    # One of them fails elsewhere just so: the stage is bad, the slot is back.
    _, slots, _, _ = judged(*sick, (0, "b", "crash"))
    assert len(slots.good) == 3

    for runs, stand in (
        ([(1, "a", "crash"), (1, "b", "crash"), (1, "c", "crash")], []),  # who knows yet
        ([(1, "a", "crash"), (0, "x", ""), (1, "y", ""), (1, "b", "crash")], ["a"]),
        ([(1, "a", "crash"), (0, "x", ""), (1, "b", "oom"), (1, "c", "crash")], ["a", "b"]),
        ([(1, k, "diverged") for k in "abc"], ["a", "b", "c"]),  # no machine diverges
        ([(1, "a", "killed"), (0, "x", ""), (1, "a", "killed"), (1, "a", "killed")], []),
        ([(1, k, "crash") for k in "abcd"], ["a"]),
    ):
        breaker, slots, settled, again = judged(*runs)
        assert (len(slots.good), settled, again) == (3, stand, []), runs
        breaker.settle()
        assert sorted(settled) == sorted({k for _, k, failure in runs if failure})


def test_a_breaker_keeps_as_many_slots_as_the_widest_stage_takes() -> None:
    slots = Slots(["0", "1"], None)
    breaker = Breaker(slots, keep=2)
    for now, key in enumerate("abc"):
        breaker.worked(slots.all[:1], "x", float(now))
        task = Task(1, key, "", "", "s", key=key)
        assert breaker.failed(slots.all[1:], task, "crash", now - 0.5, lambda: None) is None
    assert len(slots.good) == 2
