"""The base class of every generated module: several drives, one `step`, figures kept on the device.

Optimisation is manual because Lightning's own clips scaled gradients in manual mode, refuses a fused
optimizer with clipping, and turns float16 on a CPU into bfloat16 without a word; and because a
chunk of updates for each `training_step` makes its cost per update disappear.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, Self, TypeVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

from expc_runtime.errors import BadValue, Diverged
from expc_runtime.metrics import Answers
from expc_runtime.optim import Drive, NonFinite
from expc_runtime.ports import Latent
from expc_runtime.ranks import ALONE, Ranks
from expc_runtime.signals import Stopped

__all__ = ["Batch", "Draws", "Incident", "Module", "Records", "detach_tree"]

Batch = tuple[Tensor, ...]
T = TypeVar("T")

HALF: dict[str, torch.dtype | None] = {
    "32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


class Records:
    """Means of scalars, weighted by rows. Scalars stay where they are until a mean is wanted."""

    FOLD = 256  # entries kept before they are summed, so that a long split stays small

    def __init__(self) -> None:
        self._kept: list[tuple[float, dict[str, Tensor]]] = []
        self._sums: dict[str, float] = {}
        self._rows: dict[str, float] = {}

    def add(self, rows: float, scalars: dict[str, Tensor]) -> None:
        """Keep 0-dim tensors for a mean weighted by ``rows``; nothing waits for the device."""
        self._kept.append((rows, {name: value.detach() for name, value in scalars.items()}))
        if len(self._kept) >= self.FOLD:
            self._fold()

    def means(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """The mean of every name since the last `clear`, over the rows of all ``ranks``."""
        self._fold()
        whole = Records()
        for state in ranks.gather(self.state_dict()):
            whole.include(state)
        return {name: total / whole._rows[name] for name, total in whole._sums.items()}

    def include(self, state: dict[str, Any]) -> None:
        """Add what other records, by their `state_dict`, have seen."""
        for name, total in state["sums"].items():
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._rows[name] = self._rows.get(name, 0) + state["rows"][name]

    def kept(self) -> list[tuple[str, Tensor]]:
        """Scalars that no mean has been asked of yet, oldest first."""
        return [(name, value) for _, scalars in self._kept for name, value in scalars.items()]

    def clear(self) -> None:
        self._kept.clear()
        self._sums.clear()
        self._rows.clear()

    def state_dict(self) -> dict[str, Any]:
        self._fold()
        return {"sums": dict(self._sums), "rows": dict(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self.include(state)

    def _fold(self) -> None:
        """One stacked transfer of all that is kept."""
        kept = [(n, rows, v) for rows, scalars in self._kept for n, v in scalars.items()]
        self._kept.clear()
        if not kept:
            return
        for name, _, value in kept:
            if value.ndim:
                raise ValueError(f"record({name}=...): a scalar, not a {tuple(value.shape)} tensor")
        values = torch.stack([value.float() for _, _, value in kept]).tolist()
        for (name, rows, _), value in zip(kept, values, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + rows * value
            self._rows[name] = self._rows.get(name, 0) + rows


Draws = tuple[tuple[torch.Generator, Tensor], ...]  # generators, each with a state


@dataclass(frozen=True)
class Incident:
    """An update that met something not finite, and what it takes to run it again."""

    batch: Batch
    draws: Draws  # before it
    update: int  # from 0
    drive: str
    loss: float


class _Live:
    """What changes at every update; a plain object, as nn.Module's attributes are slow to set."""

    __slots__ = (
        "alike",
        "batch",
        "before",
        "began",
        "copies",
        "draw",
        "drawn",
        "drawn_before",
        "epoch",
        "flush",
        "gathered",
        "inspect",
        "keep",
        "origin",
        "portion",
        "ranks",
        "records",
        "rehearsed",
        "rows",
        "share",
        "stepped",
        "suspect",
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
        self.share = 1.0  # of the batch that goes through the net now
        self.copies = 1  # ranks that see the same rows in this update
        self.ranks = ALONE
        self.portion: Callable[[int], int] | None = None  # rows of an update's batch, of all ranks
        self.suspect: tuple[Any, Draws, int] | None = None  # a batch with a bad loss, its update
        self.gathered: list[str] = []  # drives that its parts called `step` for, in order
        self.batch: Any = None
        self.before: Any = None  # the batch before it, for a flag that is read one step late
        self.draw: Callable[[], Draws] = lambda: ()
        self.drawn: Draws = ()  # the state of what it draws from, before the batch
        self.drawn_before: Draws = ()
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
        self._parts = 1
        self._in_order = True  # no module is called once a drive has stepped, as far as is known

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
        elif live.share == 1.0:
            self._drives[name].step(total)
            live.stepped = live.updates
        else:
            self._drives[name].gather(total, live.share)
            if name not in live.gathered:
                live.gathered.append(name)

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
        return self._live.batch

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
        if not 0.0 < microbatch <= 1.0:
            raise ValueError(
                f"microbatch={microbatch}: it is a share of a batch, above 0, at most 1"
            )
        self._parts = math.ceil(1 / microbatch - 1e-9)  # 1 / 0.1 is ten, whatever is left of it
        self._half = HALF[precision]
        device = next(self.parameters()).device.type
        self._live.draw = _draws_of(next(self.parameters()).device)
        if self._half is not None:
            _require_autocast(device, self._half)
            self._autocast = torch.autocast(device, self._half)
        self._drives = self.drives()
        self._in_order = len(self._drives) == 1
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

    def on_diverged(self, keep: Callable[["Incident"], str]) -> None:
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
        update = self.update if self._parts == 1 else self._update_in_parts
        draw = live.draw
        if live.inspect is not None:
            chunk = self._inspected(chunk, live.inspect)
        try:
            for batch in chunk:
                live.before, live.batch = live.batch, batch
                live.drawn_before, live.drawn = live.drawn, draw()
                live.began = live.updates + 1
                live.rows = len(batch[0])
                if live.portion is not None:
                    self._take_portion(live.portion(live.updates))
                with autocast:
                    update(batch)
                if live.portion is not None:
                    self._look_back(batch)
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

    def _look_back(self, batch: Batch) -> None:
        """Remember the batch whose loss is not finite until the ranks come to speak of it."""
        live = self._live
        if live.suspect is None and any(drive.doubted for drive in self._drives.values()):
            live.suspect = batch, live.drawn, live.updates

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
        count = min(self._parts, len(batch[0]))
        if count <= 1:
            return [batch]
        return list(zip(*(column.tensor_split(count) for column in batch), strict=True))

    def _update_in_parts(self, batch: Batch) -> None:
        """`update` for each piece of ``batch``; each drive gathers all of them and steps once.

        Weighted by rows, the gradient of means over pieces is that of the mean over the batch.
        Drives step when the last piece is through, so that all pieces meet the same weights.
        """
        live, rows = self._live, len(batch[0])
        try:
            for piece in self.pieces(batch):
                live.rows = len(piece[0])
                live.share = live.rows / rows
                if self._in_order:
                    self.update(piece)
                else:
                    self._prove_order(piece)
            for name in live.gathered:
                self._drives[name].conclude()
                live.stepped = live.updates
        finally:
            live.share = 1.0
            live.gathered.clear()

    def _prove_order(self, piece: Batch) -> None:
        """The first piece of all. Raises BadValue if a module is called after a drive's step.

        With the whole batch it would read the weights that this step wrote, with parts those before.
        """

        def called(module: nn.Module, given: Any) -> None:
            if self._live.gathered:
                raise BadValue(
                    f"microbatch: {type(module).__name__} is called after optimizer "
                    f"`{self._live.gathered[0]}` has stepped, so parts of a batch do not add up to "
                    "it; leave microbatch at 1"
                )

        handle = nn.modules.module.register_module_forward_pre_hook(called)
        try:
            self.update(piece)
        finally:
            handle.remove()
        self._in_order = True

    def _accuse(self, hit: NonFinite, update: int) -> None:
        """Find what made the non-finite value in ``update`` and raise Diverged."""
        from expc_runtime.blame import blame

        live = self._live
        batch, draws = live.batch, live.drawn
        if hit.late:
            batch, draws = live.before, live.drawn_before
        if live.suspect is not None:
            batch, draws, update = live.suspect
        incident = Incident(batch, draws, update, hit.drive, hit.loss)
        error = blame(self, incident, live.origin, live.keep)
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

        But for running statistics, which have read its batch. Gradients that earlier batches had
        gathered cannot be told from its own: then it is not.
        """
        live = self._live
        whole = not (self.in_update and live.stepped == live.updates)
        for drive in self._drives.values():
            whole = drive.take_back() and whole
        if self.in_update:
            for generator, state in live.drawn:
                generator.set_state(state)
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


def _draws_of(device: torch.device) -> Callable[[], Draws]:
    """Gives the states of torch's generators; cheap enough to be asked before every update."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    return lambda: tuple([(generator, generator.get_state()) for generator in generators])


def detach_tree(tree: T) -> T:
    """The same nested structure of dicts, lists and tuples with every tensor detached."""
    return cast(T, tree_map_only(Tensor, Tensor.detach, tree))


def _alike(metric: Any) -> Tensor:
    """Whether all that ``metric`` read was the same, on all ranks."""
    with metric.sync_context():
        same: Tensor = metric.alike()
    return same


def _require_autocast(device: str, half: torch.dtype) -> None:
    """Never another precision in silence: this torch either has it on this device or says so."""
    name = str(half).removeprefix("torch.")
    if device == "cuda":
        if half is torch.bfloat16 and not torch.cuda.is_bf16_supported():
            raise ValueError(f"precision bf16-mixed: this GPU has no {name}; use 16-mixed or 32")
        return
    try:
        with torch.autocast(device, half):
            made = torch.zeros(1, 1, device=device) @ torch.zeros(1, 1, device=device)
    except RuntimeError as error:
        raise ValueError(f"no {name} autocast on {device} in this torch: {error}") from error
    if made.dtype is not half:
        raise ValueError(
            f"this torch has no {name} autocast on {device} (it would compute in {made.dtype}); "
            "use precision 32 or another device"
        )
