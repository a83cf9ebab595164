"""`expc compile`, `check`, `own`: what is on disk is what the spec says, and never a person's edit lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FILES = {"README.md", "expc.lock.json", "monitor.sh", "read.py", "sweep.sh"}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Bytes, inode and time of every file: equal only if nothing was written."""
    return {
        p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()
    }


def test_compile_writes_the_folder_and_says_so_in_one_line(project: Path, expc) -> None:
    said = expc("compile", "specs/small.yaml")
    assert said.code == 0
    assert {path.name for path in (project / "generated/small").iterdir()} == FILES
    assert len(said.out.splitlines()) == 1
    assert said.out.startswith("generated/small: 1 module, 4 runs; wrote ")
    assert all(name in said.out for name in FILES)
    assert (project / "generated/small/sweep.sh").stat().st_mode & 0o111


def test_an_unchanged_spec_writes_nothing_and_says_so(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    before = snapshot(project / "generated/small")
    said = expc("compile", "specs/small.yaml")
    assert said.code == 0
    assert said.out == "generated/small: 1 module, 4 runs; unchanged\n"
    assert snapshot(project / "generated/small") == before


def test_only_what_changed_is_written(project: Path, expc, edit) -> None:
    expc("compile", "specs/small.yaml")
    before = snapshot(project / "generated/small")
    edit("seeds: [0, 1]", "seeds: [0, 1, 2]")
    said = expc("compile", "specs/small.yaml")
    after = snapshot(project / "generated/small")
    assert {name for name in FILES if before[name] != after[name]} == {
        "README.md",
        "expc.lock.json",
        "sweep.sh",
    }
    assert "read.py" not in said.out


def test_a_folder_may_be_chosen(project: Path, expc) -> None:
    said = expc("compile", "specs/small.yaml", "-o", "tests/golden/small")
    assert said.code == 0 and said.out.startswith("tests/golden/small: ")
    assert (
        "expc own tests/golden/small/read.py"
        in (project / "tests/golden/small/read.py").read_text()
    )


def test_a_folder_outside_the_project_is_refused(project: Path, expc, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "out"
    said = expc("compile", "specs/small.yaml", "-o", str(elsewhere))
    assert said.code == 1 and "outside the project" in said.out
    assert not elsewhere.exists()


def test_errors_are_told_and_nothing_is_written(project: Path, expc, edit) -> None:
    edit("weight_decay: 0.01", "wieght_decay: 0.01")
    said = expc("compile", "specs/small.yaml")
    assert said.code == 1
    assert "`wieght_decay`" in said.out and "did you mean `weight_decay`?" in said.out
    assert not (project / "generated").exists()


def test_a_spec_that_is_not_there(project: Path, expc) -> None:
    said = expc("compile", "specs/smal.yaml")
    assert said.code == 1
    assert "there is no file `specs/smal.yaml`" in said.out
    assert not (project / "generated").exists()


def test_stdout_prints_the_files_and_writes_nothing(project: Path, expc) -> None:
    said = expc("compile", "specs/small.yaml", "--stdout")
    assert said.code == 0 and not (project / "generated").exists()
    assert "==> generated/small/read.py <==" in said.out
    assert "class Read(Module):" in said.out and "#!/usr/bin/env bash" in said.out


# -------------------------------------------------------------------------------------------- edited by hand


def test_an_edit_by_hand_is_not_overwritten(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    module = project / "generated/small/read.py"
    module.write_text(module.read_text() + "# mine\n")
    said = expc("compile", "specs/small.yaml")
    assert said.code == 1
    assert "edited by hand" in said.out and "expc own generated/small/read.py" in said.out
    assert module.read_text().endswith("# mine\n")


def test_force_overwrites_an_edit(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    module = project / "generated/small/read.py"
    compiled = module.read_text()
    module.write_text(compiled + "# mine\n")
    said = expc("compile", "specs/small.yaml", "--force")
    assert said.code == 0 and "wrote read.py" in said.out
    assert module.read_text() == compiled


def test_an_owned_file_is_the_users(project: Path, expc, edit) -> None:
    expc("compile", "specs/small.yaml")
    module = project / "generated/small/read.py"
    assert expc("own", "generated/small/read.py").code == 0
    assert "DO NOT EDIT" not in module.read_text()
    mine = module.read_text() + "# mine\n"
    module.write_text(mine)
    edit("channels: [8, 16]", "channels: [8, 32]")
    said = expc("compile", "specs/small.yaml")
    assert said.code == 0 and "left read.py as yours" in said.out
    assert module.read_text() == mine
    assert expc("check").code == 0
    assert expc("own", "generated/small/read.py").out.endswith("is yours already\n")


def test_an_owned_file_stays_when_the_spec_no_longer_has_it(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    expc("own", "generated/small/read.py")
    spec = project / "specs/small.yaml"
    spec.write_text(spec.read_text().replace("read", "scan"))
    said = expc("compile", "specs/small.yaml")
    assert said.code == 0
    assert (project / "generated/small/read.py").is_file()
    assert (project / "generated/small/scan.py").is_file()
    assert expc("check").code == 0


@pytest.mark.parametrize("edited", [False, True])
def test_an_edited_file_is_another_program_once_owned(project: Path, expc, edited: bool) -> None:
    expc("compile", "specs/small.yaml")
    file = project / "generated/small/read.py"
    before = _program(file)
    if edited:
        file.write_text(file.read_text() + "# mine\n")
    said = expc("own", "generated/small/read.py")
    assert (_program(file) != before) is edited
    assert len(_program(file)) == len(before) and "PROGRAM" in said.out


def _program(file: Path) -> str:
    return next(line for line in file.read_text().splitlines() if line.startswith("PROGRAM"))[:28]


def test_a_deleted_file_is_ours_again(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    expc("own", "generated/small/read.py")
    (project / "generated/small/read.py").unlink()
    assert expc("check").code == 1
    assert expc("compile", "specs/small.yaml").code == 0
    assert "DO NOT EDIT" in (project / "generated/small/read.py").read_text()
    assert expc("check").code == 0


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("generated/small/raed.py", "Did you mean `read.py`?"),
        ("generated/small/expc.lock.json", "can't be yours"),
        ("specs/small.yaml", "holds no expc.lock.json"),
        ("generated/smal/read.py", "There is no file `generated/smal/read.py`"),
    ],
)
def test_only_generated_files_can_be_owned(project: Path, expc, file: str, says: str) -> None:
    expc("compile", "specs/small.yaml")
    said = expc("own", file)
    assert said.code == 2 and says in said.err


# ------------------------------------------------------------------------------------------------------ check


def test_check_is_quiet_when_all_is_fresh(project: Path, expc) -> None:
    assert expc("check").out == "there are no generated folders\n"
    expc("compile", "specs/small.yaml")
    said = expc("check")
    assert said.code == 0 and said.out == "1 generated folder is up to date\n"


def test_check_shows_what_an_edit_of_the_spec_changes(project: Path, expc, edit) -> None:
    expc("compile", "specs/small.yaml")
    before = snapshot(project / "generated/small")
    edit("batch: 64", "batch: 32")
    said = expc("check")
    assert said.code == 1
    assert "--- generated/small/read.py (on disk)" in said.out
    assert "-    batch: int = 64\n+    batch: int = 32\n" in said.out
    assert snapshot(project / "generated/small") == before


def test_check_shows_an_edit_by_hand_and_a_lost_file(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    module = project / "generated/small/read.py"
    module.write_text(module.read_text().replace("int = 64", "int = 65"))
    (project / "generated/small/README.md").unlink()
    said = expc("check", "specs/small.yaml")
    assert said.code == 1
    assert "-    batch: int = 65\n+    batch: int = 64\n" in said.out
    assert "--- /dev/null\n+++ generated/small/README.md (compiled)\n" in said.out


def test_check_finds_a_folder_whose_lock_is_lost(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    (project / "generated/small/expc.lock.json").unlink()
    said = expc("check")
    assert said.code == 1 and "expc.lock.json" in said.out


def test_check_finds_a_folder_whose_spec_is_gone(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    (project / "specs/small.yaml").unlink()
    said = expc("check")
    assert said.code == 1
    assert "generated/small has no spec any more: specs/small.yaml is gone" in said.out


def test_check_finds_a_renamed_experiment(project: Path, expc, edit) -> None:
    """The old folder stays behind under its old name."""
    expc("compile", "specs/small.yaml")
    edit("name: small", "name: other")
    assert expc("check").code == 1


# ------------------------------------------------------------------------------------------------------- emit


@pytest.mark.parametrize("step", ["spec", "ir", "program", "plan"])
def test_emit_prints_yaml_and_writes_nothing(project: Path, expc, step: str) -> None:
    said = expc("compile", "specs/small.yaml", "--emit", step)
    assert said.code == 0
    assert isinstance(yaml.safe_load(said.out), dict)
    assert not (project / "generated").exists()


def test_emit_shows_how_a_number_travels(project: Path, expc) -> None:
    """The swept rate: written in the spec, bound to AdamW, a flag in the program, a loop in the plan."""

    def step(name: str):
        return yaml.safe_load(expc("compile", "specs/small.yaml", "--emit", name).out)

    assert step("spec")["stages"]["read"]["optim"]["lr"] == 3.0e-3
    optim = step("ir")["stages"]["read"]["optim"]
    assert optim["target"] == "torch.optim:AdamW"
    assert optim["written"] == {"lr": 3.0e-3, "weight_decay": 0.01}
    program = step("program")["read.py"]
    assert program["flags"]["lr"]["swept"] is True
    assert "lr=flag lr" in program["optims"]["model"]["build"]
    (block,) = step("plan")["blocks"]
    assert block["loops"] == [{"names": ["lr"], "rows": [[1.0e-3], [3.0e-3]]}]
    assert block["stages"][0]["flags"] == {"--lr": "<lr>"}


def test_emit_names_the_place_of_every_operation(project: Path, expc) -> None:
    program = yaml.safe_load(expc("compile", "specs/small.yaml", "--emit", "program").out)[
        "read.py"
    ]
    ops = [op for routine in program["routines"].values() for op in routine["ops"]]
    assert {"call", "term", "record", "metric"} <= {op["op"] for op in ops}
    assert all(op["at"].startswith("specs/small.yaml:") for op in ops)
    terms = [op for op in ops if op["op"] == "term"]
    assert terms[0]["out"] == ["digit_loss: Scalar"]
    assert terms[0]["ins"] == ["digit", "digit_target"]
    assert terms[0]["at"] == "specs/small.yaml:14:7 (stages.read.loss.digit)"


def test_emit_shows_a_spec_with_what_it_extends(project: Path, expc) -> None:
    (project / "specs/wide.yaml").write_text(
        "expc: 1\nextends: small.yaml\nname: wide\nabout: Wider.\n"
        "stages:\n  read:\n    model:\n      trunk: {channels: [64, 64]}\n"
    )
    emitted = yaml.safe_load(expc("compile", "specs/wide.yaml", "--emit", "spec").out)
    assert emitted["name"] == "wide"
    assert emitted["stages"]["read"]["model"]["trunk"] == {"use": "conv_net", "channels": [64, 64]}
    assert emitted["stages"]["read"]["data"]["batch"] == 64
