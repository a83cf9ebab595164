"""`expc status`: what a sweep does now, told from its files."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from expc.monitor.estimate import Took, Work, left
from expc.monitor.watch import Watch, clean, last_line
from expc_runtime.state import Result, Status, write_json, write_status

KEYS = [
    *("experiment", "folder", "state", "time", "runner", "rehearsal", "runs", "stages", "counts"),
    *("by_stage", "eta", "running", "again", "failures", "outdated", "trouble"),
]
RUNNING = [
    *("run", "stage", "state", "heartbeat", "step", "steps_target", "percent", "epoch", "rate"),
    *("left", "seconds", "attempt", "changed", "host", "pid", "job", "devices", "log", "last"),
]
FAILURE = [
    *("run", "stage", "state", "reason", "source", "attempt", "changed", "code", "time", "log"),
]


# ------------------------------------------------------------------------------------------------ the sweep


def test_the_first_lines_say_what_the_sweep_does_and_what_is_left(study, expc) -> None:
    study.runner(jobs=2)
    study.finish("lr=0.1,seed=0/read", seconds=100)
    study.finish("lr=0.1,seed=1/read", seconds=100)
    study.works("lr=1,seed=0/read", step=30, steps_target=120, seconds=25.0)
    first, second, *_ = expc("status", "study").out.splitlines()
    assert first.startswith("study: running (process ") and first.endswith(", 2 at a time)")
    assert second.startswith(
        "8 stages of 4 runs: 5 pending, 1 running, 2 done; about 4 min 48 s left ("
    )


@pytest.mark.parametrize("reused", [False, True])
def test_a_runner_that_is_gone_is_known_by_its_process_not_by_a_lock(
    study, expc, dead: int, reused: bool
) -> None:
    """Its number may be another process's by now: the start tells them apart."""
    facts = {"runner_start": 12345} if reused else {"runner_pid": dead}
    study.runner(**facts)
    (study.runs / ".lock").write_text("process 1 on here since ever\n")
    study.works("lr=1,seed=0/read", pid=dead)
    said = expc("status", "study").out
    assert "its runner is gone (process" in said.splitlines()[0]
    assert "dead (pid gone)" in said
    assert "read: 3 pending, 1 interrupted" in said


def test_a_runner_on_another_machine_is_neither_alive_nor_gone(study, expc) -> None:
    study.runner(host="elsewhere", runner_pid=1)
    said = expc("status", "study", "--json").out
    assert json.loads(said)["runner"]["alive"] is None
    assert json.loads(said)["state"] == "running"


def test_a_stage_that_outlives_its_runner_is_still_seen_to_work(study, expc, dead: int) -> None:
    study.runner(runner_pid=dead)
    study.works("lr=1,seed=0/read")
    assert "study: running though its runner is gone" in expc("status", "study").out


@pytest.mark.parametrize(
    ("said", "ends", "told"),
    [
        ("done", {}, "study: done"),
        ("failed", {"lr=1,seed=0/read": "failed"}, "study: ended with failures"),
        ("interrupted", {"lr=1,seed=0/read": "interrupted"}, "study: stopped; run it again"),
        ("done", {"lr=1,seed=0/read": "pending"}, "study: not running"),
    ],
)
def test_how_a_sweep_ended(study, expc, said: str, ends: dict[str, str], told: str) -> None:
    for name in study.tasks():
        study.put(name, ends.get(name, "done"))
    study.runner(said)
    assert expc("status", "study").out.startswith(told)


def test_jobs_that_wait_in_a_cluster_are_told(study, expc) -> None:
    study.runner("failed")  # of an earlier sweep
    for number, code in ((9, 1), (10, None)):
        (study.runs / f"slurm/{number}").mkdir(parents=True)
        write_json(study.runs / f"slurm/{number}/submission.json", {"last": number, "code": code})
    assert "study: in the queue (slurm 10)" in expc("status", "study").out
    study.works("lr=1,seed=0/read", host="node7", job="slurm 7_4")
    assert "study: running (slurm 10 is the last of its jobs)" in expc("status", "study").out
    write_json(study.runs / "slurm/10/submission.json", {"last": 10, "code": 1})
    study.put("lr=1,seed=0/read", "failed")
    assert "slurm" not in expc("status", "study").out


def test_smoke_runs_are_listed_only_where_they_went_wrong(study, expc) -> None:
    (study.folder / "sweep.sh").unlink()  # what is on disk is all there is
    study.runs.mkdir(parents=True)
    smoke = study.root / "runs/study.smoke/lr=1,seed=0/read"
    smoke.mkdir(parents=True)
    write_status(smoke, Status(state="smoke", key="k"))
    assert "study.smoke" not in expc("status").out
    write_status(smoke, Status(state="failed", failure="crash", key="k"))
    assert "study.smoke:" in expc("status").out


def test_what_was_stopped_is_not_said_to_have_failed(study, expc) -> None:
    study.put("lr=1,seed=0/read", "interrupted", reason="SIGTERM at update 3: saved")
    assert "last to stop: lr=1,seed=0/read  interrupted" in expc("status", "study").out


