"""Updates a second of one rank and of two (gloo, one CPU thread each) at the same global batch.

Three programs: the digit reader of specs/digits.yaml, a small net and a large one of linear layers.
In each round every variant makes the same number of updates, in turn:

- one: the generated step in a world of one;
- two: the same on two ranks, half of each batch on either, gradients summed once for a step;
- sum: of that, the summing of gradients alone, by the same two ranks;
- ddp: the same net, batch and optimizer in a bare loop under DistributedDataParallel, which sums
  while it goes backward. It checks nothing for being finite, records nothing, has no schedule.

Wall time, as ranks run at once: it wants two idle cores. Beside it the CPU time of a rank, in which
waiting for the other, or for a core, does not count: of that, half of `one` is there to be gained.

python -m benchmarks.ranks
python -m benchmarks.ranks --rounds 3
"""

import argparse
import importlib.util
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.project import ROOT
from benchmarks.ratios import in_turn
from expc_runtime.clocks import Epochs
from expc_runtime.data.digits import Digits
from expc_runtime.data.feed import Feed
from expc_runtime.feeds import Work
from expc_runtime.gates import Until
from expc_runtime.models import MLP, LinearHead
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, decay_groups
from expc_runtime.ranks import Ranks, meet

VARIANTS = ("one", "two", "sum", "ddp")
REPEATED = 10  # times the digits are there: an epoch is longer than a measurement


@dataclass(frozen=True)
class Size:
    """A program, a global batch, and how many updates make one measurement."""

    name: str
    hidden: tuple[int, ...]  # of linear layers; none: the reader
    batch: int
    updates: int

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image", "even") if self.hidden else ("image", "digit", "loop")

    def build(self) -> Module:
        return Tell(self.hidden) if self.hidden else _reader()


SIZES = (
    Size("reader, 19,627 parameters, batch 256", (), 256, 60),
    Size("small net, 8,449 parameters, batch 256", (128,), 256, 60),
    Size("large net, 4,331,521 parameters, batch 512", (2048, 2048), 512, 6),
)


@dataclass(frozen=True)
class Cost:
    """Seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: "Cost", updates: int) -> "Cost":
        return Cost((self.wall - began.wall) / updates, (self.cpu - began.cpu) / updates)


class Tell(Module):
    """image (B, 1, 8, 8) -> even (B,) logit."""

    def __init__(self, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = MLP(64, hidden=hidden)
        self.head = LinearHead(self.backbone.out_features, out=1)

    def forward(self, image: Tensor) -> Tensor:
        even: Tensor = self.head(self.backbone(image))
        return even

    def losses(self, even: Tensor, target: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(even, target)
        self.record(even=loss)
        return loss

    def update(self, batch: Batch) -> None:
        image, target = batch
        self.step("model", self.losses(self(image), target))

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(AdamW(decay_groups(self, 0.01), lr=0.001, fused=True), clip=1.0)}


def _reader() -> Module:
    file = ROOT / "generated/digits/read_bce.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    made: Module = module.Read(module.Config())
    return made


class _Repeated:
    def tensors(self) -> Mapping[str, Tensor]:
        held = Digits().tensors()
        return {n: c.repeat(REPEATED, *[1] * (c.ndim - 1)) for n, c in held.items()}


# One rank.


def _serve(rank: int, size: int, port: int, what: Size, asked: Connection) -> None:
    """Measure what is asked for, seconds an update, until None is."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "benchmark"
    torch.set_num_threads(1)
    ranks = meet()
    runs: dict[str, Callable[[], Cost]] = {"one" if size == 1 else "two": _ours(what, ranks)}
    if size > 1:
        runs |= {"sum": _summing(what, ranks), "ddp": _ddp(what, ranks)}
    while (name := asked.recv()) is not None:
        ranks.wait()
        asked.send(runs[name]())


