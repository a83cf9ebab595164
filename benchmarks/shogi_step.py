"""What an update of a shogi net costs: policy (1496 moves) and value, at the original's sizes.

- ours: the class that expc compiles from a spec, trained chunk by chunk as the Trainer calls it;
- plain: the same net module by module (`shogi_plain.py`) in a bare loop: `optimizer.zero_grad()`,
  backward, `clip_grad_norm_`, AdamW as it comes.

Both have the same sizes, losses, AdamW with weight decay 0.01 and none on biases and norms, gradient clip 1.0, one
thread, float32, dropout where the original has it, and batches that are there already. CPU time, in
turn in one process. The original's own figures were taken on one core of an AMD EPYC; of its batch
nothing is said.

python -m benchmarks.shogi_step                       # about ten minutes
python -m benchmarks.shogi_step --net resnet --batch 256
python -m benchmarks.shogi_step --reduced             # ResNets for two cores, ours alone
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.project import compile_in
from benchmarks.ratios import Verdict, in_turn, machine, report, speed_up
from benchmarks.shogi_plain import (
    PlainMixer,
    PlainPlanesViT,
    PlainPolicyValue,
    PlainResNet,
    PlainViT,
)
from expc_runtime.module import Batch

SPEC = """
expc: 1
name: {name}
about: What does an update cost?
stages:
  train:
    kind: supervised
    data:
      use: arrays
      file: rows.npz
      columns: {{board: features, hand: features, policy: class_probs, value: prob}}
      batch: 64
      split: {{val: 0.5}}
    model: {{backbone: {{use: {use}{params}}}}}
    heads: {{policy: {{use: linear_head, out: 1496}}, value: {{use: linear_head, out: 1}}}}
    loss: {{policy: {{use: kl_div}}, value: {{use: bce}}}}
    optim: {{use: adamw, lr: 1.0e-3, weight_decay: 0.01, decay: weights}}
    clip: 1.0
    monitor: {{policy: val/policy, value: val/value}}
    precision: 32
    until: {{updates: 100}}
"""


@dataclass(frozen=True)
class Net:
    """A net by its name in a spec, the plain one, and the original's milliseconds per sample."""

    use: str
    plain: type[PlainResNet] | type[PlainMixer] | type[PlainViT] | type[PlainPlanesViT]
    size: int
    original: float
    updates: int


NETS = (
    Net("resnet", PlainResNet, 17_012_665, 7.6, updates=2),
    Net("planes_vit", PlainPlanesViT, 4_383_449, 31.5, updates=2),
    Net("mlp_mixer", PlainMixer, 9_171_273, 83.0, updates=1),
    Net("vit", PlainViT, 19_766_713, 132.0, updates=1),
)

REDUCED = {
    "strides 1 2 2 2": "strides: [1, 2, 2, 2]",
    "strides 1 1 2 2": "strides: [1, 1, 2, 2]",
    "strides 1 1 1 2": "strides: [1, 1, 1, 2]",
    "strides 1 1 1 1": "strides: [1, 1, 1, 1]",
}


def rows(count: int) -> dict[str, Tensor]:
    """Random boards and hands; one move of 1496, and who wins."""
    make = torch.Generator().manual_seed(0)
    board = torch.randint(0, 29, (count, 9, 9), generator=make, dtype=torch.uint8)
    hand = torch.randint(0, 3, (count, 14), generator=make, dtype=torch.uint8)
    move = torch.randint(0, 1496, (count,), generator=make)
    value = torch.randint(0, 2, (count,), generator=make).float()
    return {"board": board, "hand": hand, "policy": F.one_hot(move, 1496).float(), "value": value}


def batches(size: int, count: int) -> list[Batch]:
    columns = rows(size * count)
    return list(zip(*[column.chunk(count) for column in columns.values()], strict=True))


# ------------------------------------------------------------------------------------------- ours


