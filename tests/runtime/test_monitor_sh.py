"""monitor.sh: bash alone reads one file; as the emitter prints it, in a folder of its own."""

import fcntl
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from expc.emit import render, shell
from expc_runtime.state import process_start, write_env

SEVEN = {
    "run_name": "lr=0.1,seed=0",
    "run_index": 3,
    "total_runs": 8,
    "step": 120,
    "steps_target": 1000,
    "percent": 12,
    "updated": "2026-01-02T03:04:05",
}
BAR = "[###---------------------------] 12%"  # 30 cells, floor(12 * 30 / 100) of them full


class Script:
    """A generated monitor.sh and the file that it reads."""

    def __init__(self, root: Path) -> None:
        self.path = root / "generated/study/monitor.sh"
        self.status = root / "runs/study/status.env"
        self.path.parent.mkdir(parents=True)
        self.status.parent.mkdir(parents=True)
        facts = shell.ShellFile.__new__(shell.ShellFile)
        for name, value in {
            "spec": "specs/study.yaml",
            "experiment": "study",
            "up": "../..",
        }.items():
            object.__setattr__(facts, name, value)
        self.path.write_text(render._shell("monitor").render(s=facts))
        self.begun: list[subprocess.Popen[str]] = []

    def say(self, **values: object) -> None:
        write_env(self.status, {**SEVEN, **values})

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["bash", str(self.path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            start_new_session=True,
        )
        self.begun.append(process)
        return process

    def run(self, *words: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    script = Script(tmp_path)
    yield script
    for process in script.begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def here(pid: int, start: int | None = None) -> dict[str, object]:
    begun = process_start(pid) if start is None else start
    return {
        "state": "running",
        "host": socket.gethostname(),
        "runner_pid": pid,
        "runner_start": begun,
    }


def test_the_line_holds_the_seven_keys(script: Script) -> None:
    script.say()
    code, out, err = script.run("--once")
    assert out == f"{BAR} lr=0.1,seed=0 (3/8) step=120/1000 updated=2026-01-02T03:04:05\n"
    assert (code, err) == (0, "")


def test_failures_and_the_time_left_are_told_where_the_file_does(script: Script) -> None:
    script.say(failed_count=2, blocked_count=1, eta_s=3725)
    assert script.run("--once")[1].rstrip().endswith("failed=2 blocked=1 left=1h02m")


@pytest.mark.parametrize(
    ("percent", "cells"), [(0, 0), (3, 0), (4, 1), (99, 29), (100, 30), (250, 30), ("x", 0)]
)
def test_the_bar_has_thirty_cells(script: Script, percent: object, cells: int) -> None:
    script.say(percent=percent)
    bar = script.run("--once")[1].partition("]")[0]
    assert bar == f"[{'#' * cells}{'-' * (30 - cells)}"


@pytest.mark.parametrize("place", ["file", "folder", "variable"])
def test_the_file_may_lie_elsewhere(script: Script, tmp_path: Path, place: str) -> None:
    other = tmp_path / "else where"
    other.mkdir()
    write_env(other / "status.env", {**SEVEN, "run_name": "other"})
    words = {"file": [str(other / "status.env")], "folder": [str(other)], "variable": []}[place]
    env = {"STATUS_FILE": str(other / "status.env")} if place == "variable" else {}
    assert " other (3/8) " in script.run("--once", *words, **env)[1]


def test_a_file_that_is_not_there_is_named(script: Script) -> None:
    assert script.run("--once") == (2, "", f"Status file not found: {script.status}\n")


def test_the_file_is_read_and_never_run(script: Script, tmp_path: Path) -> None:
    evil = f"$(touch {tmp_path}/ran)"
    script.status.write_text(
        f"run_name={evil}\nstep=a[{evil}]\npercent=a[{evil}]\nfailed_count={evil}\n{evil}=1\n"
        f"eta_s=a[{evil}]\nrunner_pid=a[{evil}]\n`touch {tmp_path}/ran`\n\x1b]0;title\x07=1\n=\n\n"
        f"state=running; touch {tmp_path}/ran\nupdated=\x1b[2Jx\nhost={evil}\ntotal_runs=09"
    )
    code, out, err = script.run("--once")
    assert not (tmp_path / "ran").exists()
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert evil in out and "(0/9)" in out


@pytest.mark.parametrize(
    ("state", "code", "told"),
    [
        ("done", 0, "The sweep is done."),
        ("failed", 1, "The sweep has ended: 2 failed, 1 blocked."),
        ("interrupted", 1, "The sweep was stopped; ./sweep.sh goes on from here."),
    ],
)
def test_it_ends_with_the_sweep(script: Script, state: str, code: int, told: str) -> None:
    script.say(state="running")
    process = script.start()
    assert BAR in process.stdout.readline()
    script.say(state=state, percent=100, failed_count=2, blocked_count=1)
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[-1] == told
    assert (process.returncode, err) == (code, "")


def test_a_runner_that_was_killed_is_told(script: Script) -> None:
    runner = subprocess.Popen(["sleep", "600"])
    script.say(**here(runner.pid))
    process = script.start()
    assert BAR in process.stdout.readline()
    runner.kill()
    runner.wait()
    out, _ = process.communicate(timeout=60)
    assert f"The runner of the sweep is gone (process {runner.pid})" in out
    assert process.returncode == 1


def test_another_process_with_the_number_of_the_runner_does_not_deceive(script: Script) -> None:
    script.say(**here(os.getpid(), start=1))
    assert script.run("--once")[0] == 1


def test_of_a_runner_on_another_machine_nothing_is_concluded(script: Script) -> None:
    script.say(**{**here(1, start=1), "host": "elsewhere"})
    assert script.run("--once")[0] == 0


def test_a_runner_that_lives_is_watched(script: Script) -> None:
    script.say(**here(os.getpid()))
    assert script.run("--once")[0] == 0


def test_without_a_terminal_a_line_is_said_when_it_changes(script: Script) -> None:
    process = script.start()
    assert process.stdout.readline() == f"Status file not found: {script.status}\n"
    for step in (1, 2):
        script.say(step=step)
        assert f"step={step}/1000" in process.stdout.readline()
    script.say(state="done", step=2)
    rest, _ = process.communicate(timeout=60)
    assert rest == "The sweep is done.\n"


def test_on_a_terminal_one_line_is_renewed_and_fits(script: Script) -> None:
    script.say()
    pid, fd = pty.fork()
    if pid == 0:  # pragma: no cover
        os.environ["TERM"] = "xterm"
        os.execvp(
            "bash", ["bash", "-c", f"until [ -e {script.path}.go ]; do :; done; . '{script.path}'"]
        )
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    Path(f"{script.path}.go").touch()
    seen = until(fd, lambda text: "(3/8)" in text)
    whole = f"\r{BAR} lr=0.1,seed=0 (3/8) step=120/1000 updated=2026-01-02T03:04:05"
    assert seen == whole[:60]  # one column stays free, else some terminals wrap
    os.write(fd, b"\x03")
    rest = until(fd, lambda text: "\n" in text)
    assert "\x1b" not in seen + rest
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def until(fd: int, enough: Callable[[str], bool]) -> str:
    """Read ``fd`` until it is enough."""
    seen, end = "", time.monotonic() + 60
    while not enough(seen):
        assert time.monotonic() < end, seen
        seen += os.read(fd, 4096).decode()
    return seen


def test_a_mistyped_option_is_refused(script: Script) -> None:
    code, _, err = script.run("--onec")
    assert code == 2 and "--onec" in err


def test_help_is_what_its_head_says(script: Script) -> None:
    code, out, _ = script.run("--help")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["./monitor.sh"] * 3
    assert "Exits with 0" in out and not re.search("^#", out, re.MULTILINE)


@pytest.mark.parametrize("tool", ["shellcheck -S style", "shfmt -d -i 2", "bash -n"])
def test_shell_tools_have_nothing_to_say(script: Script, tool: str) -> None:
    words = tool.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [*words, str(script.path)], check=False, capture_output=True, text=True
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
