"""The processes that train one module together, as ``torchrun`` starts them: one rank each.

Every rank has the whole module and its part of each batch. Gradients are summed here, once for each
optimizer step, and not by `DistributedDataParallel`: that wraps a module, calls its `forward` and
reduces inside each backward pass, while updates are ours (several optimizers, accumulation,
microbatches, K updates in a training_step), and one reduction for a step is then all there is. What
this gives up is that communication runs beside the backward pass; `benchmarks.ranks` says what it costs.

A world of one is the default: it sends nothing, and nothing of `torch.distributed` is imported.

A rank that ends early takes the others with it. It leaves a note in ``<stage>/.ranks`` first; one
that was killed leaves none, which says as much. The others see it by a failed collective, or by the
kernel, should they be stuck in one (`Ranks.heed`).
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from expc_runtime.errors import CRASH, BadValue
from expc_runtime.state.files import read_json, write_json

__all__ = ["ALONE", "Note", "Parted", "Ranks", "meet"]

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""That a rank waits for another which lives: a save or a measurement takes less."""

PATIENCE = 10.0
"""Seconds in which a rank must have noticed the end of another by itself; then it is ended."""

BUCKET = 32 * 2**20
"""Bytes of gradients that are sent together; a larger tensor is sent by itself."""

UNDER_WAY = 2
"""Buckets that are on their way at a time: so much more memory is needed than on one rank."""

NOTES = ".ranks"  # in the stage's folder

KILLED = ("killed", 137)  # failure and code of a rank that ended without a word


class Parted(Exception):
    """A collective failed; its cause says how, `Ranks.cause` why."""


@dataclass(frozen=True)
class Note:
    """How a rank ended, in ``<stage>/.ranks/<rank>.json``."""

    rank: int
    failure: str
    code: int
    reason: str
    source: str = ""  # where in the spec the reason lies
    follows: int | None = None  # it ended because this rank had


class Ranks:
    """One process among ``size``; this class is a world of one, in which all agree."""

    rank = 0
    size = 1
    local = 0  # among the ranks of this machine: the number of its GPU
    called = False  # somebody asked for attention, and this rank knows; see `sum_gradients`

    @property
    def first(self) -> bool:
        """Whether it is this rank that claims, saves, logs and speaks."""
        return self.rank == 0

    def part(self, rows: int) -> tuple[slice, float]:
        """This rank's stretch of a batch of ``rows`` rows, and the weight of a mean over it.

        Weighted so, means add up to the mean over the batch. Of a batch with fewer than two rows for
        each rank, every rank takes all: batch norm can't train on one row, and nothing on none.
        """
        return slice(0, rows), 1.0

    def shards(self, batches: Iterable[T]) -> Iterator[T]:
        """Of each batch, a tuple of columns, the rows that this rank measures; none is left out."""
        yield from batches

    def gather(self, value: T) -> list[T]:
        """The value of each rank, by rank. Everybody calls it, and so all that follow."""
        return [value]

    def of_first(self, value: T) -> T:
        """The value of rank 0."""
        return value

    def to_first(self, value: T) -> list[T]:
        """The value of each rank, on rank 0; empty on the others."""
        return [value]

    def wait(self) -> None:
        """Until every rank has come this far."""

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Write the values of rank 0 into ``tensors``."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Write the mean over ranks into floating ``tensors``."""

    def sum_gradients(self, params: Sequence[Tensor], total: Tensor) -> Tensor:
        """Sum over ranks the gradients of ``params``, in place; (2,) float32 on their device.

        That is the sum of ``total``, 0-dim, and how many ranks ask for attention. A parameter without
        a gradient here has zeros from now on.
        """
        return torch.stack((total.float(), total.new_zeros((), dtype=torch.float32)))

    def asks(self, wants: Callable[[], bool]) -> None:
        """``wants`` says, when gradients are summed, whether this rank asks for attention."""

    def hear(self, asked: Tensor | None) -> None:
        """How many ranks asked for attention, 0-dim; None if that is not known."""

    def agreed(self, held: Sequence[bool]) -> list[bool]:
        """For each entry, whether it holds on any rank."""
        return list(held)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what somebody else's code sends; raises Parted where that fails."""
        yield

    # Ends.

    def heed(self, folder: Path, lost: Callable[[Note], int]) -> None:
        """From here on the end of a rank is noticed; its note is left in ``folder``.

        Where this one is stuck and can't see to it, ``lost`` is called from another thread, and the
        process ends with the code that it gives.
        """

    def cause(self, error: Exception) -> Note | None:
        """The end of another rank that ``error`` comes from, if so. This one ends now."""
        return None

    def leave(self, note: Note) -> None:
        """Say how this rank ends."""

    def missing(self) -> int | None:
        """A rank that has ended; None if all live."""
        return None

    def close(self) -> None:
        """All is done: wait for the others, and part."""