def compiled(folder: Path, name: str, use: str, params: str = "") -> Any:
    """The class of the module that expc generates, with its Config."""
    np.savez(folder / "rows.npz", **{k: v.numpy() for k, v in rows(128).items()})  # type: ignore[arg-type]
    params = f", {params}" if params else ""
    generated = compile_in(folder, name, SPEC.format(name=name, use=use, params=params))
    spec = importlib.util.spec_from_file_location(name, generated / "train.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules[name] = program
    spec.loader.exec_module(program)
    return program


def ours(program: Any, data: list[Batch]) -> tuple[Any, Callable[[], float]]:
    module = program.Train(program.Config())
    module.start("32", total_updates=10_000, updates_per_epoch=100)
    module.train()

    def run() -> float:
        began = time.process_time()
        module.training_step(data, 0)
        module.records.means()
        return time.process_time() - began

    return module, run


# ------------------------------------------------------------------------------------------ plain


def plain_loss(net: nn.Module, batch: Batch) -> Tensor:
    board, hand, policy, value = batch
    moves, winner = net(board, hand)
    policy_loss = F.kl_div(F.log_softmax(moves, dim=-1), policy, reduction="batchmean")
    return policy_loss + F.binary_cross_entropy_with_logits(winner, value)


def plain(net: PlainPolicyValue, data: list[Batch]) -> Callable[[], float]:
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim < 2]
    optimizer = AdamW(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-3,
    )
    net.train()

    def run() -> float:
        began = time.process_time()
        running = 0.0
        for batch in data:
            optimizer.zero_grad()
            loss = plain_loss(net, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            running += loss.item()
        return time.process_time() - began

    return run


def require_equal(module: Any, net: PlainPolicyValue, size: int, batch: Batch) -> None:
    """RuntimeError unless both, with the same weights and without dropout, have the same loss."""
    count = sum(p.numel() for p in module.parameters())
    if not count == sum(p.numel() for p in net.parameters()) == size:
        raise RuntimeError(f"{count} parameters, not {size}")
    with torch.no_grad():
        for theirs, mine in zip(net.parameters(), module.parameters(), strict=True):
            theirs.copy_(mine)
    totals: dict[str, Tensor] = {}
    module.eval(), net.eval()
    with module.rehearsal(totals=lambda total: totals.update([total])), torch.no_grad():
        module.update(batch)
        wanted = plain_loss(net, batch)
    module.train(), net.train()
    if not torch.allclose(totals["total_model"], wanted, rtol=1e-4):
        raise RuntimeError(f"loss {totals['total_model']:.6f}, plain {wanted:.6f}")


def measure(net: Net, batch: int, rounds: int) -> Verdict:
    data = batches(batch, net.updates)
    with tempfile.TemporaryDirectory() as made:
        module, train = ours(compiled(Path(made), net.use, net.use), data)
        written_out = PlainPolicyValue(net.plain, net.plain.width)
        require_equal(module, written_out, net.size, data[0])
        costs = in_turn({"plain": plain(written_out, data), "ours": train}, rounds)
    samples = batch * net.updates
    told = {name: 1000 * statistics.median(each) / samples for name, each in costs.items()}
    print(
        f"{net.use:<11} {net.size:>10,}  ours {told['ours']:7.2f}  plain {told['plain']:7.2f}  "
        f"original {net.original:5.1f}  ms a sample",
        flush=True,
    )
    what = f"plain / ours ({net.use}, {told['ours']:.1f} ms a sample, batch {batch})"
    return speed_up(what, costs["plain"], costs["ours"], 1.0)


# ---------------------------------------------------------------------------------------- reduced


def reduced(rounds: int) -> None:
    """Milliseconds per sample of ResNets of at most a million parameters."""
    print(f"channels 16 32 64 128, x 4; ms a sample, wall time  [{machine()}]")
    with tempfile.TemporaryDirectory() as made:
        programs = {
            name: compiled(
                Path(made), f"reduced_{i}", "resnet", f"channels: [16, 32, 64, 128], {p}"
            )
            for i, (name, p) in enumerate(REDUCED.items())
        }
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for batch in (32, 64, 256):
                data = batches(batch, 512 // batch)
                taken = {name: wall(ours(p, data)[0], data) for name, p in programs.items()}
                costs = in_turn(taken, rounds)
                told = {n: 1000 * statistics.median(each) / 512 for n, each in costs.items()}
                line = "  ".join(f"{name}: {ms:.3f}" for name, ms in told.items())
                print(f"threads {threads}  batch {batch:3}  {line}", flush=True)


def wall(module: Any, data: list[Batch]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        module.training_step(data, 0)
        return time.perf_counter() - began

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of an update of a shogi net.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--net", choices=[net.use for net in NETS])
    parser.add_argument("--reduced", action="store_true")
    asked = parser.parse_args()
    if asked.reduced:
        reduced(asked.rounds)
        return 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets = [net for net in NETS if asked.net in (None, net.use)]
    return report(
        f"Update of a shogi net, torch {torch.__version__}, one thread, float32",
        [measure(net, asked.batch, asked.rounds) for net in nets],
    )


if __name__ == "__main__":
    raise SystemExit(main())
