"""Arrow IPC files (.feather), read a record batch at a time, whole columns at once.

Needs pyarrow: `pip install 'expc[arrow]'`.
"""

import glob
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expc_runtime.data.arrays import READ_AS, plain
from expc_runtime.data.packed import Bits, Column, Rows, joined
from expc_runtime.errors import MissingInput

__all__ = ["Feather"]


class Feather:
    """Columns of one table that is spread over ``files``; held whole (`tensors`) or read in blocks.

    Args:
        files: paths, or patterns such as ``data/*.feather``; read in the order of their names.
        columns: name in the files -> what it means. ``features`` keep their dtype and the shape of
            their lists, (N, 9, 9); ``class`` and ``group`` are int64; ``real`` is float32. ``prob`` and
            ``class_probs`` are (N,), or (N, L) with lists in lists flattened: labels of 0 and 1 in
            bytes become `Bits`, class probabilities `Rows`, other numbers float32.

    Lists must be of one length in all rows, and nothing may be null. Raises MissingInput, naming
    the file, for one that is not there, damaged, or without a column, and if pyarrow is missing.
    """

    def __init__(self, files: str | Sequence[str], columns: Mapping[str, str]) -> None:
        self.files = [files] if isinstance(files, str) else list(files)
        self.columns = dict(columns)

    def names(self) -> Sequence[str]:
        return list(self.columns)

    def lengths(self) -> Sequence[int]:
        """Rows of each record batch, file after file."""
        return [rows for _, _, rows in self._batches]

    def block(self, number: int, columns: Sequence[str]) -> Mapping[str, Column]:
        """These columns of one record batch."""
        path, index, _ = self._batches[number]
        (batch,) = _read(path, columns, [index])
        return {name: self._column(path, name, batch.column(name)) for name in columns}

    def tensors(self) -> Mapping[str, Column]:
        """Whole columns, each read when it is asked for."""
        return _Columns(self)

    def whole(self, name: str) -> Column:
        """One column of all files."""
        parts = [
            self._column(path, name, batch.column(name))
            for path in self.paths
            for batch in _read(path, [name], None)
        ]
        return joined([part for part in parts if len(part)] or parts[:1])

    @cached_property
    def paths(self) -> list[Path]:
        """The files, sorted, each once."""
        found = {path: None for pattern in self.files for path in _matching(pattern)}
        return sorted(found)

    @cached_property
    def _batches(self) -> list[tuple[Path, int, int]]:
        """Every record batch: its file, its number there, its rows."""
        return [
            (path, index, rows)
            for path in self.paths
            for index, rows in enumerate(_lengths(path, list(self.columns)))
        ]

    def _column(self, path: Path, name: str, array: Any) -> Column:
        try:
            return _column(array, self.columns[name])
        except ValueError as error:
            raise MissingInput(f"{path}: column {name}: {error}") from error


class _Columns(Mapping[str, Column]):
    """Columns that are read on access."""

    def __init__(self, source: Feather) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Column:
        if name not in self._source.columns:
            raise KeyError(name)
        return self._source.whole(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.columns)

    def __len__(self) -> int:
        return len(self._source.columns)


