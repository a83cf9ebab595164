"""What status.json and result.json say."""

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from expc_runtime.state.files import read_json, write_json
from expc_runtime.state.process import alive

__all__ = ["STATES", "Result", "State", "Status", "read_result", "read_status", "write_status"]

State = Literal[
    "pending",
    "running",
    "done",
    "smoke",
    "failed",
    "blocked",
    "skipped",
    "undefined",
    "interrupted",
]
STATES: tuple[State, ...] = State.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where one stage instance stands.

    Times are seconds since the epoch; ``process`` is the process's start in clock ticks since boot,
    which tells it from a later one with the same number.
    """

    state: State = "pending"
    key: str = ""
    failure: str = ""  # class of a failure: failed(<failure>); or skipped(gate)
    reason: str = ""  # for people: why it failed, is blocked, skipped or undefined
    source: str = ""  # where in the spec the reason lies
    code: int | None = None  # exit code of the last attempt
    by: str = ""  # the stage that blocks this one
    same_as: str = ""  # <run>/<stage> that ran the same instance for this one
    attempt: int = 0
    step: int = 0
    steps_target: int = 0
    epoch: int = 0
    began: float = 0.0
    heartbeat: float = 0.0
    seconds: float = 0.0  # of all attempts together
    pid: int = 0
    process: int = 0
    host: str = ""
    job: str = ""  # of a cluster: "slurm 123_4"
    devices: str = ""  # CUDA_VISIBLE_DEVICES that it was given
    changed: Mapping[str, Any] = field(default_factory=dict)  # by a retry: setting -> value now
    tries: Mapping[str, int] = field(default_factory=dict)  # retries spent, by failure class

    @property
    def label(self) -> str:
        """The state with what belongs to it: ``failed(diverged)``, ``blocked(read)``."""
        detail = {"blocked": self.by}.get(self.state, self.failure)
        return f"{self.state}({detail})" if detail else self.state

    @property
    def percent(self) -> int:
        """Whole percent of ``steps_target``, at most 100."""
        return min(100, self.step * 100 // self.steps_target) if self.steps_target else 0

    @property
    def gone(self) -> bool:
        """Says ``running``, but its process is not there any more (on this host)."""
        here = self.host == socket.gethostname()
        return self.state == "running" and here and not alive(self.pid, self.process)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a stage; its presence with the right key is the proof that it is done.

    ``metrics`` and ``floors`` share their names (``<split>/<name>``); a floor is the best that a
    constant answer reaches. ``gate`` is empty or has ``met`` (bool), ``otherwise`` and ``message``.
    ``extra`` holds what a kind of stage adds, such as provenance. `Claim.finish` fills key,
    program, module, attempt, seconds, changed, host and memory.
    """

    state: Literal["done", "smoke", "undefined"] = "done"
    key: str = ""
    program: str = ""
    module: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    floors: Mapping[str, float | None] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reason: str = ""  # why it is undefined
    step: int = 0
    epoch: int = 0
    attempt: int = 0
    seconds: float = 0.0
    changed: Mapping[str, Any] = field(default_factory=dict)  # by a retry: setting -> value now
    host: str = ""
    memory: Mapping[str, int] = field(default_factory=dict)  # peak bytes: "host", "device"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Its gate was not met and says that dependants shall not run."""
        return self.gate.get("met") is False and self.gate.get("otherwise") == "stop"

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        return cls(**{**values, "warnings": tuple(values.get("warnings", ()))})


def read_status(folder: Path) -> Status | None:
    """What ``folder``/status.json says; None if there is none or it cannot be read."""
    data = read_json(folder / "status.json")
    if data is None or data.get("state") not in STATES or not _sound(_STATUS, data):
        return None
    known = {f.name for f in fields(Status)}
    return Status(**{name: value for name, value in data.items() if name in known})


def write_status(folder: Path, status: Status) -> None:
    """Replace ``folder``/status.json."""
    write_json(folder / "status.json", asdict(status))


def read_result(folder: Path) -> Result | None:
    """What ``folder``/result.json says; None if there is none or it cannot be read."""
    data = read_json(folder / "result.json")
    if data is None or data.get("state") not in ("done", "smoke", "undefined"):
        return None
    return Result.read(data) if _sound(_RESULT, data) else None


def _kinds(record: Status | Result) -> dict[str, tuple[type, ...]]:
    """What JSON holds for each field, told from its default."""
    number = (int, float)
    known = {int: number, float: number, tuple: (list,), type(None): (int, type(None))}
    return {name: known.get(type(value), (type(value),)) for name, value in asdict(record).items()}


_STATUS, _RESULT = _kinds(Status()), _kinds(Result())


def _sound(kinds: Mapping[str, tuple[type, ...]], data: Mapping[str, Any]) -> bool:
    """Whether every value is of its field's kind: somebody may have written the file by hand."""
    return all(isinstance(value, kinds[name]) for name, value in data.items() if name in kinds)
