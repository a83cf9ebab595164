"""What a generated module declares, read from its text: nothing is imported, nothing is run."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expc_runtime.errors import MissingInput

__all__ = ["Declared", "read_program", "shown"]

_RUN = {
    "seed": ("int", 0),
    "smoke": ("bool", False),
    "out": ("str", ""),
    "device": ("str", "auto"),
    "planned": ("str", ""),
}


@dataclass(frozen=True)
class Declared:
    """A module's program hash and its ``Config``: annotation and default of each field."""

    path: Path
    program: str
    fields: Mapping[str, tuple[str, Any]]

    def values(self, flags: Sequence[str]) -> dict[str, Any]:
        """Every field's value under ``flags``, as ``Config`` would hold it.

        Raises:
            MissingInput: a flag that the module does not take, or a value that does not fit.
        """
        values = {name: default for name, (_, default) in self.fields.items()}
        words = list(flags)
        while words:
            name, value = self._take(words)
            values[name] = value
        return values

    def changed(self, name: str, word: str, now: Any) -> Any:
        """What field ``name``, at ``now``, is changed to by ``word``: a value, or ``half`` of it.

        Raises:
            MissingInput: there is no such field, or it takes no such value.
        """
        if name not in self.fields:
            raise MissingInput(f"{self.path} has no {name} that a retry could change")
        annotation = self.fields[name][0]
        numeric = {"int", "float"} & {kind.strip() for kind in annotation.split("|")}
        if word == "half" and numeric:
            return now if now is None else now // 2 if isinstance(now, int) else now / 2
        try:
            return _convert(word, annotation)
        except ValueError:
            raise MissingInput(f"{name} of {self.path} takes {annotation}, not {word!r}") from None

    def flags(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The words that set the fields ``values`` on the command line."""
        return tuple(word for name, value in values.items() for word in _flag(name, value))

    def _take(self, words: list[str]) -> tuple[str, Any]:
        flag, equals, text = words.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not equals and name not in self.fields and name.startswith("no_"):
            name, text, equals = name.removeprefix("no_"), "false", "="
        if not flag.startswith("--") or name not in self.fields:
            raise MissingInput(f"{self.path} takes no flag {flag}")
        annotation = self.fields[name][0]
        if not equals and annotation == "bool":
            return name, True
        if not equals:
            if not words:
                raise MissingInput(f"{flag} of {self.path} needs a value")
            text = words.pop(0)
        try:
            return name, _convert(text, annotation)
        except ValueError:
            raise MissingInput(f"{flag} of {self.path} takes {annotation}, not {text!r}") from None


def _convert(text: str, annotation: str) -> Any:
    """``text`` as a field annotated ``annotation`` reads it on the command line."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    if "None" in kinds and text.lower() == "none":
        return None
    kind = next(k for k in kinds if k != "None")
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").split(",")[0].rstrip("]").strip()
        return tuple(_convert(item.strip(), inner) for item in text.split(",") if item.strip())
    if kind == "bool":
        return text.lower() in ("true", "1", "yes")
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    return text


def _flag(name: str, value: Any) -> tuple[str, ...]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{flag}" if value else f"--no-{flag}",)
    return (f"--{flag}", shown(value))


def shown(value: Any) -> str:
    """``value`` as a flag takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def read_program(path: Path) -> Declared:
    """The declarations of the generated module ``path``.

    Raises:
        MissingInput: no such file, no ``PROGRAM``, or a default that is not a plain value.
    """
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror}") from None
    except SyntaxError as error:
        raise MissingInput(f"{path}:{error.lineno}: {error.msg}") from None
    program = ""
    fields: dict[str, tuple[str, Any]] = dict(_RUN)
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROGRAM":
            program = ast.literal_eval(node.value)
        elif isinstance(node, ast.ClassDef) and node.name == "Config":
            fields |= _fields(path, node)
    if not program:
        raise MissingInput(f"{path} has no PROGRAM line, so its results could not be told apart")
    return Declared(path, program, fields)


def _fields(path: Path, config: ast.ClassDef) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for node in config.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        try:
            default = ast.literal_eval(node.value) if node.value else None
        except ValueError:
            where = f"{path}:{node.lineno}"
            raise MissingInput(f"{where}: the default of {name} must be a plain value") from None
        found[name] = (ast.unparse(node.annotation), default)
    return found
