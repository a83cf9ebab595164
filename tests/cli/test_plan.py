"""`expc plan`: the plan without a shell is the script's own, and every lost result has its reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from expc.build import compiled
from expc.cli import main
from expc.runs import records, stream
from expc_runtime.state.claim import claim
from expc_runtime.state.plan import Layout, Task, tasks
from expc_runtime.state.program import read_program
from expc_runtime.state.records import Result

SWEEPS = {
    "no sweep": "",
    "seeds": "sweep: {seeds: [3, 1, 2]}",
    "loops": "sweep: {grid: {read.optim.lr: [1.0e-3, 3.0e-4], read.precision: [32, bf16-mixed]}}",
    "files and loops": (
        "sweep: {grid: {read.loss.digit.use: [cross_entropy, gce], read.optim.lr: [1.0e-3, 1]}}"
    ),
    "zipped": (
        "sweep: {zip: {read.optim.lr: [1.0e-3, 3.0e-4], read.optim.weight_decay: [0.1, 0.2]}}"
    ),
    "conditions": (
        "sweep: {seeds: [0, 1], conditions: {plain: {}, wide: {read.model.trunk.channels: [64]},"
        " smooth: {read.optim.lr: 1.0e-4, read.data.batch: 32}}}"
    ),
    "excluded": (
        "sweep: {grid: {read.optim.lr: [1.0e-3, 3.0e-4], read.data.batch: [32, 64]},"
        " exclude: [{read.optim.lr: 1.0e-3, read.data.batch: 64}]}"
    ),
    "words with care": (
        "sweep: {conditions: {a: {read.about: 'it''s $HOME; rm -rf \"*\"'}, b: {read.about: x}}}"
    ),
}


@pytest.fixture(params=SWEEPS)
def swept(project: Path, request: pytest.FixtureRequest) -> Path:
    """A compiled spec with each kind of sweep."""
    spec = project / "specs/small.yaml"
    head = spec.read_text().partition("sweep:")[0]
    spec.write_text(head + SWEEPS[request.param] + "\n")
    assert main(["compile", "specs/small.yaml"]) == 0
    return spec


def recorded(project: Path) -> list[list[str]]:
    """What the functions of the generated script record, run by bash."""
    script = (project / "generated/small/sweep.sh").read_text().partition("\nrunner=")[0]
    script += '\nrun() { printf \'%s\\0\' "$#" run "$@"; }\n'
    script += 'stage() { printf \'%s\\0\' "$#" stage "$@"; }\n'
    script += 'skip() { printf \'%s\\0\' "$#" skip "$@"; }\nruns\n'
    (project / "generated/small/recorder.sh").write_text(script)
    done = subprocess.run(
        ["bash", "generated/small/recorder.sh"], cwd=project, capture_output=True, check=True
    )
    words = iter(done.stdout.decode().split("\0")[:-1])
    return [[next(words) for _ in range(int(count) + 1)] for count in words]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is bash")
def test_the_plan_without_a_shell_is_the_scripts_own(project: Path, swept: Path) -> None:
    plan = compiled(swept).plan
    mine = list(records(plan))
    assert mine[-1] == ["end"]
    assert mine[:-1] == recorded(project)
    assert sum(words[0] == "run" for words in mine) == plan.runs


def test_the_stream_of_a_large_grid_is_made_while_it_is_read(project: Path) -> None:
    """A million runs: their first words are there before the others exist."""
    spec = project / "specs/small.yaml"
    head = spec.read_text().partition("sweep:")[0]
    rates = ", ".join(f"{(i + 1) / 1000:.3f}" for i in range(1000))
    decays = ", ".join(f"{i / 1000:.3f}" for i in range(1000))
    grid = f"{{read.optim.lr: [{rates}], read.optim.weight_decay: [{decays}]}}"
    spec.write_text(f"{head}sweep: {{grid: {grid}}}\n")
    plan = compiled(spec).plan
    assert plan.runs == 1_000_000
    first = stream(plan).read(200)
    assert first.startswith(b"3\0run\0lr=0.001,weight_decay=0.0\x000\0")


# --------------------------------------------------------------------------------------------- with results


def every_task() -> Iterator[Task]:
    layout = Layout("small", "generated/small")
    return tasks(stream(compiled(Path("specs/small.yaml")).plan), layout)


def finish(task: Task) -> None:
    """A result as a finished stage writes it."""
    root = Layout("small", "generated/small").root
    declared = read_program(Path(task.argv[1]))
    values = declared.values(task.argv[2:])
    parents = dict(zip(task.after, task.parents, strict=True))
    with claim(root / task.name, task.key, program=declared.program) as stage:
        stage.finish(Result(config=values, parents=parents))


@pytest.fixture
def ran(project: Path) -> Path:
    """The small sweep, compiled, with a result for every run."""
    assert main(["compile", "specs/small.yaml"]) == 0
    for task in every_task():
        finish(task)
    return project


def test_before_anything_ran(project: Path, expc) -> None:
    said = expc("plan", "specs/small.yaml")
    assert said.code == 0
    assert said.out.startswith("small: 4 runs: 2 lr x 2 seeds\n")
    assert "  read.py         new  (4 runs)" in said.out
    assert "  read  4 to run" in said.out
    assert not (project / "generated").exists() and not (project / "runs").exists()


def test_nothing_to_do(ran: Path, expc) -> None:
    said = expc("plan", "specs/small.yaml")
    assert "  read.py     unchanged  (4 runs)" in said.out
    assert "  read  nothing to run: 4 done" in said.out
    assert "no longer count" not in said.out


def test_another_seed_leaves_the_rest_done(ran: Path, expc, edit) -> None:
    edit("seeds: [0, 1]", "seeds: [0, 1, 2]")
    said = expc("plan", "specs/small.yaml")
    assert "read  2 to run: 4 done, 2 pending" in said.out
    assert "no longer count" not in said.out


def test_an_edited_value_is_named_with_its_place(ran: Path, expc, edit) -> None:
    edit("batch: 64", "batch: 32")
    said = expc("plan", "specs/small.yaml")
    assert "  read.py         would change  (4 runs)" in said.out
    assert "read  4 to run" in said.out
    assert "4 results no longer count" in said.out
    assert "4  read: batch 64 -> 32 (specs/small.yaml:8:" in said.out


def test_an_edit_to_a_value_that_every_run_sets_loses_nothing(ran: Path, expc, edit) -> None:
    edit("lr: 3.0e-3, weight", "lr: 2.0e-3, weight")
    said = expc("plan", "specs/small.yaml")
    assert "  read.py         would change  (4 runs)" in said.out
    assert "  read  nothing to run: 4 done" in said.out
    assert "no longer count" not in said.out


def test_edited_code_is_named(ran: Path, expc, edit) -> None:
    edit("  accuracy: {use: accuracy, of: digit}", "  top: {use: top_k, of: digit}")
    said = expc("plan", "specs/small.yaml")
    assert "4  read: what `read.py` does has changed" in said.out


def test_a_file_that_was_edited_and_owned_is_read_as_it_lies(ran: Path, expc) -> None:
    file = ran / "generated/small/read.py"
    file.write_text(file.read_text() + "# mine\n")
    expc("own", "generated/small/read.py")
    said = expc("plan", "specs/small.yaml")
    assert "4  read: what `read.py` does has changed" in said.out


def test_runs_that_left_the_plan_are_counted_and_kept(ran: Path, expc, edit) -> None:
    edit("seeds: [0, 1]", "seeds: [0]")
    said = expc("plan", "specs/small.yaml")
    assert "read  nothing to run: 2 done" in said.out
    assert "2 runs on disk that this plan does not have, such as lr=0.001,seed=1" in said.out
    assert len(list((ran / "runs/small").iterdir())) >= 4


def test_a_plan_reads_and_never_writes(ran: Path, expc, edit) -> None:
    edit("batch: 64", "batch: 32")

    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in ran.rglob("*") if p.is_file()}

    before = state()
    expc("plan", "specs/small.yaml")
    assert state() == before


def test_a_plan_may_be_asked_for_from_a_folder_below(ran: Path, expc, monkeypatch) -> None:
    monkeypatch.chdir(ran / "specs")
    assert "nothing to run: 4 done" in expc("plan", "small.yaml").out


# ------------------------------------------------------------------------------------------------ status, run


def test_status_knows_runs_that_have_not_begun(ran: Path, expc, edit) -> None:
    edit("seeds: [0, 1]", "seeds: [0, 1, 2]")
    expc("compile", "specs/small.yaml")
    said = expc("status", "small")
    assert said.code == 0
    assert "read: 2 pending, 4 done" in said.out
    assert said.out == expc("status").out.rstrip("\n") + "\n"


def test_status_without_a_generated_folder_shows_what_is_there(ran: Path, expc) -> None:
    shutil.rmtree(ran / "generated")
    said = expc("status", "small")
    assert said.code == 0 and "read: 4 done" in said.out


def test_status_of_what_is_not_there(project: Path, expc) -> None:
    assert expc("status").out == "nothing has run yet\n"
    (project / "runs/small").mkdir(parents=True)
    said = expc("status", "smal")
    assert said.code == 2 and "Did you mean `small`?" in said.err


def test_run_prints_the_script_and_becomes_it(ran: Path) -> None:
    """Everything is proved done, so the real runner has nothing to start; its exit code is ours."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-m", "expc", "run", "generated/small", "--jobs", "2"],
        cwd=ran,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "EXPC_LAUNCHER": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("$ generated/small/sweep.sh --jobs 2\n")
    assert "0 to run, 4 settled" in done.stdout


