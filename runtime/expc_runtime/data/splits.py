"""Which rows of a source are trained on and which are held out: one function of numbers and a seed."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Holdout", "Split", "generator"]

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Holdout:
    """How rows are split.

    Args:
        val, test: shares, of the groups if rows have them, else of the rows; rounded to whole ones.
        seed: draws the split and the sample. It is not the seed of the run, so that runs of one
            sweep are measured on the same rows.
        limit_groups, limit_rows: how many are used at most, a sample drawn before the split. The sample
            of a smaller limit is part of that of a larger one.

    Raises ValueError for numbers that can't be.
    """

    val: float = 0.0
    test: float = 0.0
    seed: int = 0
    limit_groups: int | None = None
    limit_rows: int | None = None

    def __post_init__(self) -> None:
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise ValueError(
                f"val={self.val:g}, test={self.test:g}: shares of the rows, together below 1"
            )
        for name in ("limit_groups", "limit_rows"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name}={limit}: must be at least 1")
        if self.limit_groups is not None and self.limit_rows is not None:
            raise ValueError("limit_groups and limit_rows: one of them says what is used")

    def rows(self, n: int, groups: Tensor | None = None) -> dict[Split, Tensor]:
        """Row numbers of each split of ``n`` rows, ascending, int64 on the CPU.

        ``groups`` (n,) int64 says which group a row is of: then all rows of a group are in one split.
        Raises ValueError for a share that is none, or if nothing is left to train on.
        """
        if groups is None:
            if self.limit_groups is not None:
                raise ValueError("limit_groups: the rows have no groups; name their column in `by`")
            kept = self._sample(n, self.limit_rows)
            parts = self._parted(len(kept), "rows")
            return {name: kept[part] for name, part in parts.items()}
        kept = self._sample(n, self.limit_rows)
        # Numbered in the order of their ids: what an id is does not matter, and rows may move.
        ids, group = torch.unique(groups.cpu()[kept], return_inverse=True)
        used = self._sample(len(ids), self.limit_groups)
        parts = self._parted(len(used), "groups")
        found = {}
        for name, part in parts.items():
            chosen = torch.zeros(len(ids), dtype=torch.bool)
            chosen[used[part]] = True
            found[name] = kept[chosen[group]]
        return found

    def _sample(self, n: int, limit: int | None) -> Tensor:
        """``limit`` of ``n`` numbers, ascending; all if there are no more."""
        if limit is None or limit >= n:
            return torch.arange(n)
        order = torch.randperm(n, generator=generator(f"limit {self.seed}"))
        return order[:limit].sort().values

    def _parted(self, n: int, what: str) -> dict[Split, Tensor]:
        order = torch.randperm(n, generator=generator(f"split {self.seed}"))
        sizes = {"val": round(self.val * n), "test": round(self.test * n)}
        for name, share in (("val", self.val), ("test", self.test)):
            if share and not sizes[name]:
                raise ValueError(f"{name}={share:g} of {n} {what} is none")
        train = n - sum(sizes.values())
        if train < 1:
            raise ValueError(f"{train} {what} are left to train on, of {n}")
        parts = torch.split(order, [train, sizes["val"], sizes["test"]])
        names: tuple[Split, ...] = ("train", "val", "test")
        return {name: part.sort().values for name, part in zip(names, parts, strict=True)}


def generator(text: str) -> torch.Generator:
    """A generator seeded by a hash, so that neighbouring seeds share nothing."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
