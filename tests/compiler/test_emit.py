"""Printed files: where each line comes from, and what changes when a spec changes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expc.build import compiled
from expc.emit.python import literal
from expc.emit.render import LOCK, Rendered, lock_text, render

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

REPOSITORY = Path(__file__).parent.parent.parent
SPECS = sorted(
    path
    for pattern in ("specs/*.yaml", "tests/golden/*/spec.yaml")
    for path in REPOSITORY.glob(pattern)
    if "_as_" not in path.name
)


def module(made: Rendered, name: str = "read.py") -> str:
    return made.files[name]


def mapped(made: Rendered, name: str = "read.py") -> list[tuple[str, str, int]]:
    """(the statement's text on one line, the path behind it, the spec's line)"""
    lines = made.files[name].splitlines()
    return [
        (
            " ".join(line.strip() for line in lines[first - 1 : last]),
            path,
            int(place.split(":")[1]),
        )
        for first, last, place, path in made.lock["files"][name]["map"]
    ]


def values(made: Rendered, name: str = "read.py") -> str:
    told: str = made.lock["files"][name]["values"]
    return told


def program(made: Rendered, name: str = "read.py") -> str:
    told: str = made.lock["files"][name]["program"]
    assert f'PROGRAM = "{told}"' in module(made, name)
    return told


# ------------------------------------------------------------------------------------------- source map

LONG = """\
expc: 1
name: long
about: |
  lr: float = 0.003
  Names so long that no statement fits on a line.
  class Config(Run):
stages:
  a_stage_whose_name_is_long:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2, test: 0.2, seed: 7}, drop_last: true}
    model:
      the_first_part_of_the_model: {use: conv_net, channels: [4, 8], norm: true, dropout: 0.125}
    heads:
      the_digit_that_is_in_the_image: {use: linear_head, out: 10, hidden: 32, dropout: 0.25}
      whether_the_digit_has_a_loop: {use: linear_head, out: 1, hidden: 16, dropout: 0.5}
    loss:
      the_digit_that_is_in_the_image: {use: cross_entropy, target: digit, label_smoothing: 0.1}
      whether_the_digit_has_a_loop:
        {use: asymmetric, target: loop, weight: 0.5, gamma_neg: 4.0, gamma_pos: 1.0, clip: 0.05}
    metrics:
      share_of_digits_that_are_right: {use: accuracy, of: the_digit_that_is_in_the_image}
    optim: {use: adamw, lr: 0.003, betas: [0.9, 0.99], eps: 1.0e-6, weight_decay: 0.1}
    schedule: {use: cosine, warmup: {epochs: 1}, floor: 0.01}
    clip: 1.0
    until: {epochs: 2}
