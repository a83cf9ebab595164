"""The sweep runner, driven for real: bash, processes, signals; stages that do as their flags say."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import expc_runtime
from expc_runtime.state import alive, process_start, read_env, read_result, read_status
from expc_runtime.state.records import Result, Status

RUNTIME = Path(expc_runtime.__file__).parent

STAGE = '''
import json, os, signal, subprocess, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.flags import Run, parse
from expc_runtime.state import Result, claim, identity, parent_key

PROGRAM = "0123456789ab"


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/fake/by_hand/read"
    do: str = "finish"
    lr: float = 0.001
    text: str = ""
    parent: str = ""


def main(cfg):
    if cfg.do == "crash":
        raise ValueError("no such column: digit")
    if cfg.do == "crash_once" and not Path("mended").exists():
        raise ValueError("not mended")
    out = Path(cfg.out)
    parents = {cfg.parent: parent_key(out, cfg.parent)} if cfg.parent else {}
    key = identity(PROGRAM, asdict(cfg), parents)
    with claim(out, key, program=PROGRAM, module=__file__) as stage:
        stage.beat(step=3, steps_target=10, epoch=0)
        if cfg.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if cfg.do == "silent":
            os._exit(0)
        if cfg.do == "diverge":
            stage.fail("diverged", "loss is NaN at step 3", code=65, source="specs/x.yaml:4:9")
            return 65
        if cfg.do == "gate":
            stage.fail("gate", "val/accuracy 0.42, needs 0.9", code=3)
            return 3
        if cfg.do in ("hang", "stubborn"):
            return hang(cfg, stage, out)
        if cfg.do == "meet":
            meet(out)
        gate = {"met": False, "otherwise": "stop"} if cfg.do == "stop" else {}
        state = "undefined" if cfg.do == "undefined" else "smoke" if cfg.smoke else "done"
        stage.finish(Result(
            state=state,
            reason="no boundary was found" if cfg.do == "undefined" else "",
            metrics={"test/accuracy": 0.9 + cfg.seed / 100},
            floors={"test/accuracy": 0.1},
            gate=gate,
            extra={"argv": sys.argv, "text": cfg.text, "fds": open_descriptors()},
        ))
    return 9 if cfg.do == "late" else 0


def open_descriptors():
    """All but the folder lock's."""
    numbers = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
    files = {n: os.readlink(f"/proc/self/fd/{n}") for n in numbers}
    return sorted(n for n, file in files.items() if not file.endswith("/read/.lock"))


def hang(cfg, stage, out):
    """Wait for TERM with a child in the group; save and exit 75, or ignore the signal."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1) if cfg.do == "hang" else None)
    worker = subprocess.Popen([sys.executable, "-S", "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
    (out / "pids").write_text(f"{os.getpid()} {worker.pid}")
    while not asked:
        time.sleep(0.02)
    (out / "saved").touch()
    stage.interrupt("asked to stop; saved at step 3")
    return 75


def meet(out):
    """Be there until somebody else is; keep a record of how many were there at once."""
    place = Path("meeting")
    place.mkdir(exist_ok=True)
    mine = place / str(os.getpid())
    mine.touch()
    deadline = time.monotonic() + 20
    most = 0
    while most < 2 and time.monotonic() < deadline:
        most = max(most, len(list(place.iterdir())))
        time.sleep(0.01)
    time.sleep(0.1)
    most = max(most, len(list(place.iterdir())))
    Path(f"most-{os.getpid()}").write_text(str(most))
    mine.unlink()


if __name__ == "__main__":
    raise SystemExit(main(parse(Config)))
'''

SWEEP = """#!/usr/bin/env bash
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 2  # the project root

experiment=fake
folder=generated/fake

runs() {
%s
}

