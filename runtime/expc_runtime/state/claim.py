"""One process works in a stage's folder; the kernel keeps the others out."""

import fcntl
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from expc_runtime.errors import CRASH, NO_SPACE, BadValue, Locked, known
from expc_runtime.state.files import write_json
from expc_runtime.state.process import process_start
from expc_runtime.state.records import Result, Status, read_result, read_status, write_status

__all__ = ["Claim", "Held", "Verdict", "claim", "clear_smoke", "former", "hold"]

Verdict = Literal["fresh", "resume", "done"]
_BEAT = 1.0  # seconds between two writes of a running status


@dataclass(frozen=True)
class Held:
    """What a folder holds when it is ready for a stage instance."""

    status: Status | None = None
    result: Result | None = None
    moved: Path | None = None  # where work of another instance went
    back: Path | None = None  # where its own work lay, set aside when the plan was another


def claim(
    folder: Path,
    key: str,
    *,
    program: str = "",
    module: str = "",
    changed: Mapping[str, Any] | None = None,
) -> "Claim":
    """Take ``folder`` for the stage instance ``key``; ``changed`` are settings that a retry changed.

    The claim's ``verdict`` says what is there: ``done`` (result.json proves it), ``resume`` (same
    key, not done) or ``fresh``. A folder of another key is renamed aside first, and one of this key
    that was set aside is taken back.

    Raises:
        Locked: another process works in this folder; the message says which.
        BadValue: no folder can be made or written there.
    """
    lock, held = _take(folder, key)
    status, result = held.status, held.result
    if result is not None and result.key == key and result.state != "smoke":
        return Claim(folder, lock, status or Status(key=key), "done", held, program, module)
    if clear_smoke(folder):
        status = None
    same = status is not None and status.key == key and (folder / "checkpoints").is_dir()
    before = status or Status()
    now = time.time()
    running = Status(
        state="running",
        key=key,
        attempt=before.attempt + 1,
        step=before.step if same else 0,
        steps_target=before.steps_target if same else 0,
        epoch=before.epoch if same else 0,
        seconds=before.seconds,
        began=now,
        heartbeat=now,
        pid=os.getpid(),
        process=process_start(os.getpid()),
        host=socket.gethostname(),
        job=os.environ.get("EXPC_JOB", ""),
        devices=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        # What a part of it ran with stays told, even where this attempt goes without.
        changed={**(before.changed if same else {}), **(changed or {})},
        tries=before.tries if before.key == key else {},
    )
    write_status(folder, running)
    return Claim(folder, lock, running, "resume" if same else "fresh", held, program, module)


@contextmanager
def hold(folder: Path, key: str) -> Iterator[Held]:
    """Make ``folder`` ready for ``key`` without working in it; gives what is found there.

    Raises:
        Locked: a process works in this folder.
        BadValue: no folder can be made or written there.
    """
    lock, held = _take(folder, key)
    try:
        yield held
    finally:
        os.close(lock)


def _take(folder: Path, key: str) -> tuple[int, Held]:
    """Lock ``folder`` when it is the one of ``key``: others are set aside, its own is taken back."""
    lock = _lock(folder)
    status, result = read_status(folder), read_result(folder)
    foreign = set_aside_needed(folder, key, status, result)
    begun = status is not None and status.key == key and status.attempt > 0
    own = begun or (result is not None and result.key == key)
    back = None if own and not foreign else former(folder, key)
    if not foreign and back is None:
        return lock, Held(status, result)
    moved = set_aside(folder) if foreign else None
    if back is not None:
        if moved is None:  # it says why it was not started, at most
            _empty(folder)
        with suppress(OSError):  # somebody else is faster: it is theirs then
            folder.rmdir()
            back.rename(folder)
    os.close(lock)
    lock = _lock(folder)
    return lock, Held(read_status(folder), read_result(folder), moved, back)


