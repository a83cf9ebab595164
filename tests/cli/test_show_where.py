"""`expc show` and `expc where`: every value, and every generated line, has a place in the spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expc.build import load

EXTENDING = """\
expc: 1
extends: small.yaml
name: wide
about: Wider.
stages:
  read:
    model:
      trunk: {channels: [64, 64]}
"""


def origin(out: str, key: str) -> str:
    """The comment of the only line that begins with a key."""
    (line,) = [line for line in out.splitlines() if line.strip().startswith(f"{key}: ")]
    return line.split("# ", 1)[1]


def test_each_value_says_where_it_is_from(project: Path, expc) -> None:
    said = expc("show", "specs/small.yaml")
    assert said.code == 0
    assert origin(said.out, "batch") == "line 8"
    assert origin(said.out, "drop_last") == "default"
    assert origin(said.out, "lr") == "line 17, swept at line 23"


def test_values_of_an_extended_spec_name_its_file(project: Path, expc) -> None:
    (project / "specs/wide.yaml").write_text(EXTENDING)
    said = expc("show", "specs/wide.yaml")
    assert origin(said.out, "batch") == "extends specs/small.yaml:8"
    assert origin(said.out, "channels") == "line 8"
    assert not any(line.startswith("extends:") for line in said.out.splitlines())


@pytest.mark.parametrize("text", [None, EXTENDING])
def test_what_is_shown_is_a_spec_of_the_same_experiment(project: Path, expc, text) -> None:
    spec = project / "specs/small.yaml"
    if text:
        spec = project / "specs/wide.yaml"
        spec.write_text(text)
    shown = project / "specs/shown.yaml"
    shown.write_text(expc("show", str(spec)).out)
    first, again = load(spec)[1], load(shown)[1]
    assert first.tree.data["stages"] == again.tree.data["stages"]
    assert first.tree.data["sweep"] == again.tree.data["sweep"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(about=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1))
def test_any_text_survives_being_shown(project: Path, expc, about: str) -> None:
    spec, shown = project / "specs/small.yaml", project / "specs/shown.yaml"
    lines = spec.read_text().splitlines()
    lines[2] = yaml.safe_dump({"about": about}, width=float("inf")).strip()
    spec.write_text("\n".join(lines))
    said = expc("show", "specs/small.yaml")
    assert said.code == 0
    shown.write_text(said.out)
    assert load(shown)[1].about == load(spec)[1].about


def generated_line(project: Path, text: str) -> int:
    lines = (project / "generated/small/read.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


@pytest.mark.parametrize(
    ("text", "path", "place", "under"),
    [
        ("digit_loss = losses", "read.loss.digit", "specs/small.yaml:14:7", "digit"),
        ("batch: int", "read.data.batch", "specs/small.yaml:8:25", "batch"),
        ("self.trunk = ConvNet", "read.model.trunk", "specs/small.yaml:10:7", "trunk"),
    ],
)
def test_a_generated_line_leads_to_the_spec(
    project: Path, expc, text: str, path: str, place: str, under: str
) -> None:
    expc("compile", "specs/small.yaml")
    said = expc("where", f"generated/small/read.py:{generated_line(project, text)}")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == path
    assert lines[1].strip() == f"--> {place}"
    source, carets = lines[3], lines[4]
    assert source[carets.index("^") : carets.rindex("^") + 1] == under


def test_a_line_of_the_spec_leads_to_what_came_from_it(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    said = expc("where", "specs/small.yaml:14")
    number = generated_line(project, "digit_loss = losses")
    expected = "digit_loss = losses.cross_entropy(digit, digit_target)  (read.loss.digit)"
    assert said.code == 0
    assert said.out == f"generated/small/read.py:{number}: {expected}\n"


def test_there_and_back(project: Path, expc) -> None:
    """Every mapped line of the module is among those that its place in the spec leads to."""
    expc("compile", "specs/small.yaml")
    lock = json.loads((project / "generated/small/expc.lock.json").read_text())
    entries = lock["files"]["read.py"]["map"]
    assert len(entries) > 20
    for first, _, place, path in entries:
        line = place.split(":")[1]
        back = expc("where", f"specs/small.yaml:{line}").out
        assert f"generated/small/read.py:{first}: " in back and f"({path})" in back


def test_a_line_that_is_the_same_for_every_spec_has_no_place(project: Path, expc) -> None:
    expc("compile", "specs/small.yaml")
    said = expc("where", "generated/small/read.py:1")
    assert said.code == 1 and "no one value of the spec" in said.out
    beyond = expc("where", "generated/small/read.py:9999")
    assert beyond.code == 2 and " lines." in beyond.err
    assert expc("where", "specs/small.yaml:1").code == 1


@pytest.mark.parametrize("place", ["specs/small.yaml", "nowhere.py:3", "specs/small.yaml:x"])
def test_what_is_no_place_is_refused(project: Path, expc, place: str) -> None:
    assert expc("where", place).code == 2
