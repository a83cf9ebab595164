"""The engine: order, reports, cache, what is imported, and grids of any size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from expc.findings import Finding
from expc.lint import cache as store
from expc.lint.engine import (
    FileReport,
    exit_code,
    lint_files,
    render_github,
    render_json,
    render_text,
)
from expc.lint.pages import EXAMPLE, completed

MISTAKEN = completed(
    "loss:\n  digit: {use: cross_entropy, label_smoothng: 0.1}\noptim: {use: adamw, lr: 3e-3}\n"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "specs").mkdir()
    return tmp_path


def write(project: Path, text: str, name: str = "example") -> Path:
    spec = project / "specs" / f"{name}.yaml"
    spec.write_text(text)
    return spec


def report(spec: Path, *, cache: bool = False) -> FileReport:
    (one,) = lint_files([spec], cache=cache)
    return one


def codes(found: FileReport) -> list[str]:
    return [finding.code for finding in found.findings]


# -------------------------------------------------------------------------------------------------- reports


def test_text_report(project: Path) -> None:
    shown = render_text([report(write(project, MISTAKEN))])
    assert (
        shown
        == """\
XC101: `label_smoothng` is not a key of `cross_entropy`
  --> specs/example.yaml:13:35
   |
13 |       digit: {use: cross_entropy, label_smoothng: 0.1}
   |                                   ^^^^^^^^^^^^^^
   = help: did you mean `label_smoothing`? (`cross_entropy` takes `label_smoothing`, `weight`, `of`, `target`)   [fix available]

XC001: `3e-3` is text, not a number
  --> specs/example.yaml:16:29
   |
16 |     optim: {use: adamw, lr: 3e-3}
   |                             ^^^^
   = note: YAML wants a point before the exponent and a sign after it
   = help: write `3.0e-3`   [fix available]