"""


@pytest.mark.parametrize(
    "text", [None, LONG], ids=["statements on one line", "statements on many lines"]
)
def test_every_mapped_statement_belongs_to_its_path(project: Project, text: str | None) -> None:
    made = project.render(text)
    name = next(name for name in made.files if name.endswith(".py"))
    experiment = project.resolve(text)
    lines = (project.root / project.spec).read_text(encoding="utf-8").splitlines()
    seen = set()
    for statement, path, line in mapped(made, name):
        keys = path.split(".")
        tree_path = ("stages", *keys)
        assert experiment.key(*tree_path).line == line
        seen.add(path)
        if ".sigmoid()" in statement:
            continue  # made for whoever reads it first
        match keys[1:]:
            case ["heads" | "loss" | "metrics" | "model" as section, key] if key in lines[line - 1]:
                ending = {"heads": "", "loss": "_loss"}.get(section, "")
                assert key + ending in statement, (statement, path)
            case ["optim", leaf] | ["data", leaf] | ["loss" | "heads" | "model", _, leaf]:
                assert leaf in statement, (statement, path)
                written = lines[line - 1].split(f"{leaf}: ", 1)[1]
                value = re.match(r"[\w.\-]+|\[[^\]]*\]", written)
                assert value is not None
                shown = statement.split(" = ")[1].split("  #")[0]
                assert _plain(ast.literal_eval(shown)) == _plain(_yaml(value.group()))
            case _:
                pass
    head = next(iter(experiment.stages))
    wanted = {f"{head}.{part}" for part in ("data", "heads", "loss", "optim")} | {head}
    assert wanted <= seen


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_maps_follow_the_file_and_cover_what_can_fail(spec: Path) -> None:
    made = compiled(spec)
    rendered = render(made.experiment, made.plan, "generated/it")
    for name, text in rendered.files.items():
        if not name.endswith(".py"):
            continue
        entries = rendered.lock["files"][name]["map"]
        spans = [(first, last) for first, last, _, _ in entries]
        assert spans == sorted(spans)
        starts = {node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)}
        assert {first for first, _ in spans} <= starts
        covered = {line for first, last in spans for line in range(first, last + 1)}
        methods = [
            node
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.name in ("forward", "losses", "update")
        ]
        assert len(methods) == {"losses": 3, "trajectory": 1}.get(_tells(text), 0)
        for method in methods:
            for statement in method.body:
                is_doc = isinstance(statement, ast.Expr) and isinstance(
                    statement.value, ast.Constant
                )
                is_return = isinstance(statement, ast.Return)
                assert is_doc or is_return or statement.lineno in covered, (name, statement.lineno)


def _tells(text: str) -> str:
    """A word that only modules of one kind have."""
    return "losses" if "self.losses(" in text else "trajectory" if "trajectory =" in text else ""


def test_prose_can_t_draw_the_map_to_itself(project: Project) -> None:
    """A line of `about` that reads like a field is not where the field is."""
    plain = project.render()
    text = project.changed(
        "about: Which digits have a loop?",
        "about: |\n  lr: float = 0.001\n  class Config(Run):\n      lr: float = 0.001",
    )
    told = project.render(text)
    assert [(s, p) for s, p, _ in mapped(told)] == [(s, p) for s, p, _ in mapped(plain)]


@pytest.mark.parametrize(
    "about",
    ['"ends with \\""', "'a \"\"\" b'", "'back\\'", '"cr \\r lf \\n nel \\x85 ls \\u2028 end"',
     "'{{ x }} {% y %}'", "'$(touch x) `y`'", "'é 漢 🎉'", '"tab\\t bell\\a"', "''", "'# x'", '"\\n\\n"'],
)  # fmt: skip
def test_prose_of_any_kind_is_printed_as_prose(project: Project, about: str) -> None:
    plain, told = (
        project.render(), project.render(project.changed("Which digits have a loop?", about))
    )  # fmt: skip
    for name, text in told.files.items():
        assert "\r" not in text
        if name.endswith(".py"):
            compile(text, name, "exec")
            assert _code(text) == _code(plain.files[name])
    assert told.files["sweep.sh"] == plain.files["sweep.sh"]


def _code(text: str) -> str:
    tree = ast.parse(text)
    tree.body = tree.body[1:]  # without the module's docstring
    return ast.unparse(tree)


def test_the_lock_reads_back_as_what_it_was(project: Project) -> None:
    import json

    made = project.render(LONG)
    assert json.loads(lock_text(made.lock)) == json.loads(json.dumps(made.lock))


# -------------------------------------------------------------------------------- what changes what


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("about: Which digits have a loop?", "about: Another question."),
        ("    kind: supervised\n", "    kind: supervised\n    about: a stage\n"),
        ("    kind: supervised\n", "    # a comment\n\n    kind: supervised # and one more\n"),
        ("{use: linear_head, out: 10}", "{out: 10, use: linear_head}"),
        ("lr: 1.0e-3", "lr: 0.001"),
        ("lr: 1.0e-3", "'lr': 1e-03"[:4] + ": 1.0e-03"),
        ("name: reader\nabout: Which digits have a loop?", "about: Which digits have a loop?\nname: reader"),
    ],
)  # fmt: skip
def test_prose_comments_and_the_way_of_writing_change_no_program(
    project: Project, old: str, new: str
) -> None:
    plain, told = project.render(), project.render(project.changed(old, new))
    assert values(told) == values(plain)
    assert program(told) == program(plain)
    assert _code(module(told)) == _code(module(plain))


def test_the_order_of_sections_changes_no_byte_of_a_module(project: Project) -> None:
    stage = project.text.split("    metrics:")
    moved = f"{stage[0].replace('    heads:', '    until: {epochs: 2}@    heads:')}    metrics:{stage[1]}"
    moved = moved.replace("@", "\n").replace("1.0e-3}\n    until: {epochs: 2}", "1.0e-3}")
    assert module(project.render(moved)) == module(project.render())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr: 1.0e-3", "lr: 2.0e-3"),
        ("batch: 64", "batch: 32"),
        ("weight: 0.5", "weight: 0.25"),
        ("channels: [4, 8]", "channels: [4, 9]"),
        ("val: 0.2", "val: 0.3"),
        ("epochs: 2", "epochs: 3"),
    ],
)
def test_a_value_changes_the_values_and_not_the_program(
    project: Project, old: str, new: str
) -> None:
    plain, told = project.render(), project.render(project.changed(old, new))
    assert values(told) != values(plain)
    assert program(told) == program(plain)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("use: adamw", "use: adam"),
        ("epochs: 2", "updates: 2"),
        ("of: loop}", "of: loop, target: even}"),
        ("until:", "clip: 1.0\n    until:"),
        ("until:", "monitor: {best: accuracy}\n    until:"),
        ("{use: bce, weight: 0.5}", "{use: bce}"),
        ("lr: 1.0e-3", "lr: 1.0e-3, decay: all"),
    ],
)
def test_another_statement_changes_the_program(project: Project, old: str, new: str) -> None:
    plain, told = project.render(), project.render(project.changed(old, new))
    assert values(told) != values(plain)
    assert program(told) != program(plain)


# --------------------------------------------------------------------------------------------- python


@pytest.mark.parametrize(
    "stage", ["module", "tensor", "run", "drive", "config", "conv_net", "epochs"]
)
def test_a_stage_may_be_called_what_the_module_imports(project: Project, stage: str) -> None:
    made = project.render(project.changed("  read:\n", f"  {stage}:\n"))
    text = module(made, f"{stage}.py")
    classes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
    assert [ast.unparse(base) for base in classes[1].bases] == ["Module"]
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not {each.name for each in classes} & imported


@pytest.mark.parametrize(
    "value",
    ["", "'", '"', "\\", "\n", "é", "🎉", "{x}", "\u2028", "\x7f", True, 1, -1, 1e-5, 1e300, None, (), (1,), ("a", 2.5)],
)  # fmt: skip
def test_literals_read_back_as_they_were(value: Any) -> None:
    read = ast.literal_eval(literal(value))
    assert read == value and type(read) is type(value)


def test_files_say_where_they_come_from_and_whose_they_are(project: Project) -> None:
    made = project.render()
    for name, text in made.files.items():
        assert (
            "Generated by expc from specs/it.yaml"
            in text.split("\n", 2)[0] + text.split("\n", 2)[1]
        )
        assert str(project.root) not in text
        assert name != LOCK


def test_the_same_spec_gives_the_same_bytes_in_another_place(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = project.render(LONG)
    project.root = tmp_path_factory.mktemp("elsewhere")
    (project.root / "pyproject.toml").touch()
    second = project.render(LONG)
    assert first.files == second.files
    assert lock_text(first.lock) == lock_text(second.lock)
