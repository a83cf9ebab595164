"""What may import what, what templates may do, and what a compile never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment, nodes

import expc
import expc_templates
from expc import components
from expc.emit.render import _shell
from expc.emit.shell import Quoted, comment, quote
from expc.kinds import KINDS

ROOT = Path(expc.__file__).parent
TEMPLATES = Path(expc_templates.__file__).parent
REPOSITORY = Path(__file__).parent.parent.parent

# Each layer may import those above it in this list, never those below. Modules in one set are neighbours.
LAYERS: list[set[str]] = [
    {"findings", "source", "project", "fingerprint", "child", "facts"},
    {"ir"},
    {"components", "signatures", "tree"},
    {"spec", "experiment", "shape", "digest", "identity"},
    {"kinds", "passes", "lower", "resolve", "sweep", "policy"},
    {"plan", "lint"},
    {"emit"},
    {"build"},
    {"monitor"},
    {"dry", "schema", "runs", "standing", "profiling", "testing", "report"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether it is for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrow"
            whole = node.module or ""
            yield whole, id(node) in typed
            if whole == "expc":
                yield from ((f"expc.{alias.name}", id(node) in typed) for alias in node.names)


def test_every_module_has_a_layer() -> None:
    assert {top for top, _ in _modules()} == set(RANK)


def test_arrows_point_one_way() -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for top, path in _modules()
        for name, typed in _imports(path)
        if name.startswith("expc.") and not typed
        if RANK.get(name.split(".")[1], 0) > RANK[top]
    ]
    assert upward == []


def test_components_kinds_and_passes_know_nothing_of_output() -> None:
    above = {"emit", "build", "cli", "plan", "lint"}
    for top, path in _modules():
        if top in {"components", "kinds", "passes", "ir", "source"}:
            tops = {name.split(".")[1] for name, _ in _imports(path) if name.startswith("expc.")}
            assert not tops & above, path


def test_the_compiler_reads_torch_code_and_imports_none() -> None:
    heavy = {"torch", "pytorch_lightning", "torchmetrics", "numpy", "sklearn", "safetensors"}
    for _, path in _modules():
        for name, typed in _imports(path):
            assert name.split(".")[0] not in heavy, f"{path} imports {name}"
            if name.startswith("expc_runtime") and not typed:
                assert name.startswith(("expc_runtime.state", "expc_runtime.errors")), (
                    f"{path} imports {name}"
                )


def test_what_the_compiler_takes_from_the_runtime_is_standard_library_alone() -> None:
    import expc_runtime

    for path in (Path(expc_runtime.__file__).parent / "state").rglob("*.py"):
        for name, _ in _imports(path):
            top = name.split(".")[0]
            own = name.startswith(("expc_runtime.state", "expc_runtime.errors"))
            assert own or name == "expc_runtime" or top in sys.stdlib_module_names, (
                f"{path}: {name}"
            )


def test_a_compile_of_every_spec_loads_no_torch() -> None:
    script = """
import sys
from pathlib import Path
from expc.build import compiled
from expc.emit.render import render
from expc.findings import SpecError
specs = sorted(Path("specs").glob("*.yaml")) + sorted(Path("tests/golden").glob("*/spec.yaml"))
assert specs
for spec in specs:
    try:
        made = compiled(spec)
    except SpecError:
        assert "_as_" in spec.name, spec
        continue
    render(made.experiment, made.plan, "generated/x")
heavy = {"torch", "pytorch_lightning", "torchmetrics", "numpy", "expc_runtime.module"}
print(sorted(heavy & set(sys.modules)))
"""
    path = [entry for entry in sys.path if entry]
    told = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": ":".join(path), "PATH": "/usr/bin:/bin"},
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------- templates

SHIPPED = sorted(path for path in TEMPLATES.glob("*.j2"))


def _tree(path: Path) -> nodes.Template:
    return Environment(trim_blocks=True, lstrip_blocks=True).parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_template_loops_and_prints(path: Path) -> None:
    """No comparison, no arithmetic, no call, no macro: an `if` only asks whether there is something to print."""
    allowed = (
        nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Name, nodes.Getattr, nodes.Filter,
    )  # fmt: skip
    for node in _tree(path).find_all(nodes.Node):
        assert isinstance(node, allowed), f"{path.name}:{node.lineno}: {type(node).__name__}"
        if isinstance(node, nodes.If):
            assert isinstance(node.test, nodes.Getattr), f"{path.name}:{node.lineno}"
            assert not node.elif_ and not node.else_
        if isinstance(node, nodes.Filter):
            assert node.name == "comment"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_template_names_no_kind_and_no_component(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    words = set("".join(char if char.isalnum() or char == "_" else " " for char in text).split())
    named = {name for family in components.FAMILIES for name in components.built_in(family)}
    assert not words & (named | set(KINDS))


def test_lowerings_name_no_component() -> None:
    """A kind reads declarations; a component's own name stands in its declaration alone."""
    named = {name for family in components.FAMILIES for name in components.built_in(family)}
    for top, path in _modules():
        if top in {"kinds", "passes", "plan", "emit", "sweep", "resolve"}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            compared = {
                constant.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Compare)
                for constant in ast.walk(node)
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
            }
            assert not compared & named, path


# ------------------------------------------------------------------------------------------- quoting

# Whatever a shell could trip over; NUL can't stand in an argument at all.
HOSTILE = st.text(
    alphabet=st.one_of(
        st.sampled_from(list("'\"$`\\!*?[]{}()<>|&;~#= \t\n\r-")),
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    max_size=12,
)


def _bash(script: str) -> str:
    told = subprocess.run(
        ["bash", "--norc", "-c", script], check=True, capture_output=True, cwd="/", timeout=60
    )
    return told.stdout.decode("utf-8")


@settings(max_examples=25, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=20))
def test_what_a_shell_template_prints_is_one_word(texts: list[str]) -> None:
    template = _shell().environment.from_string(
        "{% for text in texts %}x={{ text }}; printf '%s\\0' \"$x\"\n{% endfor %}"
    )
    assert _bash(template.render(texts=texts)).split("\0")[:-1] == texts


@settings(max_examples=25, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=20))
def test_a_run_s_label_is_printed_as_it_is(texts: list[str]) -> None:
    from expc.emit.shell import _label

    lines = [f"printf '%s\\0' {_label([text])}" for text in texts]
    assert _bash("\n".join(lines)).split("\0")[:-1] == texts


@settings(max_examples=25, deadline=None)
@given(HOSTILE)
def test_a_comment_stays_on_its_line(text: str) -> None:
    assert _bash(f"# {comment(text)}\necho done") == "done\n"


def test_quoted_text_is_quoted_once() -> None:
    assert quote(quote("a b")) == "'a b'"
    assert isinstance(quote("a b"), Quoted)
