"""Another try: by class of failure, with the settings that the plan declares, never in silence."""

import importlib.util
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from expc_runtime.state import read_result


def _sweeps() -> ModuleType:
    """The project of the sweep's own tests."""
    spec = importlib.util.spec_from_file_location(
        "sweeps", Path(__file__).with_name("test_sweep.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweeps"] = module
    spec.loader.exec_module(module)
    return module


sweeps = _sweeps()

STAGE = '''
import os, signal, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path

from expc_runtime.flags import Run, parse
from expc_runtime.state import Result, claim, identity, parent_key
from expc_runtime.state.identity import planned

PROGRAM = "0123456789ab"


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/fake/by_hand/read"
    do: str = "finish"
    precision: str = "16-mixed"
    microbatch: float = 1.0
    compile: bool = True
    widths: tuple[int, ...] = (8, 16)
    parent: str = ""


def main(cfg):
    out = Path(cfg.out)
    parents = {cfg.parent: parent_key(out, cfg.parent)} if cfg.parent else {}
    changed = {name: getattr(cfg, name) for name in planned(asdict(cfg))}
    key = identity(PROGRAM, asdict(cfg), parents)
    with claim(out, key, program=PROGRAM, module=__file__, changed=changed) as stage:
        (out / "checkpoints").mkdir(exist_ok=True)
        begun = len(list(out.glob("began-*")))
        (out / f"began-{begun}").touch()
        stage.beat(step=stage.status.step + 3, steps_target=100, epoch=0, force=True)
        code = DO.get(cfg.do, finish)(cfg, stage, begun)
        if code is None:
            names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
            config = asdict(cfg) | {"argv": sys.argv} | {n: os.environ.get(n) for n in names}
            stage.finish(Result(config=config, metrics={"test/accuracy": 0.9 + cfg.seed / 100}))
        return code or 0


def finish(cfg, stage, begun):
    return None


def diverge(cfg, stage, begun):
    if cfg.precision != "32":
        stage.fail("diverged", "loss is NaN at step 3", code=65)
        return 65


def oom(cfg, stage, begun):
    if cfg.microbatch > 0.25:
        stage.fail("oom", f"no room for {cfg.microbatch} of a batch", code=71)
        return 71


def die(cfg, stage, begun):
    if begun < 2:
        os.kill(os.getpid(), signal.SIGKILL)


def preempt(cfg, stage, begun):
    if begun < 4:
        stage.interrupt("asked to stop; saved")
        return 75


def stall(cfg, stage, begun):
    stage.beat(step=0, steps_target=100, epoch=0, force=True)
    stage.interrupt("asked to stop; saved")
    return 75


def gate(cfg, stage, begun):
    stage.fail("gate", "0.4, needs 0.9", code=3)
    return 3


def slow(cfg, stage, begun):
    """Saves when it is asked to; the second attempt finishes."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    while begun < 1:
        if asked:
            stage.interrupt("asked to stop; saved")
            return 75
        time.sleep(0.01)


def full(cfg, stage, begun):
    stage.fail("disk_full", "No space left on device", code=74)
    return 74


def sick(cfg, stage, begun):
    """Fails on GPU 1, and there alone."""
    if os.environ["CUDA_VISIBLE_DEVICES"] == "1":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")


def bad(cfg, stage, begun):
    """Fails wherever it runs."""
    raise RuntimeError("no such column: digit")


def deaf(cfg, stage, begun):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


DO = {f.__name__: f for f in (diverge, oom, die, preempt, stall, gate, slow, full, sick, bad, deaf)}

if __name__ == "__main__":
    raise SystemExit(main(parse(Config)))
'''


class Project(sweeps.Project):
    """Sweeps of `STAGE` with a policy."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (self.folder / "stage.py").write_text(STAGE)

    def policy(self, *lines: str) -> None:
        """Before the plan of `plan`, what is said of retries and limits."""
        file = self.folder / "sweep.sh"
        said = "\n".join(f"  {line}" for line in lines)
        file.write_text(
            file.read_text().replace("\nruns()", f"\npolicy() {{\n{said}\n}}\n\nruns()")
        )

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = (self.root / "runs/fake/events.jsonl").read_text().splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == event]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    for process in project.begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_run_that_diverged_is_tried_with_the_declared_setting(project: Project) -> None:
    project.plan(
        "run lr=1 0; stage read stage.py -- --do diverge",
        "stage two stage.py --after read -- --parent read",
        "run lr=2 0; stage read stage.py -- --seed 2",
    )
    project.policy("retry read diverged -- --precision 32")
    code, out = project.sweep()
    assert code == 0, out
    name = "lr=1,seed=0/read"
    assert "Retry   lr=1,seed=0/read (1/2): diverged; again with precision=32 (was 16-mixed)" in out
    result, status = project.result(name), project.status(name)
    assert result.changed == {"precision": "32"}
    assert (status.attempt, status.tries, status.changed) == (2, {"diverged": 1}, result.changed)
    assert result.config["argv"][-4:] == [
        "--precision",
        "32",
        "--planned",
        '{"precision": "16-mixed"}',
    ]
    # It is the instance that was planned: what comes after it takes it, and it is not run again.
    assert project.result("lr=1,seed=0/two").parents == {} and project.sweep()[0] == 0
    assert len(project.started()) == 4
    assert [e["changed"] for e in project.events("retry")] == [{"precision": "32"}]
    for number in (1, 2):
        assert (project.stage(name) / f"attempt-{number}.log").exists()


def test_the_table_marks_every_figure_that_a_changed_setting_made(project: Project) -> None:
    project.plan(
        "run lr=1 0; stage read stage.py -- --do diverge",
        "stage two stage.py --after read -- --parent read",
        "run lr=2 0; stage read stage.py -- --seed 2",
        "stage two stage.py --after read -- --parent read --seed 2",
    )
    project.policy("retry read diverged -- --precision 32 --no-compile")
    code, out = project.sweep()
    assert code == 0
    for shown in (out, project.sweep("--status")[1]):
        assert len(re.findall(r"^  lr=1 \*  ", shown, re.MULTILINE)) == 2  # of read and of two
        assert len(re.findall(r"^  lr=2  ", shown, re.MULTILINE)) == 2
        told = "read: precision=32 (was 16-mixed), compile=false (was true) in lr=1,seed=0\n"
        assert told in shown


def test_half_halves_what_is_in_force_until_it_fits_or_the_tries_are_spent(
    project: Project,
) -> None:
    project.plan("run '' 0; stage read stage.py -- --do oom")
    project.policy("retry read oom --times 1 -- --microbatch half")
    code, out = project.sweep()
    assert code == 1
    assert "again with microbatch=0.5 (was 1.0)" in out
    assert "oom; tried again once already" in out
    # Somebody asks once more: it goes on where it was, says so, and may be tried as often again.
    code, out = project.sweep()
    assert code == 0
    assert out.count("goes on with microbatch=0.5 (was 1.0), after a retry") == 1
    assert "again with microbatch=0.25 (was 0.5)" in out
    assert project.result("seed=0/read").changed == {"microbatch": 0.25}
    assert "read: microbatch=0.25 (was 1.0) in seed=0" in out


def test_a_retry_that_would_change_nothing_is_not_made(project: Project) -> None:
    project.plan("run '' 0; stage read stage.py -- --do oom --precision 32")
    project.policy("retry read oom --times 3 -- --precision 32")
    code, out = project.sweep()
    assert code == 1 and len(project.started()) == 1
    assert "oom; not tried again: precision is 32 already" in out
    assert project.status("seed=0/read").label == "failed(oom)"


def test_only_the_declared_class_is_tried_again(project: Project) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --do die",
        "run b 0; stage read stage.py -- --do diverge",
        "run c 0; stage read stage.py -- --do gate",
    )
    project.policy("retry read killed --times 2", "retry read gate --times 2")
    code, _ = project.sweep()
    assert code == 1
    assert project.status("a,seed=0/read").label == "done"
    assert project.result("a,seed=0/read").attempt == 3
    assert project.status("b,seed=0/read").attempt == 1


def test_a_slot_is_free_while_a_retry_waits(project: Project) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --do die",
        "run b 0; stage read stage.py -- --seed 1",
    )
    project.policy("retry read killed --times 2 --delay 0.5")
    assert project.sweep()[0] == 0
    assert project.started()[:2] == ["a,seed=0/read", "b,seed=0/read"]
    first, second = (e["delay"] for e in project.events("retry"))
    assert 0.375 <= first <= 0.625 and 0.75 <= second <= 1.25  # doubled, give or take a quarter


def test_a_stop_while_a_retry_waits_loses_neither_the_setting_nor_the_count(
    project: Project,
) -> None:
    project.plan("run '' 0; stage read stage.py -- --do diverge")
    project.policy("retry read diverged --delay 600 -- --precision 32")
    process = project.start()
    file = project.stage("seed=0/read") / "status.json"
    sweeps.wait_for(
        lambda: file.exists() and project.status("seed=0/read").state == "pending", "wait"
    )
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "seed=0/read (1/1)  tried again in " in out  # USR1
    assert "1 pending" in out
    code, out = project.sweep()
    assert code == 0
    assert "goes on with precision=32 (was 16-mixed), after a retry" in out
    assert project.status("seed=0/read").tries == {"diverged": 1}


def test_what_was_preempted_goes_on_at_once_and_stops_when_it_gets_no_further(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --do preempt",
        "run b 0; stage read stage.py -- --do stall",
    )
    # Its waits of 5, 10 and 20 seconds, in this test's time.
    file = project.folder / "sitecustomize.py"
    file.write_text("import random; random.uniform = lambda *_: 0.001\n")
    paths = f"{project.folder}:{project.env['PYTHONPATH']}"
    code, out = project.sweep(PYTHONPATH=paths)
    assert code == 1
    assert project.result("a,seed=0/read").attempt == 5
    assert "preempted at step 3; goes on at once" in out
    assert project.status("b,seed=0/read").label == "interrupted"
    assert project.status("b,seed=0/read").attempt == 4
    assert "preempted 4 times without a step further" in out


def test_a_stage_whose_time_is_up_saves_and_goes_on_as_declared(project: Project) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --do slow",
        "run b 0; stage two stage.py -- --do deaf",
    )
    limits = ("limit read --timeout 3", "limit two --timeout 3")
    project.policy(*limits, "retry read timed_out --times 2")
    code, out = project.sweep(EXPC_GRACE="1", JOBS="2")
    assert code == 1
    assert "3.0 s are up; asked to save" in out
    assert "failed(timed_out) (exit 75): no end within 3.0 s; at step 3 of 100" in out
    assert project.result("a,seed=0/read").attempt == 2
    # TERM is not heard: KILL, after the grace.
    status = project.status("b,seed=0/two")
    assert (status.label, status.code, status.attempt) == ("failed(timed_out)", 124, 1)
    assert "(exit 137)" in out


UNTIMELY = """() {
  builtin read "$@" || return
  [[ -z $part ]] || return 142
}"""


def test_no_word_of_the_clerk_is_lost_where_a_line_ends_as_the_shell_s_patience_does(
    project: Project,
) -> None:
    """`read -t` may be out of time just then: it has the line and its end, and says it has no end.

    So does the `read` here, each time. A KILL that is joined to the next word reaches nobody.
    """
    project.plan(
        "run a 0; stage read stage.py -- --do deaf",
        "run b 0; stage two stage.py -- --do deaf",
        "run c 0; stage three stage.py --",
    )
    project.policy("limit read --timeout 2", "limit two --timeout 2")
    code, out = project.sweep(EXPC_GRACE="1", JOBS="2", **{"BASH_FUNC_read%%": UNTIMELY})
    assert code == 1, out
    assert project.status("a,seed=0/read").label == "failed(timed_out)"
    assert project.status("b,seed=0/two").label == "failed(timed_out)"
    assert project.status("c,seed=0/three").label == "done"
    log = project.stage("c,seed=0/three") / "attempt-1.log"
    assert log.read_text().startswith("$ ")


def test_the_plan_is_there_for_other_back_ends(project: Project) -> None:
    project.plan("run '' 0; stage read stage.py -- --lr 1")
    project.policy("limit read --timeout 60 --devices 2", "retry read oom -- --microbatch half")
    words = project.sweep("--plan")[1].split("\0")
    assert words == [
        "6", "limit", "read", "--timeout", "60", "--devices", "2",
        "6", "retry", "read", "oom", "--", "--microbatch", "half",
        "3", "run", "", "0",
        "6", "stage", "read", "stage.py", "--", "--lr", "1",
        "1", "end", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("retry read oom -- --batches half", "stage.py has no batches that a retry could change"),
        ("retry read oom -- --microbatch many", "takes float, not 'many'"),
        ("retry read oom --twice 2", "retry read knows no --twice"),
        ("limit read --timeout soon", "could not convert string to float"),
    ],
)
def test_a_faulty_policy_is_refused_before_anything_runs(
    project: Project, line: str, message: str
) -> None:
    project.plan("run '' 0; stage read stage.py --")
    project.policy(line)
    code, out = project.sweep()
    assert code == 2 and message in out
    assert not project.stage("seed=0").exists()


@pytest.fixture
def told(project: Project) -> Iterator[list[dict[str, Any]]]:
    """What was posted to the address in FAKE_WEBHOOK, which the project's sweeps have."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    project.env["FAKE_WEBHOOK"] = f"http://127.0.0.1:{server.server_port}/secret"
    yield posted
    server.shutdown()
    server.server_close()


def tells(project: Project) -> None:
    file = project.folder / "sweep.sh"
    notify = "notify=(plain FAKE_WEBHOOK failed end)"
    file.write_text(file.read_text().replace("policy()", f"{notify}\npolicy()"))


def test_people_are_told_what_failed_for_good_and_how_it_ended(
    project: Project, told: list[dict[str, Any]]
) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --do bad",
        "run b 0; stage read stage.py -- --do diverge --seed 1",
    )
    project.policy("retry read diverged -- --precision 32")
    tells(project)
    code, out = project.sweep()
    assert code == 1
    assert [(each["event"], each.get("run")) for each in told] == [
        ("failed", "a,seed=0"),
        ("end", None),
    ]
    assert told[0]["failure"] == "crash" and "no such column: digit" in told[0]["text"]
    assert (told[1]["done"], told[1]["failed"], told[1]["state"]) == (1, 1, "failed")
    assert "secret" not in out


