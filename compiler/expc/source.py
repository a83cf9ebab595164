"""Read a spec: text to plain data, with the place of every key and value.

`yaml.compose` gives nodes with marks, so positions cost nothing extra. The text is never printed back from the
data: fixes are edits by span.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from expc.findings import Finding, Span, SpecError

Key = str | int
KeyPath = tuple[Key, ...]

MAX_BYTES = 512 * 1024
MAX_NODES = 50_000
MAX_DEPTH = 40
MAX_DIGITS = 400

_STANDARD = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _STANDARD + kind
    for kind in ("null", "bool", "int", "float", "str", "timestamp", "value", "merge", "seq", "map")
)

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DECIMAL = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+][0-9]+)?$")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_ALLOW = re.compile(
    r"#\s*expc:\s*allow\s+(?P<name>[A-Za-z0-9_-]+)(?:\s*--\s*(?P<reason>.*\S))?\s*$"
)


@dataclass(frozen=True, slots=True)
class Scalar:
    """One scalar as it stands in the text: rules about YAML's traps read it."""

    path: KeyPath
    text: str
    value: object
    plain: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Allow:
    """`# expc: allow NAME -- reason`: covers its own line, or the next one when it stands alone."""

    name: str
    reason: str | None
    span: Span
    name_span: Span
    line: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A key that a mapping holds twice; plain YAML would take the last one in silence."""

    path: KeyPath
    span: Span
    first: Span


@dataclass(frozen=True)
class Source:
    """A file as read. `keys` locates keys, `values` locates values."""

    file: str
    text: str
    data: dict[str, Any]
    keys: Mapping[KeyPath, Span]
    values: Mapping[KeyPath, Span]
    scalars: tuple[Scalar, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    allows: tuple[Allow, ...] = ()

    def line(self, number: int) -> str:
        """The text of a 1-based line, without its end."""
        lines = self.text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""


@dataclass
class _Reader:
    file: str
    keys: dict[KeyPath, Span] = field(default_factory=dict)
    values: dict[KeyPath, Span] = field(default_factory=dict)
    scalars: list[Scalar] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    nodes: int = 0

    def span(self, node: yaml.Node) -> Span:
        start, end = node.start_mark, node.end_mark
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            end = start  # a block's end mark runs on to the next token
        return Span(
            self.file,
            start.line + 1,
            start.column + 1,
            end.line + 1,
            end.column + 1,
            start.index,
            end.index,
        )

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise SpecError(
                Finding(
                    "XC006",
                    "this spec unfolds to more than a person could read",
                    self.span(node),
                    why=f"the limit is {MAX_NODES:,} values, {MAX_DEPTH} levels deep",
                    help="write the values out, or use `extends` and `sweep` instead of nested aliases",
                )
            )
        if node.tag not in _TAGS:
            raise SpecError(
                Finding(
                    "XC006",
                    f"`{node.tag.replace(_STANDARD, '!!')}` has no meaning in a spec",
                    self.span(node),
                    why="a tag asks the reader to build something, and a spec is plain data",
                    help="leave the tag out",
                )
            )
        self.values.setdefault(path, self.span(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self.scalar(node, path)  # type: ignore[arg-type]  # the only other kind of node

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise SpecError(
                    Finding(
                        "XC005",
                        "a key must be plain text",
                        self.span(key_node),
                        help="`extends`, shared `model` and overrides do what `<<` does in YAML",
                    )
                )
            key = str(key_node.value)
            here = (*path, key)
            if key in data:
                self.duplicates.append(Duplicate(here, self.span(key_node), self.keys[here]))
                continue
            self.keys[here] = self.span(key_node)
            data[key] = self.value(value_node, here)
        return data

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        value = _scalar_value(node)
        self.scalars.append(Scalar(path, node.value, value, not node.style, self.span(node)))
        return value


def _scalar_value(node: yaml.ScalarNode) -> object:
    text = node.value
    match node.tag.rsplit(":", 1)[-1]:
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int" if _INTEGER.match(text) and len(text) < MAX_DIGITS:
            return int(text.replace("_", ""))
        case "float" if _DECIMAL.match(text):
            return float(text)
        case "int" | "float":
            return _number(text)
        case _:
            return str(text)


def _number(text: str) -> object:
    """A number as YAML 1.1 reads it; text where a tag calls something else a number."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return value if isinstance(value, int | float) else text