def _sweep_up(folder: Path) -> None:
    """Remove what a killed process had not finished writing; whoever writes here holds the folder."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def former(folder: Path, key: str) -> Path | None:
    """The folder with work of ``key`` that was set aside from ``folder``: its result, or checkpoints."""
    prefix = f"{folder.name}.was-{key[:8]}"
    try:
        names = [entry.name for entry in os.scandir(folder.parent) if entry.name.startswith(prefix)]
    except OSError:
        return None
    begun = None
    for old in (folder.with_name(name) for name in sorted(names, reverse=True) if key):
        result, status = read_result(old), read_status(old)
        if result is not None and result.key == key and result.state != "smoke":
            return old
        if status is not None and status.key == key and (old / "checkpoints").is_dir():
            begun = begun or old
    return begun


def set_aside_needed(folder: Path, key: str, status: Status | None, result: Result | None) -> bool:
    """Whether ``folder`` holds work of an instance other than ``key``; an empty key is of none."""
    held = {record.key for record in (status, result) if record is not None and record.key}
    begun = status is not None and status.attempt > 0
    kept = (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").exists()
    return bool(key) and (begun or kept or result is not None) and held != {key}


def set_aside(folder: Path) -> Path:
    """Rename ``folder`` to ``<stage>.was-<key>`` and make it anew, empty; returns the old one."""
    record = read_result(folder) or read_status(folder)
    base = folder.with_name(f"{folder.name}.was-{(record.key if record else '')[:8] or 'unknown'}")
    old, number = base, 1
    while old.exists():
        number += 1
        old = base.with_name(f"{base.name}.{number}")
    folder.rename(old)
    folder.mkdir()
    return old


def _empty(folder: Path, but: str = "") -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != but:
            path.unlink()


def clear_smoke(folder: Path) -> bool:
    """Remove what a smoke run left, which is worth no copy; whether there was one."""
    result = read_result(folder)
    if result is None or result.state != "smoke":
        return False
    _empty(folder, but=".lock")
    return True


class Claim:
    """A stage folder held by this process until `close`, which ``with`` calls."""

    def __init__(
        self,
        folder: Path,
        lock: int,
        status: Status,
        verdict: Verdict,
        held: Held,
        program: str,
        module: str,
    ) -> None:
        self.folder = folder
        self.status = status
        self.verdict = verdict
        self.result = held.result if verdict == "done" else None  # of an earlier attempt
        self.moved = held.moved  # where the folder of another key went
        self.back = held.back  # where its own was taken back from
        self._lock = lock
        self._program = program
        self._module = module
        self._earlier = status.seconds
        self._clock = self._beaten = time.monotonic()  # a wall clock may be set back

    @property
    def key(self) -> str:
        return self.status.key

    def beat(self, *, step: int, steps_target: int, epoch: int, force: bool = False) -> None:
        """Say that the stage lives and how far it is; written at most once a second."""
        now = time.monotonic()
        due = force or now - self._beaten >= _BEAT or not self.status.steps_target
        self.status = replace(
            self.status,
            step=step,
            steps_target=steps_target,
            epoch=epoch,
            heartbeat=time.time() if due else self.status.heartbeat,
            seconds=self._seconds(),
        )
        if due:
            self._beaten = now
            write_status(self.folder, self.status)

    def finish(self, result: Result) -> Result:
        """Write ``result`` (durably), then the status; returns it with key and attempt filled in."""
        whole = replace(
            result,
            key=self.key,
            program=result.program or self._program,
            module=result.module or self._module,
            attempt=self.status.attempt,
            seconds=self._seconds(),
            changed=self.status.changed,
            host=self.status.host,
            memory={"host": _peak(), **result.memory},
        )
        write_json(self.folder / "result.json", asdict(whole), durable=True)
        self._end(state=whole.state, reason=whole.reason, code=0)
        return whole

    def fail(self, failure: str, reason: str, *, code: int, source: str = "") -> None:
        """Mark the stage failed(``failure``)."""
        self._end(state="failed", failure=failure, reason=reason, code=code, source=source)

    def caution(self, reason: str) -> None:
        """Say in the status what a person should look at while the stage runs on."""
        self._end(reason=reason)

    def interrupt(self, reason: str, *, code: int = 75) -> None:
        """Mark the stage interrupted: nothing is wrong with it, and it may go on."""
        self._end(state="interrupted", reason=reason, code=code)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status.state == "running":
            self._abandon(error)
        self.close()

    def _abandon(self, error: BaseException | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.interrupt("stopped by the keyboard", code=130)
            return
        if error is None:
            self.fail("crash", "ended without a result", code=CRASH)
            return
        stage_error = known(error)
        failure = stage_error.failure if stage_error else "crash"
        code = stage_error.code if stage_error else CRASH
        self.fail(failure, str(stage_error or f"{type(error).__name__}: {error}"), code=code)

    def _end(self, **changes: Any) -> None:
        now = time.time()
        self.status = replace(self.status, **changes, heartbeat=now, seconds=self._seconds())
        write_status(self.folder, self.status)

    def _seconds(self) -> float:
        return round(self._earlier + time.monotonic() - self._clock, 3)


def _peak() -> int:
    """Bytes that this process held in memory at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _lock(folder: Path) -> int:
    """A descriptor that holds ``folder``/.lock; closing it (or dying) lets go."""
    path = folder / ".lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            raise BadValue(f"{folder} cannot be worked in: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Locked(f"{folder} is in use{_holder(path)}") from None
        if _same_file(fd, path):
            break
        os.close(fd)  # renamed aside between open and lock
    os.ftruncate(fd, 0)
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _sweep_up(folder)
    return fd


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    return f" by {text}" if text else ""
