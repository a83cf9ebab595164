"""What a training begins with: device, seeds, data, module, and the state of an earlier attempt."""

import os
from typing import Any

import torch

from expc_runtime import norms
from expc_runtime.attempt import Attempt
from expc_runtime.diagnosis import devices
from expc_runtime.diagnosis.memory import Memory
from expc_runtime.errors import BadValue
from expc_runtime.feeds import Work
from expc_runtime.gates import GateWatch
from expc_runtime.module import Module
from expc_runtime.parts import load_parts
from expc_runtime.provenance import record
from expc_runtime.randomness import seed_all
from expc_runtime.training.budget import Budget
from expc_runtime.training.guards import untrained
from expc_runtime.training.measuring import Figures
from expc_runtime.training.pulse import Pulse
from expc_runtime.training.saving import Best, Saves
from expc_runtime.training.state import Asked, Training
from expc_runtime.training.trainer import device_of
from expc_runtime.training.words import Words, some

__all__ = ["prepare"]

RANK_SEED = 1_000_003  # between the seeds of two ranks: further apart than those of a sweep


def prepare(asked: Asked, at: Attempt, words: Words) -> Training:
    """All that is needed to train, where an earlier attempt left off, or with step 0 saved.

    No update runs yet, so a ValueError is a value that does not fit, and a BadValue.
    """
    try:
        device = device_of(asked.cfg.device, at.ranks)
        origin = _provenance(asked, at, device)
        seed_all(asked.cfg.seed)
        asked.feed.setup(device, asked.cfg.seed)
        module = asked.build(asked.cfg)
        with devices.told(module, device):
            module.to(device)
            return _around(module, asked, at, words, device, origin)
    except ValueError as error:
        raise BadValue(str(error)).with_traceback(error.__traceback__) from error


def _provenance(asked: Asked, at: Attempt, device: torch.device) -> dict[str, Any]:
    """What computes this; the first of several ranks says it for all."""
    if not at.ranks.first:
        return {}
    found = record(at.stage.folder, file=asked.file, program=asked.program, device=device)
    return found | ({"ranks": at.ranks.size} if at.ranks.size > 1 else {})


def _around(
    module: Module,
    asked: Asked,
    at: Attempt,
    words: Words,
    device: torch.device,
    provenance: dict[str, Any],
) -> Training:
    """The module with its floors, its drives, and its state."""
    feed, ranks, folder = asked.feed, at.ranks, at.stage.folder
    handoff = _take_parts(module, asked, at)
    ranks.same(module.state_dict().values())
    if ranks.rank:  # dropout of other rows
        seed_all(asked.cfg.seed + RANK_SEED * ranks.rank)
    budget = Budget(asked.until, feed, module, ranks)
    pulse = Pulse(module, feed, at.stage, budget, words, ranks)
    feed.attach(
        Work(
            module=module,
            folder=folder,
            until=asked.until,
            keep=asked.checkpoint.keep,
            smoke=asked.cfg.smoke,
            warn=words.warn,
            alive=pulse.alive,
            ranks=ranks,
        )
    )
    _start(module, asked, budget, words)
    figures = Figures(
        module,
        feed,
        words.log,
        words.warn,
        gate=asked.until.gate,
        norm_statistics=asked.norm_statistics,
    )
    if asked.compile:
        module.compile()
    saves = Saves(folder, asked.checkpoint, ranks)
    training = Training(
        asked=asked,
        at=at,
        device=device,
        provenance=provenance,
        module=module,
        handoff=handoff,
        words=words,
        budget=budget,
        pulse=pulse,
        figures=figures,
        saves=saves,
        best=Best(saves.store, asked.monitor, writes=ranks.first),
        gate=GateWatch(asked.until.gate) if asked.until.gate else None,
        memory=Memory(module, device, at.root),
    )
    if not (at.stage.verdict == "resume" and training.restore()):
        words.log.rewind(0)
        saves.require_room(module, len(asked.monitor))
        training.save()
    if "EXPC_FAULTS" in os.environ:
        from expc_runtime.diagnosis import faults

        faults.arm(module, asked.cfg.out, at.stage.status.attempt)
    return training


def _take_parts(module: Module, asked: Asked, at: Attempt) -> dict[str, dict[str, Any]]:
    """Load what it starts from, and freeze what is not trained; what was taken, by part."""
    init, frozen = asked.init, asked.frozen
    if both := init.keys() & frozen.keys():
        raise BadValue(f"{', '.join(sorted(both))}: either trained on from there, or frozen")
    taken = load_parts(module, init | frozen, out=at.stage.folder, root=at.root)
    module.hold(*(module.get_submodule(part) for part in frozen))
    return taken


def _start(module: Module, asked: Asked, budget: Budget, words: Words) -> None:
    """The drives; what they do not reach is said."""
    module.start(
        asked.precision,
        total_updates=budget.total,
        updates_per_epoch=asked.feed.updates_per_epoch,
        microbatch=asked.microbatch,
    )
    if asked.microbatch < 1 and norms.running(module):
        words.warn(
            f"microbatch {asked.microbatch:g}: batch norm reads each part of a batch by itself, "
            "so this is not the training of the whole batch"
        )
    if lost := untrained(module):
        words.warn(f"no optimizer trains {some(lost)}")
