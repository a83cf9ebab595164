"""What moves the weights: an optimizer with its schedule, clipping, accumulation and loss scale.

A `Drive` owns everything between a total loss and the weights. Order of one step: divide by
`accumulate`, scale (float16), backward outside autocast, then, every `accumulate` calls, unscale,
clip by the global norm of the drive's own parameters, refuse anything non-finite, write the learning
rate of this step, step, drop the gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from expc_runtime.clocks import Epochs, Updates
from expc_runtime.ranks import ALONE, Ranks

__all__ = [
    "Drive",
    "NonFinite",
    "Schedule",
    "constant",
    "decay_groups",
    "linear",
    "parameters",
    "warmup_cosine",
]

Warmup = Epochs | Updates | None
Shape = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """The factor on the learning rate at each optimizer step.

    For s < W (warm-up steps) the factor is (s + 1) / W: training starts at lr / W, not at lr. Then
    ``constant`` stays at 1, ``cosine`` is floor + (1 - floor) (1 + cos(pi (s - W) / (T - W))) / 2 and
    ``linear`` falls from 1 to floor over the T - W steps that are left.
    """

    shape: Shape
    warmup: Warmup = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor={self.floor}: it is a share of the learning rate, 0 to 1")

    @property
    def decays(self) -> bool:
        return self.shape != "constant"

    def factor(self, step: int, total: int | None, warmup: int) -> float:
        """The factor at ``step`` (from 0) of ``total`` steps, ``warmup`` of them warming up."""
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "constant":
            return 1.0
        if total is None:
            raise ValueError(f"a {self.shape} schedule needs the number of steps")
        gone = min(1.0, (step - warmup) / max(1, total - warmup))
        left = (1 + math.cos(math.pi * gone)) / 2 if self.shape == "cosine" else 1 - gone
        return self.floor + (1 - self.floor) * left

    def warmup_steps(self, total: int | None, updates_per_epoch: int, accumulate: int) -> int:
        """Optimizer steps of warm-up, at most ``total``."""
        match self.warmup:
            case None:
                return 0
            case Epochs(count):
                updates = count * updates_per_epoch
            case Updates(count):
                updates = count
        steps = max(1, updates // accumulate)
        return steps if total is None else min(steps, total)


def constant(warmup: Warmup = None) -> Schedule:
    """The learning rate as written, after the warm-up."""
    return Schedule("constant", warmup)


def warmup_cosine(warmup: Warmup = None, floor: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to ``floor`` times the learning rate."""
    return Schedule("cosine", warmup, floor)


def linear(warmup: Warmup = None, floor: float = 0.0) -> Schedule:
    """Linear warm-up, then a straight line down to ``floor`` times the learning rate."""
    return Schedule("linear", warmup, floor)


