"""Arrow files as the maou programs write them: read as they are, whole or in blocks."""

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pa = pytest.importorskip("pyarrow")

import numpy as np
from pyarrow import feather

from expc_runtime.data.feather import Feather
from expc_runtime.data.feed import Feed
from expc_runtime.data.packed import Bits, Rows
from expc_runtime.data.stream import Stream
from expc_runtime.errors import MissingInput

torch.set_num_threads(1)
CPU = torch.device("cpu")
Arrays = dict[str, "np.ndarray[Any, Any]"]

STAGE_1 = {
    "id": "group",
    "boardIdPositions": "features",
    "piecesInHand": "features",
    "reachableSquares": "prob",
}
STAGE_2 = {
    "id": "group",
    "boardIdPositions": "features",
    "piecesInHand": "features",
    "legalMovesLabel": "prob",
}
STAGE_3 = {
    "boardIdPositions": "features",
    "piecesInHand": "features",
    "moveLabel": "class_probs",
    "moveWinRate": "real",
    "bestMoveWinRate": "prob",
    "resultValue": "prob",
}


def positions(n: int, seed: int = 0) -> Arrays:
    """Every column of section 3.5 of the brief, by its name there, in its dtype."""
    rng = np.random.default_rng(seed)
    moves = np.zeros((n, 1496), dtype=np.float32)
    moves[np.arange(n), rng.integers(0, 1496, n)] = 1
    moves[0] = 0
    moves[0, [3, 77]] = 0.25, 0.75
    return {
        "id": rng.integers(0, 2**64, n, dtype=np.uint64),
        "boardIdPositions": rng.integers(0, 29, (n, 9, 9), dtype=np.uint8),
        "piecesInHand": rng.integers(0, 19, (n, 14), dtype=np.uint8),
        "reachableSquares": (rng.random((n, 9, 9)) < 0.1).astype(np.uint8),
        "legalMovesLabel": (rng.random((n, 1496)) < 0.05).astype(np.uint8),
        "moveLabel": moves,
        "moveWinRate": rng.random((n, 1496), dtype=np.float32),
        "bestMoveWinRate": rng.random(n, dtype=np.float32),
        "resultValue": rng.choice([0, 0.5, 1], n).astype(np.float32),
    }


def lists(values: "np.ndarray[Any, Any]", *, fixed: bool) -> Any:
    """An Arrow array of the same numbers, lists in lists."""
    made = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        if fixed:
            made = pa.FixedSizeListArray.from_arrays(made, size)
        else:
            offsets = pa.array(np.arange(0, len(made) + 1, size, dtype=np.int32))
            made = pa.ListArray.from_arrays(offsets, made)
    return made


