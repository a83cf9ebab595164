"""A config dataclass is the command line: one field, one flag."""

import argparse
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from expc_runtime.errors import BadValue

__all__ = ["Run", "parse", "start"]


@dataclass(frozen=True)
class Run:
    """Flags every stage has. ``out`` is relative to the project root."""

    seed: int = 0
    out: str = ""
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    smoke: bool = False  # two updates and one val batch: does it run at all?
    planned: str = ""  # what a retry changed, as planned: {"precision": "16-mixed"}


R = TypeVar("R", bound=Run)


def start(main: Callable[[R], int], config: type[R]) -> int:
    """Run ``main`` with the process's flags, from the project root, as a sweep does.

    So relative paths, in the spec and in a user's own code, mean the same however a module is
    started. A value that can't be used is told in a line, with exit code 2.
    """
    from expc_runtime.provenance import project_root

    cfg = parse(config)
    os.chdir(project_root(Path(sys.argv[0])))
    try:
        return main(cfg)
    except ValueError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return BadValue.code


def parse(config: type[R], argv: Sequence[str] | None = None) -> R:
    """``config`` with the values of ``argv`` (default: the process's).

    ``--split-val 0.1`` sets ``split_val``; bools are ``--x`` and ``--no-x``, tuples ``16,32``, and
    ``none`` is taken where the field may be None. Exits with 2, and the nearest name, on a flag that
    is not there; values are checked by type alone.
    """
    module = sys.modules.get(config.__module__)
    parser = _Parser(
        description=(getattr(module, "__doc__", None) or "").strip() or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config)
    for field in fields(config):
        _add(parser, field, hints[field.name])
    return config(**vars(parser.parse_args(argv)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help lists the flags\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown[0].partition("=")[0]))
        return parsed

    def _unknown(self, flag: str) -> str:
        if not flag.startswith("-"):
            return f"{flag!r} belongs to no flag"
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return f"no flag {flag}" + (f"; did you mean {near[0]}?" if near else "")


def _add(parser: argparse.ArgumentParser, field: Field[Any], hint: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    default = field.default
    if default is MISSING:
        raise TypeError(f"{field.name}: a flag needs a default")
    kind, optional = _kind(field.name, hint)
    if kind is bool:
        parser.add_argument(
            flag,
            dest=field.name,
            default=default,
            action=argparse.BooleanOptionalAction,
            help=f"{'yes' if default else 'no'} unless given",
        )
        return
    reader, word = _reader(field.name, kind)
    parser.add_argument(
        flag,
        dest=field.name,
        default=default,
        type=_or_none(reader, word) if optional else reader,
        metavar=word.upper(),
        help=f"{_text(default)} unless given".replace("%", "%%"),
    )


def _kind(name: str, hint: Any) -> tuple[Any, bool]:
    """The type of a field without None, and whether None was in it."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    kinds = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if len(kinds) != 1:
        raise TypeError(f"{name}: {hint} has no one way to be written as a flag")
    return kinds[0], True


def _reader(name: str, kind: Any) -> tuple[Callable[[str], Any], str]:
    if kind in (int, float, str):
        return kind, kind.__name__
    if typing.get_origin(kind) is typing.Literal:
        return _one_of(typing.get_args(kind)), "|".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return _tuple_of(item), f"{item.__name__},..."
    raise TypeError(f"{name}: {kind} cannot be a flag")


def _one_of(values: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in values:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(values)}")
        return text

    return read


def _tuple_of(item: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(item(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return read


def _or_none(reader: Callable[[str], Any], word: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text.lower() == "none" else reader(text)

    read.__name__ = word  # argparse says "invalid <name> value"
    return read


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return repr(value) if value == "" else str(value)