def _matching(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        if not Path(pattern).is_file():
            raise MissingInput(f"{pattern}: no such file")
        return [Path(pattern)]
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = [path for path in found if path.is_file()]
    if not files:
        raise MissingInput(f"{pattern}: no file is named so")
    return files


# Arrow.


def _arrow(module: str = "pyarrow") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingInput(
            "feather files are read by the package pyarrow: pip install 'expc[arrow]'"
        ) from error


def _read(path: Path, columns: Sequence[str], batches: Iterable[int] | None) -> Iterator[Any]:
    """Record batches of a file with some of its columns; no other is decompressed."""
    arrow, ipc = _arrow(), _arrow("pyarrow.ipc")
    try:
        with arrow.memory_map(str(path)) as file:
            held = _require(path, columns, ipc.open_file(file).schema)
            options = ipc.IpcReadOptions(included_fields=[held.index(name) for name in columns])
            reader = ipc.open_file(file, options=options)
            for index in range(reader.num_record_batches) if batches is None else batches:
                yield reader.get_batch(index)
    except (OSError, arrow.ArrowException) as error:
        raise MissingInput(f"{path}: {_sentence(error)}") from error


def _lengths(path: Path, columns: Sequence[str]) -> list[int]:
    """Rows of each record batch. Of all its columns the narrowest is read."""
    arrow, ipc = _arrow(), _arrow("pyarrow.ipc")
    try:
        with arrow.memory_map(str(path)) as file:
            schema = ipc.open_file(file).schema
            _require(path, columns, schema)
    except (OSError, arrow.ArrowException) as error:
        raise MissingInput(f"{path}: {_sentence(error)}") from error
    narrow = min(schema, key=lambda field: _width(field.type))
    return [batch.num_rows for batch in _read(path, [narrow.name], None)]


def _require(path: Path, columns: Sequence[str], schema: Any) -> list[str]:
    held: list[str] = list(schema.names)
    missing = [name for name in columns if name not in held]
    if missing:
        raise MissingInput(f"{path}: no column {', '.join(missing)}; it has {', '.join(held)}")
    return held


def _width(kind: Any) -> int:
    """Bits of one row, as far as its type says; text and lists of any length are wide."""
    types = _arrow("pyarrow.types")
    if types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    try:
        return int(kind.bit_width)
    except ValueError:
        return 2**40


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


# Columns.


def _column(array: Any, meaning: str) -> Column:
    """A column of a record batch as its meaning asks. Raises ValueError if it is not one."""
    values = _values(array)
    if meaning in ("prob", "class_probs"):
        values = values.reshape(len(values), -1) if values.ndim > 1 else values
        if values.ndim == 2 and meaning == "class_probs":
            return _sparse(values.astype(np.float32, copy=False))
        if values.ndim == 2 and values.dtype in (np.uint8, np.bool_):
            return Bits.pack(torch.from_numpy(values))
    tensor = torch.from_numpy(values)
    return tensor.to(READ_AS.get(meaning, plain(tensor.dtype)))


def _values(array: Any) -> "np.ndarray[Any, Any]":
    """Numbers of an Arrow array, lists in lists as further axes: (N, ...), a copy of our own."""
    types = _arrow("pyarrow.types")
    shape = [len(array)]
    while any(is_kind(array.type) for is_kind in _lists(types)):
        if array.null_count:
            raise ValueError("rows are null")
        shape.append(_length(types, array))
        array = array.flatten()
    if array.null_count:
        raise ValueError("values are null")
    numeric = (types.is_integer, types.is_floating, types.is_boolean)
    if not any(is_kind(array.type) for is_kind in numeric):
        raise ValueError(f"it holds {array.type}, not numbers or lists of them")
    numbers: np.ndarray[Any, Any] = array.to_numpy(zero_copy_only=False)
    if numbers.dtype in (np.uint16, np.uint32, np.uint64):
        # An id of 64 bits may become negative: it stays the id of the same group.
        numbers = numbers.astype(np.int64)
    return np.array(numbers).reshape(shape)


def _lists(types: Any) -> tuple[Callable[[Any], bool], ...]:
    return types.is_list, types.is_large_list, types.is_fixed_size_list


def _length(types: Any, array: Any) -> int:
    """Of every list of an array."""
    if types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    if not len(lengths):
        return 0
    low, high = int(lengths.min()), int(lengths.max())
    if low != high:
        raise ValueError(f"lists are {low} to {high} long; all rows need one length")
    return high


def _sparse(dense: "np.ndarray[Any, Any]") -> Rows:
    """Rows that are mostly zero, as most distributions over moves are."""
    row, ids = np.nonzero(dense)
    counts = np.bincount(row, minlength=len(dense))
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    shares: Tensor = torch.from_numpy(dense[row, ids])
    return Rows(
        torch.from_numpy(ids.astype(np.int32)), shares, torch.from_numpy(offsets), dense.shape[1]
    )