def write(
    path: Path, held: Arrays, *, fixed: bool = False, compression: str = "lz4", rows: int = 1000
) -> None:
    table = pa.table({name: lists(values, fixed=fixed) for name, values in held.items()})
    feather.write_feather(table, str(path), compression=compression, chunksize=rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of three and two record batches, written out of order."""
    held = positions(100)
    write(tmp_path / "b.feather", {k: v[60:] for k, v in held.items()}, rows=30)
    write(tmp_path / "a.feather", {k: v[:60] for k, v in held.items()}, rows=25)
    return tmp_path


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("compression", ["lz4", "uncompressed"])
def test_columns_are_those_that_were_written(tmp_path: Path, fixed: bool, compression: str) -> None:
    held = positions(50)
    write(tmp_path / "a.feather", held, fixed=fixed, compression=compression, rows=20)
    source = Feather(str(tmp_path / "a.feather"), {**STAGE_1, **STAGE_2, **STAGE_3})
    made = source.tensors()
    assert set(made) == set(held)
    for name in ("boardIdPositions", "piecesInHand"):
        assert made[name].dtype == torch.uint8
        np.testing.assert_array_equal(made[name].numpy(), held[name])  # type: ignore[union-attr]
    for name, kind in (("reachableSquares", Bits), ("legalMovesLabel", Bits), ("moveLabel", Rows)):
        assert isinstance(made[name], kind)
        np.testing.assert_array_equal(made[name][:].numpy(), held[name].reshape(50, -1))
    for name in ("moveWinRate", "bestMoveWinRate", "resultValue"):
        assert made[name].dtype == torch.float32
        np.testing.assert_array_equal(made[name][:].numpy(), held[name])
    assert made["id"].dtype == torch.int64
    np.testing.assert_array_equal(made["id"].numpy().view(np.uint64), held["id"])  # type: ignore[union-attr]
    assert made["legalMovesLabel"].nbytes == 50 * 187


def test_files_are_read_in_the_order_of_their_names(folder: Path) -> None:
    held = positions(100)
    for files in (f"{folder}/*.feather", [f"{folder}/b.feather", f"{folder}/a.feather"]):
        source = Feather(files, STAGE_2)
        assert list(source.lengths()) == [25, 25, 10, 30, 10]
        board = source.tensors()["boardIdPositions"]
        np.testing.assert_array_equal(board[:].numpy(), held["boardIdPositions"])
    twice = Feather([f"{folder}/*.feather", f"{folder}/a.feather"], STAGE_2)
    assert sum(twice.lengths()) == 100


def test_a_block_is_a_record_batch_with_the_columns_asked_for(folder: Path) -> None:
    held = positions(100)
    source = Feather(f"{folder}/*.feather", STAGE_2)
    block = source.block(3, ["piecesInHand", "legalMovesLabel"])
    assert set(block) == {"piecesInHand", "legalMovesLabel"}
    np.testing.assert_array_equal(block["piecesInHand"][:].numpy(), held["piecesInHand"][60:90])
    np.testing.assert_array_equal(
        block["legalMovesLabel"][:].numpy(), held["legalMovesLabel"][60:90]
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_a_stream_of_files_trains_on_the_rows_of_the_files(folder: Path, threads: int) -> None:
    how: dict[str, Any] = {
        "columns": ("boardIdPositions", "legalMovesLabel"), "batch": 16, "val": 0.2, "by": "id",
    }  # fmt: skip
    source = Feather(f"{folder}/*.feather", STAGE_2)
    made = Stream(source, window=40, threads=threads, **how)
    held = Feed(source, **how)
    for feed in (made, held):
        feed.setup(CPU, 0)
    assert torch.equal(made.rows("train"), held.rows("train"))
    boards, legal = (column[:] for column in held.columns("train"))
    order = torch.searchsorted(made.rows("train"), made.order(0))
    at = 0
    for chunk in made.chunks(0):
        for board, moves in chunk:
            rows = order[at : at + len(board)]
            assert torch.equal(board, boards[rows]) and torch.equal(moves, legal[rows])
            at += len(board)
    assert at == len(order) == 80
    assert made.facts() == held.facts()
    assert made.facts()["columns"]["boardIdPositions"] == {"shape": [9, 9], "dtype": "uint8"}


def refused(files: Any, match: str, columns: dict[str, str] | None = None) -> None:
    for read in (lambda source: source.lengths(), lambda source: dict(source.tensors())):
        with pytest.raises(MissingInput, match=match):
            read(Feather(files, columns or STAGE_2))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(f"{tmp_path}/gone.feather", r"gone\.feather: no such file")
    refused(f"{tmp_path}/*.feather", r"\*\.feather: no file is named so")


def test_a_damaged_file_is_named(folder: Path) -> None:
    whole = (folder / "b.feather").read_bytes()
    for bytes_ in (b"", b"ARROW1 no", whole[: len(whole) // 2]):
        (folder / "b.feather").write_bytes(bytes_)
        refused(f"{folder}/*.feather", r"b\.feather: \S")


def test_damage_inside_a_file_is_named(tmp_path: Path) -> None:
    held = positions(300)
    write(tmp_path / "b.feather", {name: held[name] for name in STAGE_2})
    torn = bytearray((tmp_path / "b.feather").read_bytes())
    middle = len(torn) // 2  # in the legal moves, which are most of it
    torn[middle : middle + 2000] = bytes(2000)
    (tmp_path / "b.feather").write_bytes(torn)
    with pytest.raises(MissingInput, match=r"b\.feather: "):
        dict(Feather(f"{tmp_path}/*.feather", STAGE_2).tensors())


def test_a_file_without_a_column_is_named_with_what_it_has(folder: Path) -> None:
    write(folder / "c.feather", {"id": positions(3)["id"]})
    refused(
        f"{folder}/*.feather",
        r"c\.feather: no column boardIdPositions.*; it has id$",
    )


@pytest.mark.parametrize(
    ("values", "meaning", "match"),
    [
        (pa.array([[1, 0], [1]]), "prob", "lists are 1 to 2 long; all rows need one length"),
        (pa.array([[1, 0], None]), "prob", "rows are null"),
        (pa.array([1.0, None]), "real", "values are null"),
        (pa.array(["a", "b"]), "class", "it holds string, not numbers or lists of them"),
        (lists(np.array([[0, 2]], dtype=np.uint8), fixed=True), "prob", "0 and 1 alone"),
    ],
)
def test_what_is_no_column_is_told_with_file_and_name(
    tmp_path: Path, values: Any, meaning: str, match: str
) -> None:
    feather.write_feather(pa.table({"odd": values}), str(tmp_path / "a.feather"))
    with pytest.raises(MissingInput, match=rf"a\.feather: column odd: .*{match}"):
        dict(Feather(f"{tmp_path}/a.feather", {"odd": meaning}).tensors())


def test_the_package_that_is_missing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(f"{folder}/*.feather", r"pip install 'expc\[arrow\]'")
