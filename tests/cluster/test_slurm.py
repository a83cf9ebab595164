"""A sweep on a real Slurm: what is signalled, requeued, cancelled, lost with its node, edited meanwhile."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from expc_runtime.state import read_env
from expc_runtime.state.plan import Layout, tasks
from expc_runtime.sweep.book import Book
from expc_runtime.sweep.slurm.options import Ask
from expc_runtime.sweep.slurm.submission import latest, read_job
from expc_runtime.sweep.slurm.submit import Stock

Wait = Callable[..., None]

HANGS = (
    "run a 0",
    "stage read stage.py -- --do hang",
    "stage two stage.py --after read -- --parent read",
    "run b 0",
    "stage read stage.py -- --lr 2",
)


def hanging(project: Any, wait_for: Wait, name: str) -> None:
    wait_for((project.stage(name) / "hangs").exists, f"hanging {name}")


def over(slurm: Any) -> bool:
    return not slurm.call("squeue", "-h")


def test_a_signalled_stage_saves_and_goes_on_and_nothing_else_of_the_experiment_starts_meanwhile(
    slurm: Any, project: Any, wait_for: Wait
) -> None:
    project.plan(*HANGS)
    code, out = project.run("slurm.sh")
    assert code == 0, out
    array, last = re.findall(r"read: job (\d+)|job (\d+) then writes", out)
    job, end = array[0], last[1]
    assert f"scancel {job}" in out and "squeue --jobs" in out
    hanging(project, wait_for, "a,seed=0/read")

    code, refused = project.run("slurm.sh")
    assert code == 73
    assert job in refused and end in refused and "scancel" in refused
    code, refused = project.run("sweep.sh")
    assert code == 73 and "scancel" in refused
    slurm.lab("restart-controller")

    # As Slurm does before the time limit.
    slurm.call("scancel", "--batch", "--signal=TERM", f"{job}_0")
    wait_for(lambda: over(slurm), "end")
    twice = ["a,seed=0/read", "a,seed=0/read", "a,seed=0/two", "b,seed=0/read"]
    assert sorted(project.started()) == twice
    status = project.status("a,seed=0/read")
    assert (status.label, status.attempt, status.job) == ("done", 2, f"slurm {job}_0")
    assert project.label("a,seed=0/two") == "done"
    assert "asked to stop" not in (project.stage("a,seed=0/read") / "attempt-2.log").read_text()
    log = (project.root / "runs/fake/sweep.log").read_text()
    assert "3 done" in log
    env = read_env(project.root / "runs/fake/status.env")
    assert (env["state"], env["done_count"], env["total_runs"]) == ("done", "3", "2")

    code, out = project.run("slurm.sh")
    assert code == 0 and "0 to run" in out
    assert len(project.started()) == 4


def test_a_cancelled_sweep_tells_what_is_true_and_goes_on_when_asked_again(
    slurm: Any, project: Any, wait_for: Wait
) -> None:
    project.plan(*HANGS)
    code, out = project.run("slurm.sh", "--jobs", "1")
    assert code == 0, out
    hanging(project, wait_for, "a,seed=0/read")
    cancel = re.search(r"scancel ([\d ]+)  \(", out)
    assert cancel is not None
    slurm.call("scancel", *cancel[1].split())
    wait_for(lambda: over(slurm), "end")
    assert project.label("a,seed=0/read") == "interrupted"  # it saved; Slurm had ended the job
    assert project.label("b,seed=0/read") in ("", "pending")
    assert project.label("a,seed=0/two") == "blocked(read)"
    log = (project.root / "runs/fake/sweep.log").read_text()
    assert "1 pending" in log
    assert read_env(project.root / "runs/fake/status.env")["state"] == "interrupted"
    code, out = project.run("slurm.sh", "--wait")
    assert code == 0, out
    assert [project.label(name) for name in ("a,seed=0/read", "a,seed=0/two")] == ["done", "done"]
    assert project.status("a,seed=0/read").attempt == 2


def test_what_was_edited_after_the_submission_is_refused(
    slurm: Any, project: Any, wait_for: Wait
) -> None:
    project.plan(*HANGS)
    assert project.run("slurm.sh")[0] == 0
    hanging(project, wait_for, "a,seed=0/read")
    module = project.folder / "stage.py"
    module.write_text(module.read_text().replace("0123456789ab", "ba9876543210"))
    found = latest(project.root / "runs/fake")
    assert found is not None
    slurm.call("scancel", str(found[1].jobs[0]))
    wait_for(lambda: over(slurm), "end")
    assert project.label("a,seed=0/read") == "interrupted"
    assert not list(project.stage("a,seed=0").glob("*.was-*"))  # for the new one
    log = (project.root / found[0] / "two.0-0.log").read_text()
    assert "stage.py has changed since the sweep was submitted" in log


def test_what_was_done_for_another_run_is_found_where_it_is(slurm: Any, project: Any) -> None:
    behind = (
        "run z 0",
        "stage read stage.py --",
        "stage two stage.py --after read -- --parent read",
    )
    project.plan(*behind)
    assert project.run("sweep.sh")[0] == 0
    project.plan(
        "run a 0",
        "stage read stage.py --",
        "stage two stage.py --after read -- --parent read --lr 2",
        *behind,
    )
    code, out = project.run("slurm.sh", "--wait")
    assert code == 0, out
    assert "1 to run, 2 settled, 1 the same as another" in out
    assert project.status("a,seed=0/read").same_as == "z,seed=0/read"
    assert project.started()[2:] == ["a,seed=0/two"]


def test_a_module_that_cannot_make_two_updates_stops_everything(slurm: Any, project: Any) -> None:
    project.plan(
        "run a 0", "stage read stage.py -- --do crash", "run b 0", "stage read stage.py --"
    )
    code, out = project.run("slurm.sh", "--rehearse", "--wait")
    assert code == 1
    assert "no such column: digit" in out and "nothing was started" in out
    assert not project.stage("b,seed=0/read").exists()
    (project.folder / "good.py").write_text((project.folder / "stage.py").read_text())
    project.plan("run a 0", "stage read good.py --")
    code, out = project.run("slurm.sh", "--rehearse", "--wait")
    assert code == 0, out
    assert project.label("a,seed=0/read") == "done"


def test_jobs_that_slurm_does_not_take_leave_nothing_in_the_queue(slurm: Any, project: Any) -> None:
    project.plan(
        "run a 0", "stage read stage.py --", "stage two stage.py --after read -- --parent read"
    )
    project.ask("job two --partition nowhere")
    code, out = project.run("slurm.sh")
    assert code == 2
    assert "sbatch took no job" in out and "nowhere" in out
    assert over(slurm)


@pytest.mark.slow
def test_a_preempted_task_comes_back(slurm: Any, project: Any, wait_for: Wait) -> None:
    project.plan(*HANGS)
    project.ask("job read --cpus 8")
    assert project.run("slurm.sh", "--only", "a*")[0] == 0
    hanging(project, wait_for, "a,seed=0/read")
    slurm.call("sbatch", "-p", "urgent", "-c", "8", "-o", "/dev/null", "--wrap", "true")
    wait_for(lambda: over(slurm), "end")
    status = project.status("a,seed=0/read")
    assert (status.label, status.attempt) == ("done", 2)
    assert project.label("a,seed=0/two") == "done"


@pytest.mark.slow
@pytest.mark.parametrize("requeue", [True, False])
def test_a_lost_node(slurm: Any, project: Any, wait_for: Wait, requeue: bool) -> None:
    project.plan(*HANGS)
    project.ask(f"job read --requeue {str(requeue).lower()}")
    assert project.run("slurm.sh", "--only", "a*")[0] == 0
    hanging(project, wait_for, "a,seed=0/read")
    slurm.lab("fail-node")
    slurm.lab("resume-node")
    wait_for(lambda: over(slurm), "end")
    status = project.status("a,seed=0/read")
    if requeue:
        assert (status.label, status.attempt) == ("done", 2)
    else:
        assert status.label in ("interrupted", "failed(killed)")
        assert project.label("a,seed=0/two") == "blocked(read)"


def test_a_stage_asks_of_sbatch_what_its_spec_says() -> None:
    words = "--partition gpu --time 5400 --memory_gb 16 --cpus 4 --devices 2 --requeue false"
    assert Ask.read(words.split()).words(gpus=True) == [
        "--partition=gpu",
        "--time=1:30:00",
        "--mem=15259M",
        "--cpus-per-task=8",
        "--gres=gpu:2",
        "--no-requeue",
        "--signal=B:TERM@120",
    ]
    assert Ask.read(["--time", "60"]).words(gpus=False) == [
        "--time=0:01:00",
        "--requeue",
        "--signal=B:TERM@15",
    ]


def test_a_long_stage_is_cut_into_arrays_and_keeps_its_order(
    project: Any, monkeypatch: Any
) -> None:
    project.plan(
        "for seed in 0 1 2 3 4; do",
        'run "" "$seed"',
        'stage read stage.py -- --seed "$seed"',
        'stage two stage.py --after read -- --seed "$seed" --parent read',
        "done",
    )
    plan = project.root / "plan"
    with plan.open("wb") as file:
        file.write(project.run("sweep.sh", "--plan")[1].encode())
    monkeypatch.chdir(project.root)
    layout = Layout("fake", "generated/fake")
    with plan.open("rb") as file:
        stock = Stock(project.root, Book(layout), 2, {})
        stock.take(tasks(file, layout))
    names = [(array.name, array.size) for array in stock.order()]
    assert names == [
        (f"{s}.{n}", size) for s in ("read", "two") for n, size in enumerate((2, 2, 1))
    ]
    job = read_job(project.root / "two.1.jsonl", 1)
    assert job.task.run == "seed=3"
    assert [(p.task.stage, p.home) for p in job.parents] == [("read", "seed=3/read")]
