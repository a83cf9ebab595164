"""`expc monitor`: live on a terminal, lines elsewhere, an object for scripts; a reader that harms nothing."""

from __future__ import annotations

import builtins
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expc.monitor.changes import Changes
from expc.monitor.gpu import Gpu, Gpus, read
from expc.monitor.planned import Held
from expc.monitor.watch import Watch
from expc_runtime.state import claim, process_start, read_status, write_json

MONITOR = [sys.executable, "-m", "expc", "monitor", "study", "--every", "0.1"]


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a test; none outlives it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def piped(study, begun) -> Callable[..., subprocess.Popen[str]]:
    """A monitor whose output goes to a pipe, as under nohup or tee."""

    def start(**env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            MONITOR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **env},
        )  # fmt: skip
        begun.append(process)
        return process

    return start


class Terminal:
    """A monitor in a terminal of that many columns and lines."""

    def __init__(self, columns: int = 100, lines: int = 30, **env: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # pragma: no cover
            os.environ.update({"TERM": "xterm-256color", **env})
            os.execv(MONITOR[0], MONITOR)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.seen = ""

    def until(self, text: str) -> str:
        """Read until ``text`` was seen; gives all of it."""
        end = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < end, f"never said {text!r}: {self.seen[-2000:]}"
            self._read(0.1)
        return self.seen

    def end(self) -> int:
        """Read to the end; gives the exit code."""
        limit = time.monotonic() + 60
        while self._read(0.1) and time.monotonic() < limit:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, seconds: float) -> bool:
        if self.fd in select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                return False
            self.seen += data.decode(errors="replace")
            return bool(data)
        return True


# ---------------------------------------------------------------------------------------- without a terminal


def test_without_a_terminal_a_line_tells_of_each_change(study, piped) -> None:
    study.runner()
    study.works("lr=0.1,seed=0/read", step=5, steps_target=10, seconds=1.0)
    process = piped()
    lines = iter(process.stdout.readline, "")
    assert "study: running" in next(lines)
    assert "8 stages of 4 runs: 7 pending, 1 running" in next(lines)
    assert "Run     lr=0.1,seed=0/read   50%  step 5/10" in next(lines)
    study.finish("lr=0.1,seed=0/read")
    assert re.search(r"\] Done    lr=0.1,seed=0/read", next(lines))
    study.works("lr=1,seed=0/read")
    assert "Run     lr=1,seed=0/read" in next(lines)
    study.put("lr=1,seed=0/read", "pending", reason="no memory", changed={"microbatch": 0.5})
    told = "Again   lr=1,seed=0/read  runs again  after attempt 1  microbatch=0.5  no memory"
    assert next(lines).rstrip().endswith(told)
    folder = study.put("lr=1,seed=0/read", "failed", failure="oom", reason="no memory\nat all")
    (folder / "attempt-1.log").touch()
    assert next(lines).rstrip().endswith("Failed  lr=1,seed=0/read  failed(oom)")
    assert next(lines).rstrip().endswith("  no memory")
    assert next(lines).rstrip().endswith("lr=1,seed=0/read/attempt-1.log")
    study.runner("interrupted")
    rest = "".join(lines)
    assert "study: stopped" in rest
    assert process.wait(60) == 1
    assert "\x1b" not in rest and "\r" not in rest


def test_a_stage_that_runs_is_told_once_a_minute(study) -> None:
    study.works("lr=1,seed=0/read", step=1, steps_target=10)
    watch, changes = Watch(study.source(), each=True), Changes()
    first = watch.look()
    said = [len(list(changes.lines(replace(first, time=first.time + t)))) for t in (0, 2, 59, 61)]
    assert said == [3, 0, 0, 1]


def test_the_end_of_the_sweep_ends_it_with_the_code_of_run(study, piped) -> None:
    study.runner()
    process = piped()
    assert "running" in process.stdout.readline()
    for name in study.tasks():
        study.finish(name)
    study.runner("done")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.rstrip().endswith("8 stages of 4 runs: 8 done")


