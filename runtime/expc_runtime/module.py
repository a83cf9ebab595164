"""The base class of every generated module: several drives, one `step`, figures kept on the device.

Optimisation is manual because Lightning's own clips scaled gradients in manual mode, refuses a fused
optimizer with clipping, and turns float16 on a CPU into bfloat16 without a word; and because a
chunk of updates for each `training_step` makes its cost per update disappear.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Any, Literal, Self, TypeVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

from expc_runtime.diagnosis.incident import Incident, Trail
from expc_runtime.errors import Diverged
from expc_runtime.metrics import Answers
from expc_runtime.microbatch import Batch, Parts
from expc_runtime.optim import Drive, NonFinite
from expc_runtime.ports import Latent
from expc_runtime.precision import HALF, require_autocast
from expc_runtime.ranks import ALONE, Ranks
from expc_runtime.records import Records
from expc_runtime.signals import Stopped

__all__ = ["Batch", "Module", "detach_tree"]

T = TypeVar("T")


class _Live:
    """What changes at every update; a plain object, as nn.Module's attributes are slow to set."""

    __slots__ = (
        "alike",
        "began",
        "copies",
        "epoch",
        "flush",
        "inspect",
        "keep",
        "origin",
        "portion",
        "ranks",
        "records",
        "rehearsed",
        "rows",
        "stepped",
        "updates",
        "wake",
        "woken",
    )

    def __init__(self) -> None:
        self.alike: list[str] = []
        self.updates = 0
        self.began = 0  # updates
        self.stepped = -1  # the update in which a drive has last done its part
        self.epoch = 0
        self.rows = 1
        self.copies = 1  # ranks that see the same rows in this update
        self.ranks = ALONE
        self.portion: Callable[[int], int] | None = None  # rows of an update's batch, of all ranks
        self.rehearsed: Callable[[tuple[str, Tensor]], None] | None = None
        self.records = Records()
        self.flush: Callable[[], None] = lambda: None
        self.origin: Callable[[int, Sequence[int]], str] = lambda update, rows: ""
        self.keep: Callable[[Incident], str] = lambda incident: ""
        self.inspect: Callable[[Batch], None] | None = None
        self.wake = float("inf")
        self.woken: Callable[[], bool] | None = None


