"""Render a plan: text for every file of the folder, and where each line of it comes from in the spec."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from expc import digest
from expc.emit import conduct, shell
from expc.emit.python import PythonFile, given, prose, python_file
from expc.emit.shell import cluster_file, quote, shell_file
from expc.experiment import Experiment
from expc.ir import Block, Name, Plan
from expc.source import KeyPath

LOCK = "expc.lock.json"


@dataclass(frozen=True, slots=True)
class Mapped:
    """Lines of a generated file that one place of the spec is behind."""

    first: int
    last: int
    place: str
    path: str


@dataclass(frozen=True)
class Rendered:
    """A folder, in memory: file name -> text, and the lock that describes them."""

    files: Mapping[str, str]
    lock: Mapping[str, Any]


def render(experiment: Experiment, plan: Plan, folder: str) -> Rendered:
    """Print every file. `folder` is relative to the project root."""
    own = _own_packages(plan, experiment.root)
    pieces = {
        module.file: python_file(module, plan.experiment, plan.spec, folder, own)
        for module in plan.modules
    }
    raw = {name: _python().render(m=piece) for name, piece in pieces.items()}
    texts = formatted(raw)
    maps = {name: source_map(pieces[name], raw[name], texts[name], experiment) for name in texts}
    files = dict(texts)
    script = shell_file(plan, folder)
    for name in ("sweep", "monitor"):
        files[f"{name}.sh"] = _shell(name).render(s=script)
    for backend in plan.backends:
        files[f"{backend.name}.sh"] = _shell(backend.name).render(s=script, c=cluster_file(backend))
    files["README.md"] = _readme().render(r=_readme_text(plan, folder))
    return Rendered(files, _lock(plan, files, maps))


def _own_packages(plan: Plan, root: Path) -> frozenset[str]:
    """Top-level packages that lie under the project root: generated files must put the root on the path for them."""
    targets = {
        target.split(".")[0].split(":")[0]
        for module in plan.modules
        for target, _ in module.program.own
    }
    return frozenset(
        top for top in targets if (root / top).is_dir() or (root / f"{top}.py").is_file()
    )


# ------------------------------------------------------------------------------------------------ templates


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("expc_templates", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@cache
def _python() -> Any:
    return _environment().get_template("module.py.j2")


@cache
def _readme() -> Any:
    return _environment().get_template("README.md.j2")


@cache
def _shell(name: str = "sweep") -> Any:
    """Whatever a shell template prints is quoted, unless it has been."""
    quoted = _environment().overlay(finalize=quote)
    quoted.filters = {**quoted.filters, "comment": shell.comment}
    return quoted.get_template(f"{name}.sh.j2")


def formatted(files: Mapping[str, str]) -> dict[str, str]:
    """Python files as ruff prints them, all in one process."""
    from ruff.__main__ import find_ruff_bin

    with tempfile.TemporaryDirectory(prefix="expc-") as scratch:
        for name, text in files.items():
            Path(scratch, name).write_text(text, encoding="utf-8")
        command = [find_ruff_bin(), "format", "--isolated", "--line-length", "100", "--no-cache", "--quiet", scratch]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
        return {name: Path(scratch, name).read_text(encoding="utf-8") for name in files}


# ----------------------------------------------------------------------------------------------- source map


def source_map(
    piece: PythonFile, raw: str, text: str, experiment: Experiment
) -> tuple[Mapped, ...]:
    """Lines of the formatted file -> places of the spec.

    The formatter keeps the tree, so the n-th statement before it is the n-th after it.
    """
    origin = dict(_raw_lines(piece, raw))
    found = []
    for before, after in zip(_statements(raw), _statements(text), strict=True):
        path = origin.get(before.lineno)
        if path is not None:
            span = experiment.where(*path).key
            name = ".".join(map(str, path[1:] if path[0] == "stages" else path))
            found.append(Mapped(after.lineno, after.end_lineno or after.lineno, str(span), name))
    return tuple(found)


def _raw_lines(piece: PythonFile, raw: str) -> Iterator[tuple[int, KeyPath]]:
    """Line numbers of the unformatted file for every printed line that came from the spec, in order."""
    lines = raw.split("\n")
    at = max(number for number, line in enumerate(lines) if line.startswith("class Config("))
    for line in piece.lines():
        while lines[at].strip() != line.text.strip():
            at += 1
        at += 1
        if line.path is not None:
            yield at, line.path


def _statements(text: str) -> list[ast.stmt]:
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


# ------------------------------------------------------------------------------------------ lock and README


def _lock(
    plan: Plan, files: Mapping[str, str], maps: Mapping[str, tuple[Mapped, ...]]
) -> dict[str, Any]:
    modules = {module.file: module for module in plan.modules}
    entries: dict[str, Any] = {}
    for name, text in sorted(files.items()):
        entry: dict[str, Any] = {"sha256": digest.text(text)}
        if name in modules:
            module = modules[name]
            entry |= {
                "stage": module.stage,
                "program": module.digest,
                "values": digest.identity(module.program),
                "map": [[m.first, m.last, m.place, m.path] for m in maps[name]],
            }
        entries[name] = entry
    return {
        "lock": 1,
        "experiment": plan.experiment,
        "spec": plan.spec,
        "runs": plan.runs,
        **({"conduct": plan.conduct} if plan.conduct else {}),
        "files": entries,
    }


def lock_text(lock: Mapping[str, Any]) -> str:
    """The lock as it is written: one line for each mapped statement, so that diffs are readable."""
    text = json.dumps(lock, indent=1, ensure_ascii=False)
    return _INNER.sub(lambda match: " ".join(match.group().split()), text) + "\n"


_INNER = re.compile(r"\[\s+\d+,\s+\d+,\s+\"[^\"]*\",\s+\"[^\"]*\"\s+\]")


@dataclass(frozen=True, slots=True)
class _Row:
    file: str
    stage: str
    doc: str


@dataclass(frozen=True, slots=True)
class _Runs:
    label: str
    stages: str
    modules: str


@dataclass(frozen=True, slots=True)
class _Conduct:
    of: str
    says: str


@dataclass(frozen=True, slots=True)
class Readme:
    """What the README template prints."""

    experiment: str
    spec: str
    about: str
    folder: str
    summary: str
    example: str
    modules: tuple[_Row, ...]
    blocks: tuple[_Runs, ...]
    conduct: tuple[_Conduct, ...]
    clusters: tuple[str, ...]


def _readme_text(plan: Plan, folder: str) -> Readme:
    return Readme(
        experiment=plan.experiment,
        spec=plan.spec,
        about=prose(plan.about),
        folder=folder,
        summary=shell.summary(plan),
        example=_by_hand(plan, folder),
        modules=tuple(_Row(m.file, m.stage, m.program.doc.rstrip(".")) for m in plan.modules),
        blocks=tuple(_runs(block) for block in plan.blocks),
        conduct=tuple(_Conduct(of, says) for of, says in conduct.told(plan).items()),
        clusters=tuple(backend.name for backend in plan.backends),
    )


def _runs(block: Block) -> _Runs:
    label = "".join(f"<{p.text}>" if isinstance(p, Name) else p for p in block.label)
    live = [stage for stage in block.stages if not stage.skip]
    return _Runs(
        (f"{label}," if label else "") + "seed=<seed>",
        " -> ".join(stage.stage for stage in live),
        ", ".join(stage.module for stage in live),
    )


def _by_hand(plan: Plan, folder: str) -> str:
    module = plan.modules[0]
    swept = [flag for flag in module.program.flags if flag.swept]
    flags = " ".join(map(given, swept))
    return " ".join(filter(None, [f"{folder}/{module.file}", flags, "--seed 0"]))