def test_smoke_runs_that_come_first_are_told(study, expc) -> None:
    study.runner("done")
    smoke = study.root / "runs/study.smoke"
    smoke.mkdir()
    study.runner("running", run_index=2, total_runs=3)
    (study.runs / "status.env").rename(smoke / "status.env")
    assert "smoke runs first: 2 of 3" in expc("status", "study").out.splitlines()[0]


# ---------------------------------------------------------------------------------------------- what runs


def test_what_runs_is_told_with_how_far_it_is(study, expc) -> None:
    study.works("lr=1,seed=0/read", step=30, steps_target=120, seconds=10.0)
    said = expc("status", "study").out
    told = "lr=1,seed=0/read   25%  step 30/120  3.0/s  30 s left  running (heartbeat "
    assert told in said


def test_a_stage_without_a_heartbeat_is_silent(study, expc) -> None:
    study.works("lr=1,seed=0/read", heartbeat=time.time() - 725)
    assert "silent 12 min" in expc("status", "study").out


def test_of_a_stage_on_another_machine_only_its_heartbeat_is_known(study, expc, dead) -> None:
    """Its process number says nothing here; it is a job of a cluster."""
    study.works("lr=1,seed=0/read", pid=dead, host="node7", job="slurm 123_4", devices="0,1")
    said = expc("status", "study").out
    assert re.search(r"running \(heartbeat \d+ s\)  slurm 123_4, on node7, GPU 0,1\n", said)
    assert said.startswith("study: running\n")


def test_a_clock_that_is_ahead_makes_no_heartbeat_from_the_future(study) -> None:
    study.works("lr=1,seed=0/read", host="node7", heartbeat=time.time() + 3600)
    (one,) = Watch(study.source()).look().running
    assert (one.state, one.heartbeat) == ("running", 0.0)


def test_attempts_and_what_a_retry_changed_are_told(study, expc) -> None:
    study.works("lr=1,seed=0/read", attempt=3, changed={"precision": "32", "microbatch": 0.5})
    assert "attempt 3, precision=32 microbatch=0.5" in expc("status", "study").out


def test_a_stage_of_an_older_plan_that_still_works_is_seen(study) -> None:
    study.works("lr=1,seed=0/read", key="another")
    snapshot = Watch(study.source()).look()
    assert [one.name for one in snapshot.running] == ["lr=1,seed=0/read"]
    assert snapshot.counts["running"] == 0  # what is planned has not begun


def test_a_stage_that_waits_for_another_attempt_is_told(study, expc) -> None:
    facts = {"reason": "loss is NaN", "changed": {"precision": "32"}}
    study.put("lr=1,seed=0/read", "pending", **facts)
    said = expc("status", "study").out
    assert "  lr=1,seed=0/read  runs again  after attempt 1  precision=32  loss is NaN\n" in said


# --------------------------------------------------------------------------------------------- what failed


def test_the_last_failure_is_told_with_its_reason_and_its_log(study, expc) -> None:
    study.put("lr=0.1,seed=0/read", "failed", failure="oom", reason="old", heartbeat=5.0)
    folder = study.put(
        "lr=1,seed=0/read", "failed", failure="diverged", reason="loss is NaN", code=65
    )
    (folder / "attempt-1.log").write_text("x\n")
    said = expc("status", "study").out
    last = said[said.index("last to fail") :].splitlines()
    assert last[0].startswith("last to fail: lr=1,seed=0/read  failed(diverged)  ")
    assert last[1].strip() == "loss is NaN"
    assert last[2].strip() == "runs/study/lr=1,seed=0/read/attempt-1.log"


def test_why_old_results_are_pending_is_told(study, expc) -> None:
    folder = study.finish("lr=1,seed=0/read")
    write_json(folder / "result.json", asdict(Result(key="of other values")))
    study.put("lr=1,seed=0/read", "done", key="of other values")
    said = expc("status", "study").out
    assert "1 result no longer counts: an older program or older values left them" in said
    assert "such as lr=1,seed=0/read" in said


# ---------------------------------------------------------------------------------------------- for scripts


def test_the_keys_for_scripts_stand_in_their_order(study, expc) -> None:
    study.runner()
    study.works("lr=1,seed=0/read")
    study.put("lr=1,seed=1/read", "failed", failure="oom")
    said = json.loads(expc("status", "study", "--json").out)
    assert list(said) == KEYS
    assert list(said["running"][0]) == RUNNING
    assert list(said["failures"][0]) == FAILURE
    assert list(said["counts"]) == [
        *("pending", "running", "done", "smoke", "failed", "blocked"),
        *("skipped", "undefined", "interrupted"),
    ]
    assert said["by_stage"] == {
        "read": {"pending": 2, "running": 1, "failed": 1},
        "eval": {"pending": 4},
    }
    assert list(said["runner"]) == ["alive", "pid", "host", "jobs", "age", "job"]


def test_the_page_for_scripts_names_every_key(study) -> None:
    page = (Path(__file__).parents[2] / "docs/watching.md").read_text()
    assert [key for key in (*KEYS, *RUNNING, *FAILURE) if f"`{key}`" not in page] == []