def read(path: Path, root: Path) -> Source:
    """Read a spec file. Raises `SpecError` with located findings, whatever the file holds."""
    file = name_of(path, root)
    whole = Span(file, 1, 1, 1, 1, 0, 0)
    if not path.exists():
        raise SpecError(
            Finding("XC007", f"there is no file `{file}`", whole, help="check the path")
        )
    if path.is_dir():
        raise SpecError(
            Finding(
                "XC007",
                f"`{file}` is a folder, not a spec",
                whole,
                help=f"name the file, for instance `{file}/*.yaml`",
            )
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(
            Finding("XC007", f"`{file}` can't be read: {error.strerror}", whole)
        ) from error
    if len(raw) > MAX_BYTES:
        raise SpecError(
            Finding(
                "XC007",
                f"`{file}` is {len(raw) / 1024:,.0f} KiB; a spec may be {MAX_BYTES // 1024} KiB",
                whole,
                why="a spec names data, it does not hold it",
                help="keep data in a file of its own and name that file in the spec",
            )
        )
    try:
        text = raw.decode("utf-8-sig")  # marks do not count a byte order mark
    except UnicodeDecodeError as error:
        raise SpecError(
            Finding(
                "XC007",
                f"`{file}` is not text: byte {error.start} is not UTF-8",
                whole,
                help="a spec is a YAML file in UTF-8",
            )
        ) from error
    return parse(text, file)


def name_of(path: Path, root: Path) -> str:
    """The name of a file in messages and output: relative to the project root, so equal on every machine."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.as_posix()


def parse(text: str, file: str) -> Source:
    """Parse a spec's text. Raises `SpecError`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax_finding(error, file, text)) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        place = Span(file, 1, 1, 1, 1, 0, 0)
        raise SpecError(
            Finding("XC006", f"this is not YAML: {reason}", place, help="mend the text")
        ) from None
    except RecursionError:
        raise SpecError(
            Finding(
                "XC006",
                "this spec is nested too deeply to read",
                Span(file, 1, 1, 1, 1, 0, 0),
                help=f"{MAX_DEPTH} levels is the limit",
            )
        ) from None
    reader = _Reader(file)
    if not isinstance(node, yaml.MappingNode):
        what = "empty" if node is None else "not a map of keys"
        raise SpecError(
            Finding(
                "XC007",
                f"`{file}` is {what}",
                Span(file, 1, 1, 1, 1, 0, 0),
                help="a spec starts with `expc: 1`, `name:`, `about:` and `stages:`",
            )
        )
    data = reader.value(node, ())
    return Source(
        file,
        text,
        data,
        reader.keys,
        reader.values,
        tuple(reader.scalars),
        tuple(reader.duplicates),
        tuple(_allows(text, file, _quoted(text, reader.scalars))),
    )


def _quoted(text: str, scalars: Iterable[Scalar]) -> list[Span]:
    """Where a `#` is a character, and no comment."""
    return [s.span for s in scalars if text[s.span.start : s.span.start + 1] in ("'", '"')]


def _syntax_finding(error: yaml.MarkedYAMLError, file: str, text: str) -> Finding:
    mark = error.problem_mark or error.context_mark
    line, column, index = (mark.line, mark.column, mark.index) if mark else (0, 0, 0)
    problem = (error.problem or "it can't be parsed").replace("\\t", "a tab")
    lines = text.splitlines()
    if line < len(lines) and "\t" in lines[line][: column + 1]:
        problem = "a tab can't indent YAML"
    span = Span(file, line + 1, column + 1, line + 1, column + 1, index, index)
    if "another document" in problem:
        return Finding(
            "XC006", "this holds a second document", span, help="a spec is one; keep two files"
        )
    context = f" ({error.context})" if error.context else ""
    return Finding("XC006", f"this is not YAML: {problem}{context}", span, help="mend the syntax")


def _allows(text: str, file: str, quoted: Sequence[Span]) -> Iterator[Allow]:
    offset = 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        match = _ALLOW.search(line.rstrip("\r\n")) if "expc:" in line else None
        at = offset + match.start() if match else 0
        if match and not any(each.start < at < each.end for each in quoted):
            span = _stretch(file, number, offset, match.start(), len(line.rstrip("\r\n")))
            name = _stretch(file, number, offset, match.start("name"), match.end("name"))
            alone = not line[: match.start()].strip()
            covers = _next_content_line(text, number) if alone else number
            yield Allow(match["name"], match["reason"], span, name, covers)
        offset += len(line)


def _stretch(file: str, line: int, offset: int, start: int, end: int) -> Span:
    """Columns `start` to `end` (from 0) of a line that begins at a character offset."""
    return Span(file, line, start + 1, line, end + 1, offset + start, offset + end)


def _next_content_line(text: str, number: int) -> int:
    """A comment of its own covers the next line that is not a comment, so that several can be stacked."""
    lines = text.splitlines()
    for later in range(number, len(lines)):
        stripped = lines[later].strip()
        if stripped and not stripped.startswith("#"):
            return later + 1
    return number
