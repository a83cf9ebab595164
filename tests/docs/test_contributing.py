"""CONTRIBUTING shows a diff that adds a loss: applied to a copy of the tree, it works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("compiler", "runtime", "templates")

pytest.importorskip("torch")


def shown_diff() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"```diff\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_diff_that_adds_a_loss_applies_and_its_tests_pass(tmp_path: Path) -> None:
    for name in (*ROOTS, "tests/runtime/test_losses.py", "tests/compiler/test_declarations.py"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (tmp_path / "loss.diff").write_text(shown_diff(), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "loss.diff"], cwd=tmp_path, check=True)
    path = os.pathsep.join(str(tmp_path / root) for root in ROOTS)
    tested = ["tests/runtime/test_log_cosh.py", "tests/compiler/test_declarations.py"]
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", *tested]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " failed" not in done.stdout
