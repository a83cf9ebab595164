"""A command in a process group of its own: what reaches it, what it returns, what is left of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import expc_runtime
from expc_runtime.state import alive, process_start
from expc_runtime.sweep import leash

RUNTIME = str(Path(expc_runtime.__file__).parent.parent)

SAVES = "trap 'echo saved; exit 75' TERM; trap 'echo asked to save' USR1; echo there; "
SAVES += "while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo there; while :; do sleep 0.05; done"


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def begin(started: list["subprocess.Popen[bytes]"], log: Path, script: str, grace: str = "60"):
    command = [sys.executable, "-m", "expc_runtime.sweep.leash", str(log), grace]
    process = subprocess.Popen(
        [*command, "bash", "-c", script],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": RUNTIME},
    )
    started.append(process)
    until(log, "there")
    return process


def until(log: Path, word: str) -> None:
    deadline = time.monotonic() + 60
    while not log.exists() or word not in log.read_text().splitlines():
        assert time.monotonic() < deadline, f"no {word}"
        time.sleep(0.02)


def test_its_exit_code_is_the_command_s(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert leash.run(["bash", "-c", "echo out; echo err >&2; exit 7"], log).code == 7
    assert log.read_text() == "$ bash -c 'echo out; echo err >&2; exit 7'\nout\nerr\n"
    assert leash.run(["bash", "-c", "kill -KILL $$"], log).code == 137
    assert leash.run([str(tmp_path / "nothing")], log).code == 127
    assert "No such file" in log.read_text()


def test_its_time_is_up(tmp_path: Path) -> None:
    ended = leash.run(["bash", "-c", SAVES], tmp_path / "log", timeout=0.5)
    assert (ended.timed_out, ended.asked) == (True, False)
    assert ended.code in (75, 143)  # 143: before bash had set its trap
    ended = leash.run(["bash", "-c", STUBBORN], tmp_path / "log", timeout=0.5, grace=0.2)
    assert ended.timed_out and ended.code in (137, 143)


def test_nothing_outlives_the_leader(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 600 & echo $! > {tmp_path / 'pid'}; exit 0"
    assert leash.run(["bash", "-c", script], tmp_path / "log").code == 0
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while (
        alive(pid, process_start(pid))
        and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    ):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_whatever_asks_it_to_stop_reaches_the_group_as_term(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"], number: int
) -> None:
    process = begin(started, tmp_path / "log", SAVES)
    process.send_signal(signal.SIGUSR1)
    until(tmp_path / "log", "asked to save")
    process.send_signal(number)
    assert process.wait(60) == 75
    assert "saved" in (tmp_path / "log").read_text().splitlines()


def test_quit_kills(tmp_path: Path, started: list["subprocess.Popen[bytes]"]) -> None:
    process = begin(started, tmp_path / "log", STUBBORN)
    process.send_signal(signal.SIGQUIT)
    assert process.wait(60) == 137


def test_it_ends_with_its_owner_even_if_its_relay_is_killed_first(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    process = begin(started, tmp_path / "log", SAVES)
    process.kill()
    assert process.stdin is not None
    process.stdin.close()
    until(tmp_path / "log", "saved")
