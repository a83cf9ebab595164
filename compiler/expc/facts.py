"""What is true of a spec's data: `specs/NAME.facts.json`, made by `expc profile`, read by lint and plan.

Reading is strict: a file of another form is `Damaged`, so that no rule reasons from half a fact. The text is the same
on every machine: keys sorted, floats rounded where they are made, no clock, no path but those that the spec writes.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

VERSION = 1


class Damaged(ValueError):
    """The file is not one that `expc profile` writes; says where."""


@dataclass(frozen=True)
class File:
    """A file that the data comes from, by the path in the spec (from the project root)."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Identity:
    """What data it is: the source, what the spec writes beside it, and the code of a source that is the user's own.

    `settings` are those that choose rows: split, limit, inputs. How rows are batched is no part of it.
    """

    use: str
    params: dict[str, Any]
    settings: dict[str, Any]
    code: str = ""

    def canonical(self) -> str:
        """Equal for the same data, but for what its files hold."""
        return json.dumps([self.use, self.params, self.settings], sort_keys=True)


@dataclass(frozen=True)
class Split:
    """A split: `repeated` rows have inputs that a row of train has too (in train: a row before it).

    `groups` counts the groups of each key that are here, `shared` those of them that are in train as well.
    """

    rows: int
    repeated: int
    groups: dict[str, int]
    shared: dict[str, int]


@dataclass(frozen=True)
class Shares:
    """How numbers between 0 and 1 lie. `histogram` are the shares in ten equal bins, the last with its upper end.

    `bimodality` is (skew^2 + 1) / kurtosis of the numbers (None where they are all one): 1/3 for a normal
    distribution, 5/9 for a uniform one, 1 for yes and no alone.
    """

    mean: float
    variance: float
    histogram: tuple[float, ...]
    below: float
    above: float
    zero: float
    half: float
    one: float
    bimodality: float | None
    two_peaked: bool


@dataclass(frozen=True)
class Labels:
    """Yes-or-no labels, many to a row: how many of a row are yes, rows without any, labels that never are."""

    fewest: int
    mean: float
    most: int
    empty: int
    never: int


@dataclass(frozen=True)
class Classes:
    """Class ids, or rows of class probabilities: which there are, the most frequent, entropy in nats of all together."""

    seen: int
    highest: int
    common: int
    share: float
    entropy: float


@dataclass(frozen=True)
class Sums:
    """Rows of class probabilities: their sums, rows of zeros, and others whose sum is not 1 (by more than 0.001)."""

    lowest: float
    highest: float
    zero: int
    off: int


@dataclass(frozen=True)
class Column:
    """A column over all rows in use. `elements` are the numbers of a row; `constant` of them never vary.

    `unfit` counts numbers that can't be what the column means: not finite, or a probability outside 0 to 1.
    """

    port: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    constant: int
    unfit: int
    lowest: float | None
    highest: float | None
    shares: Shares | None = None
    labels: Labels | None = None
    classes: Classes | None = None
    sums: Sums | None = None


@dataclass(frozen=True)
class Floor:
    """What a constant answer reaches on a figure, by split, as training logs it."""

    figure: str
    use: str
    params: dict[str, Any]
    reads: str
    column: str
    values: dict[str, float]

    @property
    def key(self) -> str:
        """Equal for figures that have the same floor on the same data."""
        return floor_key(self.use, self.params, self.reads, self.column)


def floor_key(use: str, params: Mapping[str, Any], reads: str, column: str) -> str:
    """Names a floor by all that it depends on beside the data."""
    return json.dumps([use, dict(params), reads, column], sort_keys=True)


@dataclass(frozen=True)
class StageFacts:
    """What is true of the data of one stage, at one point of a sweep over the data.

    `content` names the columns of a source that no file of the spec holds; it is empty for files.
    """

    stage: str
    data: Identity
    files: tuple[File, ...]
    content: str
    rows: int
    distinct: int
    inputs: tuple[str, ...]
    splits: dict[str, Split]
    columns: dict[str, Column]
    floors: tuple[Floor, ...]

    def floor(self, key: str, split: str) -> float | None:
        """The floor of a figure on a split, if it is known."""
        return next(
            (f.values[split] for f in self.floors if f.key == key and split in f.values), None
        )


@dataclass(frozen=True)
class Facts:
    """The whole file. `tests` says in words by what a column is called two-peaked."""

    facts: int
    tests: dict[str, str]
    stages: tuple[StageFacts, ...]


TESTS = {
    "two_peaked": "bimodality coefficient (skew^2 + 1) / kurtosis above 5/9, and of the ten bins two with at least "
    "1 % of the numbers each, apart, and between them one with less than half of either"
}


def place(spec: Path) -> Path:
    """Where the facts of a spec lie: beside it."""
    return spec.with_name(f"{spec.stem}.facts.json")


def text_of(facts: Facts) -> str:
    """The file's text: sorted keys, what is unknown left out, a list of numbers in one line."""
    text = json.dumps(
        _lean(asdict(facts)), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False
    )
    return _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text) + "\n"


_NUMBERS = re.compile(r"\[\s+([-+.,\seE\d]+?)\s+\]")


def _lean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lean(item) for key, item in value.items() if item is not None}
    return [_lean(item) for item in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> Facts | None:
    """The facts in a file; None where there is none. Raises `Damaged`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(str(error)) from error
    return parsed(text)


def parsed(text: str) -> Facts:
    """The facts in a text. Raises `Damaged`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is no JSON: {error}") from error
    version = data.get("facts") if isinstance(data, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise Damaged(f"it is of form {version}, and this expc reads {VERSION}")
    return made(Facts, data, "")


# --------------------------------------------------------------------------------------------------- reading

_T = TypeVar("_T")


def made(kind: type[_T], data: Any, at: str) -> _T:
    """A dataclass from JSON: every field of its type, none missing, none beside; of no rows nothing is known.

    Raises `Damaged`.
    """
    if not isinstance(data, dict):
        raise Damaged(f"{at or 'the file'} is not a map")
    hints = _hints(kind)  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise Damaged(f"{_below(at, unknown[0])} is not known")
    given = {name: _value(hint, data.get(name), _below(at, name)) for name, hint in hints.items()}
    if given.get("rows", 1) < 1:
        raise Damaged(f"{_below(at, 'rows')} is {given['rows']}")
    return kind(**given)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _value(hint: Any, value: Any, at: str) -> Any:
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):
        (inner,) = (each for each in typing.get_args(hint) if each is not type(None))
        return None if value is None else _value(inner, value, at)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inside[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(inside[1], item, _below(at, key)) for key, item in value.items()}
    if is_dataclass(hint):
        return made(hint, value, at)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise Damaged(f"{at} is missing" if value is None else f"{at} is not what it should be")


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
