"""`expc lint` and `expc rule` as commands; what the rules say is tested with the rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expc.lint.engine import rules


@pytest.fixture
def faulty(project: Path, edit) -> Path:
    edit("weight_decay: 0.01", "wieght_decay: 0.01")
    return project


def test_a_clean_spec_is_silent_but_for_what_was_not_looked_at(project: Path, expc) -> None:
    said = expc("lint", "specs/small.yaml")
    assert (said.code, said.out) == (0, "")
    assert said.err == (
        "specs/small.yaml: there are no facts about its data; `expc profile specs/small.yaml` "
        "reads it once, and lint then looks at that too\n"
    )
    assert expc("lint", "specs/small.yaml") == said  # from memory, too
    for form in ("json", "github"):
        said = expc("lint", "--format", form, "specs/small.yaml")
        assert (said.code, said.out, said.err) == (0, "", "")


def test_many_specs_without_facts_are_one_line(project: Path, expc) -> None:
    for name in ("one", "two", "three"):
        text = (project / "specs/small.yaml").read_text().replace("name: small", f"name: {name}")
        (project / f"specs/{name}.yaml").write_text(text)
    (line,) = expc("lint").err.splitlines()
    assert line.startswith("there are no facts about the data of 4 specs (specs/one.yaml, ")
    assert " and 1 more): `expc profile SPEC` reads it once" in line


def test_without_paths_it_looks_at_all_specs(faulty: Path, expc, monkeypatch) -> None:
    (faulty / "specs/notes.txt").write_text("no spec")
    monkeypatch.chdir(faulty / "specs")
    assert expc("lint").code == 1
    assert expc("lint", str(faulty / "specs")).code == 1


def test_findings_point_and_exit_with_one(faulty: Path, expc) -> None:
    said = expc("lint", "specs/small.yaml")
    assert said.code == 1
    assert "XC101" in said.out and "specs/small.yaml:17:" in said.out and "^^^^" in said.out
    assert "\033[" not in said.out


def test_fix_mends_what_can_be_mended(faulty: Path, expc) -> None:
    said = expc("lint", "--fix", "specs/small.yaml")
    assert said.code == 0 and said.out == ""
    assert "weight_decay: 0.01" in (faulty / "specs/small.yaml").read_text()


def test_json_is_one_object_on_each_line(faulty: Path, expc) -> None:
    said = expc("lint", "--format", "json", "specs/small.yaml")
    found = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 1 and found[0]["code"] == "XC101"


def test_github_annotations(faulty: Path, expc) -> None:
    said = expc("lint", "--format", "github", "specs/small.yaml")
    assert said.code == 1
    assert said.out.startswith("::error file=specs/small.yaml,line=17,")


def test_no_cache_leaves_no_cache(project: Path, expc) -> None:
    expc("lint", "--no-cache", "specs/small.yaml")
    assert not (project / ".expc").exists()


def test_a_missing_file_is_a_finding(project: Path, expc) -> None:
    said = expc("lint", "specs/smal.yaml")
    assert said.code == 1 and "there is no file" in said.out


def test_no_specs_at_all(project: Path, expc) -> None:
    (project / "specs/small.yaml").unlink()
    assert expc("lint").code == 2


def test_a_rule_is_explained_by_code_and_by_name(expc) -> None:
    first = rules()[0]
    by_code, by_name = expc("rule", first.code), expc("rule", first.name)
    assert by_code.code == 0 and by_code.out == by_name.out
    assert first.code in by_code.out and "## Bad" in by_code.out and "## Good" in by_code.out


def test_all_rules_in_a_list_and_as_pages(expc) -> None:
    listed = expc("rule", "--all").out.splitlines()
    assert [line.split()[0] for line in listed] == [rule.code for rule in rules()]
    pages = expc("rule", "--all", "--format", "md").out
    assert all(f"# {rule.code} {rule.name}\n" in pages for rule in rules())


@pytest.mark.parametrize("argv", [(), ("XC101", "--all"), ("XC999",), ("no-such-rule",)])
def test_what_names_no_rule_is_refused(expc, argv: tuple[str, ...]) -> None:
    assert expc("rule", *argv).code == 2


def test_a_near_rule_is_offered(expc) -> None:
    said = expc("rule", "bce-on-probability")
    assert said.err.endswith("did you mean `bce-on-probabilities`?\n")
