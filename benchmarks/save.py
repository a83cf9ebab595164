"""What a durable save costs beside plain `torch.save`: seconds on the clock, the disk included.

- plain: `torch.save` of a new file, and the oldest of three deleted: in the page cache, not on the disk;
- synced: the same, and an fsync of the file: what the disk alone costs;
- ours: `Store.save`: fsync, every byte read back and its CRC compared, finite, renamed, pointer, two kept.

The state is a training's: weights of 24 blocks and both moments of AdamW. One thread of torch.

python -m benchmarks.save                       # the folder for temporary files, and /dev/shm
python -m benchmarks.save --folder runs         # the disk of a folder
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.ratios import at_most, in_turn, ratio, report
from expc_runtime.checkpoint import Store

MIB = 2**20
BUDGET = 1.35
BLOCKS = 24
SHM = Path("/dev/shm")


def state(size: int) -> dict[str, Any]:
    """A training's state of ``size`` bytes."""
    values = size // 4 // 3 // BLOCKS
    names = [f"blocks.{n}.{part}" for n in range(BLOCKS) for part in ("weight", "bias")]

    def tensors() -> list[torch.Tensor]:
        return [torch.randn(512 if n.endswith("bias") else values - 512) for n in names]

    return {
        "model": dict(zip(names, tensors(), strict=True)),
        "optimizer": {
            n: {"exp_avg": one, "exp_avg_sq": two, "step": torch.tensor(7.0)}
            for n, one, two in zip(names, tensors(), tensors(), strict=True)
        },
    }


def timed(body: Callable[[], None], processor: list[float]) -> Callable[[], float]:
    """Seconds on the clock of ``body``; its CPU seconds, of all threads, go into ``processor``."""

    def measure() -> float:
        used, began = time.process_time(), time.perf_counter()
        body()
        took = time.perf_counter() - began
        processor.append(time.process_time() - used)
        return took

    return measure


def saves(folder: Path, held: dict[str, Any]) -> dict[str, Callable[[], None]]:
    steps = dict.fromkeys(("plain", "synced", "ours"), 0)
    store = Store(folder / "ours")

    def next_file(name: str) -> Path:
        steps[name] += 1
        with suppress(FileNotFoundError):
            (folder / f"{name}-{steps[name] - 2}.pt").unlink()
        return folder / f"{name}-{steps[name]}.pt"

    def plain() -> None:
        torch.save(held, next_file("plain"))

    def synced() -> None:
        with next_file("synced").open("wb") as file:
            torch.save(held, file)
            file.flush()
            os.fsync(file.fileno())

    def ours() -> None:
        steps["ours"] += 1
        store.save(held, step=steps["ours"])

    return {"plain": plain, "synced": synced, "ours": ours}


def file_system(folder: Path) -> str:
    """Type and options of the mount that holds ``folder``; its device has the name of no machine."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    on = [m for m in mounts if folder.resolve().is_relative_to(m[1])]
    _, at, kind, options, *_ = max(on, key=lambda mount: len(mount[1]))
    return f"{kind} at {at} ({options})"


def compare(folder: Path, size: int, rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="expc.", dir=folder) as made:
        bodies = saves(Path(made), state(size * MIB))
        cpu: dict[str, list[float]] = {name: [] for name in bodies}
        variants = {name: timed(body, cpu[name]) for name, body in bodies.items()}
        os.sync()
        costs = in_turn(variants, rounds, warm_up=2)
        work = {name: spent[-rounds:] for name, spent in cpu.items()}
    return report(
        f"A save of {size} MiB on {file_system(folder)}",
        [
            ratio("Store.save / torch.save", costs["ours"], costs["plain"], BUDGET),
            ratio("torch.save with fsync / torch.save", costs["synced"], costs["plain"], 99),
            ratio("Store.save / torch.save, CPU seconds", work["ours"], work["plain"], 99),
            at_most("torch.save", costs["plain"], 99, "s"),
            at_most("Store.save", costs["ours"], 99, "s"),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="A durable save beside plain torch.save.")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", type=Path, action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = args.folder or [Path(tempfile.gettempdir()), *([SHM] if SHM.is_dir() else [])]
    return max(compare(folder, size, args.rounds) for folder in folders for size in (100, 400))


if __name__ == "__main__":
    raise SystemExit(main())
