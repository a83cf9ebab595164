"""`expc clean` deletes nothing that it did not list, nothing that is a person's, and nothing without `--yes`."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest


def everything(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def orphaned(project: Path, expc) -> Path:
    """A generated folder whose spec is gone, and what a killed compile left."""
    expc("compile", "specs/small.yaml")
    (project / "specs/small.yaml").unlink()
    (project / "generated/small/.read.py.tmp").write_text("half")
    return project


def test_nothing_to_delete(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    assert expc("clean", "--yes").out == "nothing to delete\n"
    assert (project / "generated/small/read.py").is_file()


def test_without_yes_it_only_lists(orphaned: Path, expc) -> None:
    before = everything(orphaned)
    said = expc("clean")
    assert said.code == 0
    assert "would delete generated/small/read.py" in said.out
    assert "would delete generated/small/.read.py.tmp" in said.out
    assert said.out.endswith("nothing was deleted; --yes deletes this\n")
    assert everything(orphaned) == before


def test_orphans_and_temporary_files_go(orphaned: Path, expc) -> None:
    said = expc("clean", "--yes")
    assert "deleted generated/small/expc.lock.json" in said.out
    assert not (orphaned / "generated/small").exists()


def test_what_is_a_persons_stays(orphaned: Path, expc) -> None:
    folder = orphaned / "generated/small"
    expc("own", "generated/small/read.py")
    (folder / "sweep.sh").write_text("mine\n")
    (folder / "notes.txt").write_text("mine too\n")
    expc("clean", "--yes")
    assert {p.name for p in folder.iterdir()} == {
        "read.py",
        "sweep.sh",
        "notes.txt",
        "expc.lock.json",
    }


@pytest.fixture
def results(project: Path) -> Path:
    """Results of two experiments."""
    for name in ("small", "other"):
        stage = project / "runs" / name / "seed=0" / "read"
        stage.mkdir(parents=True)
        (stage / "result.json").write_text("{}")
        (stage / ".lock").touch()
    return project


def test_results_of_one_experiment_go_only_with_yes(results: Path, expc) -> None:
    said = expc("clean", "--runs", "small")
    assert "would delete runs/small/ (2 files, " in said.out
    assert (results / "runs/small").is_dir()
    assert expc("clean", "--runs", "small", "--yes").code == 0
    assert not (results / "runs/small").exists()
    assert (results / "runs/other/seed=0/read/result.json").is_file()


def test_results_stay_while_a_process_works_there(results: Path, expc) -> None:
    with (results / "runs/small/seed=0/read/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = expc("clean", "--runs", "small", "--yes")
    assert said.code == 2 and "A process works in runs/small/seed=0/read" in said.err
    assert (results / "runs/small/seed=0/read/result.json").is_file()


@pytest.mark.parametrize("name", ["smal", "..", "small/seed=0", "../specs", "/"])
def test_only_an_experiment_can_be_named(results: Path, expc, name: str) -> None:
    before = everything(results)
    assert expc("clean", "--runs", name, "--yes").code == 2
    assert everything(results) == before


def test_a_link_is_not_followed(results: Path, expc, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (results / "runs/linked").symlink_to(elsewhere)
    assert expc("clean", "--runs", "linked", "--yes").code == 2
    assert (elsewhere / "precious").is_file()