2 errors. `expc lint --fix` repairs 2. `expc rule XC101` explains.
"""
    )


def test_a_second_place_is_a_note(project: Path) -> None:
    spec = write(project, completed("clip: 1.0\nclip: 2.0\n"))
    assert "= note: the first `clip` (18:5)" in render_text([report(spec)])


def test_colour_changes_nothing_but_colour(project: Path) -> None:
    reports = [report(write(project, MISTAKEN))]
    coloured = render_text(reports, colour=True)
    assert coloured != render_text(reports)
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == render_text(reports)


def test_json_report(project: Path) -> None:
    first, second = map(json.loads, render_json([report(write(project, MISTAKEN))]).splitlines())
    assert first["code"] == "XC101" and first["severity"] == "error"
    assert (first["file"], first["line"], first["column"]) == ("specs/example.yaml", 13, 35)
    assert (first["end_line"], first["end_column"]) == (13, 49)
    assert second["fix"] == [
        {
            "file": "specs/example.yaml",
            "line": 16,
            "column": 29,
            "end_line": 16,
            "end_column": 33,
            "text": "3.0e-3",
            "safe": True,
        }
    ]


def test_github_report(project: Path) -> None:
    spec = write(project, completed("accumulate: 50\n"))
    assert render_github([report(spec)]) == (
        "::warning file=specs/example.yaml,line=18,col=17,endLine=18,endColumn=19,title=XC405::"
        "a step takes 50 batches, and an epoch has 17%0A"
        "the weights would move less than once an epoch%0A"
        "set it to 17 or less, or use smaller batches\n"
    )


def test_nothing_to_say_is_said_with_nothing(project: Path) -> None:
    reports = [report(write(project, EXAMPLE))]
    assert render_text(reports) == render_json(reports) == render_github(reports) == ""
    assert exit_code(reports) == 0


def test_warnings_count_and_do_not_stop_a_compile(project: Path) -> None:
    found = report(write(project, completed("accumulate: 50\n")))
    assert exit_code([found]) == 1
    assert found.blocking == found.errors == ()


def test_findings_are_in_the_order_of_the_file(project: Path) -> None:
    found = report(write(project, MISTAKEN))
    assert [f.span for f in found.findings] == sorted(f.span for f in found.findings)


# ---------------------------------------------------------------------------------------------------- cache


def cached(spec: Path) -> bool:
    return report(spec, cache=True).cached


def test_an_answer_is_kept_until_something_changes(project: Path) -> None:
    spec = write(project, completed("accumulate: 50\n"))
    first = report(spec, cache=True)
    second = report(spec, cache=True)
    assert not first.cached and second.cached
    assert second.findings == first.findings
    assert render_text([second]) == render_text([first])
    spec.write_text(EXAMPLE)
    third = report(spec, cache=True)
    assert not third.cached and third.findings == ()


def test_what_an_answer_rests_on(project: Path) -> None:
    """The spec it extends, own code, files that it names, and the generated folder."""
    (project / "lab.py").write_text(
        "def mine(pred, target, *, reduction='mean', scale: float = 1.0): ...\n"
    )
    write(project, EXAMPLE, "base")
    spec = write(
        project,
        "expc: 1\nname: child\nabout: Does it notice?\nextends: base.yaml\n"
        "stages:\n  read:\n    loss: {digit: {use: 'lab:mine'}}\n"
        "    init: {backbone: {file: weights.safetensors}}\n",
        "child",
    )
    weights = project / "weights.safetensors"
    weights.write_text("")
    assert not cached(spec) and cached(spec)
    (project / "lab.py").write_text("def mine(pred, target, *, reduction='mean'): ...\n")
    assert not cached(spec) and cached(spec)
    write(project, EXAMPLE.replace("epochs: 12", "epochs: 13"), "base")
    assert not cached(spec) and cached(spec)
    weights.unlink()
    assert codes(report(spec, cache=True)) == ["XC205"]
    weights.write_text("")
    assert not cached(spec) and cached(spec)
    folder = project / "generated" / "child"
    folder.mkdir(parents=True)
    (folder / "expc.lock.json").write_text("{")
    assert codes(report(spec, cache=True)) == ["XC904"]


def test_an_answer_rests_on_what_a_pattern_finds_and_on_each_file_of_a_list(project: Path) -> None:
    data = "data: {{use: feather, files: {}, columns: {{image: features, digit: class}}, batch: 64, split: {{val: 0.2}}}}\n"
    spec = write(project, completed(data.format('"data/*.feather"')))
    listed = write(project, completed(data.format("[data/a.feather]")), "listed")
    assert codes(report(spec, cache=True)) == codes(report(listed, cache=True)) == ["XC205"]
    (project / "data").mkdir()
    (project / "data" / "a.feather").write_text("")
    assert codes(report(spec, cache=True)) == codes(report(listed, cache=True)) == []
    assert cached(spec) and cached(listed)
    (project / "data" / "b.feather").write_text("")
    assert not cached(spec) and cached(listed)


def test_only_files_may_be_a_pattern(project: Path) -> None:
    """`file` is opened as it is written: a pattern there is a file of that name, which nobody has."""
    data = 'data: {use: arrays, file: "data/*.npz", columns: {image: features, digit: class}, batch: 64, split: {val: 0.2}}\n'
    (project / "data").mkdir()
    (project / "data" / "a.npz").write_text("")
    spec = write(project, completed(data))
    assert codes(report(spec)) == ["XC205"]
    (project / "data" / "*.npz").write_text("")
    assert codes(report(spec)) == []


def test_an_answer_that_an_installation_could_change_is_not_kept(project: Path) -> None:
    spec = write(project, completed("optim: {use: 'nolab.optim:Mine'}\n"))
    assert codes(report(spec, cache=True)) == ["XC106"]
    assert not cached(spec)


def test_damaged_memory_is_no_memory(project: Path) -> None:
    spec = write(project, EXAMPLE)
    assert not cached(spec)
    (entry,) = (project / store.FOLDER).iterdir()
    for damage in ("", "{}", "[]", "null", entry.read_text().replace('"tool"', '"loot"')):
        entry.write_text(damage)
        assert not cached(spec) and cached(spec)


def test_a_project_that_can_not_be_written_to_is_linted(project: Path) -> None:
    spec = write(project, EXAMPLE)
    (project / ".expc").write_text("in the way")
    assert not cached(spec) and not cached(spec)


def test_no_cache_leaves_nothing(project: Path) -> None:
    report(write(project, EXAMPLE))
    assert not (project / ".expc").exists()


# -------------------------------------------------------------------------------------------------- imports


def imported(project: Path, spec: Path) -> set[str]:
    """Modules that a fresh process holds after linting a spec."""
    code = (
        "import sys; from expc.lint.engine import lint_files, render_text\n"
        "(found,) = lint_files([sys.argv[1]]); render_text([found])\n"
        "print(found.cached, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(spec)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_lint_imports_nothing_heavy(project: Path) -> None:
    spec = write(project, completed("accumulate: 50\n"))
    heavy = {"torch", "pytorch_lightning", "torchmetrics", "jinja2", "rich", "numpy", "click"}
    first = imported(project, spec)
    assert "False" in first and "pydantic" in first
    assert not heavy & first
    second = imported(project, spec)
    assert "True" in second
    assert not (heavy | {"pydantic", "yaml", "expc.resolve", "expc.lint.core"}) & second


# ---------------------------------------------------------------------------------------------------- grids

MANY = "[" + ", ".join(f"{n / 1000:.3f}" for n in range(1, 101)) + "]"


def test_a_million_points_are_never_spread_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of specs that are resolved does not grow with the grid."""
    from expc.resolve import resolve

    count = 0

    def counting(*args: object) -> object:
        nonlocal count
        count += 1
        return resolve(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("expc.lint.check.resolve", counting)
    grid = f"read.optim.lr: {MANY}, read.optim.weight_decay: {MANY}, read.clip: {MANY}"
    found = report(write(project, EXAMPLE + f"sweep: {{grid: {{{grid}}}}}\n"))
    assert {f.message for f in found.findings if f.code != "XC402"} == set()
    assert 0 < count < 50


def test_the_worst_value_of_a_long_axis_is_found(project: Path) -> None:
    values = [f"{n / 10000:.4f}" for n in range(1, 200)]
    values[77] = "0.9"
    spec = write(project, EXAMPLE + f"sweep: {{grid: {{read.optim.lr: [{', '.join(values)}]}}}}\n")
    (finding,) = report(spec).findings
    assert finding.code == "XC402" and "lr 0.9" in finding.message
    assert spec.read_text()[finding.span.start : finding.span.end] == "0.9"


def test_two_swept_values_that_are_wrong_together_are_found(project: Path) -> None:
    spec = write(
        project,
        completed("clip: 1.0\n")
        + "sweep: {grid: {read.precision: [32, 16-mixed], read.optim.eps: [1.0e-8, 1.0e-4]}}\n",
    )
    assert codes(report(spec)) == ["XC401"]


def test_structural_sweeps_are_told_when_they_are_too_large(project: Path) -> None:
    channels = ", ".join(f"[{n}]" for n in range(1, 300))
    grid = f"sweep: {{grid: {{read.model.backbone.channels: [{channels}]}}}}\n"
    assert codes(report(write(project, EXAMPLE + grid))) == ["XC503"]


def test_a_skipped_stage_is_not_judged(project: Path) -> None:
    stage = EXAMPLE.partition("  read:\n")[2]
    spec = write(
        project,
        EXAMPLE
        + f"  again:\n{stage}    accumulate: 50\n"
        + "sweep: {conditions: {alone: {again: skip}}}\n",
    )
    assert codes(report(spec)) == []


def test_a_condition_that_leaves_every_stage_out_is_told(project: Path) -> None:
    stage = EXAMPLE.partition("  read:\n")[2]
    text = f"{EXAMPLE}  again:\n{stage}    init: {{backbone: {{from: read}}}}\n"
    text += "sweep: {conditions: {both: {}, cold: {read: skip"
    (finding,) = report(write(project, text + "}}}\n")).findings
    assert finding.code == "XC502" and "`again` starts from `read`" in finding.why
    assert codes(report(write(project, text + ", again.init: {}}}}\n"))) == []


def test_findings_in_a_base_spec_name_the_base(project: Path) -> None:
    write(project, completed("accumulate: 50\n"), "base")
    child = write(project, "expc: 1\nname: child\nabout: What is inherited?\nextends: base.yaml\n")
    (finding,) = report(child).findings
    assert isinstance(finding, Finding)
    assert str(finding.span) == "specs/base.yaml:18:17"
    write(
        project,
        completed(
            "# expc: allow accumulate-beyond-epoch -- one step for two passes\naccumulate: 50\n"
        ),
        "base",
    )
    assert report(child).findings == ()


# ------------------------------------------------------------------------------------------------ hand-offs

TWO_STAGES = """\
stages:
  first:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    optim: {use: adamw}
    until: {epochs: 3}
    monitor: {digit: val/digit}
  second:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    heads: {policy: {use: linear_head, out: 10}}
    loss: {policy: {use: cross_entropy, target: digit}}
    optim: {use: adamw}
    until: {epochs: 3}
    init: INIT
"""


@pytest.mark.parametrize(
    ("init", "wanted"),
    [
        ("{backbone: {from: first}}", []),
        ("{heads.policy: {from: first, part: heads.digit}}", []),
        ("{heads.policy: {from: first}}", ["stage `first` has no part `heads.policy` to give"]),
        ("{policy_head: {from: first}}", ["stage `second` has no part `policy_head` to start"]),
    ],
)
def test_a_head_s_weights_can_be_handed_over(project: Path, init: str, wanted: list[str]) -> None:
    found = report(write(project, completed(TWO_STAGES.replace("INIT", init))))
    assert [finding.message for finding in found.findings] == wanted
    if (
        "heads.policy: {from: first}" in init
    ):  # the name of the part goes there, not in place of ours
        assert "`part:`" in found.findings[0].help


def test_a_circle_that_only_a_condition_closes_is_told(project: Path) -> None:
    """Compile and plan would stop at it."""
    text = completed(TWO_STAGES.replace("INIT", "{backbone: {from: first}}"))
    back = "{first.init: {backbone: {from: second}}}"
    found = report(write(project, f"{text}sweep: {{conditions: {{plain: {{}}, back: {back}}}}}\n"))
    assert [finding.message for finding in found.findings if finding.code == "XC202"] == [
        "stages wait for each other: `first` -> `second` -> `first`"
    ]


def test_a_key_that_nobody_wrote_can_be_swept(project: Path) -> None:
    spec = completed(TWO_STAGES.replace("INIT", "{backbone: {from: first}}"))
    spec += "sweep: {grid: {second.init.backbone.best: [null, digit]}}\n"
    assert codes(report(write(project, spec))) == []


def test_points_that_are_excluded_are_not_looked_at(project: Path) -> None:
    spec = completed("name: example\n").replace("sweep:", "unused:")
    swept = "sweep: {grid: {read.optim.lr: [1.0e-3, 9.0], read.data.batch: [8, 16]}, exclude: [{read.optim.lr: 9.0}]}\n"
    assert codes(report(write(project, spec + swept))) == []
    assert "XC402" in codes(
        report(write(project, spec + swept.replace("9.0}]", "9.0, read.data.batch: 8}]")))
    )