def test_jobs_that_wait_between_two_stages_do_not_end_it(study, piped) -> None:
    submission = study.runs / "slurm/10/submission.json"
    submission.parent.mkdir(parents=True)
    write_json(submission, {"last": 10, "code": None})
    study.works("lr=1,seed=0/read", job="slurm 7_4")
    process = piped()
    lines = iter(process.stdout.readline, "")
    assert "study: running (slurm 10 is the last of its jobs)" in next(lines)
    study.finish("lr=1,seed=0/read")
    assert any("study: in the queue (slurm 10)" in line for line in lines)
    for name in study.tasks():
        study.finish(name)
    write_json(submission, {"last": 10, "code": 0})
    rest = "".join(lines)
    assert process.wait(60) == 0
    assert rest.rstrip().endswith("8 stages of 4 runs: 8 done")


def test_a_runner_killed_while_it_watches_is_told(study, piped, begun) -> None:
    runner = subprocess.Popen(["sleep", "600"], text=True)
    begun.append(runner)
    study.runner(runner_pid=runner.pid, runner_start=process_start(runner.pid))
    process = piped()
    assert "running" in process.stdout.readline()
    runner.kill()
    runner.wait()
    out, _ = process.communicate(timeout=60)
    assert "its runner is gone" in out and process.returncode == 1


def test_it_waits_for_a_sweep_that_has_not_begun(study, piped) -> None:
    process = piped()
    assert "not running; nothing has run" in process.stdout.readline()
    study.runner()
    assert "8 pending" in process.stdout.readline()
    assert "study: running" in process.stdout.readline()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_watching_is_quiet(study, piped, sign: int) -> None:
    study.runner()
    process = piped()
    process.stdout.readline()
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == (0 if sign == signal.SIGINT else 143)


def test_a_reader_that_goes_away_ends_it(study, piped) -> None:
    """`expc monitor | head -1`."""
    study.runner()
    process = piped()
    process.stdout.readline()
    process.stdout.close()
    study.finish("lr=1,seed=0/read")
    assert process.wait(60) == 141
    assert process.stderr.read() == ""


# -------------------------------------------------------------------------------------------- on a terminal


def test_on_a_terminal_it_is_a_screen_that_is_given_back(study) -> None:
    pytest.importorskip("rich")
    study.runner()
    log = study.works("lr=1,seed=0/read", step=3, steps_target=10) / "attempt-1.log"
    log.write_text("epoch 3: \x1b]0;evil\x07val/accuracy 0.9\n")
    terminal = Terminal()
    seen = terminal.until("val/accuracy 0.9")
    assert "\x1b[?1049h" in seen and "\x1b]0;" not in seen
    os.write(terminal.fd, b"\x03")
    assert terminal.end() == 0
    last = terminal.seen.rpartition("\x1b[?1049l")[2]
    assert "study" in last and "Traceback" not in last  # what it showed last stays


def test_a_screen_ends_with_the_sweep(study) -> None:
    pytest.importorskip("rich")
    study.runner()
    terminal = Terminal(columns=40, lines=8)
    terminal.until("running")
    study.put("lr=1,seed=0/read", "failed", failure="diverged", reason="loss is NaN")
    study.runner("interrupted")
    assert terminal.end() == 1
    assert "failed(diverged)" in terminal.seen


def test_no_colour_where_none_is_wanted(study) -> None:
    pytest.importorskip("rich")
    study.runner()
    study.works("lr=1,seed=0/read", step=3, steps_target=10)
    terminal = Terminal(NO_COLOR="1")
    terminal.until("running (heartbeat")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == 143
    assert not re.search(r"\x1b\[[0-9;]*(?<![0-9])(3|4|9|10)[0-7][;m]", terminal.seen)


def test_a_dumb_terminal_gets_lines(study) -> None:
    study.runner()
    terminal = Terminal(TERM="dumb")
    terminal.until("8 pending")
    os.write(terminal.fd, b"\x03")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.seen


