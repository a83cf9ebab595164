"""What is left of an update that met a value that is not finite, to run it again: `rerun` reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from expc_runtime.checkpoint import Store, load_weights
from expc_runtime.diagnosis.incident import Incident
from expc_runtime.module import Module

__all__ = ["Evidence", "find", "leave"]


@dataclass(frozen=True)
class Evidence:
    """An update as it was, and the program that it is of."""

    incident: Incident  # its batch on the CPU, its draws for the generators of this process
    file: str  # of the generated module, from the project's root
    program: str
    config: Mapping[str, Any]  # as JSON has it
    precision: str
    microbatch: float
    device: str  # it ran on this
    weights: Mapping[str, torch.Tensor]
    epoch: int
    held: tuple[str, ...]  # parts that were frozen
    modes: tuple[str, ...]  # modules in eval mode

    def take_place(self, module: Module) -> None:
        """Give ``module``, built anew, the weights and modes that it had."""
        load_weights(module, self.weights)
        module.stand_at(self.incident.update, self.epoch)
        module.hold(*(module.get_submodule(name) for name in self.held))
        module.train()
        for name, part in module.named_modules():
            part.training = name not in self.modes


def leave(
    store: Store,
    module: Module,
    incident: Incident,
    *,
    config: Mapping[str, Any],
    file: str,
    program: str,
    precision: str,
    microbatch: float,
) -> None:
    """Write it beside the checkpoints: weights, batch, random numbers, flags; no optimizer's state.

    Raises DiskFull.
    """
    held = {id(part) for part in module.held}
    names = list(module.named_modules())
    state = {
        "model": module.state_dict(),
        "batch": [column.detach() for column in incident.batch],
        "draws": [[g.device.type, state] for g, state in incident.draws],
        "update": incident.update,
        "epoch": module.epoch,
        "drive": incident.drive,
        "loss": incident.loss,
        "file": file,
        "program": program,
        "config": json.dumps(config),
        "precision": precision,
        "microbatch": microbatch,
        "device": str(next(module.parameters()).device),
        "held": [name for name, part in names if id(part) in held],
        "modes": [name for name, part in names if not part.training],
    }
    store.leave(state, step=incident.update)


def find(store: Store, update: int | None = None) -> Evidence | None:
    """What was left last, or of that update; None if nothing was.

    Raises MissingInput if it cannot be read.
    """
    found = store.left(update)
    if found is None:
        return None
    state, _ = found
    generators = {"cpu": torch.default_generator}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.default_generators[torch.cuda.current_device()]
    incident = Incident(
        batch=tuple(state["batch"]),
        draws=tuple((generators[k], draw) for k, draw in state["draws"] if k in generators),
        update=state["update"],
        drive=state["drive"],
        loss=state["loss"],
    )
    return Evidence(
        incident=incident,
        file=state["file"],
        program=state["program"],
        config=json.loads(state["config"]),
        precision=state["precision"],
        microbatch=state["microbatch"],
        device=state["device"],
        weights=state["model"],
        epoch=state["epoch"],
        held=tuple(state["held"]),
        modes=tuple(state["modes"]),
    )
