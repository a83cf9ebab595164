"""Data sources: a source gives whole columns, the feed slices batches from them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from expc.components.core import Column, Component, Params, Use
from expc.ir import BinaryLogits, ClassId, ClassLogits, ClassProbs, Features, Port, Prob, Real

GROUP = "group"
"""The word for a column that only says which rows belong together, such as the game they are of."""

Meaning = Literal["features", "class", "prob", "real", "class_probs", "group"]

COLUMN_PORTS: dict[str, Port] = {
    "features": Features,
    "class": ClassId,
    "prob": Prob,
    "real": Real,
    "class_probs": ClassProbs,
}
"""Words for the meaning of a column, in specs and in a source's `columns`."""

HEAD_PORTS: dict[str, Port] = {
    "logits": BinaryLogits,
    "class_logits": ClassLogits,
    "prob": Prob,
    "real": Real,
}
"""Words for what a head gives."""

Share = Annotated[float, Field(ge=0, lt=1)]


class Split(Params):
    """How rows are held out. The seed is the split's own: runs that differ in their seed share the split."""

    val: Share = Field(0.0, description="share of rows for validation")
    test: Share = Field(0.0, description="share of rows measured once, at the end")
    seed: int = Field(0, ge=0, description="seed of the permutation that splits")
    by: str | None = Field(
        None,
        min_length=1,
        description="column that says which group a row is of: shares are of groups, held out whole",
    )

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"holds out every row: val {self.val:g} and test {self.test:g}, together below 1"
            )
        return self


class Limit(Params):
    """How much of the data is used at most: a sample drawn by the split's seed, before the split."""

    groups: Annotated[int, Field(ge=1)] | None = Field(None, description="whole groups, of `by`")
    rows: Annotated[int, Field(ge=1)] | None = Field(None, description="rows")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.groups is None) == (self.rows is None):
            raise ValueError("is of groups or of rows\nwrite `limit: {rows: 1000}`")
        return self


class Streamed(Params):
    """Rows are read again for each epoch; only a window of them is held."""

    window: Annotated[int, Field(ge=1)] = Field(
        description="rows that are held, and shuffled among each other"
    )
    threads: int = Field(1, ge=0, description="threads that read ahead of the training")


class DataSlot(Params):
    """What any data source takes beside its own parameters."""

    batch: Annotated[int, Field(ge=1)] = Field(description="rows in one batch")
    split: Split = Field(default_factory=Split, description="what is held out")
    drop_last: bool = Field(False, description="leave out an epoch's short last batch")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="model input -> column, where the names differ"
    )
    limit: Limit | None = Field(None, description="how much of the data is used at most")
    stream: Streamed | None = Field(
        None, description="read rows as they are needed, where they do not fit in memory"
    )

    @model_validator(mode="after")
    def _samples_groups_that_are_named(self) -> Self:
        if self.limit is not None and self.limit.groups is not None and self.split.by is None:
            raise ValueError(
                "is limited to groups, and `split` does not say which rows make one\n"
                "name their column with `split: {by: ...}`, or write `limit: {rows: 1000}`"
            )
        return self


class Digits(Params):
    """No parameters."""


class Arrays(Params):
    """Parameters of `arrays`."""

    file: str = Field(description="an .npz, .safetensors or .csv file, from the project root")
    columns: dict[str, Meaning] = Field(min_length=1, description="column -> what it means")


def _one_or_some(value: object) -> object:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(each, str) and each for each in listed):
        raise ValueError("takes a file, or a list of files")
    return value


Files = Annotated[str | Annotated[list[str], Field(min_length=1)], BeforeValidator(_one_or_some)]
"""One file or several, from the project root. Told in one sentence where it is neither."""


class Feather(Params):
    """Parameters of `feather`."""

    files: Files = Field(
        description="an Arrow file, or a pattern such as data/*.feather, from the project root; or a list"
    )
    columns: dict[str, Meaning] = Field(min_length=1, description="column -> what it means")


class ReachableSquares(Params):
    """No parameters."""


class Games(Params):
    """Parameters of `shogi.games`."""

    file: Files = Field(
        description="a file of games, .tsv.xz or .tsv, from the project root; or a list of them"
    )
    min_plies: int = Field(20, ge=1, description="games of fewer moves are left out")
    unique: bool = Field(False, description="keep only the first occurrence of each position")


MOVES = 1496
"""Classes of moves in shogi: direction, promotion and destination, or what is dropped where."""


def columns_of(use: Use) -> dict[str, Column]:
    """What is known of a source's columns: from its declaration, or from the spec."""
    if use.component.columns:
        return dict(use.component.columns)
    return {
        name: Column(COLUMN_PORTS[meaning])
        for name, meaning in _declared(use).items()
        if meaning != GROUP
    }


def groups_of(use: Use) -> tuple[str, ...]:
    """The columns of a source that say which rows belong together."""
    named = [name for name, meaning in _declared(use).items() if meaning == GROUP]
    return (*use.component.groups, *named)


def splits_by(use: Use) -> list[str]:
    """The columns that rows may be split by: groups, and of a file whatever the spec declares."""
    return list(dict.fromkeys((*groups_of(use), *_declared(use))))


def _declared(use: Use) -> dict[str, str]:
    """What the spec says that the columns of a file mean."""
    declared: dict[str, str] = getattr(use.params, "columns", {})
    return declared if isinstance(declared, dict) else {}


DATA = (
    Component(
        "data", "digits", "1,797 handwritten digits, 8x8 (scikit-learn's own)", Digits,
        "expc_runtime.data.digits:Digits", rows=1797,
        columns={
            "image": Column(Features, (1, 8, 8)),
            "digit": Column(ClassId, classes=10, prior=183 / 1797),
            "even": Column(Prob, prior=891 / 1797),
            "loop": Column(Prob, prior=713 / 1797),
            "zero": Column(Prob, prior=178 / 1797),
        },
    ),
    Component(
        "data", "arrays", "columns of a file that fits in memory", Arrays,
        "expc_runtime.data.arrays:Arrays",
    ),
    Component(
        "data", "feather", "columns of Arrow IPC files, which may be streamed (extra `arrow`)", Feather,
        "expc_runtime.data.feather:Feather", traits=frozenset({"blocks"}),
    ),
    Component(
        "data", "shogi.reachable_squares", "one shogi piece, and where it can go: 1,105 boards, all there are",
        ReachableSquares, "expc_runtime.data.shogi:ReachableSquares", rows=1105,
        columns={
            "board": Column(Features, (9, 9), dtype="uint8"),
            "hand": Column(Features, (14,), dtype="uint8"),
            "reachable": Column(Prob, (81,), prior=8759 / (1105 * 81)),
        },
    ),
    Component(
        "data", "shogi.games", "positions of shogi games: the move played, the legal moves, who won", Games,
        "expc_runtime.data.shogi:Games", groups=("game",),
        columns={
            "board": Column(Features, (9, 9), dtype="uint8"),
            "hand": Column(Features, (14,), dtype="uint8"),
            "move": Column(ClassId, classes=MOVES),
            "policy": Column(ClassProbs, (MOVES,), classes=MOVES),
            "legal": Column(Prob, (MOVES,)),
            "value": Column(Prob),
        },
    ),
)  # fmt: skip
