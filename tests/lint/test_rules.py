"""Every rule's page is its test: Bad yields the rule's code, Good yields nothing, and the fixed Bad is Good."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from expc.findings import Finding
from expc.lint.check import check
from expc.lint.core import DryRule, Rule, rules
from expc.lint.engine import fix_file, lint_files, page
from expc.lint.pages import EXAMPLE, WORLD, Case, cases, completed, text_of

COMPILER = Path(__file__).parents[2] / "compiler"
# Those that only a dry run finds are in tests/cli/test_plan_check.py.
RULES = [rule for rule in rules() if not issubclass(rule, DryRule)]


def project(root: Path, case: Case) -> Path:
    """A project with the files of a page in it; the spec's path."""
    (root / "pyproject.toml").write_text("")
    for name, text in {**case.files, "specs/example.yaml": case.spec}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root / "specs" / "example.yaml"


def linted(spec: Path) -> tuple[Finding, ...]:
    (report,) = lint_files([spec], cache=False)
    return report.findings


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_page(rule: type[Rule], tmp_path: Path) -> None:
    bad, good = cases(rule)
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    spec = project(tmp_path / "bad", bad)
    found = linted(spec)
    assert rule.code in {finding.code for finding in found}
    assert linted(project(tmp_path / "good", good)) == ()
    if rule.fixable:
        assert fix_file(spec)
        assert spec.read_text() == good.spec


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_bad_shows_one_fault(rule: type[Rule], tmp_path: Path) -> None:
    """A page that shows two faults teaches neither.

    But a misspelt allow leaves the fault that it was for, and an odd lock is out of date as well.
    """
    bad, _ = cases(rule)
    besides = {"XC010": {"XC405"}, "XC902": {"XC901"}, "XC903": {"XC901"}}.get(rule.code, set())
    assert {finding.code for finding in linted(project(tmp_path, bad))} - besides == {rule.code}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_findings_help(rule: type[Rule], tmp_path: Path) -> None:
    """Every finding has a place in the text, a message in plain words, and an action."""
    bad, _ = cases(rule)
    spec = project(tmp_path, bad)
    for finding in linted(spec):
        lines = bad.spec.splitlines()
        assert 1 <= finding.span.line <= len(lines)
        assert 1 <= finding.span.col <= len(lines[finding.span.line - 1]) + 1
        assert finding.message and not finding.message.endswith(".")
        assert finding.help or finding.why
        assert not re.search(r"pydantic|Extra inputs|NoneType|Traceback", finding.message)


def test_every_code_that_is_emitted_has_a_rule() -> None:
    emitted = {
        code
        for file in COMPILER.rglob("*.py")
        for code in re.findall(r"Finding\(\s*\"(XC\d{3})\"", file.read_text())
    }
    assert emitted  # the pattern still finds them
    assert emitted <= {rule.code for rule in RULES}


def test_codes_and_names_are_unique_and_read_well() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) >= 25
    for rule in RULES:
        first = text_of(rule).splitlines()[0]
        assert first.endswith("."), rule.code
        assert len(first) <= 120, rule.code


def test_a_rule_without_a_page_can_not_be_declared() -> None:
    with pytest.raises(TypeError, match="## Bad"):

        class Silent(Rule):
            """Says nothing."""

            code, name = "XC399", "silent"

    with pytest.raises(TypeError, match="taken"):

        class Taken(Rule):
            """Takes a code.

            ## Bad
            ## Good
            """

            code, name = "XC301", "another-name"


def test_page_by_code_and_by_name() -> None:
    assert page("XC208") == page("gate-passed-by-constant") == page("xc208")
    assert page("XC208").startswith("# XC208 gate-passed-by-constant\n")
    with pytest.raises(KeyError, match="gate-passed-by-constant"):
        page("gate-passed-by-constants")


def test_the_example_is_clean(tmp_path: Path) -> None:
    for example in (EXAMPLE, WORLD):
        assert completed("name: example\n", example) == example
        assert linted(project(tmp_path, Case(example))) == ()


def test_a_page_completes_the_stage_that_has_the_key() -> None:
    spec = completed("until: {updates: 9}\naccept: {all: []}\nname: other\n", WORLD)
    train, _, boundaries = spec.partition("  boundaries:\n")
    assert "    until: {updates: 9}\n" in train
    assert boundaries.endswith("    accept: {all: []}\n")
    assert "name: other\n" in train


def test_nothing_is_found_twice(tmp_path: Path) -> None:
    """A fault that every variant of a sweep has is one finding."""
    spec = completed(
        "optim: {use: sgd, lr: 0.05, momentum: 0.9}\n"
        "sweep: {grid: {read.loss.digit.use: [cross_entropy, gce], read.data.batch: [32, 64]}}\n"
    )
    checked = check(project(tmp_path, Case(spec)), tmp_path)
    assert [finding.code for finding in checked.findings] == ["XC402"]