ALONE = Ranks()


def meet() -> Ranks:
    """The ranks that ``torchrun`` started together; a world of one without it.

    Raises BadValue if they are on several machines.
    """
    env = os.environ
    size = int(env.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in env else 1
    if size == 1:
        return ALONE
    if int(env.get("LOCAL_WORLD_SIZE", size)) != size:
        raise BadValue(f"{size} ranks on several machines: a run has the devices of one")
    return _Several(int(env["RANK"]), size, int(env.get("LOCAL_RANK", env["RANK"])))


class _Several(Ranks):
    """This process among others, in a process group of its own making."""

    def __init__(self, rank: int, size: int, local: int) -> None:
        import torch.distributed as dist

        self.rank, self.size, self.local = rank, size, local
        self._dist = dist
        self._wants: Callable[[], bool] = lambda: False
        self._folder: Path | None = None
        self._lost: Callable[[Note], int] = lambda note: note.code
        self._leaving = threading.Event()
        self._peers: dict[int, int] = {}  # descriptor of each other rank's process, by rank
        _die_with_parent()
        cuda = torch.cuda.is_available()
        with self.together():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
        del os.environ["TORCHELASTIC_RUN_ID"]  # what is started from here is a world of its own
        pids = self.gather(os.getpid())
        if hasattr(os, "pidfd_open"):
            self._peers = {r: os.pidfd_open(pid) for r, pid in enumerate(pids) if r != rank}
        signal.signal(signal.SIGTERM, self._asked_to_end)

    def part(self, rows: int) -> tuple[slice, float]:
        if rows < 2 * self.size:
            return slice(0, rows), 1 / self.size
        stretch = self._stretch(rows)
        return stretch, (stretch.stop - stretch.start) / rows

    def _stretch(self, rows: int) -> slice:
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def shards(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            rows = self._stretch(len(batch[0]))
            if rows.start < rows.stop:
                yield tuple(column[rows] for column in batch)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with self.together():
            self._dist.all_gather_object(values, value)
        return values

    def of_first(self, value: T) -> T:
        held: list[Any] = [value]
        with self.together():
            self._dist.broadcast_object_list(held, src=0)
        told: T = held[0]
        return told

    def to_first(self, value: T) -> list[T]:
        values: list[Any] | None = [None] * self.size if self.first else None
        with self.together():
            self._dist.gather_object(value, values, dst=0)
        return values or []

    def wait(self) -> None:
        self.gather(None)  # on the host: a barrier of nccl would be one of devices

    def same(self, tensors: Iterable[Tensor]) -> None:
        with self.together(), torch.no_grad():
            for tensor in tensors:
                values = tensor.detach().contiguous()
                self._dist.broadcast(values, src=0)
                tensor.copy_(values)

    def average(self, tensors: Iterable[Tensor]) -> None:
        floats = [t for t in tensors if t.is_floating_point()]
        with torch.no_grad():
            self._sum(floats)
            if floats:
                torch._foreach_div_(floats, float(self.size))

    def sum_gradients(self, params: Sequence[Tensor], total: Tensor) -> Tensor:
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        told = torch.zeros(2, device=total.device)
        told[0] = total
        if self._wants():
            told[1] = 1.0
        self._sum([*(p.grad for p in params if p.grad is not None), told])
        return told

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum over ranks, in place, a bucket of one type at a time, `UNDER_WAY` of them at once."""
        sent: deque[tuple[list[Tensor], Tensor, Any]] = deque()
        for bucket in _buckets(tensors):
            if len(sent) == UNDER_WAY:
                self._receive(*sent.popleft())
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self.together():
                sent.append((bucket, flat, self._dist.all_reduce(flat, async_op=True)))
        while sent:
            self._receive(*sent.popleft())

    def _receive(self, bucket: list[Tensor], flat: Tensor, work: Any) -> None:
        with self.together():
            work.wait()
        pieces = torch.split(flat, [tensor.numel() for tensor in bucket])
        shaped = [piece.view(t.shape) for piece, t in zip(pieces, bucket, strict=True)]
        torch._foreach_copy_(bucket, shaped)

    def asks(self, wants: Callable[[], bool]) -> None:
        self._wants = wants

    def hear(self, asked: Tensor | None) -> None:
        if asked is not None and asked.item() > 0:
            self.called = True

    def agreed(self, held: Sequence[bool]) -> list[bool]:
        return [any(column) for column in zip(*self.gather(list(held)), strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of gloo, of nccl, of the store: they share no other class
            first = str(error).partition("\n")[0]
            raise Parted(f"the ranks have lost each other: {first}") from error

    # Ends.

    def heed(self, folder: Path, lost: Callable[[Note], int]) -> None:
        notes = folder / NOTES
        if self.first:
            for old in notes.glob("*.json"):
                old.unlink()
        self.wait()
        self._folder, self._lost = notes, lost
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def cause(self, error: Exception) -> Note | None:
        self._leaving.set()
        if not isinstance(error, Parted):
            return None
        deadline = time.monotonic() + PATIENCE
        while self.missing() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return None if self.missing() is None else self._end_of_another()

    def _end_of_another(self) -> Note:
        """How this rank ends, now that others have: the first word, not one that follows from it."""
        ended = self._ended()
        notes = [note for r in ended if (note := self._note(r)) is not None]
        silent = [r for r in ended if r not in [note.rank for note in notes]]
        for note in notes:
            if note.follows is None:
                reason = f"rank {note.rank}: {note.reason}"
                return replace(note, rank=self.rank, reason=reason, follows=note.rank)
        for gone in silent:
            return Note(
                self.rank,
                *KILLED,
                f"rank {gone} is gone: it was killed, by somebody or for want of memory; "
                "the same command goes on from the last checkpoint",
                follows=gone,
            )
        return replace(notes[0], rank=self.rank)  # it follows a rank that is seen to end only later

    def leave(self, note: Note) -> None:
        self._leaving.set()
        if self._folder is not None:
            with suppress(OSError):  # it ends for a reason of its own
                self._folder.mkdir(exist_ok=True)
                write_json(self._folder / f"{self.rank}.json", asdict(note))

    def _note(self, rank: int) -> Note | None:
        data = read_json(self._folder / f"{rank}.json") if self._folder is not None else None
        return None if data is None else Note(**data)

    def missing(self) -> int | None:
        return next(iter(self._ended()), None)

    def _ended(self) -> list[int]:
        """The ranks that have ended; a process that nobody has waited for yet is among them."""
        looked = select.poll()
        for descriptor in self._peers.values():
            looked.register(descriptor, select.POLLIN)
        over = {descriptor for descriptor, _ in looked.poll(0)}
        return [rank for rank, descriptor in self._peers.items() if descriptor in over]

    def _watch(self) -> None:
        """End this process if another rank has, and a collective of the device never will."""
        looked = select.poll()
        for descriptor in self._peers.values():
            looked.register(descriptor, select.POLLIN)
        if not self._peers:
            return
        looked.poll()
        if self._leaving.wait(PATIENCE):
            return
        code = CRASH
        try:
            code = self._lost(self._end_of_another())
        finally:
            os._exit(code)

    def _asked_to_end(self, number: int, frame: FrameType | None) -> None:
        """TERM: torchrun sends it to all when one ends, and then this rank has its own last word."""
        if self._leaving.is_set() or self.missing() is not None:
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    def close(self) -> None:
        self._leaving.set()
        with suppress(Parted):  # the result is written
            self.wait()
            with self.together():
                self._dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, about `BUCKET` bytes or one tensor of them; the same on all ranks."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        size = 0
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            here = tensor.numel() * tensor.element_size()
            if bucket and size + here > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += here
        if bucket:
            yield bucket


def _die_with_parent() -> None:
    """Killed when torchrun is, which has each rank in a session of its own, out of reach of others."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