def test_without_rich_it_says_so_and_gives_lines(study, expc, monkeypatch) -> None:
    study.runner()
    monkeypatch.setattr("expc.cli.monitor._terminal", lambda: True)
    monkeypatch.setattr("expc.cli.monitor.find_spec", lambda name: None)
    said = expc("monitor", "study", "--once")
    assert "rich is not installed" in said.err and "expc[runtime]" in said.err
    assert "study: running" in said.out and "\x1b" not in said.out


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 60), unicode=st.booleans())
def test_a_screen_fits_a_terminal_of_any_size(busy, width: int, height: int, unicode: bool) -> None:
    from rich.cells import cell_len

    from expc.monitor.screen import frame

    lines = frame(busy, width, height, gpus=[Gpu(0, 50, 1, 2)], unicode=unicode).plain.split("\n")
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width
    if not unicode:
        assert all(line.isascii() for line in lines)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory):
    """A snapshot with something of everything."""
    pytest.importorskip("rich")
    from expc.monitor.estimate import Left
    from expc.monitor.snapshot import Again, Failure, One, Outdated, Runner, Running, Snapshot

    states = ("pending", "running", "done", "smoke", "failed", "blocked", "skipped", "undefined")
    states = (*states, "interrupted")
    running = tuple(
        Running(
            run=f"a=very-long-name-of-a-condition-{i},seed={i}", stage="read", state=state,
            heartbeat=1.0, step=i, steps_target=10, percent=10 * i, epoch=0, rate=3.0, left=9.0,
            seconds=1.0, attempt=2, changed={"precision": "32"}, host="node", pid=1, job="slurm 1",
            devices="0", log="x", last="a last line, long enough to be cut " * 4,
        )
        for i, state in enumerate(("running", "silent", "dead") * 4)
    )  # fmt: skip
    failures = tuple(
        Failure(
            run=f"lr={i}", stage="read", state="failed(oom)", reason=f"why {i}", source="",
            attempt=1, changed={}, code=1, time=1.0, log="x",
        )
        for i in range(10)
    )  # fmt: skip
    each = tuple(
        One(f"lr={c},seed={s}/read", f"lr={c}", "read", states[(c + s) % 9], "x")
        for c in range(30)
        for s in range(3)
    )
    return Snapshot(
        experiment="study", folder="runs/study", state="running", time=100.0,
        runner=Runner(True, 1, "vm", 4, 0.0), rehearsal="1 of 2", runs=90, stages=90,
        counts=dict.fromkeys(states, 10), by_stage={}, eta=Left(60.0, 30.0, 90.0),
        running=running, failures=failures, again=(Again("a", "read", 1, {"lr": 2}, "why"),), outdated=Outdated(2, "x/read", "specs/x.yaml"),
        trouble="it is not there", each=each,
    )  # fmt: skip


def test_every_state_has_a_mark_of_its_own(busy) -> None:
    from expc.monitor import screen

    for marks in (screen._MARKS, screen._LETTERS):
        assert set(marks) == set(busy.counts)
        shown = [mark for state, mark in marks.items() if state != "smoke"]
        assert len(set(shown)) == len(shown)


# ----------------------------------------------------------------------------------------------- for scripts


def test_once_prints_an_object_and_exits_as_run_would(study, expc) -> None:
    study.runner()
    study.works("lr=1,seed=0/read")
    said = expc("monitor", "--once", "--json")
    assert (said.code, json.loads(said.out)["experiment"]) == (0, "study")
    assert json.loads(said.out).keys() == json.loads(expc("status", "study", "--json").out).keys()
    study.put("lr=1,seed=1/read", "failed", failure="oom")
    assert expc("monitor", "--once", "--json").code == 1
    assert expc("monitor", "study", "--once").code == 1


def test_an_object_takes_once(study, expc) -> None:
    said = expc("monitor", "study", "--json")
    assert said.code == 2 and "--once" in said.err


