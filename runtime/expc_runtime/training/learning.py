"""Does training reach every parameter, and does every loss have a say?

Looked at once, early in a stage: nothing here is paid for at every update.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from expc_runtime.module import Batch, Module
from expc_runtime.norms import aside
from expc_runtime.records import Records
from expc_runtime.training.words import Words, some

__all__ = ["FAINT", "STEPS", "Early", "Unmoved", "faint", "pulls"]

STEPS = 100
"""Optimizer steps after which a parameter that never changed is named, or an epoch if that is shorter."""

FAINT = 0.01
"""Of the largest pull of a loss on what several share: less is as good as nothing."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Early:
    """Says, once in a stage, which loss has no say; and, if ``moves``, which parameter never moves."""

    def __init__(self, module: Module, words: Words, *, moves: bool) -> None:
        self._module = module
        self._words = words
        self._unmoved = Unmoved(module) if moves else None  # until it was looked at

    def look(self, *, epoch_ended: bool = False) -> None:
        """To be called now and then between updates."""
        module, unmoved = self._module, self._unmoved
        if unmoved is None or module.last_batch is None:
            return
        if not self._words.told("pulls"):
            self._words.tell_no_more("pulls")
            if text := faint(pulls(module, module.pieces(module.last_batch)[0])):
                self._words.warn(text)
        if unmoved.due or (epoch_ended and unmoved.stepped):
            if names := unmoved.names():
                steps = max(module.drive(name).steps for name in module.drive_names())
                self._words.warn(f"not changed by {steps} steps of its optimizer: {some(names)}")
            self._unmoved = None


class Unmoved:
    """Parameters of the optimizers that ask for a gradient, and are what they were when this was made."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._sums = self._checksums()
        self._steps = self._taken()

    @property
    def due(self) -> bool:
        """Whether every optimizer has taken enough steps to tell."""
        return all(now - then >= STEPS for now, then in self._both())

    @property
    def stepped(self) -> bool:
        """Whether every optimizer has taken a step at all."""
        return all(now > then for now, then in self._both())

    def names(self) -> list[str]:
        """Those that no step has changed, bit by bit; one transfer."""
        now = self._checksums()
        if not now:
            return []
        same = torch.stack([self._sums[name] == value for name, value in now.items()]).tolist()
        return [name for name, unmoved in zip(now, same, strict=True) if unmoved]

    def _both(self) -> Iterator[tuple[int, int]]:
        return zip(self._taken(), self._steps, strict=True)

    def _taken(self) -> list[int]:
        return [self._module.drive(name).steps for name in self._module.drive_names()]

    def _checksums(self) -> dict[str, Tensor]:
        driven = {
            id(p)
            for name in self._module.drive_names()
            for group in self._module.drive(name).optimizer.param_groups
            for p in group["params"]
        }
        return {
            name: _checksum(p)
            for name, p in self._module.named_parameters()
            if p.requires_grad and id(p) in driven
        }


def _checksum(values: Tensor) -> Tensor:
    """The sum of the bits as whole numbers, 0-dim int64, modulo 2^64."""
    words = values.detach().contiguous().view(_BITS[values.element_size()])
    return words.sum(dtype=torch.int64)


class _Attached(Records):
    """Records that keep the graph behind what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Tensor] = {}

    def add(self, rows: float, scalars: dict[str, Tensor]) -> None:
        self.given |= scalars


def pulls(module: Module, batch: Batch) -> dict[str, float]:
    """Norm of the gradient of each loss term at the parameters that several reach, weights included.

    Of a module with one optimizer; else, or if fewer than two terms share a parameter, there is
    nothing to compare: empty. One backward pass for each term, which leaves no trace. In the run's
    precision, so that it takes no more memory than an update; but float16 has no room for a gradient
    that is not scaled.
    """
    if len(module.drive_names()) != 1:
        return {}
    totals: list[Tensor] = []
    records = _Attached()
    half = module.half_dtype is not torch.float16
    with (
        torch.enable_grad(),
        aside(module),
        module.eager(),
        module.rehearsal(half, totals=lambda named: totals.append(named[1]), into=records),
    ):
        module.update(batch)
        return _norms(module, totals[0], records.given) if len(totals) == 1 else {}


def _norms(module: Module, total: Tensor, given: Mapping[str, Tensor]) -> dict[str, float]:
    terms = {name: t for name, t in given.items() if t.requires_grad and t is not total}
    if len(terms) < 2:
        return {}
    factors = torch.autograd.grad(total, list(terms.values()), retain_graph=True, allow_unused=True)
    weights = {n: f for n, f in zip(terms, factors, strict=True) if f is not None and bool(f != 0)}
    if len(weights) < 2:
        return {}
    trained = [p for p in module.parameters() if p.requires_grad]
    found = {name: _reached(terms[name], factor, trained) for name, factor in weights.items()}
    shared = [
        i for i in range(len(trained)) if sum(norms[i] is not None for norms in found.values()) > 1
    ]
    told = {
        name: [norm for i in shared if (norm := norms[i]) is not None]
        for name, norms in found.items()
    }
    return {
        name: float(torch.linalg.vector_norm(torch.stack(norms)))
        for name, norms in told.items()
        if norms
    }


def _reached(
    term: Tensor, factor: Tensor, trained: list[torch.nn.Parameter]
) -> list[Tensor | None]:
    """The norm of a weighted term's gradient at each parameter; None where it does not reach."""
    grads = torch.autograd.grad(term, trained, factor, retain_graph=True, allow_unused=True)
    return [None if grad is None else grad.norm() for grad in grads]


def faint(norms: Mapping[str, float]) -> str | None:
    """What to say of a loss that hardly pulls beside another; None if all of them do."""
    if len(norms) < 2:
        return None
    strong = max(norms, key=lambda name: norms[name])
    weak = min(norms, key=lambda name: norms[name])
    if not norms[weak] < FAINT * norms[strong]:
        return None
    return (
        f"loss `{weak}` pulls on what it shares with `{strong}` with a gradient of norm "
        f"{norms[weak]:.3g}, and `{strong}` with {norms[strong]:.3g}: it will hardly be learned; "
        "give it weight, or a loss whose gradient does not vanish"
    )
