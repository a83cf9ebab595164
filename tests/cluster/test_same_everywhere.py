"""One sweep on this machine, on Slurm and on Ray: the same states, the same results, the same table."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from expc_runtime.state import read_result, read_status

# What is of the clock and the machine; all else is of the experiment.
CLOCK = {"began", "heartbeat", "seconds", "time"}
MACHINE = {"pid", "process", "host", "job", "devices", "memory", "extra"}

RUNS = (
    "for lr in 0.1 0.2; do",
    'run "lr=$lr" 0',
    "stage read stage.py --",  # the same in both: it runs once
    'stage two stage.py --after read -- --lr "$lr" --parent read',
    "done",
    "run crashes 0",
    "stage read stage.py -- --do crash --lr 1",
    "stage two stage.py --after read -- --parent read",
    "stage three stage.py --after two -- --parent two",
    "run misses_its_gate 0",
    "stage read stage.py -- --do gate",
    "stage two stage.py --after read -- --parent read",
    "run diverges 0",
    "stage read stage.py -- --do diverge",
    "stage two stage.py --after read -- --parent read",
    "run has_no_input 0",
    "stage read stage.py -- --do miss",
    "run is_preempted 0",
    "stage read stage.py -- --do preempted",
    "stage two stage.py --after read -- --parent read",
    "run leaves_one_out 0",
    "stage read stage.py -- --lr 3",
    "skip two 'not for this one'",
    "stage three stage.py --after two -- --parent two",
)
POLICY = (
    "limit read --timeout 600",
    "retry read diverged --times 1 -- --precision 32",
    "retry read crash --times 1",
)


def states(root: Path) -> dict[str, dict[str, Any]]:
    """What every status.json and result.json says of the experiment."""
    found: dict[str, dict[str, Any]] = {}
    for kind, read in (("status.json", read_status), ("result.json", read_result)):
        for path in sorted(root.glob(f"runs/fake/*/*/{kind}")):
            record = read(path.parent)
            assert record is not None, path
            values = asdict(record)
            found[str(path.relative_to(root))] = {
                name: value for name, value in values.items() if name not in CLOCK | MACHINE
            }
    return found


def table(project: Any) -> list[str]:
    """The table, without the column of times."""
    code, out = project.run("sweep.sh", "--status")
    assert code == 0, out
    time = re.compile(r"\s+(time|-|\d+(\.\d)? s|\d+ min \d\d s)$")
    return [time.sub("", line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, project_at: Any) -> Any:
    """The sweep on this machine."""
    project = project_at(tmp_path_factory.mktemp("here"))
    project.plan(*RUNS, policy=POLICY)
    code, out = project.run("sweep.sh", "--jobs", "2")
    assert code == 1, out
    return project


def test_here(here: Any) -> None:
    labels = {path: status["state"] for path, status in states(here.root).items()}
    assert labels["runs/fake/lr=0.2,seed=0/two/status.json"] == "done"
    expected = {
        "lr=0.2,seed=0/read": ("done", 0, "lr=0.1,seed=0/read"),
        "crashes,seed=0/read": ("failed(crash)", 2, ""),
        "crashes,seed=0/three": ("blocked(two)", 0, ""),
        "misses_its_gate,seed=0/read": ("failed(gate)", 1, ""),
        "diverges,seed=0/read": ("done", 2, ""),
        "has_no_input,seed=0/read": ("failed(missing_input)", 1, ""),
        "is_preempted,seed=0/two": ("done", 1, ""),
        "leaves_one_out,seed=0/three": ("skipped", 0, ""),
    }
    for name, said in expected.items():
        status = here.status(name)
        assert (status.label, status.attempt, status.same_as) == said, name


def test_slurm_gives_the_same(here: Any, slurm: Any, project: Any) -> None:
    project.plan(*RUNS, policy=POLICY)
    code, out = project.run("slurm.sh", "--wait")
    assert code == 1, out
    assert states(project.root) == states(here.root)
    assert table(project) == table(here)
    job = project.status("is_preempted,seed=0/read").job
    assert re.fullmatch(r"slurm \d+_\d+", job)
    assert project.result("lr=0.1,seed=0/read").extra["devices"] in ("0", "1")


def test_ray_gives_the_same(here: Any, ray: None, project: Any) -> None:
    project.plan(*RUNS, policy=POLICY)
    code, out = project.run("ray.sh")
    assert code == 1, out
    assert states(project.root) == states(here.root)
    assert table(project) == table(here)
    assert project.status("is_preempted,seed=0/read").job.startswith("ray ")
