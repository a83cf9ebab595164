"""Golden folders: what a spec compiles to, byte for byte, and that it is good Python, good shell, and runs."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expc.emit.write import read_lock
from expc.testing.snapshot import Snapshot

if TYPE_CHECKING:
    from tests.compiler.conftest import Golden

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(spec.parent.name for spec in GOLDEN.glob("*/spec.yaml"))
MODULES = sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("*/expected/*.py"))


@pytest.mark.parametrize("case", CASES)
def test_a_spec_compiles_to_the_folder_beside_it(case: str, request: pytest.FixtureRequest) -> None:
    update = bool(request.config.getoption("--expc-update", default=False))
    Snapshot(GOLDEN / case, update=update)("spec.yaml", "expected")


# ------------------------------------------------------------------------------------------- form


def test_python_is_formatted_and_clean() -> None:
    files = [str(GOLDEN / module) for module in MODULES]
    line = ["--line-length", "100", "--no-cache", "--isolated"]
    formatted = _run(_ruff(), "format", *line, "--check", *files)
    assert formatted.returncode == 0, formatted.stdout
    checked = _run(_ruff(), "check", "--select", "E4,E7,E9,F,UP,B,SIM,C4", *line, *files)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("case", CASES)
def test_shell_is_clean(case: str) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
        "shellcheck"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted((GOLDEN / case / "expected").glob("*.sh"))
    told = _run(shellcheck, "--shell=bash", *map(str, scripts))
    assert told.returncode == 0, told.stdout


def test_python_type_checks() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mypy")
    files = [
        str(GOLDEN / module) for module in MODULES if not module.startswith("own_loss/")
    ]  # own code is on the path of its own project alone
    told = _run(
        sys.executable, "-m", "mypy", "--strict", "--scripts-are-modules", *files,
        cwd=GOLDEN.parent.parent,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout


def test_generated_code_knows_the_runtime_and_not_the_compiler() -> None:
    for module in MODULES:
        tree = ast.parse((GOLDEN / module).read_text(encoding="utf-8"))
        tops = {name.split(".")[0] for name in _imported(tree)}
        assert "expc" not in tops
        assert "expc_runtime" in tops


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_cases_hold_every_component_and_clock() -> None:
    """A declaration that no golden uses could be printed wrong, and nobody would see it."""
    from expc import components

    text = "\n".join(path.read_text(encoding="utf-8") for path in GOLDEN.glob("*/spec.yaml"))
    for family in components.FAMILIES:
        for name in components.built_in(family):
            assert f"use: {name}" in text, f"no golden uses the {family} {name}"
    printed = "\n".join((GOLDEN / module).read_text(encoding="utf-8") for module in MODULES)
    for clock in ("Epochs(", "Updates(", "Minutes("):
        assert clock in printed
    for bound in ("at_least=", "at_most=", "above=", "below="):
        assert bound in printed


# --------------------------------------------------------------------------------------------- runs


def _run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=300, cwd=cwd)


def _ruff() -> str:
    from ruff.__main__ import find_ruff_bin

    return str(find_ruff_bin())


def _parents(case: str, stage: Path, loaded: Any, golden: Golden) -> None:
    """What a stage starts from: the stage before it, trained."""
    text = Path(loaded.__file__).read_text(encoding="utf-8")
    for name in dict.fromkeys(re.findall(r'"stage:(\w+)', text)):
        variant = Path(loaded.__file__).stem.partition("_")[2]
        file = f"{name}_{variant}.py"
        shared = not (GOLDEN / case / "expected" / file).exists()
        before = golden.load(f"{case}/expected/{f'{name}.py' if shared else file}")
        _parents(case, stage, before, golden)
        out = str(stage.parent / name)
        assert before.main(before.Config(out=out, device="cpu", seed=0)) == 0
    if 'of="train"' in text:
        # Results lie outside of the case's folder here, and name the module that made them.
        (stage.parent / "expected").symlink_to(GOLDEN / case / "expected")
        train = golden.load(f"{case}/expected/train_vta.py")
        out = str(stage.parent / "train")
        assert train.main(train.Config(out=out, device="cpu", smoke=True)) == 0


def _weights(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand the weight files that a spec names where the project's root is looked for."""
    from safetensors.torch import save_file
    from torch import nn

    import expc_runtime.attempt

    (folder / "weights").mkdir()
    head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Identity(), nn.Linear(16, 10))
    save_file(
        {f"old_head.layers.{k}": v for k, v in head.state_dict().items()},
        folder / "weights" / "digit.safetensors",
    )
    monkeypatch.setattr(expc_runtime.attempt, "project_root", lambda path: folder)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_runs(
    module: str, tmp_path: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = module.split("/")[0]
    loaded = golden.load(module)
    monkeypatch.chdir(GOLDEN / case)
    if case == "two_stages":
        _weights(case, tmp_path, monkeypatch)
    stage = tmp_path / "stage"
    _parents(case, stage, loaded, golden)
    config = loaded.Config(out=str(stage), device="cpu", smoke=True)
    assert loaded.main(config) == 0
    kept = tmp_path / "stage.smoke" / "result.json"
    result = json.loads(kept.read_text(encoding="utf-8"))
    assert result["program"] == loaded.PROGRAM == _locked(module)
    assert result["state"] == "smoke"


def _locked(module: str) -> str:
    path = GOLDEN / module
    program: str = read_lock(path.parent)["files"][path.name]["program"]
    return program