def decay_groups(
    module: nn.Module, weight_decay: float, no_decay: bool = True
) -> list[dict[str, Any]]:
    """Parameter groups in which biases, norms and all else of one dimension do not decay.

    ``no_decay=False`` decays everything. A group without a parameter is left out; frozen parameters
    (``requires_grad`` false) are in neither. Raises ValueError if there is nothing to train.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(module).__name__} has no parameter to train")
    decayed = [p for p in trained if p.ndim > 1 or not no_decay]
    spared = [p for p in trained if not (p.ndim > 1 or not no_decay)]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameters(*nets: nn.Module) -> list[nn.Parameter]:
    """What can be trained of several nets that one optimizer drives.

    A parameter that two of them share is there once. Raises ValueError if there is none.
    """
    trained = {id(p): p for net in nets for p in net.parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"{', '.join(type(net).__name__ for net in nets)}: nothing to train")
    return list(trained.values())


class NonFinite(Exception):
    """A loss or a gradient of ``drive`` is NaN or infinite; the weights were not touched."""

    def __init__(self, drive: str, loss: float, late: bool) -> None:
        super().__init__(drive)
        self.drive = drive
        self.loss = loss
        self.late = late  # read one step late: the batch before this one is to blame


class Drive:
    """An optimizer and how it is driven. ``clip`` is the largest global gradient norm.

    ``accumulate`` calls of `step` make one optimizer step. What is gathered at the end of an epoch
    is carried over into the next one, so no batch is thrown away. ``steps`` counts optimizer steps
    that reached the weights; a step skipped for float16 overflow counts in ``skipped`` and moves
    neither the schedule nor the optimizer's own counters.

    Parameters added to the optimizer after this are not driven.
    """

    SCALE = 65536.0  # first loss scale of float16, halved on overflow
    GROWTH_INTERVAL = 2000  # doubled after so many steps without one

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        clip: float | None = None,
        accumulate: int = 1,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"accumulate={accumulate}: must be at least 1")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip={clip}: must be above 0")
        self.optimizer = optimizer
        self.schedule = schedule or constant()
        self.clip = clip
        self.accumulate = accumulate
        self.steps = 0
        self.skipped = 0
        self.waiting = 0  # batches gathered towards the next step
        self.torn: Literal["", "gradients", "weights"] = (
            ""  # what a step that broke off has touched
        )
        self.scale: float | None = None
        self.norm: Tensor | float | None = None  # before clipping, of the newest step
        self._calm = 0  # steps since the scale last changed
        self._name = ""
        self._groups = [(group, float(group["lr"])) for group in optimizer.param_groups]
        self._params: list[Tensor] = [p for group, _ in self._groups for p in group["params"]]
        self._factor: Callable[[int], float] = lambda step: 1.0
        self._backward_context: torch.autocast | None = None
        self._pending: _LateFlag | None = None
        self._gathered: list[Tensor | None] = []  # as loaded
        self._total: Tensor | None = None  # of the parts of a batch seen so far
        self.weight = 1.0  # of the rows here, in the mean over those of all ranks
        self.doubted = False  # a loss here was not finite; said when all ranks know
        self._ranks = ALONE
        self._reached: list[bool] | None = None  # parameters with a gradient on some rank

    def start(
        self,
        name: str,
        *,
        total_updates: int | None,
        updates_per_epoch: int,
        half: torch.dtype | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Fix the schedule and precision; parameters are on their device from here on.

        ``half`` is the dtype of autocast, None for plain float32. Gradients are summed over ``ranks``
        before each step, those of a batch times the ``weight`` that was set for it.

        Raises ValueError for a decaying schedule without a known number of updates.
        """
        total = None if total_updates is None else max(1, total_updates // self.accumulate)
        schedule = self.schedule
        if schedule.decays and total is None:
            raise ValueError(
                f"optimizer `{name}`: a {schedule.shape} schedule needs a budget in epochs or "
                "updates, not in minutes"
            )
        warmup = schedule.warmup_steps(total, updates_per_epoch, self.accumulate)
        self._name = name
        self._ranks = ranks
        self._factor = lambda step: schedule.factor(step, total, warmup)
        self._device = self._params[0].device
        self._alike = len({(p.dtype, p.device) for p in self._params}) == 1
        self._found = torch.zeros(1, device=self._device)
        self._one = torch.ones(1, device=self._device)
        self._on_cpu = self._device.type == "cpu"
        self._reads_late = self._device.type == "cuda" and getattr(
            self.optimizer, "_step_supports_amp_scaling", False
        )
        if half is not None:
            self._backward_context = torch.autocast(self._device.type, enabled=False)
        if half is torch.float16 and self.scale is None:
            self.scale = self.SCALE
        self._write_lr()

    @property
    def lr(self) -> float:
        """The learning rate of the newest step, of the first parameter group."""
        return float(self._groups[0][0]["lr"])

    def figures(self) -> dict[str, float]:
        """What is worth a curve: the learning rate; the norm, if known; float16's scale and skips."""
        told = {"lr": self.lr}
        if self.norm is not None:
            told["grad_norm"] = float(self.norm)
        if self.scale is not None:
            told |= {"scale": self.scale, "skipped": float(self.skipped)}
        return told

    def step(self, total: Tensor) -> None:
        """Backward from ``total`` (a scalar) and, every ``accumulate`` calls, one optimizer step.

        Raises NonFinite before any weight is written.
        """
        self._gather(total, 1.0)
        self._count(total.detach())

    def gather(self, total: Tensor, share: float) -> None:
        """Backward from the ``total`` of a part of a batch, ``share`` of its rows.

        Once all parts are gathered, `conclude` does what `step` does after its backward pass.
        """
        self._gather(total, share)
        part = total.detach() * share
        self._total = part if self._total is None else self._total + part

    def conclude(self) -> None:
        """The end of a batch whose parts were gathered; nothing where there was none."""
        total, self._total = self._total, None
        if total is not None:
            self._count(total)

    def _gather(self, total: Tensor, share: float) -> None:
        share *= self.weight
        if self.scale is None:
            whole = self.accumulate == 1 and share == 1.0
            loss = total if whole else total * (share / self.accumulate)
        else:
            self.settle()  # an overflow changes the scale
            loss = total.float() * (self.scale * share / self.accumulate)
        self.torn = "gradients"
        if self._backward_context is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with self._backward_context:
                loss.backward()  # type: ignore[no-untyped-call]
        if self._on_cpu and not math.isfinite(value := total.item()):
            self.doubted = True
            if self._ranks.size == 1:  # the others wait for these gradients
                self.drop()
                raise NonFinite(self._name, value, late=False)

    def _count(self, total: Tensor) -> None:
        self.settle()  # never later than one update after it: that one's batch is still known
        if self.waiting + 1 < self.accumulate:
            self.waiting += 1
        else:
            self._finish(total)
        self.torn = ""

    def _finish(self, total: Tensor) -> None:
        grads = [p.grad for p in self._params if p.grad is not None]
        if not grads:
            raise ValueError(f"optimizer `{self._name}`: its loss reaches none of its parameters")
        called = None
        if self._ranks.size > 1:
            grads, total, called = self._summed(total)
        if self._on_cpu:
            self._ranks.hear(called)
            finite = self._prepare_on_host(grads)
            loss = total.item()
            self._conclude(finite and math.isfinite(loss), loss, late=False)
            return
        bad = self._prepare_on_device(grads, total)
        if self._reads_late:
            self._write(bad)
            self._pending = _LateFlag(bad, total, called)
        else:
            self._ranks.hear(called)
            self._conclude(not bad.item(), float(total), late=False)

    def _summed(self, total: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Gradients and total of the whole batch, and whether a rank asks for attention."""
        held = [p.grad is not None for p in self._params]
        if self._reached is None:
            self._reached = self._ranks.agreed(held)
        both = zip(self._params, held, self._reached, strict=True)
        if stray := [p for p, has, reached in both if has and not reached]:
            raise ValueError(
                f"optimizer `{self._name}`: its loss reaches a parameter {tuple(stray[0].shape)} that "
                "it did not reach at the first step on any rank; ranks sum the same gradients at every "
                "step, so run it on one"
            )
        reached = [
            p for p, is_reached in zip(self._params, self._reached, strict=True) if is_reached
        ]
        if self.doubted:
            total = torch.full_like(total, math.nan)
        whole, called = self._ranks.sum_gradients(reached, total * self.weight)
        return [p.grad for p in reached if p.grad is not None], whole, called

    def _conclude(self, finite: bool, loss: float, *, late: bool) -> None:
        """Count a step whose fate is known; on the host, take it."""
        if finite:
            if not late:
                self._write(None)
            self.steps += 1
            self._grow()
            return
        self.drop()
        if self.scale is None or self.scale <= 1.0 or not math.isfinite(loss):
            raise NonFinite(self._name, loss, late)
        self.skipped += 1
        self.scale, self._calm = self.scale / 2, 0

    def _write(self, found_inf: Tensor | None) -> None:
        self.torn = "weights"
        self._write_lr()
        optimizer: Any = self.optimizer
        if found_inf is not None:  # the fused kernel leaves weights and moments alone where it is 1
            optimizer.found_inf, optimizer.grad_scale = found_inf, None
        optimizer.step()
        if self._backward_context is not None:
            torch.clear_autocast_cache()  # casts of the weights as they were
        self.drop()

    def _write_lr(self) -> None:
        factor = self._factor(self.steps)
        for group, lr in self._groups:
            group["lr"] = lr * factor

    def drop(self) -> None:
        """Forget the gradients gathered so far."""
        for p in self._params:
            p.grad = None
        self.waiting = 0
        self._total = None

    def take_back(self) -> bool:
        """Undo a step that broke off, if it can be; whether all is as it was before it."""
        torn, self.torn = self.torn, ""
        if torn and not self.waiting:
            self.drop()
        return not torn or (torn == "gradients" and not self.waiting)

    def _prepare_on_host(self, grads: list[Tensor]) -> bool:
        """Unscale and clip in one pass; False if a gradient is not finite."""
        scale = self.scale or 1.0
        if self.clip is None and self._alike:
            inverse = self._one if scale == 1.0 else self._one / scale
            self._found.zero_()
            # The kernel behind GradScaler: one pass, where a norm takes three.
            torch._amp_foreach_non_finite_check_and_unscale_(grads, self._found, inverse)
            return not self._found.item()
        norm = self._norm(grads).item() / scale
        if not math.isfinite(norm):
            return False
        coefficient = 1.0 if self.clip is None else min(1.0, self.clip / (norm + 1e-6))
        self.norm = norm
        if coefficient != scale:
            torch._foreach_mul_(grads, coefficient / scale)
        return True

    def _prepare_on_device(self, grads: list[Tensor], total: Tensor) -> Tensor:
        """The same without waiting for the device: 0-dim float32, 1 where the step must not be."""
        scale = self.scale or 1.0
        norm = self._norm(grads) / scale
        if self.clip is not None:
            coefficient = (self.clip / (norm + 1e-6)).clamp(max=1.0) / scale
            torch._foreach_mul_(grads, coefficient)
        elif scale != 1.0:
            torch._foreach_mul_(grads, 1.0 / scale)
        self.norm = norm
        return (~torch.isfinite(norm + total)).float()

    def _norm(self, grads: list[Tensor]) -> Tensor:
        if not self._alike:
            return torch.nn.utils.get_total_norm(grads)
        norms: list[Tensor] = list(torch._foreach_norm(grads))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def settle(self) -> None:
        """Read the flag of a step already queued on the device; raises NonFinite if it was bad."""
        pending, self._pending = self._pending, None
        if pending is not None:
            finite, loss, called = pending.read()
            self._ranks.hear(called)
            self._conclude(finite, loss, late=True)

    def _grow(self) -> None:
        if self.scale is None:
            return
        self._calm += 1
        if self._calm == self.GROWTH_INTERVAL:
            self.scale, self._calm = self.scale * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, gradients of an unfinished accumulation included."""
        self.settle()
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "skipped": self.skipped,
            "waiting": self.waiting,
            "scale": self.scale,
            "calm": self._calm,
            "grads": [p.grad for p in self._params] if self.waiting else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` left off; the budget, and with it the schedule, may have grown.

        The precision, too, may be another, as a retry gives it: the loss scale is this one's.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self.skipped = state["skipped"]
        self.waiting = state["waiting"]
        was = state["scale"]
        if was is not None and self.scale is not None:
            self.scale, self._calm = was, state["calm"]
        factor = (self.scale or 1.0) / (was or 1.0)
        grads: list[Tensor | None] = state["grads"]
        if factor != 1.0:
            grads = [None if grad is None else grad * factor for grad in grads]
        self._gathered = grads
        self.regain()
        # load_state_dict puts new dicts into param_groups
        base = [lr for _, lr in self._groups]
        self._groups = list(zip(self.optimizer.param_groups, base, strict=True))

    def regain(self) -> None:
        """Take up again the gradients that were loaded, should they have been dropped since."""
        for p, grad in zip(self._params, self._gathered, strict=False):
            p.grad = None if grad is None else grad.to(p.device)


class _LateFlag:
    """Flags and a loss on their way to the host; reading waits for that step alone."""

    def __init__(self, bad: Tensor, loss: Tensor, called: Tensor | None) -> None:
        told = torch.stack((bad, loss.float(), *(() if called is None else (called,))))
        self._host = torch.empty(len(told), pin_memory=True)
        self._host.copy_(told, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def read(self) -> tuple[bool, float, Tensor | None]:
        self._arrived.synchronize()
        bad, loss, *called = self._host.tolist()
        return not bad, loss, (self._host[2] if called else None)
