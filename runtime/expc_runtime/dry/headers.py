"""What a file says of its columns before any of its rows is read."""

import csv
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.lib import format as npy

from expc_runtime.data.arrays import READ_AS, plain

__all__ = ["Header", "header_of", "tensors_of"]

Held = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Arrays of a file: shape, rows first, and dtype."""


@dataclass(frozen=True)
class Header:
    """Shape of a row and dtype of each column, as batches hold them, and how many rows there are.

    A column that says too little of itself is left out.
    """

    columns: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    rows: int | None = None


def header_of(target: str, params: Mapping[str, Any], root: Path) -> Header | None:
    """The header of the file behind a data source, by the class that reads it; None if it has none.

    Raises ValueError, a message for a person, for a file that is not of its kind or lacks a column.
    """
    read = _SOURCES.get(target)
    return read(params, root) if read is not None else None


def tensors_of(path: Path) -> Held:
    """Names, shapes and dtypes in a .safetensors file. Raises ValueError if it is none."""
    with path.open("rb") as file:
        try:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(size))
            return {
                name: (tuple(entry["shape"]), _SAFETENSORS[entry["dtype"]])
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (struct.error, KeyError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(f"{path.name} is no safetensors file: {error}") from error


def _arrays(params: Mapping[str, Any], root: Path) -> Header:
    path = root / params["file"]
    try:
        held = _READERS[path.suffix](path)
    except OSError as error:
        raise ValueError(f"{params['file']}: {error.strerror}") from error
    meanings: Mapping[str, str] = params["columns"]
    missing = [name for name in meanings if name not in held]
    if missing and path.suffix != ".csv":
        there = ", ".join(sorted(held))
        raise ValueError(f"{params['file']} has no column {missing[0]}; it has {there}")
    known = {name: held[name] for name in meanings if name in held}
    lengths = {shape[0] for shape, _ in known.values() if shape}
    columns = {
        name: (shape[1:], READ_AS.get(meanings[name]) or plain(dtype))
        for name, (shape, dtype) in known.items()
        if path.suffix != ".csv" or meanings[name] in READ_AS or dtype.is_floating_point
    }
    return Header(columns, lengths.pop() if len(lengths) == 1 and path.suffix != ".csv" else None)


def _npz(path: Path) -> Held:
    held: Held = {}
    try:
        with ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    shape, dtype = _npy(file)
                    held[name.removesuffix(".npy")] = (shape, dtype)
    except (BadZipFile, EOFError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    return held


def _npy(file: IO[bytes]) -> tuple[tuple[int, ...], torch.dtype]:
    read = (
        npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, torch.from_numpy(np.empty(0, dtype)).dtype


def _csv(path: Path) -> Held:
    """Columns of numbers. Whether a whole number is followed by a fraction, only the rows say."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        names, first = next(rows, []), next(rows, [])
    held: Held = {}
    for name, text in zip(names, first, strict=False):
        whole = text.strip().lstrip("+-").isdigit()
        held[name] = ((0,), torch.int64 if whole else torch.float32)
    return held


_READERS: Mapping[str, Callable[[Path], Held]] = {
    ".npz": _npz,
    ".safetensors": tensors_of,
    ".csv": _csv,
}
_SOURCES: Mapping[str, Callable[[Mapping[str, Any], Path], Header]] = {
    "expc_runtime.data.arrays:Arrays": _arrays,
}
_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
