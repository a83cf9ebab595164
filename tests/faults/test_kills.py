"""SIGKILL at random moments, and what else ends a process; the sweep goes on and nothing is lost.

Each case breaks one sweep several times. Its seed is the CRC of its name and is printed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

KILLS = 4
SHORT, LONG = 1, 5  # cases of each victim, in CI and in `make test-slow`


def runner(sweep, process) -> int | None:
    return process.pid


def clerk(sweep, process) -> int | None:
    return next(iter(sweep.processes("expc_runtime.sweep", "clerk")), None)


def stage(sweep, process) -> int | None:
    return sweep.stage_process()


def launcher(sweep, process) -> int | None:
    servers = sweep.processes("expc_runtime.launch", "serve")
    return min(servers, default=None)  # the forks have its command, and later pids


def cases(*victims: Callable) -> list:
    return [
        pytest.param(
            victim,
            number,
            id=f"{victim.__name__}-{number}",
            marks=[pytest.mark.slow] * (number >= SHORT),
        )
        for victim in victims
        for number in range(LONG)
    ]


@pytest.mark.parametrize(("victim", "number"), cases(runner, clerk, stage, launcher))
def test_a_killed_process_costs_at_most_the_step_it_was_in(victim, number, sweep) -> None:
    sweep.plan(runs=4)
    env = {"EXPC_LAUNCHER": "1"} if victim is launcher else {}
    struck = 0
    while struck < KILLS:
        process = sweep.start(**env)
        alive = sweep.progress(process, sweep.draw.randint(2, 6))
        while alive and struck < KILLS:
            pid = victim(sweep, process)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                struck += 1
                if victim in (runner, clerk):
                    break
            alive = sweep.progress(process, sweep.draw.randint(1, 4))
        before = struck
        sweep.settled(process)
        if process.returncode == 0:
            break
        assert struck == before
    assert struck >= (1 if victim is launcher else 2)  # a second launcher is not started
    for run in sweep.runs:
        status = sweep.root / "runs/fake" / run / "train/status.json"
        if status.exists():  # whoever was killed, a reader is told what is
            assert sweep.status(f"{run}/train").state in (
                "done",
                "interrupted",
                "failed",
                "pending",
                "running",
            )
    sweep.finish()


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] * (n >= SHORT)) for n in range(LONG)]
)
def test_all_processes_killed_at_once_as_by_a_power_cut(number: int, sweep) -> None:
    sweep.plan(runs=4)
    for _ in range(3):
        process = sweep.start()
        if not sweep.progress(process, sweep.draw.randint(2, 8)):
            break
        for pid in sweep.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        sweep.settled(process)
    sweep.finish()


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[pytest.mark.slow] * (n >= SHORT)) for n in range(LONG)]
)
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_sweep_that_is_asked_to_stop_leaves_everything_saved(
    number: int, sign: signal.Signals, sweep
) -> None:
    sweep.plan(runs=3)
    process = sweep.start()
    assert sweep.progress(process, sweep.draw.randint(2, 8))
    process.send_signal(sign)
    sweep.settled(process)
    assert process.returncode in (0, 128 + sign)
    for run in sweep.runs:
        path = sweep.root / "runs/fake" / run / "train"
        if (path / "status.json").exists():
            assert sweep.status(f"{run}/train").label in ("done", "interrupted", "pending")
    sweep.finish()


@pytest.mark.parametrize(
    "number", [pytest.param(0), *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_a_second_runner_harms_nothing_even_while_the_first_is_dying(number: int, sweep) -> None:
    sweep.plan(runs=3)
    first = sweep.start()
    assert sweep.progress(first, sweep.draw.randint(1, 4))
    code, out = sweep.run()
    assert code == 73, out
    assert "is in use by process" in out
    first.kill()
    second = sweep.start()  # at once: stages of the first may still be ending
    sweep.settled(first)
    sweep.settled(second)
    assert second.returncode in (0, 1, 73)
    sweep.finish()


@pytest.mark.parametrize(
    "number", [pytest.param(0), *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_a_killed_monitor_leaves_the_sweep_alone(number: int, sweep) -> None:
    pytest.importorskip("expc")
    sweep.plan(runs=3)
    process = sweep.start()
    for _ in range(2):
        env = {k: v for k, v in sweep.env.items() if k != "PYTHONPATH"}
        env |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        monitor = subprocess.Popen(
            [sys.executable, "-m", "expc", "monitor", "generated/fake"],
            cwd=sweep.root,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        sweep.progress(process, sweep.draw.randint(2, 10))
        monitor.kill()
        monitor.wait()
    process.communicate(timeout=60)
    assert process.returncode == 0
    sweep.finish()


@pytest.mark.parametrize(
    ("word", "calls"),
    [
        pytest.param("stage.py", range(2, 30, 9)),
        pytest.param("clerk", range(3, 40, 12)),
        pytest.param("stage.py", range(1, 60), marks=pytest.mark.slow),
        pytest.param("clerk", range(1, 60), marks=pytest.mark.slow),
    ],
)
def test_killed_at_each_call_into_the_file_system(word: str, calls: range, sweep) -> None:
    """Between any two of them: a temporary file, a renamed one, a lock just taken."""
    sweep.plan(runs=1, steps=3)
    struck = 0
    for call in calls:
        process = sweep.start(EXPC_TEST_DIE=f"{word}@{call}")
        sweep.settled(process)
        if process.returncode == 0:
            break
        struck += 1
    assert struck >= min(3, len(calls))
    sweep.finish()
