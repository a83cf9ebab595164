"""Columns that are kept small and handed out dense: bits, and rows that are mostly zero.

Each stands for a whole column, a float32 tensor (N, L), and answers the questions that a feed asks
of one; only the rows of a batch are ever dense, and `index_select`, which makes one, is gathers on the
column's own device without a transfer to the host.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

__all__ = ["Bits", "Column", "Packed", "Rows", "joined", "taken"]

_ROWS = 8_192  # packed or unpacked at a time: a dense copy of a whole column may not fit


class Packed(ABC):
    """A float32 column (N, L) that is stored in another way."""

    length: int
    """L, the numbers in a row."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are held."""

    @abstractmethod
    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same column on another device."""

    @abstractmethod
    def contiguous(self) -> Self: ...

    @abstractmethod
    def pin_memory(self) -> Self: ...

    @abstractmethod
    def record_stream(self, stream: torch.Stream) -> None:
        """As of a tensor: memory is not given away before ``stream`` is done with it."""

    @abstractmethod
    def take(self, rows: Tensor) -> Self:
        """The rows (B,) int64, as they are stored."""

    @abstractmethod
    def dense(self) -> Tensor:
        """All rows, (N, L) float32."""

    @abstractmethod
    def joined(self, columns: Sequence["Packed"]) -> "Packed":
        """One column of ``columns``, which are of this kind and length; see the function."""

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The rows ``index`` (B,) int64, dense: (B, L) float32. Raises ValueError for another ``dim``."""
        self._along_rows(dim)
        return self.take(index).dense()

    def _along_rows(self, dim: int) -> None:
        if dim != 0:
            raise ValueError(f"dim={dim}: rows are selected, along dim 0")

    def __getitem__(self, rows: slice) -> Tensor:
        """Dense rows of a slice, (B, L) float32."""
        return self.index_select(0, torch.arange(len(self), device=self.device)[rows])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), self.length))

    @property
    def ndim(self) -> int:
        return 2

    def dim(self) -> int:
        return 2

    @property
    def dtype(self) -> torch.dtype:
        """Of what is handed out."""
        return torch.float32

    def is_floating_point(self) -> bool:
        return True


Column = Tensor | Packed
"""What a source gives and a feed holds."""


