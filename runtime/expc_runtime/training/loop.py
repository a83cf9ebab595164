"""The loop of a training: Lightning's Trainer runs chunks of updates, and what happens is told here."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from expc_runtime.diagnosis import devices, evidence
from expc_runtime.diagnosis.incident import Incident
from expc_runtime.errors import MissingInput, Preempted, StageError
from expc_runtime.module import Batch
from expc_runtime.signals import Stopped
from expc_runtime.training.learning import Early
from expc_runtime.training.state import Training
from expc_runtime.training.trainer import Chunks, Told, trainer

__all__ = ["Loop"]


class Loop:
    """Trains, measures, saves, and says when it is enough."""

    def __init__(self, training: Training) -> None:
        module = training.module
        self._training = training
        self._module = module
        self._feed = training.feed
        self._words = training.words
        self._ranks = training.at.ranks
        fresh = not module.epoch and not training.asked.cfg.smoke
        self._early = Early(module, training.words, moves=fresh)
        module.on_flush(self.flushed)
        module.watch(self.woken)
        module.batches_from(training.feed.origin)
        module.on_diverged(self.diverged)
        module.on_first_batch(self.first_batch)

    def run(self) -> None:
        """Until gate or budget end it. Raises Preempted after a signal."""
        training, module, words = self._training, self._module, self._words
        if training.ended:
            return
        requests = training.pulse.requests
        with requests:
            # Lightning puts its own handlers before it starts.
            told = Told(requests.install, self.end_epoch)
            loop = trainer(training.device, training.folder, told, boards=self._ranks.first)
            words.log.boards = list(loop.loggers)
            self._open()
            training.budget.begin()
            module.wake_at(0.0)
            try:
                loop.fit(
                    module, train_dataloaders=Chunks(module, self._feed, training.budget.total)
                )
            except (MemoryError, RuntimeError) as error:
                if isinstance(error.__context__, StageError):
                    raise error.__context__ from None  # what Lightning's clean-up then fell over
                raise
            module.to(training.device)  # Lightning leaves it on the CPU
        words.log.boards = []
        if requests.stop and not training.ended:
            raise Preempted(
                f"{requests.stop} at update {module.updates}: saved; the same command goes on from there"
            )

    def _open(self) -> None:
        module, feed, figures = self._module, self._feed, self._training.figures
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        text = f"{size:,} parameters, {feed.updates_per_epoch} updates each {feed.part}"
        if module.updates:
            text += f"; goes on from update {module.updates}, {feed.part} {module.epoch}"
        self._words.say(text)
        if figures.floors:
            self._words.say(f"in brackets: the best that {feed.chance} reaches")
        if not module.updates:
            figures.log_floors()

    # What it is told.

    def first_batch(self, batch: Batch) -> None:
        """A column on another device is a message, not a traceback from inside a layer."""
        when, device = "before the first update", self._training.device
        devices.require_module(self._module, device, when)
        names: Sequence[str] = getattr(self._feed, "names", ())
        devices.require_batch(names, batch, device, when)

    def flushed(self) -> None:
        """Every few updates."""
        self._training.figures.flush()
        self._training.memory.sample()
        self._early.look()
        if self._due():
            self._training.save()

    def woken(self) -> bool:
        """About once a second, and at once after a signal; true ends the training here."""
        training, pulse = self._training, self._training.pulse
        pulse.tick()
        if pulse.stops():
            return True
        if pulse.asks_to_save() or self._due():
            training.save()
        return training.budget.used_up()

    def end_epoch(self) -> bool:
        """Measure and decide; true if training ends. Also called where the budget cuts an epoch."""
        training, module = self._training, self._module
        module.settle()
        devices.require_module(module, training.device, "before measuring")
        try:
            if training.pulse.stops():
                raise Stopped
            self._feed.complete(module.updates)
            self.flushed()
            self._early.look(epoch_ended=True)
            whole = self._is_whole()
            training.figures.measure()
            self._look_at_memory()
        except Stopped:
            self.flushed()
            training.save()
            return True
        return self._decide(whole)

    def _decide(self, whole: bool) -> bool:
        """What the newest figures mean: a best, the end, a save."""
        training, module, figures = self._training, self._module, self._training.figures
        gate = training.gate
        gate_ends = gate is not None and gate.see(figures.seen_by(gate.gate.mode))
        training.best.see(figures.last, module, self._feed)
        self._words.say(figures.line())
        if whole:
            module.next_epoch()
        training.ended = gate_ends or training.budget.used_up()
        if training.ended:
            training.pulse.beat(force=True)
        if self._due(epoch_ended=True) or training.ended:
            training.save()
        return training.ended

    def diverged(self, incident: Incident) -> str:
        """Keep what it takes to run an update again; says the command that does, or why it cannot."""
        training, asked = self._training, self._training.asked
        root, folder = training.at.root, training.folder
        try:
            evidence.leave(
                training.saves.store,
                self._module,
                incident,
                config=asdict(asked.cfg),
                program=asked.program,
                file=str(Path(asked.file).resolve().relative_to(root)),
                precision=asked.precision,
                microbatch=asked.microbatch,
            )
        except Exception as error:  # noqa: BLE001  it diverged all the same
            return f"nothing is left to run it again: {error}"
        out = folder.relative_to(root) if folder.is_relative_to(root) else folder
        again = shlex.quote(str(out))
        return f"see it again, module by module: python -m expc_runtime.rerun {again}"

    def _due(self, *, epoch_ended: bool = False) -> bool:
        """Whether it is time to save; of several ranks, by the clock of the first."""
        return self._ranks.of_first(self._training.saves.due(self._module, epoch_ended=epoch_ended))

    def _is_whole(self) -> bool:
        """Whether the epoch had all its updates; without them only the budget may end it.

        Raises MissingInput for one that had not: it would be begun again for ever.
        """
        module, feed = self._module, self._feed
        first, end = (feed.updates_after(module.epoch + more) for more in (0, 1))
        whole = module.updates == end
        if not whole and not self._training.budget.used_up():
            raise MissingInput(
                f"{feed.part} {module.epoch + 1} ended after {module.updates - first} of its "
                f"{end - first} updates: the data gave fewer batches than it said"
            )
        return whole

    def _look_at_memory(self) -> None:
        """Name what grows while there is memory left."""
        for who, text in self._training.memory.look():
            if not self._words.told(f"memory {who}"):
                self._training.at.stage.caution(text)
            self._words.warn(text, once=f"memory {who}")