def test_without_a_name_every_experiment_is_in_the_object(study, expc) -> None:
    study.runner()
    said = json.loads(expc("status", "--json").out)
    assert [one["experiment"] for one in said["experiments"]] == ["study"]


# ---------------------------------------------------------------------------------------- files as they come


TORN = [
    *("", "{", '{"state": "run', "[]", "null", '{"state": "sleeping"}', "\x00\xff"),
    '{"key": "KEY", "state": "running", "step": "many", "heartbeat": null}',
    '{"key": "KEY", "state": "failed", "reason": 7, "changed": 3}',
    '{"key": "KEY", "state": "done", "same_as": ["x"], "metrics": ["x"]}',
]


def test_a_file_that_makes_no_sense_counts_as_none(study, expc) -> None:
    names = [*study.tasks()]
    (study.runs / names[0]).mkdir(parents=True)
    (study.runs / "status.env").write_bytes(b"state=running\nrunner_pid=many\n=\n\xff\n")
    for turn in range(3):  # each text in each file in its turn
        for name, text in zip(names, TORN[turn:] + TORN[:turn], strict=False):
            folder = study.finish(name)
            for file in ("status.json", "result.json"):
                told = text.replace("KEY", study.key(name))
                (folder / file).write_text(told, encoding="latin-1")
        assert Watch(study.source(), each=True).look().counts["pending"] == 8
    said = expc("status", "study")
    assert said.code == 0 and "8 pending" in said.out


def test_without_the_generated_folder_it_tells_what_is_on_disk(study, expc) -> None:
    study.finish("lr=1,seed=0/read")
    study.works("lr=1,seed=0/eval")
    shutil.rmtree(study.folder)
    said = expc("status", "study").out
    assert "2 stages of 1 run: 1 running, 1 done" in said
    assert "read: 1 done" in said


def test_a_plan_that_cannot_be_read_is_told_beside_what_is_on_disk(study, expc) -> None:
    study.finish("lr=1,seed=0/read")
    (study.folder / "read.py").unlink()
    said = expc("status", "study")
    assert said.code == 0
    assert "the plan cannot be read" in said.out and "read.py" in said.out
    assert "1 stage of 1 run: 1 done" in said.out


def test_files_that_did_not_change_are_not_read_again(study, monkeypatch) -> None:
    study.finish("lr=1,seed=0/read")
    watch, stages = Watch(study.source()), list(study.tasks().values())
    first = watch.look(stages)
    monkeypatch.setattr("expc.monitor.watch.standing", lambda *_: pytest.fail("read again"))
    again = [task for task in stages if task.name == "lr=1,seed=0/read"]
    assert watch.look(again).counts["done"] == first.counts["done"] == 1


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("$ python read.py\n", ""),
        ("one\ntwo\n\n", "two"),
        ("\rstep 1\rstep 2\r", "step 2"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07end\x1b[2J\n", "red end"),
        ("x" * 20_000 + "\nlast \xe9", "last �"),
    ],
)
def test_the_last_line_of_a_log_is_what_a_terminal_would_show(
    tmp_path: Path, log: str, told: str
) -> None:
    (tmp_path / "log").write_bytes(log.encode("latin-1"))
    assert last_line(tmp_path / "log") == told
    assert last_line(tmp_path / "none") == ""


def test_nothing_that_steers_a_terminal_comes_through() -> None:
    assert "\x1b" not in clean("\x1b[1m\x1b(B\x1bM\x1b\x9b31mx\x08\x7f\u202e")


# ------------------------------------------------------------------------------------------------- time left


def test_four_in_five_sweeps_end_within_the_range() -> None:
    """Against drawn sweeps: 30 stages seen, 20 to come, on two slots."""
    rng = np.random.default_rng(0)
    within = 0
    for _ in range(2000):
        seen, come = rng.normal(100, 20, 30), rng.normal(100, 20, 20)
        took = Took()
        for seconds in seen:
            took.add(float(seconds))
        eta = left(Work({"read": took}, {"read": 20}), jobs=2)
        assert eta is not None
        within += eta.low <= come.sum() / 2 <= eta.high
    assert 0.77 < within / 2000 < 0.83


def test_time_left_is_that_of_the_longest_that_runs_at_least() -> None:
    work = Work(running=[("read", 10.0, 50.0), ("read", 10.0, 400.0)])
    eta = left(work, jobs=8)
    assert eta is not None and eta.seconds == 400.0


def test_nothing_is_said_of_time_before_anything_is_known() -> None:
    assert left(Work(pending={"read": 3}), jobs=1) is None
    nothing = left(Work(), jobs=1)
    assert nothing is not None and nothing.seconds == 0


def test_a_stage_of_which_none_is_done_takes_as_long_as_one_that_runs_will() -> None:
    eta = left(Work(pending={"read": 2}, running=[("read", 20.0, 80.0)]), jobs=1)
    assert eta is not None and eta.seconds == 280.0
    assert eta.low < eta.seconds < eta.high
