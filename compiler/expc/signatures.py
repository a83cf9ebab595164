"""Read the signature of a user's class or function from source text. Nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its annotation as text, and its default when that is a plain value."""

    name: str
    annotation: str
    required: bool
    default: object = None
    keyword_only: bool = False


@dataclass(frozen=True)
class Signature:
    """What can be known of a class or function without importing it."""

    name: str
    file: Path
    line: int
    parameters: tuple[Parameter, ...]
    open: bool  # takes **kwargs, or its parameters can't be read from this file
    methods: dict[str, tuple[Parameter, ...]]
    attributes: dict[str, object]
    members: frozenset[str] = frozenset()  # of a class: whatever is defined in it, or set on `self`
    whole: bool = True  # a class without bases that another file defines


class NotFound(Exception):
    """No such module, file or name. `near` are names that were there."""

    def __init__(self, message: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.near = near


def signature(target: str, root: Path) -> Signature:
    """The signature of `package.module:Name`, found under the project root or among installed packages.

    Raises `NotFound` when there is no such file or name.
    """
    module, _, name = target.partition(":")
    file = find(module, root)
    tree = _parsed(file)
    definitions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    node = definitions.get(name)
    if node is None:
        raise NotFound(f"`{module}` defines no `{name}`", tuple(definitions))
    if isinstance(node, ast.ClassDef):
        return _of_class(node, definitions, file)
    parameters, is_open = _of_arguments(node.args, method=False)
    return Signature(name, file, node.lineno, parameters, is_open, {}, {})


def find(module: str, root: Path) -> Path:
    """The file of a dotted module name. Raises `NotFound`."""
    top, *rest = module.split(".")
    places = [root]
    spec = PathFinder.find_spec(top, [str(root), *sys.path])
    if spec is not None and spec.submodule_search_locations:
        places = [Path(place).parent for place in spec.submodule_search_locations]
    elif spec is not None and spec.origin and not rest:
        return Path(spec.origin)
    for place in places:
        base = place.joinpath(top, *rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise NotFound(
        f"there is no module `{module}` under the project root or among installed packages"
    )


def _parsed(file: Path) -> ast.Module:
    seen = file.stat()
    return _parsed_at(file, seen.st_mtime_ns, seen.st_size)


@cache
def _parsed_at(file: Path, moment: int, size: int) -> ast.Module:
    """A file as it was at a moment: an edit is read anew."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise NotFound(f"`{file.name}` is not valid Python: {error}") from error


def _of_class(
    node: ast.ClassDef,
    definitions: dict[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef],
    file: Path,
) -> Signature:
    lineage = _lineage(node, definitions)
    methods: dict[str, tuple[Parameter, ...]] = {}
    attributes: dict[str, object] = {}
    init: tuple[tuple[Parameter, ...], bool] | None = None
    for owner in lineage:
        for statement in owner.body:
            if isinstance(statement, ast.FunctionDef):
                parameters, is_open = _of_arguments(statement.args, method=True)
                methods.setdefault(statement.name, parameters)
                if statement.name == "__init__" and init is None:
                    init = (parameters, is_open)
            name, value = _attribute(statement)
            if name is not None and value is not _MISSING:
                attributes.setdefault(name, value)
    if init is None and any(_is_dataclass(owner) for owner in lineage):
        init = (tuple(_fields(lineage)), False)
    whole = all(_name(base) in definitions for owner in lineage for base in owner.bases)
    parameters, is_open = init or ((), not whole and bool(node.bases))
    members = frozenset(name for owner in lineage for name in _members(owner))
    return Signature(
        node.name, file, node.lineno, parameters, is_open, methods, attributes, members, whole
    )


def _members(owner: ast.ClassDef) -> Iterator[str]:
    for statement in owner.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (
                part.id for t in targets for part in ast.walk(t) if isinstance(part, ast.Name)
            )
    for node in ast.walk(owner):
        match node:
            case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                yield name


def _lineage(
    node: ast.ClassDef,
    definitions: dict[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef],
) -> list[ast.ClassDef]:
    """A class and those of its bases that the same file defines."""
    lineage = [node]
    for base in node.bases:
        parent = definitions.get(_name(base))
        if isinstance(parent, ast.ClassDef) and parent not in lineage:
            lineage += [owner for owner in _lineage(parent, definitions) if owner not in lineage]
    return lineage


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _fields(lineage: list[ast.ClassDef]) -> list[Parameter]:
    fields: dict[str, Parameter] = {}
    for owner in reversed(lineage):
        for statement in owner.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                annotation = ast.unparse(statement.annotation)
                if not annotation.startswith(("ClassVar", "typing.ClassVar")):
                    name = statement.target.id
                    fields[name] = Parameter(
                        name, annotation, statement.value is None, _literal(statement.value)
                    )
    return list(fields.values())


def _attribute(statement: ast.stmt) -> tuple[str | None, object]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id, _literal(statement.value, _MISSING)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, _literal(statement.value, _MISSING)
    return None, _MISSING


def _of_arguments(arguments: ast.arguments, *, method: bool) -> tuple[tuple[Parameter, ...], bool]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    pairs = [(arg, default, False) for arg, default in zip(positional, defaults, strict=True)]
    pairs += [
        (arg, default, True)
        for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if method and positional:
        pairs = pairs[1:]
    parameters = tuple(
        Parameter(
            arg.arg,
            ast.unparse(arg.annotation) if arg.annotation else "",
            default is None,
            _literal(default),
            keyword_only,
        )
        for arg, default, keyword_only in pairs
    )
    return parameters, arguments.kwarg is not None


def _literal(node: ast.expr | None, otherwise: object = None) -> object:
    if node is None:
        return otherwise
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return otherwise