class Bits(Packed):
    """A column of zeros and ones, eight to a byte.

    Args:
        packed: (N, ceil(L / 8)) uint8. Number j of a row is bit j % 8 of byte j // 8, the lowest bit
            first (`numpy.packbits(..., bitorder="little")`); bits past the last number are 0.
        length: L.

    Raises ValueError if ``packed`` is not of this form.
    """

    def __init__(self, packed: Tensor, length: int) -> None:
        wide = -(-length // 8)
        if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != wide:
            raise ValueError(
                f"{length} bits a row are uint8 (N, {wide}), not {packed.dtype} {tuple(packed.shape)}"
            )
        self.packed = packed
        self.length = length
        # Entry b is the eight bits of byte b, one to a byte: one lookup gives eight numbers.
        places = torch.arange(8, device=packed.device)
        bits = torch.arange(256, device=packed.device)[:, None] >> places & 1
        self._eights = bits.to(torch.uint8).view(torch.int64).view(-1)

    @classmethod
    def pack(cls, dense: Tensor) -> Self:
        """Pack ``dense`` (N, L), of 0 and 1 in any dtype. Raises ValueError for other numbers."""
        if dense.dim() != 2:
            raise ValueError(f"a column of bits is (N, L), not {tuple(dense.shape)}")
        n, length = dense.shape
        places = torch.arange(8, dtype=torch.uint8, device=dense.device)
        packed = torch.zeros(n, -(-length // 8), dtype=torch.uint8, device=dense.device)
        for start in range(0, n, _ROWS):
            rows = dense[start : start + _ROWS]
            bits = torch.zeros(
                len(rows), packed.shape[1] * 8, dtype=torch.uint8, device=rows.device
            )
            bits[:, :length] = rows
            if not torch.equal(bits[:, :length].to(rows.dtype), rows) or bits.max() > 1:
                raise ValueError("a column of bits holds 0 and 1 alone")
            eights = bits.view(len(rows), -1, 8) << places
            packed[start : start + _ROWS] = eights.sum(2, dtype=torch.uint8)
        return cls(packed, length)

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return type(self)(self.packed.to(device, non_blocking=non_blocking), self.length)

    def contiguous(self) -> Self:
        return type(self)(self.packed.contiguous(), self.length)

    def pin_memory(self) -> Self:
        return type(self)(self.packed.pin_memory(), self.length)

    def record_stream(self, stream: torch.Stream) -> None:
        self.packed.record_stream(stream)

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.packed.index_select(0, rows), self.length)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        self._along_rows(dim)
        return self._dense(self.packed.index_select(0, index))

    def dense(self) -> Tensor:
        return self._dense(self.packed)

    def joined(self, columns: Sequence[Packed]) -> Packed:
        parts = [column.packed for column in columns if isinstance(column, Bits)]
        return type(self)(torch.cat(parts), self.length)

    def _dense(self, packed: Tensor) -> Tensor:
        eights = self._eights.index_select(0, packed.reshape(-1).int())
        bits = eights.view(torch.uint8).view(len(packed), packed.shape[1] * 8)
        return bits[:, : self.length].float().contiguous()


class Rows(Packed):
    """A column whose rows name the few numbers that are not zero.

    Args:
        ids: which numbers, (N,) if each row has exactly one, else (M,), row after row; integers.
        shares: what they are, of the shape of ``ids``; None for all 1. An id that a row names twice
            gets the sum.
        offsets: row i holds ``ids[offsets[i]:offsets[i + 1]]``, (N + 1,) int64; None for one each.
        length: L.

    Raises ValueError for an id that is no number of a row, or shapes that do not fit.
    """

    def __init__(
        self, ids: Tensor, shares: Tensor | None, offsets: Tensor | None, length: int
    ) -> None:
        if ids.dim() != 1 or (shares is not None and shares.shape != ids.shape):
            told = None if shares is None else tuple(shares.shape)
            raise ValueError(f"ids (M,) and shares (M,), not {tuple(ids.shape)} and {told}")
        if len(ids):
            low, high = (int(end) for end in ids.aminmax())
            if low < 0 or high >= length:
                raise ValueError(f"ids run from {low} to {high}, but a row has {length} numbers")
        widest = 1
        if offsets is not None:
            counts = offsets.diff()
            fits = len(offsets) and int(offsets[0]) == 0 and int(offsets[-1]) == len(ids)
            if not fits or (len(counts) and int(counts.min()) < 0):
                raise ValueError(f"offsets rise from 0 to {len(ids)}, one more than there are rows")
            widest = int(counts.max()) if len(counts) else 0
        self._set(ids, shares, offsets, length, widest)

    def _set(
        self,
        ids: Tensor,
        shares: Tensor | None,
        offsets: Tensor | None,
        length: int,
        widest: int,
    ) -> None:
        self.ids, self.shares, self.offsets = ids, shares, offsets
        self.length = length
        self._widest = widest  # of any row: known, so that a batch asks the device nothing

    @classmethod
    def _made(
        cls,
        ids: Tensor,
        shares: Tensor | None,
        offsets: Tensor | None,
        length: int,
        widest: int,
    ) -> Self:
        """Of tensors that were checked before."""
        made = cls.__new__(cls)
        made._set(ids, shares, offsets, length, widest)
        return made

    def __len__(self) -> int:
        return len(self.ids) if self.offsets is None else len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts() if part is not None)

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.ids, self.shares, self.offsets

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        ids, *rest = self._parts()
        shares, offsets = (None if part is None else change(part) for part in rest)
        return self._made(change(ids), shares, offsets, self.length, self._widest)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def contiguous(self) -> Self:
        return self._each(Tensor.contiguous)

    def pin_memory(self) -> Self:
        return self._each(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        for part in self._parts():
            if part is not None:
                part.record_stream(stream)

    def take(self, rows: Tensor) -> Self:
        if self.offsets is None:
            shares = None if self.shares is None else self.shares.index_select(0, rows)
            return self._made(self.ids.index_select(0, rows), shares, None, self.length, 1)
        ids, shares, counts = self._gathered(rows)
        held = torch.arange(ids.shape[1], device=rows.device) < counts[:, None]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self._made(ids[held], shares[held], offsets, self.length, self._widest)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        self._along_rows(dim)
        if self.offsets is None:
            return super().index_select(dim, index)
        ids, shares, _ = self._gathered(index)
        dense = torch.zeros(len(index), self.length, device=self.device)
        return dense.scatter_add_(1, ids, shares)

    def _gathered(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and shares (B, widest), padded with shares of zero, and how many are real, (B,)."""
        assert self.offsets is not None
        first = self.offsets.index_select(0, rows)
        counts = self.offsets.index_select(0, rows + 1) - first
        places = torch.arange(min(self._widest, len(self.ids)), device=rows.device)
        held = places < counts[:, None]
        at = torch.where(held, first[:, None] + places, 0)
        ids = self.ids.index_select(0, at.view(-1)).view(at.shape).long()
        if self.shares is None:
            return ids, held.float(), counts
        shares = self.shares.index_select(0, at.view(-1)).view(at.shape).float() * held
        return ids, shares, counts

    def dense(self) -> Tensor:
        if self.offsets is not None:
            return self.index_select(0, torch.arange(len(self), device=self.device))
        dense = torch.zeros(len(self), self.length, device=self.device)
        ids = self.ids.long()[:, None]
        if self.shares is None:
            return dense.scatter_(1, ids, 1.0)
        return dense.scatter_(1, ids, self.shares.float()[:, None])

    def joined(self, columns: Sequence[Packed]) -> Packed:
        parts = [column for column in columns if isinstance(column, Rows)]
        ids = torch.cat([part.ids for part in parts])
        weighed = any(part.shares is not None for part in parts)
        shares = torch.cat([part._shares() for part in parts]) if weighed else None
        widest = max(part._widest for part in parts)
        if all(part.offsets is None for part in parts):
            return self._made(ids, shares, None, self.length, widest)
        counts = torch.cat([part._counts() for part in parts])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self._made(ids, shares, offsets, self.length, widest)

    def _shares(self) -> Tensor:
        return (
            torch.ones(self.ids.shape, device=self.device) if self.shares is None else self.shares
        )

    def _counts(self) -> Tensor:
        if self.offsets is not None:
            return self.offsets.diff()
        return torch.ones(len(self), dtype=torch.int64, device=self.device)


def taken(column: Column, rows: Tensor) -> Column:
    """The rows (B,) int64 of a column, as it is stored."""
    return column.take(rows) if isinstance(column, Packed) else column.index_select(0, rows)


def joined(columns: Sequence[Column]) -> Column:
    """One column of several of a kind, one after the other. Raises ValueError if they are not."""
    first = columns[0]
    if len({(type(column), column.shape[1:]) for column in columns}) > 1:
        told = ", ".join(f"{type(column).__name__} {tuple(column.shape)}" for column in columns)
        raise ValueError(f"columns of different kinds: {told}")
    if isinstance(first, Packed):
        return first.joined([column for column in columns if isinstance(column, Packed)])
    return torch.cat([column for column in columns if isinstance(column, Tensor)])
