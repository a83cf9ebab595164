"""Rows by their inputs: which are there twice, which groups are on both sides of a split, what the data is."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expc_runtime.data.packed import Column

__all__ = ["content", "fingerprints", "splits"]

_ROWS = 8_192  # dense at a time

Hashes = NDArray[np.uint64]


def fingerprints(columns: Sequence[Tensor]) -> Hashes:
    """64 bits for each row (n,), equal for rows whose bytes are equal in all columns.

    Two of a million different rows meet with a chance of about 3e-8. Nothing secret: the mixing is splitmix64's.
    """
    every = np.zeros(len(columns[0]), dtype=np.uint64)
    first = 0
    for column in columns:
        words = _words(column)
        wide = words.shape[1]
        keys = _mixed(np.arange(first + 1, first + wide + 1, dtype=np.uint64) * _STEP)
        every += _mixed(words ^ keys).sum(1, dtype=np.uint64)
        first += wide
    return every


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _words(stretch: Tensor) -> Hashes:
    """Rows as 64-bit words, (n, words)."""
    held = stretch.contiguous().numpy()
    raw = held.reshape(len(held), -1).view(np.uint8)
    lacking = -raw.shape[1] % 8
    padded = np.pad(raw, ((0, 0), (0, lacking))) if lacking else raw
    return np.ascontiguousarray(padded).view("<u8")


def _mixed(words: Hashes) -> Hashes:
    """splitmix64's finalizer (Steele 2014): every bit in depends on every bit out."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = words ^ (words >> np.uint64(31))
    return mixed


def splits(
    rows: Mapping[str, Tensor], hashes: Mapping[str, Hashes], groups: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Of each split: its rows, those whose inputs train has too, its groups, and those of them in train."""
    known = hashes["train"]
    in_train = {name: np.unique(column[rows["train"]].numpy()) for name, column in groups.items()}
    told = {}
    for name, own in rows.items():
        here = {key: np.unique(column[own].numpy()) for key, column in groups.items()}
        if name == "train":
            repeated = len(known) - len(np.unique(known))
        else:
            repeated = int(np.isin(hashes[name], known).sum())
        told[name] = {
            "rows": len(own),
            "repeated": repeated,
            "groups": {key: len(found) for key, found in here.items()},
            "shared": {
                key: 0 if name == "train" else len(np.intersect1d(found, in_train[key]))
                for key, found in here.items()
            },
        }
    return told


def content(columns: Mapping[str, Column]) -> str:
    """SHA-256 of columns: names, dtypes, shapes and the bytes of all rows."""
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        digest.update(f"{name} {column.dtype} {tuple(column.shape)}\n".encode())
        for part in _bytes(column):
            digest.update(part)
    return digest.hexdigest()


def _bytes(column: Column) -> Iterator[bytes]:
    for rows in torch.split(torch.arange(len(column)), _ROWS):
        yield column.index_select(0, rows).contiguous().numpy().tobytes()
