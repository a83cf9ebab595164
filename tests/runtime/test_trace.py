"""An exception from generated code names the line of the spec."""

import hashlib
import importlib.util
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from expc_runtime.trace import annotate, source_of

MODULE = """\
def losses(divide):
    total = 1
    loop_loss = divide(
        total,
        0,
    )
    return loop_loss


def update(call):
    call()
"""
MAP = [
    [1, 7, "specs/x.yaml:30:5", "read.loss"],
    [3, 6, "specs/x.yaml:41:9", "read.loss.loop"],
    [10, 11, "specs/x.yaml:12:3", "read"],
]

Write = Callable[..., ModuleType]


def divide(a: int, b: int) -> float:
    return a / b


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(lock: object = None, text: str = MODULE) -> ModuleType:
        folder = tmp_path / "generated" / "x"
        folder.mkdir(parents=True)
        path = folder / "read_mse.py"
        path.write_text(text)
        entry = {"sha256": hashlib.sha256(MODULE.encode()).hexdigest()[:16], "map": MAP}
        given = {"files": {path.name: entry}} if lock is None else lock
        (folder / "expc.lock.json").write_text(
            given if isinstance(given, str) else json.dumps(given)
        )
        spec = importlib.util.spec_from_file_location("generated_x", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return write


def raised(call: Callable[..., object], *arguments: object) -> BaseException:
    with pytest.raises(Exception) as info:
        call(*arguments)
    return info.value


def test_the_traceback_ends_with_the_line_of_the_spec(write: Write) -> None:
    error = raised(write().losses, divide)
    assert annotate(error) == "specs/x.yaml:41:9 (read.loss.loop)"
    assert annotate(error) == "specs/x.yaml:41:9 (read.loss.loop)"  # a second time adds nothing
    lines = "".join(traceback.format_exception(error)).splitlines()
    assert lines[-2:] == [
        "ZeroDivisionError: division by zero",
        "from specs/x.yaml:41:9 (read.loss.loop)",
    ]


def test_a_line_without_its_own_entry_belongs_to_what_is_around_it(write: Write) -> None:
    module = write()
    assert source_of(raised(module.losses, None)) == "specs/x.yaml:41:9 (read.loss.loop)"
    assert source_of(raised(module.update, lambda: divide(1, 0))) == "specs/x.yaml:12:3 (read)"


def test_the_deepest_generated_frame_counts(write: Write) -> None:
    module = write()
    error = raised(module.update, lambda: module.losses(divide))
    assert source_of(error) == "specs/x.yaml:41:9 (read.loss.loop)"


def test_a_cause_is_followed_where_the_error_itself_says_nothing(write: Write) -> None:
    module = write()

    def outside() -> None:
        try:
            module.losses(divide)
        except ZeroDivisionError as cause:
            raise RuntimeError("diverged") from cause

    assert source_of(raised(outside)) == "specs/x.yaml:41:9 (read.loss.loop)"


def test_an_edited_file_is_not_given_a_line_of_the_spec(write: Write) -> None:
    error = raised(write(text=MODULE.replace("total = 1", "total = 2")).losses, divide)
    assert source_of(error) == "generated/x/read_mse.py:3 (edited)"


@pytest.mark.parametrize("lock", ["", "{", [], {}, {"files": []}, {"files": {"other.py": {}}}])
def test_without_a_map_there_is_no_source_and_no_note(write: Write, lock: object) -> None:
    error = raised(write(lock).losses, divide)
    assert annotate(error) == ""
    assert not hasattr(error, "__notes__")


def test_entries_it_cannot_read_are_passed_over(write: Write) -> None:
    digest = hashlib.sha256(MODULE.encode()).hexdigest()
    lines = [["a"], None, [1, "z", "x", "y"], MAP[1]]
    module = write({"files": {"read_mse.py": {"sha256": digest, "map": lines}}})
    assert source_of(raised(module.losses, divide)) == "specs/x.yaml:41:9 (read.loss.loop)"
