"""Columns from a file: .npz, .safetensors or .csv."""

import csv
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from expc_runtime.errors import MissingInput

__all__ = ["READ_AS", "Arrays", "plain"]


class Arrays:
    """Every array of ``file`` as a column; its first dimension counts the rows.

    ``.npz``: arrays by name, no pickles. ``.safetensors``: tensors by name. ``.csv``: a header and
    numbers. float64 becomes float32, integers int64 (bytes of an image stay uint8), booleans float32.

    ``columns`` keeps the named ones alone and says what each means: ``class`` and ``group`` are read as int64,
    ``prob``, ``real`` and ``class_probs`` as float32, ``features`` as it is.
    """

    def __init__(self, file: str, columns: Mapping[str, str] | None = None) -> None:
        self.file = file
        self.columns = columns

    def tensors(self) -> dict[str, Tensor]:
        """Raises MissingInput for a file that is not there, not readable, or without a column."""
        path = Path(self.file)
        if not path.is_file():
            raise MissingInput(f"{path}: no such file")
        try:
            columns = _READERS[path.suffix](path)
        except KeyError:
            raise MissingInput(
                f"{path}: columns are read from {', '.join(sorted(_READERS))}"
            ) from None
        except (OSError, ValueError, EOFError, RuntimeError, BadZipFile) as error:
            raise MissingInput(f"{path}: {error}") from error
        if self.columns is None:
            return {name: _plain(column) for name, column in columns.items()}
        missing = [name for name in self.columns if name not in columns]
        if missing:
            held = ", ".join(sorted(columns))
            raise MissingInput(f"{path}: no column {', '.join(missing)}; it has {held}")
        return {
            name: _meant(_plain(columns[name]), meaning) for name, meaning in self.columns.items()
        }


def _meant(column: Tensor, meaning: str) -> Tensor:
    return column.to(READ_AS.get(meaning, column.dtype))


READ_AS = {
    "class": torch.int64,
    "group": torch.int64,
    "prob": torch.float32,
    "real": torch.float32,
    "class_probs": torch.float32,
}
"""What a column is read as, by its meaning; others stay as they are."""


def _npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _csv(path: Path) -> dict[str, Tensor]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        lines = [row for row in rows if row]
    for number, row in enumerate(lines, start=2):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} fields, the header {len(header)}")
    return {
        name: _numbers(name, [row[index] for row in lines]) for index, name in enumerate(header)
    }


def _numbers(name: str, texts: list[str]) -> Tensor:
    try:
        return torch.tensor([int(text) for text in texts])
    except ValueError:
        pass
    try:
        return torch.tensor([float(text) for text in texts])
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from None


def plain(dtype: torch.dtype) -> torch.dtype:
    """What a batch holds for an array of ``dtype``, whatever it means."""
    if dtype in (torch.float64, torch.bool):
        return torch.float32
    return torch.int64 if dtype in (torch.int8, torch.int16, torch.int32) else dtype


def _plain(column: Tensor) -> Tensor:
    return column.to(plain(column.dtype))


_READERS = {".npz": _npz, ".safetensors": _safetensors, ".csv": _csv}