source "$("${PYTHON:-python}" -m expc_runtime.sweep)" && sweep "$@"
"""


class Project:
    """A project in a folder of its own with one sweep of fake stages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "generated/fake"
        self.folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (self.folder / "stage.py").write_text(STAGE)
        self.env = os.environ | {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(RUNTIME.parent),
            "EXPC_LAUNCHER": "0",
            "EXPC_GRACE": "20",
        }
        self.begun: list[subprocess.Popen[str]] = []

    def plan(self, *lines: str) -> None:
        (self.folder / "sweep.sh").write_text(SWEEP % "\n".join(f"  {line}" for line in lines))

    rehearsed = False
    """Whether sweeps begin with a smoke run of what has never run."""

    def start(self, *args: str, **env: str) -> "subprocess.Popen[str]":
        words = args if self.rehearsed else ("--no-smoke", *args)
        process = subprocess.Popen(
            ["bash", str(self.folder / "sweep.sh"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env | env,
            start_new_session=True,
        )
        self.begun.append(process)
        return process

    def sweep(self, *args: str, **env: str) -> tuple[int, str]:
        process = self.start(*args, **env)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def stage(self, name: str) -> Path:
        return self.root / "runs/fake" / name

    def status(self, name: str) -> Status:
        status = read_status(self.stage(name))
        assert status is not None, name
        return status

    def result(self, name: str) -> Result:
        result = read_result(self.stage(name))
        assert result is not None, name
        return result

    def started(self) -> list[str]:
        """``run/stage`` of every attempt so far, in order."""
        lines = (self.root / "runs/fake/events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [f"{e['run']}/{e['stage']}" for e in events if e["event"] == "start"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    for process in project.begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(there: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def hanging(project: Project, name: str) -> list[tuple[int, int]]:
    """Wait until stage ``name`` hangs; its process and its worker, each with its start time."""
    file = project.stage(name) / "pids"
    wait_for(lambda: file.exists() and len(file.read_text().split()) == 2, f"hanging {name}")
    return [(int(pid), process_start(int(pid))) for pid in file.read_text().split()]


def gone(processes: list[tuple[int, int]]) -> bool:
    return not any(alive(pid, start) and not zombie(pid) for pid, start in processes)


def zombie(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_goes_on_past_failures_and_says_why(project: Project) -> None:
    project.plan(
        "run lr=a 0",
        "stage read stage.py -- --do crash",
        "stage two stage.py --after read -- --parent read",
        "run lr=b 0",
        "stage read stage.py -- --do diverge",
        "run lr=c 0",
        "stage read stage.py -- --do kill",
        "run lr=d 0",
        "stage read stage.py -- --do silent",
        "run lr=e 0",
        "stage read stage.py -- --do late",
        "stage two stage.py --after read -- --parent read",
        "skip three 'not for this one'",
        "stage four stage.py --after three -- --parent three",
    )
    code, out = project.sweep()
    assert code == 1
    labels = {
        "lr=a,seed=0/read": ("failed(crash)", 1, "ValueError: no such column: digit"),
        "lr=a,seed=0/two": ("blocked(read)", None, "read is failed(crash)"),
        "lr=b,seed=0/read": ("failed(diverged)", 65, "loss is NaN at step 3"),
        "lr=c,seed=0/read": ("failed(killed)", 137, "ended by SIGKILL"),
        "lr=d,seed=0/read": ("failed(unproved)", 0, "exit 0, but it wrote no result.json"),
        "lr=e,seed=0/read": ("done", 0, ""),  # its result counts, not what happened after
        "lr=e,seed=0/two": ("done", 0, ""),
        "lr=e,seed=0/three": ("skipped", None, "not for this one"),
        "lr=e,seed=0/four": ("skipped", None, "three is skipped"),
    }
    for name, expected in labels.items():
        status = project.status(name)
        assert (status.label, status.code, status.reason) == expected, name
        if status.reason:
            assert status.reason in out
    assert "(exit 9 after its result)" in out
    assert "2 done, 4 failed, 1 blocked, 2 skipped" in out
    env = read_env(project.root / "runs/fake/status.env")
    seven = ["run_name", "run_index", "total_runs", "step", "steps_target", "percent", "updated"]
    assert list(env)[:7] == seven
    assert (env["run_index"], env["total_runs"], env["state"]) == ("5", "5", "failed")
    assert (env["failed_count"], env["skipped_count"], env["done_count"]) == ("4", "2", "2")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", env["updated"])


def test_a_second_start_runs_only_what_is_not_proved_done(project: Project) -> None:
    project.plan(
        "run '' 0",
        "stage read stage.py -- --seed 0",
        "run '' 1",
        "stage read stage.py -- --seed 1 --do crash_once",
        "stage two stage.py --after read -- --seed 1 --parent read",
        "run '' 2",
        "stage read stage.py -- --seed 2 --do silent",
        "run '' 3",
        "stage read stage.py -- --seed 3 --do gate",
    )
    assert project.sweep()[0] == 1
    first = project.started()
    (project.root / "mended").touch()
    assert project.sweep()[0] == 1
    again = project.started()[len(first) :]
    # Exit 0 without a result is no proof; a gate that was not met would not be met again.
    assert again == ["seed=1/read", "seed=1/two", "seed=2/read"]
    assert project.status("seed=1/read").attempt == 2
    assert (project.stage("seed=1/read") / "attempt-1.log").exists()
    assert (project.stage("seed=1/read") / "attempt-2.log").exists()
    assert project.status("seed=1/two").label == "done"
    assert project.status("seed=3/read").label == "failed(gate)"


def test_a_damaged_result_is_no_proof(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py --")
    assert project.sweep()[0] == 0
    assert project.sweep()[0] == 0
    assert len(project.started()) == 1
    result = project.stage("seed=0/read") / "result.json"
    result.write_text(result.read_text()[:-20])
    assert project.sweep()[0] == 0
    assert len(project.started()) == 2


def test_other_values_start_anew_and_keep_the_old_folder(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --lr 1e-3")
    project.sweep()
    old = project.result("seed=0/read").key
    project.plan("run '' 0", "stage read stage.py -- --lr 0.001")
    project.sweep()
    assert len(project.started()) == 1  # the same number, written otherwise
    project.plan("run '' 0", "stage read stage.py -- --lr 0.002")
    assert project.sweep()[0] == 0
    assert project.result("seed=0/read").key != old
    kept = read_result(project.stage(f"seed=0/read.was-{old[:8]}"))
    assert kept is not None and kept.key == old


def test_equal_stages_run_once(project: Project) -> None:
    project.plan(
        "for lr in 1 2 3; do for seed in 0 1; do",
        'run "lr=$lr" "$seed"',
        'stage read stage.py -- --seed "$seed"',
        'stage two stage.py --after read -- --seed "$seed" --lr "$lr" --parent read',
        "done; done",
    )
    code, out = project.sweep(JOBS="3")
    assert code == 0, out
    assert sorted(project.started()) == sorted(
        ["lr=1,seed=0/read", "lr=1,seed=1/read"]
        + [f"lr={lr},seed={seed}/two" for lr in (1, 2, 3) for seed in (0, 1)]
    )
    assert project.status("lr=3,seed=1/read").same_as == "lr=1,seed=1/read"
    parents = {project.result(f"lr={lr},seed=1/two").key for lr in (1, 2, 3)}
    assert len(parents) == 3
    assert project.sweep()[0] == 0
    assert len(project.started()) == 8
    # A condition put in front finds the instance where it is.
    project.plan("run lr=0 1", "stage read stage.py -- --seed 1")
    assert project.sweep()[0] == 0


def test_a_failed_stage_blocks_every_run_that_shares_it(project: Project) -> None:
    project.plan(
        "for lr in 1 2; do",
        'run "lr=$lr" 0',
        "stage read stage.py -- --do diverge",
        'stage two stage.py --after read -- --lr "$lr" --parent read',
        "done",
    )
    assert project.sweep()[0] == 1
    assert project.started() == ["lr=1,seed=0/read"]
    assert project.status("lr=2,seed=0/read").label == "failed(diverged)"
    assert project.status("lr=2,seed=0/two").label == "blocked(read)"


def test_gate_that_stops_skips_dependants_and_undefined_blocks_them(project: Project) -> None:
    project.plan(
        "run a 0",
        "stage read stage.py -- --do stop",
        "stage two stage.py --after read -- --parent read",
        "stage three stage.py --after two -- --parent two",
    )
    assert project.sweep()[0] == 0
    assert project.status("a,seed=0/read").label == "done"
    assert project.status("a,seed=0/two").label == "skipped(gate)"
    assert project.status("a,seed=0/three").label == "skipped(gate)"
    project.plan(
        "run b 0",
        "stage read stage.py -- --do undefined",
        "stage two stage.py --after read -- --parent read",
    )
    code, out = project.sweep()
    assert code == 1
    assert project.status("b,seed=0/read").label == "undefined"
    assert project.status("b,seed=0/two").label == "blocked(read)"
    assert "no boundary was found" in out


AWKWARD = "a 'b' \"c\" $HOME `id` \\ * ü\nnew/line --do crash"


def test_listed_commands_are_the_ones_that_run(project: Project) -> None:
    project.plan(
        f"run {shlex.quote('text=' + AWKWARD)} 0",
        f"stage read stage.py -- --text {shlex.quote(AWKWARD)}",
        f"run {shlex.quote('text=' + AWKWARD)} 1",
        f"stage read stage.py -- --text {shlex.quote(AWKWARD)}",
        f"stage two stage.py -- --lr 5 --text={shlex.quote(AWKWARD)}",
    )
    code, listed = project.sweep("--list")
    assert code == 0
    assert not (project.root / "runs").exists()
    words = shlex.split(listed)
    assert words.count(sys.executable) == 2  # the repeated stage is listed once
    assert project.sweep()[0] == 0
    results = [read_result(p.parent) for p in project.root.glob("runs/fake/*/*/result.json")]
    ran = sorted([sys.executable, *r.extra["argv"]] for r in results if r)
    second = words.index(sys.executable, 1)
    assert sorted([words[:second], words[second:]]) == ran
    assert {r.extra["text"] for r in results if r} == {AWKWARD}
    # A listed command works by hand, from the root, and knows that it is done.
    shutil.rmtree(project.root / "runs")
    by_hand = subprocess.run(["bash", "-c", listed], cwd=project.root, env=project.env, check=False)
    assert by_hand.returncode == 0
    assert project.sweep()[1].count("Start") == 0


def test_stage_gets_its_own_log_and_no_descriptor_of_the_runner(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py --")
    assert project.sweep()[0] == 0
    # A lock or a pipe of the runner in a stage's hands would outlive the runner.
    assert project.result("seed=0/read").extra["fds"] == ["0", "1", "2"]
    log = (project.stage("seed=0/read") / "attempt-1.log").read_text()
    assert log.startswith(f"$ {sys.executable} generated/fake/stage.py --out runs/fake/seed=0/read")


def test_jobs_run_at_the_same_time_and_no_more_than_that(project: Project) -> None:
    project.plan(
        "for seed in 0 1 2 3; do",
        'run "" "$seed"',
        'stage read stage.py -- --seed "$seed" --do meet',
        "done",
    )
    code, out = project.sweep("--jobs", "2")
    assert code == 0, out
    assert [p.read_text() for p in project.root.glob("most-*")] == ["2"] * 4


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_lets_stages_save_and_leaves_nothing_behind(
    project: Project, sign: signal.Signals, code: int
) -> None:
    project.plan(
        "for seed in 0 1 2; do",
        'run "" "$seed"',
        'stage read stage.py -- --seed "$seed" --do hang',
        'stage two stage.py --after read -- --seed "$seed" --parent read',
        "done",
    )
    process = project.start("--jobs", "2")
    processes = hanging(project, "seed=0/read") + hanging(project, "seed=1/read")
    os.killpg(process.pid, sign)  # as a terminal does: to every process in the foreground
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code, out
    assert gone(processes)
    for seed in (0, 1):
        assert (project.stage(f"seed={seed}/read") / "saved").exists()
        status = project.status(f"seed={seed}/read")
        assert (status.label, status.reason) == ("interrupted", "asked to stop; saved at step 3")
    assert not project.stage("seed=2/read").exists()
    env = read_env(project.root / "runs/fake/status.env")
    assert env["state"] == "interrupted"
    assert "1 pending, 2 interrupted" in out


def test_second_signal_does_not_wait(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --do stubborn")
    process = project.start(EXPC_GRACE="600")
    processes = hanging(project, "seed=0/read")
    process.send_signal(signal.SIGTERM)
    log = project.root / "runs/fake/sweep.log"
    wait_for(lambda: "Stop" in log.read_text(), "answer to the first signal")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143, out
    assert gone(processes)
    assert project.status("seed=0/read").label == "interrupted"


def test_grace_ends_in_a_kill(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --do stubborn")
    process = project.start(EXPC_GRACE="1")
    processes = hanging(project, "seed=0/read")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert gone(processes)


def test_killed_sweep_leaves_no_orphan(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --do hang")
    process = project.start(EXPC_GRACE="1")
    processes = hanging(project, "seed=0/read")
    process.kill()  # the shell alone; the stage is in a group of its own
    wait_for(lambda: gone(processes[:1]), "end of the stage")
    wait_for(lambda: project.status("seed=0/read").state == "interrupted", "interrupted status")
    env = project.root / "runs/fake/status.env"
    wait_for(lambda: read_env(env)["state"] == "interrupted", "final status.env")
    wait_for(lambda: gone(processes), "end of the stage's worker")


def test_second_runner_on_the_same_root_is_told_who_has_it(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --do hang")
    first = project.start()
    hanging(project, "seed=0/read")
    code, out = project.sweep()
    assert code == 73
    assert "Locked" in out and "runs/fake" in out and f"process {first.pid} " in out
    assert project.sweep("--status")[0] == 0  # looking is free
    first.terminate()
    first.communicate(timeout=30)
    project.plan("run '' 0", "stage read stage.py --")
    assert project.sweep()[0] == 0  # nothing stale to remove


def test_stage_held_by_another_process_fails_alone(project: Project) -> None:
    project.plan(
        "run '' 0",
        "stage read stage.py -- --do hang",
        "run '' 1",
        "stage read stage.py -- --seed 1",
    )
    listed = project.sweep("--list")[1].splitlines()[0]
    by_hand = subprocess.Popen(
        shlex.split(listed), cwd=project.root, env=project.env, start_new_session=True
    )
    try:
        hanging(project, "seed=0/read")
        code, out = project.sweep()
        assert code == 1
        assert "locked" in out and f"process {by_hand.pid} " in out
        assert project.status("seed=0/read").state == "running"  # its own word stands
        assert project.status("seed=1/read").label == "done"
    finally:
        by_hand.terminate()
        assert by_hand.wait(timeout=20) == 75
        os.killpg(by_hand.pid, signal.SIGKILL)  # its child ignores TERM


def test_a_root_that_cannot_be_written_is_a_line(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py --")
    (project.root / "runs/fake/.lock").mkdir(parents=True)
    assert project.sweep() == (74, "sweep: runs/fake/.lock cannot be written\n")


def test_a_stage_folder_that_cannot_be_made_fails_alone(project: Project) -> None:
    project.plan("for s in 0 1; do", 'run "" "$s"', 'stage read stage.py -- --seed "$s"', "done")
    project.stage("").mkdir(parents=True)
    project.stage("seed=0").touch()
    code, out = project.sweep()
    assert code == 1
    assert "runs/fake/seed=0/read cannot be worked in: Not a directory" in out
    assert project.status("seed=1/read").label == "done"


def test_state_that_cannot_be_written_ends_the_sweep_and_says_why(project: Project) -> None:
    project.plan(
        "for s in 0 1; do", 'run "" "$s"', 'stage read stage.py -- --seed "$s" --do hang', "done"
    )
    process = project.start(JOBS="2")
    processes = hanging(project, "seed=0/read") + hanging(project, "seed=1/read")
    events = project.root / "runs/fake/events.jsonl"
    events.unlink()
    events.mkdir()
    os.kill(processes[0][0], signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 74, out
    assert "sweep: [Errno 21] Is a directory: 'runs/fake/events.jsonl'" in out
    assert "Traceback" not in out
    assert gone(processes)


def test_clerk_killed_ends_the_sweep_in_order(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --do hang")
    process = project.start()
    processes = hanging(project, "seed=0/read")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    clerk = next(int(pid) for pid, command in commands.items() if b"clerk" in command)
    os.kill(clerk, signal.SIGKILL)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 70, out
    assert "clerk is gone" in out
    assert gone(processes)
    assert project.status("seed=0/read").label == "interrupted"


def test_smoke_runs_stay_apart(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py -- --do crash_once")
    (project.root / "mended").touch()
    assert project.sweep("--smoke")[0] == 0
    assert not project.stage("seed=0/read").exists()
    smoke = read_result(project.root / "runs/fake.smoke/seed=0/read")
    assert smoke is not None and smoke.state == "smoke"
    (project.root / "mended").unlink()
    assert project.sweep("--smoke")[0] == 1  # an old smoke run proves nothing


def test_only_runs_what_matches(project: Project) -> None:
    project.plan("for s in 0 1 2; do", 'run "" "$s"', 'stage read stage.py -- --seed "$s"', "done")
    assert project.sweep("--only", "seed=[12]")[0] == 0
    assert project.started() == ["seed=1/read", "seed=2/read"]
    env = read_env(project.root / "runs/fake/status.env")
    assert (env["run_index"], env["total_runs"]) == ("2", "2")
    code, out = project.sweep("--only", "lr=*")
    assert code == 2
    assert "no run of fake matches lr=*" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stage two stage.py -- --larning-rate 1", "takes no flag --larning-rate"),
        ("stage two stage.py -- --lr fast", "--lr of generated/fake/stage.py takes float"),
        ("stage two stage.py --after one --", "stage two comes after one, which its run has not"),
        ("stage two missing.py --", "generated/fake/missing.py: No such file"),
        ("exit 0", "breaks off before its end"),
    ],
)
def test_faulty_plan_is_refused_before_anything_runs(
    project: Project, line: str, message: str
) -> None:
    project.plan("run '' 0", "stage read stage.py --", line)
    code, out = project.sweep()
    assert code == 2
    assert message in out
    assert not project.stage("seed=0").exists()


def test_bad_arguments_show_usage(project: Project) -> None:
    project.plan("run '' 0", "stage read stage.py --")
    assert project.sweep("--frobnicate")[0] == 2
    assert project.sweep(JOBS="many")[0] == 2
    for flag in ("--only", "--jobs"):
        code, out = project.sweep(flag)
        assert (code, out) == (2, f"sweep: {flag} takes a value\n")
    code, out = project.sweep("--help")
    assert (code, "--list" in out) == (0, True)


def test_launcher_is_used_and_its_death_is_survived(project: Project) -> None:
    pytest.importorskip("torch")
    project.plan(
        "for seed in 0 1; do",
        'run "" "$seed"',
        'stage read stage.py -- --seed "$seed" --do hang',
        'stage two stage.py --after read -- --seed "$seed"',
        "done",
    )
    process = project.start(EXPC_LAUNCHER="1")
    processes = hanging(project, "seed=0/read")
    parent = int(Path(f"/proc/{processes[0][0]}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"expc_runtime.launch\0serve" in Path(f"/proc/{parent}/cmdline").read_bytes()
    (project.stage("seed=0/read") / "pids").unlink()
    os.kill(parent, signal.SIGKILL)
    again = hanging(project, "seed=0/read")  # the same stage, by plain python
    assert gone(processes)
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143, out
    assert "going on with plain" in out
    assert gone(again)
    assert gone([(parent, process_start(parent))])


def test_a_forked_run_that_is_killed_is_not_left_as_running(project: Project) -> None:
    pytest.importorskip("torch")
    project.plan(
        "run '' 0",
        "stage read stage.py -- --do stubborn",
        "run '' 1",
        "stage read stage.py -- --seed 1",
    )
    process = project.start(EXPC_LAUNCHER="1")
    processes = hanging(project, "seed=0/read")
    process.terminate()
    time.sleep(0.5)
    process.terminate()  # kills the launcher's client, and the run a moment later
    out, _ = process.communicate(timeout=30)
    assert gone(processes)
    assert project.status("seed=0/read").label == "interrupted"
    assert "1 running" not in out.partition("read: ")[2]


def test_runner_is_clean_shell() -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, "-S", "style", RUNTIME / "sweep/sweep.bash"], check=True)
