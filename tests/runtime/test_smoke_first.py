"""A sweep begins with two updates of every module that has never run: what can't train is told at once."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from expc_runtime.state import read_result
from expc_runtime.state.plan import Layout, Task, cover


def _sweeps() -> ModuleType:
    """The fake stages of the sweep's own tests."""
    spec = importlib.util.spec_from_file_location(
        "sweeps", Path(__file__).with_name("test_sweep.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweeps"] = module
    spec.loader.exec_module(module)
    return module


sweeps = _sweeps()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Any]:
    project = sweeps.Project(tmp_path)
    project.rehearsed = True
    other = sweeps.STAGE.replace("0123456789ab", "ba9876543210")
    (project.folder / "other.py").write_text(other)
    yield project
    for process in project.begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def smoked(project: Any) -> list[str]:
    """``run/stage`` of what has a smoke result, and of nothing else."""
    root = project.root / "runs/fake.smoke"
    found = sorted(root.glob("*/*/result.json"))
    results = [(path.parent, read_result(path.parent)) for path in found]
    return [str(p.relative_to(root)) for p, r in results if r is not None and r.state == "smoke"]


def test_each_module_runs_once_before_the_first_run_and_never_again(project: Any) -> None:
    project.plan(
        "run lr=1 0; stage read stage.py -- --lr 1 --seed 0",
        "run lr=2 0; stage read stage.py -- --lr 2 --seed 0",
        "run other 0; stage read other.py -- --seed 0",
    )
    code, out = project.sweep()
    assert code == 0
    before, after, sweep, *_ = out.splitlines()
    assert "Smoke   2 modules that never ran: two updates first" in before
    assert "Smoke   2 modules ran two updates" in after
    assert "Sweep   fake: 3 runs" in sweep
    assert smoked(project) == ["lr=1,seed=0/read", "other,seed=0/read"]
    assert project.started() == ["lr=1,seed=0/read", "lr=2,seed=0/read", "other,seed=0/read"]

    project.plan(
        "run lr=3 0; stage read stage.py -- --lr 3 --seed 0",
        "run other 1; stage read other.py -- --seed 1",
        "run lr=1 0; stage read stage.py -- --lr 1 --seed 0",
    )
    code, out = project.sweep()
    assert code == 0 and "Smoke" not in out


def test_a_module_that_was_edited_is_tried_again(project: Any) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --seed 0", "run b 0; stage read other.py -- --seed 0"
    )
    assert project.sweep()[0] == 0
    text = (project.folder / "other.py").read_text()
    (project.folder / "other.py").write_text(text.replace("ba9876543210", "ba9876543211"))
    code, out = project.sweep()
    assert code == 0 and "Smoke   1 module ran two updates" in out


def test_if_one_fails_nothing_is_started(project: Any) -> None:
    project.plan(
        "run good 0; stage read stage.py -- --seed 0",
        "run bad 0; stage read other.py -- --do diverge --seed 0",
    )
    code, out = project.sweep()
    assert code == 1
    assert "generated/fake/other.py: failed(diverged): loss is NaN at step 3" in out
    assert "from specs/x.yaml:4:9" in out
    assert "nothing was started; --no-smoke runs it all the same" in out
    assert not (project.root / "runs/fake/events.jsonl").exists()
    assert out.count("\n") == 5

    code, out = project.sweep("--no-smoke")
    assert code == 1 and "Smoke" not in out
    assert project.started() == ["good,seed=0/read", "bad,seed=0/read"]


def test_a_failure_that_runs_share_is_told_once(project: Any) -> None:
    bad = "stage read other.py -- --do diverge --seed 0; stage write {} --after read -- --seed 0"
    project.plan(f"run a 0; {bad.format('stage.py')}", f"run b 0; {bad.format('third.py')}")
    (project.folder / "third.py").write_text((project.folder / "stage.py").read_text())
    code, out = project.sweep()
    assert code == 1
    assert out.count("generated/fake/other.py: failed(diverged)") == 1


def test_a_stage_is_tried_with_those_before_it(project: Any) -> None:
    project.plan(
        "run x 0; stage read stage.py -- --seed 0; "
        "stage write other.py --after read -- --parent read --seed 0"
    )
    assert project.sweep()[0] == 0
    assert smoked(project) == ["x,seed=0/read", "x,seed=0/write"]
    text = (project.folder / "other.py").read_text()
    (project.folder / "other.py").write_text(text.replace("ba9876543210", "ba9876543211"))
    code, out = project.sweep()
    assert code == 0 and "Smoke   2 modules ran two updates" in out  # `write` starts from `read`


def test_a_real_result_proves_a_module_too(project: Any) -> None:
    project.plan("run a 0; stage read stage.py -- --seed 0")
    assert project.sweep("--no-smoke")[0] == 0
    project.plan(
        "run a 0; stage read stage.py -- --seed 0", "run a 1; stage read stage.py -- --seed 1"
    )
    code, out = project.sweep()
    assert code == 0 and "Smoke" not in out and smoked(project) == []


def test_smoke_alone_runs_every_run_and_none_for_real(project: Any) -> None:
    project.plan(
        "run a 0; stage read stage.py -- --seed 0", "run a 1; stage read stage.py -- --seed 1"
    )
    code, out = project.sweep("--smoke")
    assert code == 0 and "Sweep   fake: 2 runs" in out
    assert smoked(project) == ["a,seed=0/read", "a,seed=1/read"]
    assert not (project.root / "runs/fake").exists()


def test_a_sweep_that_is_stopped_in_its_smoke_runs_starts_nothing(project: Any) -> None:
    project.plan("run a 0; stage read stage.py -- --do hang --seed 0")
    process = project.start()
    pids = project.root / "runs/fake.smoke/a,seed=0/read/pids"
    sweeps.wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2, "hanging stage")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert (pids.parent / "saved").exists()
    assert not (project.root / "runs/fake/events.jsonl").exists()
    assert "stopped in the smoke runs; nothing else was started" in out


def test_few_runs_cover_many_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with most modules first; of each run what is missing and what comes before it."""
    monkeypatch.chdir(tmp_path)

    def run(index: int, *modules: str) -> list[Task]:
        stages = [(f"s{i}", name) for i, name in enumerate(modules)]
        return [
            Task(index, f"run{index}", "", "0", stage, argv=("python", name), key=f"{index}{name}",
                 program=name, after=(f"s{i - 1}",) if i else ())
            for i, (stage, name) in enumerate(stages)
        ]  # fmt: skip

    runs = [run(1, "a"), run(2, "a", "b"), run(3, "a", "b", "c"), run(4, "a", "d"), run(5, "a")]
    picked = cover([task for each in runs for task in each], Layout("x", "generated/x"))
    assert [(task.run, task.program) for task in picked] == [
        ("run3", "a"), ("run3", "b"), ("run3", "c"), ("run4", "a"), ("run4", "d"),
    ]  # fmt: skip
    assert cover([], Layout("x", "generated/x")) == []
