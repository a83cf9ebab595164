"""Name the code behind a user's own module, so that results of other code are not taken for this code's."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path


def fingerprint(module: str, root: Path) -> str:
    """A digest of a module under the project root and of what it imports from there; empty for an installed one.

    Comments and blank lines do not count. Text is hashed, not a parsed tree: trees differ between versions of Python.
    """
    files = sources(module, root)
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{_code(file)}\0".encode())
    return digest.hexdigest()[:16]


def sources(module: str, root: Path) -> list[Path]:
    """The files under the project root that importing a module reads, sorted."""
    found: dict[Path, None] = {}
    waiting = list(_files(module, root))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = None
            package = ".".join(file.parent.relative_to(root).parts)
            for name in _imported(file, package):
                waiting += _files(name, root)
    return sorted(found)


def _files(module: str, root: Path) -> Iterator[Path]:
    """A module's file and those of the packages above it, as far as they lie under the root."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:depth])
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                yield file


def _imported(file: Path, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            whole = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            yield whole
            yield from (f"{whole}.{alias.name}" for alias in node.names)


def _code(file: Path) -> str:
    """A file's text without comments, trailing blanks and empty lines."""
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, SyntaxError):
        return text
    return "\n".join(line.rstrip() for line in lines if line.strip())