def test_there_is_nothing_to_watch(project, expc) -> None:
    assert "Nothing has run yet" in expc("monitor").err
    assert expc("monitor", "smal").code == 2


# ---------------------------------------------------------------------------------------------- harms nothing


def test_a_monitor_that_is_killed_has_held_nothing_and_written_nothing(study, piped) -> None:
    study.runner()
    study.works("lr=1,seed=0/read")
    before = {p: p.read_bytes() for p in study.runs.rglob("*") if p.is_file()}
    process = piped()
    process.stdout.readline()
    with claim(study.runs / "lr=0.1,seed=0/read", "k") as stage:  # it is nobody's
        stage.interrupt("enough")
    process.kill()
    process.wait()
    assert {p: p.read_bytes() for p in before} == before
    assert not list(study.runs.glob("**/.lock*"))[1:]


def test_files_that_come_and_go_and_are_torn_never_break_it(study) -> None:
    """Somebody rewrites, truncates and removes all there is while it looks."""
    over = threading.Event()

    def vandal() -> None:
        names, turn = [*study.tasks()], 0
        while not over.is_set():
            turn += 1
            folder = study.finish(names[turn % 8])
            whole = (folder / "status.json").read_bytes()
            (folder / "status.json").write_bytes(whole[: turn % len(whole)])
            if turn % 3 == 0:
                shutil.rmtree(folder)
            study.runner() if turn % 2 else (study.runs / "status.env").unlink(missing_ok=True)

    thread = threading.Thread(target=vandal)
    thread.start()
    try:
        watch, held = Watch(study.source(), each=True), Held(study.source())
        for _ in range(150):
            assert watch.look(held.tasks()).stages == 8
    finally:
        over.set()
        thread.join()


def test_no_file_is_opened_for_writing(study, monkeypatch) -> None:
    study.runner()
    study.works("lr=1,seed=0/read")
    stages, real = list(study.tasks().values()), os.open

    def guarded(path: object, flags: int, *rest: int, **more: int) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), path
        return real(path, flags, *rest, **more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", guarded)
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("it takes a lock"))
    opened = builtins.open

    def read_only(file: object, mode: str = "r", *rest: object, **more: object) -> object:
        assert set(mode) <= set("rbt"), file
        return opened(file, mode, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", read_only)
    monkeypatch.setattr("io.open", read_only)
    assert Watch(study.source(), each=True).look(stages).counts["running"] == 1


def test_a_recompiled_plan_is_read_anew_and_only_then(study) -> None:
    held = Held(study.source())
    first = held.tasks()
    assert held.tasks() is first
    script = study.folder / "sweep.sh"
    script.write_text(script.read_text().replace("for seed in 0 1;", "for seed in 0 1 2;"))
    os.utime(script, ns=(1, 1))
    assert len(held.tasks()) == 12


def test_of_a_plan_too_large_to_keep_what_has_begun_is_watched(study) -> None:
    study.finish("lr=1,seed=0/read")
    assert [task.name for task in Held(study.source(), most=3).tasks()] == ["lr=1,seed=0/read"]
    assert read_status(study.runs / "lr=1,seed=0/read") is not None


# -------------------------------------------------------------------------------------------------------- GPUs


def test_what_nvidia_smi_says_is_read() -> None:
    text = "0, 87, 12345, 81559\n1, [N/A], [N/A], 81559\nNo devices were found\n"
    assert list(read(text)) == [Gpu(0, 87, 12345, 81559), Gpu(1, None, None, 81559)]


@pytest.mark.parametrize("answer", ["sleep 600", "echo 'Failed to initialize NVML'; exit 9"])
def test_a_driver_that_hangs_or_fails_holds_nobody_up(
    tmp_path: Path, monkeypatch, answer: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\nexec {answer}\n" if "sleep" in answer else f"#!/bin/sh\n{answer}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("expc.monitor.gpu._PATIENCE", 0.2)
    gpus = Gpus()
    assert gpus.seen == ()
    gpus.close()
