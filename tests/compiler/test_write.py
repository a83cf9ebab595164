"""Writing a folder: only what changed, never over a person's edit, nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expc.emit.render import LOCK, Rendered
from expc.emit.write import own, read_lock, stale, write
from expc.findings import SpecError

if TYPE_CHECKING:
    from tests.compiler.conftest import Project


@pytest.fixture
def made(project: Project) -> Rendered:
    return project.render(project.swept("grid: {read.loss.loop.use: [bce, mse]}"))


@pytest.fixture
def folder(made: Rendered, tmp_path: Path) -> Path:
    """A folder as a first compile leaves it."""
    there = tmp_path / "generated" / "it"
    told = write(made, there, "generated/it")
    assert set(told.written) == {*made.files, LOCK}
    assert set(os.listdir(there)) == {*made.files, LOCK}
    return there


def codes(error: SpecError) -> list[str]:
    return [finding.code for finding in error.findings]


def test_a_second_write_touches_nothing(made: Rendered, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    told = write(made, folder, "generated/it")
    assert told.written == () and set(told.unchanged) == set(made.files)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert stale(made, folder) == {}


def test_only_what_changed_is_written(project: Project, folder: Path) -> None:
    text = project.swept("grid: {read.loss.loop.use: [bce, mse]}").replace(
        "weight: 0.5", "weight: 0.25"
    )
    told = write(project.render(text), folder, "generated/it")
    assert set(told.written) == {"read_bce.py", "read_mse.py", LOCK}
    assert set(told.unchanged) == {"sweep.sh", "monitor.sh", "README.md"}


def test_the_sweep_can_be_run_and_modules_are_read(folder: Path) -> None:
    assert (folder / "sweep.sh").stat().st_mode & 0o111 == 0o111
    assert (folder / "read_bce.py").stat().st_mode & 0o111 == 0


@pytest.mark.parametrize("name", ["read_bce.py", "sweep.sh", "README.md"])
def test_an_edit_by_hand_is_not_thrown_away(made: Rendered, folder: Path, name: str) -> None:
    (folder / name).write_text("mine\n")
    with pytest.raises(SpecError) as caught:
        write(made, folder, "generated/it")
    (finding,) = caught.value.findings
    assert finding.code == "XC902"
    assert f"expc own generated/it/{name}" in finding.help and "--force" in finding.help
    assert (folder / name).read_text() == "mine\n"
    assert set(stale(made, folder)) == {name}


def test_force_throws_it_away(made: Rendered, folder: Path) -> None:
    (folder / "read_bce.py").write_text("mine\n")
    told = write(made, folder, "generated/it", force=True)
    assert told.written == ("read_bce.py",)
    assert (folder / "read_bce.py").read_text() == made.files["read_bce.py"]


def test_nothing_is_written_when_one_file_is_refused(project: Project, folder: Path) -> None:
    (folder / "README.md").write_text("mine\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SpecError):
        write(project.render(), folder, "generated/it")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_edit_that_is_what_would_be_written_is_no_edit(project: Project, folder: Path) -> None:
    """Another branch's output, checked out over this one's."""
    text = project.swept("grid: {read.loss.loop.use: [bce, mse]}").replace(
        "weight: 0.5", "weight: 0.25"
    )
    newer = project.render(text)
    (folder / "read_bce.py").write_text(newer.files["read_bce.py"])
    assert "read_bce.py" in write(newer, folder, "generated/it").unchanged


def test_a_file_that_was_deleted_is_written_again(made: Rendered, folder: Path) -> None:
    (folder / "sweep.sh").unlink()
    assert set(stale(made, folder)) == {"sweep.sh"}
    assert write(made, folder, "generated/it").written == ("sweep.sh",)


def test_files_that_are_no_longer_made_are_removed_and_others_left(
    project: Project, folder: Path
) -> None:
    (folder / "notes.txt").write_text("mine\n")
    fewer = project.render()
    assert stale(fewer, folder)["read_mse.py"][1] is None
    told = write(fewer, folder, "generated/it")
    assert set(told.removed) == {"read_bce.py", "read_mse.py"}
    assert set(os.listdir(folder)) == {*fewer.files, LOCK, "notes.txt"}


def test_an_orphan_that_was_edited_is_not_thrown_away(project: Project, folder: Path) -> None:
    (folder / "read_mse.py").write_text("mine\n")
    with pytest.raises(SpecError) as caught:
        write(project.render(), folder, "generated/it")
    assert codes(caught.value) == ["XC902"]
    assert (folder / "read_mse.py").read_text() == "mine\n"


# ------------------------------------------------------------------------------------------------ own


def test_what_is_owned_is_never_touched_again(
    project: Project, made: Rendered, folder: Path
) -> None:
    own(folder, "read_bce.py")
    text = (folder / "read_bce.py").read_text()
    assert text.startswith("# Yours since `expc own`; it began as specs/it.yaml")
    assert "DO NOT EDIT" not in text
    assert text.split("\n", 1)[1] == made.files["read_bce.py"].split("\n", 2)[2]
    (folder / "read_bce.py").write_text("mine\n")
    told = write(made, folder, "generated/it")
    assert told.owned == ("read_bce.py",)
    assert (folder / "read_bce.py").read_text() == "mine\n"
    assert stale(made, folder) == {}


def test_what_is_owned_stays_when_the_spec_makes_it_no_more(project: Project, folder: Path) -> None:
    own(folder, "read_mse.py")
    told = write(project.render(), folder, "generated/it")
    assert "read_mse.py" not in told.removed
    assert (folder / "read_mse.py").exists()
    assert read_lock(folder)["owned"] == ["read_mse.py"]


def test_what_is_owned_and_deleted_is_ours_again(made: Rendered, folder: Path) -> None:
    own(folder, "read_mse.py")
    (folder / "read_mse.py").unlink()
    assert "read_mse.py" in write(made, folder, "generated/it").written
    assert "owned" not in read_lock(folder)


def test_owning_twice_changes_nothing(folder: Path) -> None:
    own(folder, "read_bce.py")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    own(folder, "read_bce.py")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ------------------------------------------------------------------------------------------------ lock


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"files": []}', '{"files": {"read_bce.py": 3}}', '{"files": {}, "owned": 3}',
     '{"files": {}, "owned": [3]}', "\udcff"],
)  # fmt: skip
def test_a_damaged_lock_is_told_and_nothing_is_written(
    made: Rendered, folder: Path, text: str
) -> None:
    (folder / LOCK).write_bytes(text.encode("utf-8", "surrogateescape"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SpecError) as caught:
        write(made, folder, "generated/it")
    (finding,) = caught.value.findings
    assert finding.code == "XC904" and "damaged" in finding.message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_without_a_lock_files_that_are_as_they_should_be_are_taken_over(
    made: Rendered, folder: Path
) -> None:
    (folder / LOCK).unlink()
    assert write(made, folder, "generated/it").written == (LOCK,)


def test_a_lock_can_t_reach_out_of_its_folder(project: Project, folder: Path) -> None:
    """A lock is a file that others send: it may name nothing to remove but files beside it."""
    victim = folder.parent / "victim.txt"
    victim.write_text("mine\n")
    lock = json.loads((folder / LOCK).read_text())
    from expc import digest

    lock["files"]["../victim.txt"] = {"sha256": digest.text("mine\n")}
    (folder / LOCK).write_text(json.dumps(lock))
    with pytest.raises(SpecError):
        write(project.render(), folder, "generated/it")
    assert victim.exists()


def test_no_scratch_file_is_left(folder: Path) -> None:
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