def _prepared(what: Size, ranks: Ranks) -> tuple[Module, Feed]:
    torch.manual_seed(0)
    module = what.build()
    feed = Feed(_Repeated(), columns=what.columns, batch=what.batch)
    feed.setup(torch.device("cpu"), 0)
    until = Until(Epochs(10_000))
    feed.attach(
        Work(module, Path(), until, 2, False, warn=print, alive=lambda doing: None, ranks=ranks)
    )
    module.start("32", total_updates=None if what.hidden else 1_000_000, updates_per_epoch=100)
    return module, feed


def _ours(what: Size, ranks: Ranks) -> Callable[[], Cost]:
    module, feed = _prepared(what, ranks)
    module.on_flush(module.records.clear)

    def run() -> Cost:
        began = Cost.now()
        for chunk in feed.chunks(0, 0, what.updates):
            module.training_step(chunk, 0)
        return Cost.now().since(began, what.updates)

    return run


def _summing(what: Size, ranks: Ranks) -> Callable[[], Cost]:
    params = [p for p in what.build().parameters() if p.requires_grad]
    for p in params:
        p.grad = torch.ones_like(p)
    total = torch.zeros(())

    def run() -> Cost:
        began = Cost.now()
        for _ in range(what.updates):
            ranks.sum_gradients(params, total)
        return Cost.now().since(began, what.updates)

    return run


def _ddp(what: Size, ranks: Ranks) -> Callable[[], Cost]:
    module, feed = _prepared(what, ranks)
    losses: Any = module.losses

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, image: Tensor, *targets: Tensor) -> Tensor:
            answer = self.net(image)
            answers = answer if isinstance(answer, tuple) else (answer,)
            loss: Tensor = losses(*answers, *targets)
            return loss

    wrapped = nn.parallel.DistributedDataParallel(Loss())
    params = list(wrapped.parameters())
    optimizer = AdamW(decay_groups(module, 0.01), lr=0.001, fused=True)

    def run() -> Cost:
        began = Cost.now()
        for chunk in feed.chunks(0, 0, what.updates):
            for batch in chunk:
                optimizer.zero_grad()
                wrapped(*batch).backward()
                nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
                optimizer.step()
        module.records.clear()
        return Cost.now().since(began, what.updates)

    return run


# All of them.


@dataclass(frozen=True)
class _World:
    """Processes that measure together."""

    ends: list[Connection]

    def run(self, name: str, cpu: list[float]) -> float:
        """Seconds of an update by the clock; adds those of the CPU, of the mean rank, to ``cpu``."""
        for end in self.ends:
            end.send(name)
        told: list[Cost] = [end.recv() for end in self.ends]
        cpu.append(statistics.mean(cost.cpu for cost in told))
        return max(cost.wall for cost in told)


def _measure(what: Size, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of an update, by variant, a figure for each round."""
    context = get_context("spawn")
    started, worlds = [], []
    for size in (1, 2):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        ends = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, what, there))
            process.start()
            started.append(process)
            ends.append(here)
        worlds.append(_World(ends))
    cpu: dict[str, list[float]] = {name: [] for name in VARIANTS}
    by = {name: worlds[name != "one"] for name in VARIANTS}
    try:
        wall = in_turn({n: partial(by[n].run, n, cpu[n]) for n in VARIANTS}, rounds)
        return wall, {name: costs[-rounds:] for name, costs in cpu.items()}  # after the warm-up
    finally:
        for world in worlds:
            for end in world.ends:
                end.send(None)
        for process in started:
            process.join(30)
            process.kill()


def _over_one(costs: Mapping[str, list[float]], name: str) -> str:
    """The median cost in milliseconds, and of its ratio to that of one rank in the same round."""
    over = [cost / one for cost, one in zip(costs[name], costs["one"], strict=True)]
    low, middle, high = statistics.quantiles(over, n=4)
    return f"{1e3 * statistics.median(costs[name]):7.2f} ms {middle:5.2f}x ({low:.2f} - {high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds: int = parser.parse_args().rounds
    for what in SIZES:
        wall, cpu = _measure(what, rounds)
        print(what.name)
        for name in VARIANTS:
            print(
                f"  {name:<4} {1 / statistics.median(wall[name]):8.1f} updates a second"
                f"  wall {_over_one(wall, name)}  cpu of a rank {_over_one(cpu, name)}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