def test_a_signal_that_asks_where_things_stand_hurts_nobody(project: Project) -> None:
    project.plan("run '' 0; stage read stage.py -- --do slow")
    process = project.start()
    running = project.stage("seed=0/read") / "began-0"
    sweeps.wait_for(running.exists, "running stage")
    os.killpg(process.pid, signal.SIGUSR1)  # the clerk hears it too
    log = project.root / "runs/fake/sweep.log"
    sweeps.wait_for(lambda: "Status  0 of 1 settled" in log.read_text(), "status line")
    assert "seed=0/read (1/1)  step 3 of 100" in log.read_text()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143 and project.status("seed=0/read").state == "interrupted"


def test_an_edit_that_is_taken_back_loses_no_result(project: Project) -> None:
    one, other = (f"run '' 0; stage read stage.py -- --widths {w}" for w in ("8,16", "8,8"))
    project.plan(one)
    assert project.sweep()[0] == 0
    project.plan(other)
    assert project.sweep()[0] == 0
    project.plan(one, "stage two stage.py --after read -- --parent read")
    code, out = project.sweep()
    assert code == 0
    assert "Back    seed=0/read (1/1) was done before" in out
    assert project.started() == ["seed=0/read", "seed=0/read", "seed=0/two"]
    assert project.result("seed=0/read").config["widths"] == [8, 16]
    (kept,) = project.root.glob("runs/fake/seed=0/read.was-*")
    other_result = read_result(kept)
    assert other_result is not None and other_result.config["widths"] == [8, 8]


def test_people_are_told_when_the_runner_is_killed(
    project: Project, told: list[dict[str, Any]]
) -> None:
    project.plan("run a 0; stage read stage.py -- --do slow")
    project.policy("limit read --timeout 600")
    tells(project)
    process = project.start(EXPC_GRACE="1")
    sweeps.wait_for(lambda: list(project.stage("a,seed=0/read").glob("began-*")), "stage")
    process.kill()
    sweeps.wait_for(lambda: told, "word of the end")
    assert (told[0]["event"], told[0]["state"]) == ("end", "interrupted")
    assert "its runner was killed; run it again to go on" in told[0]["text"]
    assert "End     its runner was killed" in (project.root / "runs/fake/sweep.log").read_text()
