"""The book of a sweep: what is written about attempts, whoever drives them."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from expc_runtime.errors import Locked
from expc_runtime.state import Result, claim, read_result, read_status
from expc_runtime.state.claim import hold
from expc_runtime.state.plan import Layout, Policy, Retry, Task
from expc_runtime.state.program import Declared
from expc_runtime.state.records import Status, write_status
from expc_runtime.sweep.book import Book
from expc_runtime.sweep.policy import again

FIELDS = {
    "precision": ("str", "16-mixed"),
    "microbatch": ("float", 1.0),
    "batch": ("int", 5),
    "widths": ("tuple[int, ...]", (8, 16)),
    "clip": ("float | None", None),
    "compile": ("bool", True),
    "planned": ("str", ""),
}


def task(key: str = "a" * 16, *, flags: tuple[str, ...] = (), **retries: Retry) -> Task:
    declared = Declared(Path("m.py"), "p", FIELDS)
    policy = Policy(timeout=60.0, retries=retries)
    argv = ("python", "m.py", *flags)
    return Task(1, "r", "", "0", "s", argv=argv, key=key, policy=policy, declared=declared)


def failed(failure: str, **values: object) -> Status:
    return Status(state="failed", failure=failure, key="a" * 16, **values)  # type: ignore[arg-type]


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    monkeypatch.chdir(tmp_path)
    return Book(Layout("x", "generated/x"))


# Whether a stage is tried again


@pytest.mark.parametrize(
    ("change", "flags", "changed"),
    [
        (("precision", "32"), (), {"precision": "32"}),
        (("microbatch", "half"), (), {"microbatch": 0.5}),
        (("batch", "half"), (), {"batch": 2}),
        (("widths", "4,4"), (), {"widths": (4, 4)}),
        (("clip", "0.5"), (), {"clip": 0.5}),
        (("clip", "none"), ("--clip", "1"), {"clip": None}),
        (("compile", "false"), (), {"compile": False}),
        (("precision", "16-mixed"), (), None),
        (("batch", "half"), ("--batch", "0"), None),
        (("clip", "half"), (), None),
    ],
)
def test_a_change_is_made_of_what_is_in_force(
    change: tuple[str, str], flags: tuple[str, ...], changed: dict[str, object] | None
) -> None:
    this = task(flags=flags, oom=Retry(changes=(change,)))
    next_ = again(this, failed("oom"), since=0)
    assert (next_.delay is None) == (changed is None)
    if changed is not None:
        assert next_.changed == changed
        whole = [*flags, *this.declared.flags(next_.changed)]  # type: ignore[union-attr]
        assert this.declared.values(whole) == this.planned() | changed  # type: ignore[union-attr]


def test_changes_of_several_classes_add_up_and_one_that_is_undone_is_none() -> None:
    half, exact = (("microbatch", "half"),), (("precision", "32"),)
    this = task(
        oom=Retry(times=2, changes=half),
        diverged=Retry(changes=exact),
        leak=Retry(changes=(("microbatch", "1.0"),)),
    )
    first = again(this, failed("oom"), since=0)
    second = again(this, failed("diverged", changed=first.changed, tries=first.tries), since=0)
    assert second.changed == {"microbatch": 0.5, "precision": "32"}
    assert second.tries == {"oom": 1, "diverged": 1}
    third = again(this, failed("leak", changed=second.changed, tries=second.tries), since=0)
    assert third.changed == {"precision": "32"}
    assert again(this, failed("diverged", tries=second.tries), since=0).delay is None


def test_delays_double_and_never_come_together() -> None:
    this = task(killed=Retry(times=99, delay=10.0))
    for spent in (0, 1, 3):
        status = failed("killed", tries={"killed": spent})
        delays = [again(this, status, since=0).delay for _ in range(50)]
        assert all(7.5 <= d / 2**spent <= 12.5 for d in delays if d is not None)
        assert len(set(delays)) > 40
    assert again(this, failed("killed", tries={"killed": 98}), since=0).delay == 3600.0


def test_what_is_preempted_goes_on_only_as_long_as_it_gets_further() -> None:
    status = Status(state="interrupted", code=75, step=10, tries={"preempted": 2})
    further = again(task(), status, since=4)
    assert (further.delay, further.tries) == (0.0, {"preempted": 0})
    stalled = again(task(), status, since=10)
    assert stalled.delay is not None and stalled.delay > 1 and stalled.tries == {"preempted": 3}
    assert again(task(), replace(status, tries={"preempted": 3}), since=10).delay is None


# Attempts


def test_an_attempt_goes_on_with_what_a_retry_changed(book: Book) -> None:
    this = task(diverged=Retry(changes=(("precision", "32"),)))
    attempt = book.begin(this)
    assert book.command(attempt) == this.argv
    write_status(book.root / this.name, failed("diverged", attempt=1, step=7, reason="NaN"))
    status = book.verdict(attempt, 65)
    assert book.retry(attempt, status).delay == 0.0
    waiting = read_status(book.root / this.name)
    assert waiting is not None
    assert (waiting.label, waiting.reason) == (
        "pending",
        "diverged; again with precision=32 (was 16-mixed)",
    )
    second = book.begin(this)
    assert (second.number, second.step, second.told) == (2, 7, "precision=32 (was 16-mixed)")
    planned = '{"precision": "16-mixed"}'
    assert book.command(second) == (*this.argv, "--precision", "32", "--planned", planned)
    lines = (book.root / "events.jsonl").read_text().splitlines()
    names = [json.loads(line)["event"] for line in lines]
    assert names == ["start", "failed", "retry", "start"]


def test_a_stage_that_is_asked_for_again_has_its_tries_anew(book: Book) -> None:
    this = task(oom=Retry(changes=(("microbatch", "half"),)))
    folder = book.root / this.name
    folder.mkdir(parents=True)
    spent = failed("oom", attempt=2, changed={"microbatch": 0.5}, tries={"oom": 1})
    write_status(folder, spent)
    attempt = book.begin(this)
    assert attempt.changed == {"microbatch": 0.5}
    status = book.verdict(attempt, 71)
    assert (status.label, status.tries) == ("failed(oom)", {})
    assert book.retry(attempt, status).changed == {"microbatch": 0.25}


def test_tries_and_changes_outlive_the_process_that_they_are_of(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir(parents=True)
    before = Status(state="pending", key="k", changed={"lr": 0.1}, tries={"oom": 1})
    write_status(tmp_path, before)
    with claim(tmp_path, "k") as stage:
        assert stage.verdict == "resume"
        assert (stage.status.tries, stage.status.changed) == ({"oom": 1}, {"lr": 0.1})
        assert stage.finish(Result()).changed == {"lr": 0.1}


def test_a_stage_in_another_hand_is_not_begun(book: Book) -> None:
    with hold(book.root / task().name, task().key), pytest.raises(Locked):
        book.begin(task())


def test_no_time_is_measured_by_a_clock_that_somebody_sets(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, run = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: run)
    attempt = book.begin(task())
    with claim(book.root / task().name, task().key) as stage:
        stage.beat(step=1, steps_target=9, epoch=0)
        wall, run = wall - 86400, run + 5
        stage.beat(step=2, steps_target=9, epoch=0)
        status = read_status(stage.folder)
        assert status is not None and (status.step, status.seconds) == (2, 5.0)
    assert attempt.seconds == pytest.approx(5, abs=1)
    assert book.verdict(attempt, 1).seconds == pytest.approx(5, abs=1)


def test_a_full_disk_stops_no_bookkeeping_and_is_noted(book: Book) -> None:
    book.root.mkdir(parents=True)
    (book.root / "events.jsonl").symlink_to("/dev/full")
    attempt = book.begin(task())
    assert book.verdict(attempt, 74).label == "failed(disk_full)"
    assert "No space left" in book.full


# Folders that were set aside


@pytest.mark.parametrize("done", [True, False])
def test_work_that_was_set_aside_is_taken_back_by_its_key(tmp_path: Path, done: bool) -> None:
    folder, mine, other = tmp_path / "s", "a" * 16, "b" * 16
    with claim(folder, mine) as stage:
        (folder / "checkpoints").mkdir()
        stage.beat(step=5, steps_target=9, epoch=0)
        if done:
            stage.finish(Result(metrics={"m": 1.0}))
        else:
            stage.interrupt("asked to")
    with claim(folder, other) as stage:
        stage.finish(Result(metrics={"m": 2.0}))
    # That nothing could be started since is no work that is in the way.
    for blocked in (False, True):
        if blocked:
            with claim(folder, other):
                pass
            kept = folder.rename(folder.with_name(f"s.was-{other[:8]}"))
            folder.mkdir()
            write_status(folder, Status(state="blocked", key=mine, by="read"))
        with claim(folder, mine) as stage:
            assert stage.verdict == ("done" if done else "resume")
            assert stage.back is not None and stage.status.step == 5
            if not done:
                stage.interrupt("asked to")
        if not blocked:
            back = read_result(folder.with_name(f"s.was-{other[:8]}"))
            assert back is not None and back.metrics == {"m": 2.0}
    assert kept.is_dir()
    with claim(folder, other) as stage:
        assert stage.verdict == "done" and stage.result and stage.result.metrics == {"m": 2.0}
    names = Counter(path.name for path in tmp_path.iterdir())
    assert names == {"s": 1, f"s.was-{mine[:8]}": 1}


def test_a_key_that_only_begins_alike_is_another(tmp_path: Path) -> None:
    mine, alike = "a" * 8 + "1" * 8, "a" * 8 + "2" * 8
    with claim(tmp_path / "s", alike) as stage:
        stage.finish(Result())
    with claim(tmp_path / "s", "b" * 16) as stage:
        stage.finish(Result())
    with claim(tmp_path / "s", mine) as stage:
        assert (stage.verdict, stage.back) == ("fresh", None)
