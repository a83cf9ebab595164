"""What was seen is kept: in order, checksummed, on the disk when a training saves."""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from expc_runtime.errors import NO_SPACE, MissingInput
from expc_runtime.replay import log as log_module
from expc_runtime.replay.log import FrameLog

FRAME = np.dtype([("cells", np.uint8, (2, 3)), ("flags", np.uint8), ("reward", "<f4")])
ENVS = 2


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SEGMENT", 5 * ENVS)  # five rows


def row(index: int) -> NDArray[np.uint8]:
    """A row that no other is like."""
    return np.random.default_rng(index).integers(0, 256, (ENVS, FRAME.itemsize), dtype=np.uint8)


def filled(folder: Path, rows: int) -> FrameLog:
    log = FrameLog(folder, FRAME, ENVS)
    for index in range(log.rows, rows):
        log.append(row(index))
    return log


def held(log: FrameLog, first: int = 0) -> list[bytes]:
    rows, envs = np.divmod(np.arange(first * ENVS, log.rows * ENVS), ENVS)
    return [frame.tobytes() for frame in log.gather(rows, envs)]


def expected(rows: int, first: int = 0) -> list[bytes]:
    return [frame.tobytes() for index in range(first, rows) for frame in row(index)]


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 10, 11, 23])
def test_what_was_appended_is_read_and_read_again(tmp_path: Path, rows: int) -> None:
    log = filled(tmp_path / "replay", rows)
    assert held(log) == expected(rows)
    log.flush()
    again = FrameLog(tmp_path / "replay", FRAME, ENVS)
    again.load(rows, log.crc, 0)
    assert (again.rows, again.crc) == (rows, log.crc)
    assert held(again) == expected(rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_it_may_be_flushed_and_gone_on_with_anywhere(steps: list[int]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        rows, log = 0, FrameLog(Path(name) / "replay", FRAME, ENVS)
        for step in steps:
            for index in range(rows, rows + step):
                log.append(row(index))
            rows += step
            log.flush()
            crc = log.crc
            log = FrameLog(Path(name) / "replay", FRAME, ENVS)
            log.load(rows, crc, 0)
        assert held(log) == expected(rows)
        assert held(log) == held(filled(Path(name) / "other", rows))


@pytest.mark.parametrize(("rows", "back"), [(8, 7), (23, 20), (23, 15), (23, 3), (23, 0)])
def test_going_back_cuts_off_what_came_after(tmp_path: Path, rows: int, back: int) -> None:
    crc = filled(tmp_path / "other", back).crc
    filled(tmp_path / "replay", rows).flush()
    log = FrameLog(tmp_path / "replay", FRAME, ENVS)
    log.load(back, crc, 0)
    assert held(log) == expected(back)
    for index in range(back, rows + 4):
        log.append(row(index))
    log.flush()
    assert held(log) == expected(rows + 4)
    size = sum(path.stat().st_size for path in (tmp_path / "replay").iterdir())
    assert size == sum(16 + 5 * (ENVS * FRAME.itemsize + 4) for _ in range(0, rows + 4, 5)) - (
        -(rows + 4) % 5
    ) * (ENVS * FRAME.itemsize + 4)


def spoiled(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_its_row_named(tmp_path: Path) -> None:
    log = filled(tmp_path / "replay", 12)
    log.flush()
    wide = ENVS * FRAME.itemsize + 4
    spoiled(tmp_path / "replay" / "000000000005.frames", 16 + 2 * wide + 3)
    again = FrameLog(tmp_path / "replay", FRAME, ENVS)
    with pytest.raises(MissingInput, match=r"row 7, in .*5.frames, fails its checksum"):
        again.load(12, log.crc, 0)


def test_a_segment_of_another_run_is_found(tmp_path: Path) -> None:
    log = filled(tmp_path / "replay", 12)
    log.flush()
    other = FrameLog(tmp_path / "other", FRAME, ENVS)
    for index in range(12):
        other.append(row(100 + index))
    other.flush()
    name = "000000000005.frames"
    (tmp_path / "other" / name).replace(tmp_path / "replay" / name)
    again = FrameLog(tmp_path / "replay", FRAME, ENVS)
    with pytest.raises(MissingInput, match=r"5.frames is of another run"):
        again.load(12, log.crc, 0)


def test_missing_rows_are_found(tmp_path: Path) -> None:
    log = filled(tmp_path / "replay", 12)
    log.flush()
    again = FrameLog(tmp_path / "replay", FRAME, ENVS)
    path = tmp_path / "replay" / "000000000010.frames"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(MissingInput, match="does not end as the checkpoint says"):
        again.load(12, log.crc, 0)
    path.unlink()
    with pytest.raises(MissingInput, match="cannot be read"):
        again.load(12, log.crc, 0)
    path.write_bytes(b"no log at all, but long enough")
    with pytest.raises(MissingInput, match="holds other frames"):
        again.load(12, log.crc, 0)


def test_old_segments_go_and_the_rest_still_vouches_for_itself(tmp_path: Path) -> None:
    log = filled(tmp_path / "replay", 23)
    log.flush()
    log.retire(12)
    assert sorted(int(path.stem) for path in (tmp_path / "replay").iterdir()) == [10, 15, 20]
    assert held(log, 10) == expected(23, 10)
    again = FrameLog(tmp_path / "replay", FRAME, ENVS)
    again.load(23, log.crc, 12)
    assert held(again, 10) == expected(23, 10)


def in_child(work: Callable[[], Any]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_killed_process_loses_only_what_no_checkpoint_counts_on(tmp_path: Path) -> None:
    def work() -> None:
        log = filled(tmp_path / "replay", 8)
        log.flush()
        for index in range(8, 14):
            log.append(row(index))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    log = FrameLog(tmp_path / "replay", FRAME, ENVS)
    log.load(8, filled(tmp_path / "other", 8).crc, 0)
    assert held(log) == expected(8)


def synced(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes that ``work`` forces to the disk, in order."""
    found: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: found.append(os.fstat(file).st_ino))
        work()
    return found


def test_a_power_cut_takes_no_row_that_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that were filled since the flush before are forced to the disk as well."""
    folder = tmp_path / "replay"
    log = filled(folder, 3)
    log.flush()
    for index in range(3, 13):  # fills rows 3 and 4 of the first, all of the second
        log.append(row(index))
    files = [path.stat().st_ino for path in sorted(folder.glob("*.frames"))]
    forced = synced(log.flush, monkeypatch)
    assert {*files, (folder / "000000000010.frames").stat().st_ino} == set(forced[:-1])
    assert len(files) == 2 and forced[-1] == folder.stat().st_ino  # names after what they name
    assert not synced(log.flush, monkeypatch)


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path: Path) -> None:
    filled(tmp_path / "replay", 4).flush()
    crc = filled(tmp_path / "other", 4).crc

    def work() -> None:
        log = FrameLog(tmp_path / "replay", FRAME, ENVS)
        log.load(4, crc, 0)
        size = (tmp_path / "replay" / "000000000000.frames").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log.append(row(4))
        try:
            log.flush()
        except OSError as error:
            assert error.errno in NO_SPACE
        else:
            raise AssertionError("it was not full")

    assert in_child(work) == 0
    log = FrameLog(tmp_path / "replay", FRAME, ENVS)
    log.load(4, crc, 0)
    assert held(log) == expected(4)


def test_a_new_start_forgets_what_was_there(tmp_path: Path) -> None:
    filled(tmp_path / "replay", 12).flush()
    log = FrameLog(tmp_path / "replay", FRAME, ENVS)
    log.restart()
    assert not list((tmp_path / "replay").iterdir())
    log.append(row(0))
    assert held(log) == expected(1)