def test_run_refuses_a_spec_with_errors(project: Path, expc, edit, monkeypatch) -> None:
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: True)
    monkeypatch.setattr("os.execvpe", lambda *_: pytest.fail("it ran"))
    expc("compile", "specs/small.yaml")
    edit("use: adamw", "use: adamv")
    for what in ("specs/small.yaml", "generated/small"):
        said = expc("run", what)
        assert said.code == 1 and "`adamv`" in said.out


def test_run_of_a_folder_without_its_script(project: Path, expc, monkeypatch) -> None:
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: True)
    expc("compile", "specs/small.yaml")
    (project / "generated/small/sweep.sh").unlink()
    said = expc("run", "generated/small")
    assert said.code == 2 and "has lost its sweep.sh" in said.err
    assert expc("run", "specs").code == 2


def test_run_of_a_folder_says_when_it_is_out_of_date(
    project: Path, expc, edit, monkeypatch
) -> None:
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: True)
    became: list[list[str]] = []
    monkeypatch.setattr("os.execvpe", lambda file, argv, env: became.append(argv))
    expc("compile", "specs/small.yaml")
    edit("batch: 64", "batch: 32")
    said = expc("run", "generated/small", "--smoke")
    assert "generated/small is not what its spec compiles to" in said.err
    assert became == [["bash", "generated/small/sweep.sh", "--smoke"]]
    said = expc("run", "specs/small.yaml", "--only", "lr=0.001,*")
    assert "wrote" in said.out and not said.err
    assert became[1] == ["bash", "generated/small/sweep.sh", "--only", "lr=0.001,*"]