class Module(pl.LightningModule):
    """Base of generated modules, for any number of optimizers and totals.

    A subclass gives `update` (one batch: arithmetic, `record`, `step`), `measure` (one batch of val or
    test: `record` and torchmetrics attributes) and `drives`. `constants` is optional: without it no
    floor is known.

    ``updates`` counts calls of `update`; ``drive(name).steps`` the steps of one optimizer. Gradients
    of an accumulation that an epoch's end leaves unfinished are carried over into the next epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.log_every = 50
        self._live = _Live()
        self._drives: dict[str, Drive] = {}
        self._half: torch.dtype | None = None
        self._autocast: AbstractContextManager[Any] = nullcontext()
        self._held: tuple[nn.Module, ...] = ()
        self._parts = Parts(1.0, drives=1)
        self._trail = Trail()

    # What a generated class gives.

    def update(self, batch: Batch) -> None:
        """Train on one batch."""
        raise NotImplementedError(f"{type(self).__name__} has no `update`")

    def measure(self, batch: Batch) -> None:
        """Record figures of one batch; in eval mode, without gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no `measure`")

    def constants(self, batch: Batch) -> tuple[Tensor, ...]:
        """Constant answers of each head, (K, *shape of one answer), from whole columns."""
        return ()

    def drives(self) -> dict[str, Drive]:
        """The optimizers, by the name `step` calls them."""
        raise NotImplementedError(f"{type(self).__name__} has no `drives`")

    def initial(self, batch: int) -> Latent:
        """What `act` remembers before the first step of ``batch`` environments."""
        raise NotImplementedError(f"{type(self).__name__} has no `initial`")

    def act(
        self, image: Tensor, action: Tensor, is_first: Tensor, state: Latent
    ) -> tuple[Tensor, Latent]:
        """Probabilities of the next action, (B, actions), and what is remembered now.

        ``image`` (B, H, W, C) float32 from 0 to 1; ``action`` (B, actions) one-hot, the one that led
        there; ``is_first`` (B,) bool.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `act`")

    # What it calls.

    def record(self, *reports: Mapping[str, Tensor], **scalars: Tensor) -> None:
        """Log means of 0-dim tensors as ``<split>/<name>``, weighted by the rows of the batch.

        ``reports`` are scalars by name, as a part of the module makes them. Raises ValueError for a
        name that is given twice.
        """
        live = self._live
        for report in reports:
            if twice := scalars.keys() & report.keys():
                raise ValueError(f"record: {', '.join(sorted(twice))} is given twice")
            scalars |= report
        live.records.add(live.rows / live.copies, scalars)

    def step(self, name: str, total: Tensor) -> None:
        """Backward from ``total`` and move the parameters of drive ``name``; see `Drive.step`."""
        live = self._live
        if live.rehearsed is not None:
            live.rehearsed((f"total_{name}", total))
        elif self._parts.share == 1.0:
            self._drives[name].step(total)
            live.stepped = live.updates
        else:
            self._drives[name].gather(total, self._parts.share)
            self._parts.note(name)

    @contextmanager
    def only(self, *nets: nn.Module) -> Iterator[None]:
        """Inside, parameters outside ``nets`` take no gradient."""
        kept = {id(p) for net in nets for p in net.parameters()}
        frozen = [p for p in self.parameters() if p.requires_grad and id(p) not in kept]
        for p in frozen:
            p.requires_grad = False
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad = True

    @property
    def one_answer(self) -> list[str]:
        """Metrics for which the answer was the same for all that was measured last."""
        return self._live.alike

    @property
    def last_batch(self) -> Any:
        """The batch of the newest update of this process; None before the first."""
        return self._trail.batch

    @property
    def updates(self) -> int:
        return self._live.updates

    @property
    def epoch(self) -> int:
        return self._live.epoch

    @property
    def records(self) -> Records:
        """What `record` was given since it was last cleared."""
        return self._live.records

    def next_epoch(self) -> None:
        self._live.epoch += 1

    @property
    def half_dtype(self) -> torch.dtype | None:
        """The dtype of autocast; None in plain float32."""
        return self._half

    @property
    def autocast(self) -> AbstractContextManager[Any]:
        """This run's precision, for what is computed beside `update`."""
        return self._autocast

    def drive(self, name: str) -> Drive:
        return self._drives[name]

    def drive_names(self) -> list[str]:
        return list(self._drives)

    # What `fit` calls.

    def among(self, ranks: Ranks, rows: Callable[[int], int]) -> None:
        """Train beside other ``ranks``; ``rows`` of an update's batch are those of all of them."""
        live = self._live
        live.ranks, live.portion = ranks, rows
        ranks.asks(lambda: monotonic() >= live.wake)

    @property
    def ranks(self) -> Ranks:
        """The processes that train this module together."""
        return self._live.ranks

    def start(
        self,
        precision: str,
        *,
        total_updates: int | None,
        updates_per_epoch: int,
        microbatch: float = 1.0,
    ) -> None:
        """Make the drives, on the device the parameters are on, and fix the precision.

        ``microbatch`` is the share of a batch that goes through the net at once; see `pieces`.

        Raises ValueError for a precision that this device has not, or a share that is none.
        """
        if precision not in HALF:
            raise ValueError(f"precision {precision!r} is none of {', '.join(HALF)}")
        self._half = HALF[precision]
        device = next(self.parameters()).device
        self._trail = Trail(device)
        if self._half is not None:
            require_autocast(device.type, self._half)
            self._autocast = torch.autocast(device.type, self._half)
        self._drives = self.drives()
        self._parts = Parts(microbatch, drives=len(self._drives))
        for name, drive in self._drives.items():
            drive.start(
                name,
                total_updates=total_updates,
                updates_per_epoch=updates_per_epoch,
                half=self._half,
                ranks=self._live.ranks,
            )

    def hold(self, *parts: nn.Module) -> None:
        """Freeze ``parts``: no gradient, and eval mode whatever the mode of the rest."""
        self._held = (*self._held, *parts)
        for part in parts:
            part.requires_grad_(False).eval()

    @property
    def held(self) -> tuple[nn.Module, ...]:
        """The parts that are frozen."""
        return self._held

    def train(self, mode: bool = True) -> Self:
        """Train mode, or eval mode; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._held:
            part.eval()
        return self

    def watch(self, woken: Callable[[], bool]) -> None:
        """Between two updates call ``woken`` once `wake_at` has passed; true ends the training."""
        self._live.woken = woken

    def on_flush(self, flush: Callable[[], None]) -> None:
        """Call ``flush`` every ``log_every`` updates, between two of them."""
        self._live.flush = flush

    def batches_from(self, origin: Callable[[int, Sequence[int]], str]) -> None:
        """``origin`` says, for people, where the batch of an update came from, or some rows of it."""
        self._live.origin = origin

    def on_first_batch(self, inspect: Callable[[Batch], None]) -> None:
        """Call ``inspect`` once, before the first update of this process."""
        self._live.inspect = inspect

    def on_diverged(self, keep: Callable[[Incident], str]) -> None:
        """``keep`` is given an update that went wrong; what it says ends the message."""
        self._live.keep = keep

    def wake_at(self, moment: float) -> None:
        """The moment, of `time.monotonic`, at which ``woken`` is next called; 0 for now."""
        self._live.wake = moment

    def on_train_start(self) -> None:
        """Lightning's hook. Its `fit` has dropped every gradient on the way here."""
        for drive in self._drives.values():
            drive.regain()

    def training_step(self, chunk: Iterable[Batch], index: int) -> None:
        """Lightning's hook: `update` for each batch of a chunk, under this run's autocast."""
        live, autocast, log_every = self._live, self._autocast, self.log_every
        update = self.update if self._parts.count == 1 else self._update_in_parts
        begin = self._trail.begin
        if live.inspect is not None:
            chunk = self._inspected(chunk, live.inspect)
        try:
            for batch in chunk:
                begin(batch)
                live.began = live.updates + 1
                live.rows = len(batch[0])
                if live.portion is not None:
                    self._take_portion(live.portion(live.updates))
                with autocast:
                    update(batch)
                if live.portion is not None:
                    self._look_back()
                live.updates += 1
                if live.updates % log_every == 0:
                    live.flush()
                if self._is_called() and live.woken is not None and live.woken():
                    self.trainer.should_stop = True
                    break
        except Stopped:  # by what was done to make the next batch
            self.trainer.should_stop = True
        except NonFinite as hit:
            self._accuse(hit, live.updates - hit.late)

    def _inspected(
        self, chunk: Iterable[Batch], inspect: Callable[[Batch], None]
    ) -> Iterator[Batch]:
        self._live.inspect = None
        for k, batch in enumerate(chunk):
            if not k:
                inspect(batch)
            yield batch

    def _take_portion(self, rows: int) -> None:
        """Weigh the rows here among the ``rows`` of all ranks."""
        live = self._live
        _, weight = live.ranks.part(rows)
        live.copies = round(live.rows / (rows * weight))
        for drive in self._drives.values():
            drive.weight = weight

    def _look_back(self) -> None:
        """Remember the batch whose loss is not finite until the ranks come to speak of it."""
        if any(drive.doubted for drive in self._drives.values()):
            self._trail.suspect(self._live.updates)

    def _is_called(self) -> bool:
        """Whether `wake_at` has passed; of several ranks, what all know since the same update."""
        live = self._live
        if live.portion is None:
            return monotonic() >= live.wake
        called, live.ranks.called = live.ranks.called, False
        return called

    def pieces(self, batch: Batch) -> list[Batch]:
        """The parts of ``batch`` that go through the net one after another, of equal rows but for one.

        Their number is 1 / ``microbatch``, rounded up, or that of the rows where these are fewer.
        """
        return self._parts.of(batch)

    def _update_in_parts(self, batch: Batch) -> None:
        """`update` for each piece of ``batch``; each drive gathers all of them and steps once."""
        live = self._live

        def update(piece: Batch) -> None:
            live.rows = len(piece[0])
            self.update(piece)

        def conclude(name: str) -> None:
            self._drives[name].conclude()
            live.stepped = live.updates

        self._parts.run(batch, update, conclude)

    def _accuse(self, hit: NonFinite, update: int) -> None:
        """Find what made the non-finite value in ``update`` and raise Diverged."""
        from expc_runtime.diagnosis.blame import blame

        live = self._live
        error = blame(self, self._trail.incident(hit, update), live.origin, live.keep)
        told = live.ranks.gather((str(error), error.found, error.source))
        guilty = next((rank for rank, (_, found, _) in enumerate(told) if found), live.ranks.rank)
        if guilty != live.ranks.rank:
            text, _, source = told[guilty]
            error = Diverged(f"rank {guilty}: {text}")
            error.source = source
        raise error from None

    def settle(self) -> None:
        """Wait for flags still on their way from the device; raises Diverged."""
        try:
            for drive in self._drives.values():
                drive.settle()
        except NonFinite as hit:
            hit.late = False  # no batch came after the one it is about
            self._accuse(hit, self._live.updates - 1)

    @property
    def in_update(self) -> bool:
        """Whether an update has begun and not ended; after an exception, whether that was in one."""
        return self._live.began > self._live.updates

    def take_back(self) -> bool:
        """Undo what an update that broke off has begun; whether all is as it was before it.

        But for running statistics and records, which have its batch. Gradients that earlier batches had
        gathered cannot be told from its own: then it is not.
        """
        live = self._live
        whole = not (self.in_update and live.stepped == live.updates)
        for drive in self._drives.values():
            whole = drive.take_back() and whole
        if self.in_update:
            self._trail.take_back()
        return whole

    def stand_at(self, updates: int, epoch: int) -> None:
        """Where an update is run again: what follows from their number is as it was then."""
        self._live.updates, self._live.epoch = updates, epoch

    def configure_optimizers(self) -> None:
        """None: the drives are this class's own, made by `start`."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """Feeds hold their tensors on the device already."""
        return batch

    @contextmanager
    def rehearsal(
        self,
        half: bool = True,
        totals: Callable[[tuple[str, Tensor]], None] = lambda total: None,
        into: Records | None = None,
    ) -> Iterator[Records]:
        """Inside, `record` fills the records given here and `step` only hands on its total.

        ``half=False`` computes in float32. ``into`` are records to fill, new ones if not given.
        """
        live = self._live
        records, live.records = live.records, Records() if into is None else into
        rehearsed, live.rehearsed = live.rehearsed, totals
        try:
            with self._autocast if half else nullcontext():
                yield live.records
        finally:
            live.records, live.rehearsed = records, rehearsed

    @property
    def rehearses(self) -> bool:
        """Whether nothing of what is computed now is recorded or stepped."""
        return self._live.rehearsed is not None

    def rows_of(self, batch: Batch) -> None:
        """What is recorded next is about this batch."""
        self._live.rows = len(batch[0])

    def rehearse(self, batches: Iterable[Batch]) -> None:
        """`update` for each batch, in this run's precision, but for what it would record and step."""
        for batch in batches:
            for piece in self.pieces(batch):
                with self.rehearsal():
                    self.rows_of(piece)
                    self.update(piece)

    @torch.no_grad()
    def measured(
        self, batches: Iterable[Batch], mode: Literal["eval", "train"] = "eval"
    ) -> dict[str, float]:
        """Every figure of `measure` over ``batches``: no gradients, one transfer.

        Metrics come first, torchmetrics' over all rows; recorded scalars are means over rows. Of
        several ranks each measures its rows of every batch, and all have the figures of all. In train
        mode running statistics and generators move: see `expc_runtime.norms.aside`.
        """
        metrics, ranks = self.metrics(), self._live.ranks
        modes = [(part, part.training) for part in self.modules()]  # a frozen part stays in eval
        self.train(mode == "train")
        try:
            with self.rehearsal(half=False) as records:
                for metric in metrics.values():
                    metric.reset()
                for batch in ranks.shards(batches):
                    self._live.rows, self._live.copies = len(batch[0]), 1
                    with self._autocast:
                        self.measure(batch)
                figures = records.means(ranks)
            if metrics:
                with ranks.together():  # torchmetrics sums over ranks by itself
                    alike = {n: _alike(m) for n, m in metrics.items() if isinstance(m, Answers)}
                    told = [*(m.compute() for m in metrics.values()), *alike.values()]
                values = torch.stack([value.double() for value in told]).tolist()
                figures = dict(zip(metrics, values, strict=False)) | figures
                self._live.alike = [
                    name for name, same in zip(alike, values[len(metrics) :], strict=True) if same
                ]
            return figures
        finally:
            for metric in metrics.values():
                metric.reset()
            for part, training in modes:
                part.training = training

    @contextmanager
    def answering(self, answers: tuple[Tensor, ...]) -> Iterator[None]:
        """Inside, `forward` gives these constants, one per head, whatever it is asked."""

        def forward(first: Tensor, *rest: Any) -> Any:
            given = tuple(a.expand(len(first), *a.shape) for a in answers)
            return given if len(given) > 1 else given[0]

        with self.eager():
            self.forward = forward  # type: ignore[method-assign]  # hides the method
            try:
                yield
            finally:
                del self.forward

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Inside, a compiled module is not: hooks and a hidden `forward` are seen again."""
        compiled, self._compiled_call_impl = self._compiled_call_impl, None
        try:
            yield
        finally:
            self._compiled_call_impl = compiled

    def metrics(self) -> dict[str, Metric]:
        """The torchmetrics attributes, by name."""
        return {name: m for name, m in self.named_children() if isinstance(m, Metric)}

    def rises(self, key: str) -> bool:
        """Whether a larger value of ``key`` (without its split) is a better one."""
        metric = self.metrics().get(key)
        return metric is not None and bool(metric.higher_is_better)

    def progress(self) -> dict[str, Any]:
        """The state of training beside the weights, for a checkpoint."""
        live = self._live
        return {
            "updates": live.updates,
            "epoch": live.epoch,
            "records": live.records.state_dict(),
            "drives": {name: drive.state_dict() for name, drive in self._drives.items()},
        }

    def resume(self, progress: dict[str, Any]) -> None:
        """Go on from what `progress` gave."""
        live = self._live
        live.updates, live.epoch = progress["updates"], progress["epoch"]
        live.records.load_state_dict(progress["records"])
        for name, state in progress["drives"].items():
            self._drives[name].load_state_dict(state)


def detach_tree(tree: T) -> T:
    """The same nested structure of dicts, lists and tuples with every tensor detached."""
    return cast(T, tree_map_only(Tensor, Tensor.detach, tree))


def _alike(metric: Any) -> Tensor:
    """Whether all that ``metric`` read was the same, on all ranks."""
    with metric.sync_context():
        same: Tensor = metric.alike()
    return same
