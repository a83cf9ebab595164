"""A slot that fails where another one works is taken out: a sick machine must not eat a sweep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from expc_runtime.state.plan import Task
from expc_runtime.sweep.slots import Slot, Slots

__all__ = ["Breaker", "Trip"]

_ROW = 3  # failures in a row
_MACHINE = frozenset({"crash", "killed", "oom", "timed_out", "disk_full"})


@dataclass(frozen=True)
class _Failure:
    task: Task
    failure: str
    began: float  # of its attempt, by the monotonic clock


@dataclass(frozen=True)
class Trip:
    """A slot that was taken out."""

    slot: Slot
    failure: str
    other: Slot  # which finished something in that time
    tasks: tuple[Task, ...]  # that had failed there for good: to be run elsewhere


@dataclass
class _Held:
    """A failure that may be the machine's."""

    task: Task
    slots: list[Slot]
    settle: Callable[[], None]


@dataclass
class _Record:
    """What happened on a slot of late."""

    row: list[_Failure] = field(default_factory=list)
    worked: float = float("-inf")  # when something was last finished here


class Breaker:
    """Holds failures that may be the machine's until it is known whose they are.

    Three failures in a row of one machine class on a slot, while another slot finished something,
    take the slot out; those failures are run again elsewhere. If one of them fails there alike, the
    stage is to blame and the slot comes back. Where all slots fail alike, or there is only one,
    nothing is taken out: the sweep goes on.

    Args:
        slots: of the sweep.
        keep: slots that must stay in service at least, for the stage with the most devices.
    """

    def __init__(self, slots: Slots, keep: int = 1) -> None:
        self._slots = slots
        self._keep = keep
        self._records = {slot: _Record() for slot in slots.all}
        self._held: dict[str, _Held] = {}  # by key
        self._accused: dict[str, tuple[Slot, str]] = {}  # by key: where it failed, and how

    @property
    def holds(self) -> bool:
        """Whether failures wait to be settled."""
        return bool(self._held)

    def has(self, key: str) -> bool:
        """Whether the failure of the stage ``key`` waits to be settled."""
        return key in self._held

    def worked(self, slots: Sequence[Slot], key: str, now: float) -> None:
        """The stage ``key`` was finished on ``slots``: what failed there before is not theirs."""
        self._accused.pop(key, None)
        for slot in slots:
            self._records[slot].worked = now
            self._clear(slot)

    def failed(
        self,
        slots: Sequence[Slot],
        task: Task,
        failure: str,
        began: float,
        settle: Callable[[], None] | None,
    ) -> Trip | None:
        """``task`` failed on ``slots``; a slot that is taken out for it.

        ``settle`` is called once it is clear that the failure stands; None if it is tried again
        anyway.
        """
        if settle is not None:
            self._held[task.key] = _Held(task, list(slots), settle)
        for slot in slots:
            row = self._records[slot].row
            if failure not in _MACHINE or (row and row[-1].failure != failure):
                self._clear(slot, but=task.key)
            if failure in _MACHINE:
                row[:] = [each for each in row if each.task.key != task.key]  # no row of one stage
                row.append(_Failure(task, failure, began))
                while len(row) > _ROW:
                    self._release(row.pop(0).task.key, slot)
        self._absolve(slots, task.key, failure)
        if failure not in _MACHINE or not slots:
            self._settle(task.key)
            return None
        trip = next((trip for slot in slots if (trip := self._trip(slot)) is not None), None)
        if len(self._slots.good) < 2:
            self.settle()
        return trip

    def _absolve(self, slots: Sequence[Slot], key: str, failure: str) -> None:
        """What fails alike in two places is no evidence against either."""
        elsewhere = [record for slot, record in self._records.items() if slot not in slots]
        for record in elsewhere:
            alike = [each for each in record.row if (each.task.key, each.failure) == (key, failure)]
            record.row = [each for each in record.row if each not in alike]

    def acquit(self, task: Task, failure: str) -> Slot | None:
        """The slot that is back in service, since ``task`` failed elsewhere as it had failed there."""
        slot, before = self._accused.get(task.key, (None, ""))
        if slot is None or before != failure:
            return None
        self._accused = {key: told for key, told in self._accused.items() if told[0] is not slot}
        slot.out = False
        return slot

    def settle(self) -> None:
        """Let every failure stand: there is nothing left to judge it by."""
        for key in list(self._held):
            self._settle(key)

    def _trip(self, slot: Slot) -> Trip | None:
        row = self._records[slot].row
        others = [other for other in self._slots.good if other is not slot]
        if slot.out or len(row) < _ROW or len(others) < self._keep:
            return None
        since = row[0].began
        worked = [other for other in others if self._records[other].worked >= since]
        if not worked:
            return None
        slot.out = True
        failure = row[-1].failure
        self._accused |= {each.task.key: (slot, failure) for each in row}
        tasks = {each.task.key: each.task for each in row if each.task.key in self._held}
        for key in tasks:
            del self._held[key]
        for record in self._records.values():
            record.row = [each for each in record.row if each.task.key not in tasks]
        row.clear()
        return Trip(slot, failure, worked[0], tuple(tasks.values()))

    def _clear(self, slot: Slot, but: str = "") -> None:
        """Something else happened on ``slot``: its failures were not in a row."""
        row = self._records[slot].row
        for each in list(row):
            if each.task.key != but:
                self._release(each.task.key, slot)
        row.clear()

    def _release(self, key: str, slot: Slot) -> None:
        held = self._held.get(key)
        if held is not None and slot in held.slots:
            held.slots.remove(slot)
            if not held.slots:
                self._settle(key)

    def _settle(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            held.settle()
