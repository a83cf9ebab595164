"""`--fix`: edits by span, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from expc.findings import Edit, Finding, Span
from expc.lint.check import check
from expc.lint.engine import fix_file
from expc.lint.pages import completed


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path / "example.yaml"


def codes(spec: Path) -> list[str]:
    return [finding.code for finding in check(spec, spec.parent).findings]


def test_comments_blanks_and_order_stay(spec: Path) -> None:
    before = completed(
        "# the rate of the paper\n"
        "optim:   {use:   adamw,    lr: 3e-3  }   # kept as it is\n"
        "compile:    off      # and this\n"
    )
    spec.write_text(before)
    assert len(fix_file(spec)) == 2
    assert spec.read_text() == before.replace("3e-3", "3.0e-3").replace("off ", "false ")


def test_says_what_it_did(spec: Path) -> None:
    spec.write_text(completed("optim: {use: adamw, lr: 3e-3}\n"))
    assert fix_file(spec) == ("example.yaml:16:29: XC001 `3.0e-3`",)


@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=["crlf", "lf"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
def test_line_ends_marks_and_other_alphabets(spec: Path, end: str, mark: str) -> None:
    text = mark + completed("about: naïve ≠ κλεινός 🙂?\noptim: {use: adamw, lr: 3e-3}\n")
    raw = text.replace("\n", end).encode()
    spec.write_bytes(raw)
    assert len(fix_file(spec)) == 1
    assert spec.read_bytes() == raw.replace(b"3e-3", b"3.0e-3")


def test_a_fix_that_brings_a_fault_is_dropped(spec: Path) -> None:
    """The misspelt key would become a second one of the right name."""
    text = completed("optim: {use: adamw, lr: 3.0e-3, wieght_decay: 0.1, weight_decay: 0.2}\n")
    spec.write_text(text)
    assert fix_file(spec) == ()
    assert spec.read_text() == text


def test_a_fix_that_changes_other_values_is_dropped(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = completed("optim: {use: adamw, lr: 3e-3}\n")
    spec.write_text(text)
    start = text.index("3e-3")
    wide = Span("example.yaml", 16, 29, 17, 1, start, start + 4)
    greedy = Finding(
        "XC001", "too much", wide, fix=(Edit(wide, "3.0e-3, eps: 1.0e-7}\n    clip: {x: 1"),)
    )
    real = check

    def checked(path: Path, root: Path) -> object:
        found = real(path, root)
        found.findings = (greedy,)
        return found

    monkeypatch.setattr("expc.lint.fix.check", checked)
    assert fix_file(spec) == ()
    assert spec.read_text() == text


def test_unsafe_edits_are_left_to_the_author(spec: Path) -> None:
    text = completed("sweep: {grid: {read.optim.l: [1.0e-3, 3.0e-3]}}\n")
    spec.write_text(text)
    assert codes(spec) == ["XC501"]
    assert fix_file(spec) == ()
    assert spec.read_text() == text


def test_a_mended_fault_may_uncover_another(spec: Path) -> None:
    spec.write_text(
        completed(
            "heads:\n  digit: {use: linear_head, out: 9}\nloss:\n  digit: {use: cross_entropi}\n"
        )
    )
    assert codes(spec) == ["XC104"]
    assert len(fix_file(spec)) == 2
    assert codes(spec) == []


def test_repeated_values_go_one_by_one(spec: Path) -> None:
    spec.write_text(
        completed("sweep:\n  seeds:\n    - 0\n    - 1\n    - 1\n    - 2\n    - 1\n    - 0\n")
    )
    assert len(fix_file(spec)) == 3
    assert spec.read_text().endswith("seeds:\n    - 0\n    - 1\n    - 2\n")


def test_mode_of_the_file_stays(spec: Path) -> None:
    spec.write_text(completed("compile: off\n"))
    spec.chmod(0o640)
    fix_file(spec)
    assert spec.stat().st_mode & 0o777 == 0o640


def test_a_linked_spec_is_mended_where_it_lies(spec: Path, tmp_path: Path) -> None:
    spec.write_text(completed("compile: off\n"))
    link = tmp_path / "link.yaml"
    link.symlink_to(spec)
    assert fix_file(link)
    assert link.is_symlink() and "compile: false" in spec.read_text()


def test_what_can_not_be_read_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert fix_file(tmp_path / "folder") == fix_file(tmp_path / "nowhere.yaml") == ()