def test_run_refuses_a_folder_with_an_edited_file(project: Path, expc, monkeypatch) -> None:
    monkeypatch.setattr("expc.cli.needs.find_spec", lambda name: True)
    expc("compile", "specs/small.yaml")
    module = project / "generated/small/read.py"
    module.write_text(module.read_text() + "# mine\n")
    said = expc("run", "generated/small")
    assert said.code == 1
    assert "XC902: `generated/small/read.py` was edited by hand" in said.out + said.err
    assert "expc own generated/small/read.py" in said.out + said.err


def test_results_hold_what_they_are_compared_by(ran: Path) -> None:
    """The fixture writes results with the runtime's own code: keys agree with the plan's."""
    from expc_runtime.state.records import read_result

    for task in every_task():
        result = read_result(ran / "runs/small" / task.name)
        assert result is not None and result.key == task.key
        assert asdict(result)["config"]["seed"] == int(task.seed)


def test_floors_are_printed_once_the_data_is_known(project: Path, expc, edit) -> None:
    shipped = Path(__file__).parents[2] / "specs" / "digits.facts.json"
    assert "Floors" not in expc("plan", "specs/small.yaml").out
    edit("split: {val: 0.2}", "split: {val: 0.2, test: 0.2}")
    (project / "specs/small.facts.json").write_text(shipped.read_text())
    out = expc("plan", "specs/small.yaml").out
    floors = out.partition("Floors: what a constant answer reaches\n")[2].partition("\n\n")[0]
    assert [line.split() for line in floors.splitlines()[:2]] == [
        ["val", "test"],
        ["read.digit", "2.303", "2.303"],
    ]
    assert "of other data" not in out
    edit("test: 0.2", "test: 0.1")
    out = expc("plan", "specs/small.yaml").out
    assert "  of other data than `read` now reads: `expc lint` says more\n" in out
