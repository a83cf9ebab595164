"""A question to another process, and what becomes of one that does not answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from expc.child import ChildFailed, ask


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """An installed module with this source."""

    def make(source: str) -> str:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "asked.py").write_text(f"import json, os, sys\n{source}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        return "asked"

    return make


def test_the_last_line_is_the_answer_whatever_was_printed_before(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    asked = module("print('own code says hello'); print(json.dumps({'got': json.load(sys.stdin)}))")
    assert ask(asked, {"specs": ["größe"]}, tmp_path) == {"got": {"specs": ["größe"]}}


def test_it_runs_from_the_root_and_its_files_hide_no_installed_module(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the project has a random.py')")
    asked = module("import random; print(json.dumps(os.getcwd()))")
    assert Path(ask(asked, None, tmp_path)).samefile(tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libcudart is missing')", "ended with 1.*: ImportError: libcudart"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL: it said nothing"),
        ("print('no answer')", "ended with 0 and no answer"),
    ],
)
def test_no_answer_is_one_line_that_says_why(
    module: Callable[[str], str], tmp_path: Path, source: str, said: str
) -> None:
    with pytest.raises(ChildFailed, match=said) as caught:
        ask(module(source), None, tmp_path)
    assert "\n" not in str(caught.value)
    assert sys.executable not in str(caught.value)
