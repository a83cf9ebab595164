"""What a generated training step costs beside a bare PyTorch loop, and idiomatic Lightning beside it.

Two programs as expc compiles them: the digit reader of specs/digits.yaml (convolutions, two heads) and
the small net of benchmarks/even.yaml. Everyone has the same model, losses, fused AdamW with two
groups, gradient clipping, warm-up and cosine, on one thread. CPU time:

- raw: a `for` loop as one would write it for speed; rows are a permuted `index_select` of tensors
  held in memory; nothing is checked for being finite, nothing is logged but a running sum;
- step: the generated class, chunk by chunk, as the Trainer calls it;
- fit: the generated class under `fit`: Lightning's Trainer, records, TensorBoard, status, guards;
- lightning: automatic optimisation, Dataset of samples, default collate, `self.log`, TensorBoard.

Measuring the val split and saving are not steps, and in none of them.

python -m benchmarks.step
python -m benchmarks.step --rounds 3 --size small
"""

import argparse
import contextlib
import importlib.util
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from benchmarks.project import ROOT, compile_in
from benchmarks.ratios import Verdict, in_turn, ratio, report, speed_up
from expc_runtime.clocks import Updates
from expc_runtime.data.digits import Digits
from expc_runtime.data.feed import Chunk, Feed
from expc_runtime.fit import fit
from expc_runtime.gates import Until

LR = 0.003
TOTAL, WARM_UP = 100_000, 50  # steps of the schedule, the same for everyone
CHUNK = 20


# ------------------------------------------------------------------------------ what all of them are


class ReadNet(nn.Module):
    """The net of generated/digits/read_bce.py, written in torch alone."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.digit_head, self.loop_head = nn.Linear(second, 10), nn.Linear(second, 1)

    def losses(self, image: Tensor, digit: Tensor, loop: Tensor) -> dict[str, Tensor]:
        features = self.backbone(image)
        digit_loss = F.cross_entropy(self.digit_head(features), digit)
        loop_logit = self.loop_head(features).squeeze(-1)
        loop_loss = F.binary_cross_entropy_with_logits(loop_logit, loop)
        return {"loss": digit_loss + loop_loss, "digit": digit_loss, "loop": loop_loss}


class TellNet(nn.Module):
    """The net of benchmarks/even.yaml, written in torch alone."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(inplace=True))
        self.head = nn.Linear(hidden, 1)

    def losses(self, image: Tensor, even: Tensor) -> dict[str, Tensor]:
        logit = self.head(self.backbone(image)).squeeze(-1)
        return {"loss": F.binary_cross_entropy_with_logits(logit, even)}


@dataclass(frozen=True)
class Size:
    """A program, its widths, a batch, and how many steps make one measurement."""

    name: str
    program: str
    widths: tuple[int, ...]
    batch: int
    steps: int
    budget: float

    @property
    def columns(self) -> tuple[str, ...]:
        return ("image", "digit", "loop") if self.program == "read" else ("image", "even")

    def net(self) -> ReadNet | TellNet:
        return ReadNet(*self.widths) if self.program == "read" else TellNet(*self.widths)

    def generated(self, folder: Path) -> Any:
        """The generated module, imported from its file."""
        if self.program == "read":
            file = ROOT / "generated/digits/read_bce.py"
        else:
            text = (ROOT / "benchmarks/even.yaml").read_text()
            file = compile_in(folder, "even", text) / "tell.py"
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        return module

    def config(self, program: Any, out: str = "") -> Any:
        width = "backbone_channels" if self.program == "read" else "backbone_hidden"
        return program.Config(batch=self.batch, out=out, device="cpu", **{width: self.widths})

    def rows(self) -> dict[str, Tensor]:
        """The digits, over and over, until an epoch is longer than a measurement."""
        digits = Digits().tensors()
        times = math.ceil((self.steps + 4 * CHUNK) * self.batch / (0.98 * len(digits["digit"])))
        return {
            name: digits[name].repeat(times, *[1] * (digits[name].ndim - 1))
            for name in self.columns
        }


SIZES = (
    Size("small", "tell", widths=(128,), batch=64, steps=400, budget=1.15),
    Size("large", "read", widths=(16, 32), batch=256, steps=100, budget=1.05),
    Size("rows", "tell", widths=(256,), batch=4096, steps=60, budget=1.05),
)


def groups(net: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def factor(step: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return (1 + math.cos(math.pi * (step - WARM_UP) / (TOTAL - WARM_UP))) / 2


# -------------------------------------------------------------------------------------- the raw loop


def raw(size: Size, columns: Sequence[Tensor]) -> Callable[[], float]:
    net = size.net()
    optimizer = AdamW(groups(net), lr=LR, fused=True)
    parameters = list(net.parameters())
    taken = 0

    def run() -> float:
        nonlocal taken
        running = torch.zeros(())
        began = time.process_time()
        order = torch.randperm(len(columns[0]))
        for rows in torch.split(order, size.batch)[: size.steps]:
            loss = net.losses(*[column.index_select(0, rows) for column in columns])["loss"]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = LR * factor(taken)
            optimizer.step()
            running += loss.detach()
            taken += 1
        return (time.process_time() - began) / size.steps

    return run


# ------------------------------------------------------------------------------- what expc generated


class Given:
    """A source of columns that are there already."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self._columns = columns

    def tensors(self) -> dict[str, Tensor]:
        return self._columns


class StampedFeed(Feed):
    """A feed that notes the CPU time whenever the next chunk is asked for."""

    def __init__(self, size: Size, columns: dict[str, Tensor]) -> None:
        super().__init__(Given(columns), columns=size.columns, batch=size.batch, val=0.02)
        self.stamps: list[float] = []

    def chunks(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        for chunk in super().chunks(epoch, start, stop):
            self.stamps.append(time.process_time())
            yield chunk


def step(size: Size, program: Any, columns: dict[str, Tensor]) -> Callable[[], float]:
    feed = StampedFeed(size, columns)
    feed.setup(torch.device("cpu"), seed=0)
    module = module_of(program)(size.config(program))
    module.start("32", total_updates=TOTAL, updates_per_epoch=feed.updates_per_epoch)

    def run() -> float:
        began = time.process_time()
        for index, chunk in enumerate(feed.chunks(module.epoch, stop=size.steps)):
            module.training_step(chunk, index)
        module.records.means()
        return (time.process_time() - began) / size.steps

    return run


def module_of(program: Any) -> Any:
    """The one class of a generated module that is trained."""
    return getattr(program, "Read", None) or program.Tell


def through_fit(
    size: Size, program: Any, columns: dict[str, Tensor], folder: Path
) -> Callable[[], float]:
    def run() -> float:
        feed = StampedFeed(size, columns)
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            code = fit(
                module_of(program),
                size.config(program, out=f"{tempfile.mkdtemp(dir=folder)}/read"),
                feed,
                until=Until(Updates(size.steps + 3 * CHUNK)),
                file=program.__file__,
                program=program.PROGRAM,
            )
        assert code == 0, f"fit ends with {code}"
        # Lightning asks for one chunk ahead: from the third request on, one is trained between two.
        asked = feed.stamps[2:]
        return (asked[-1] - asked[0]) / ((len(asked) - 1) * CHUNK)

    return run


# ------------------------------------------------------------------------------- idiomatic Lightning


class Samples(Dataset[tuple[Tensor, ...]]):
    def __init__(self, columns: Sequence[Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return tuple([column[row] for column in self.columns])


class Idiomatic(pl.LightningModule):
    def __init__(self, net: ReadNet | TellNet) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        losses = self.net.losses(*batch)
        for name, loss in losses.items():
            self.log(f"train/{name}", loss)
        return losses["loss"]

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(groups(self), lr=LR, fused=True)
        schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Stamps(pl.Callback):
    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.stamps.append(time.process_time())


def lightning(size: Size, columns: Sequence[Tensor], folder: Path) -> Callable[[], float]:
    def run() -> float:
        stamps = Stamps()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=size.steps + 10,
            gradient_clip_val=1.0,
            logger=TensorBoardLogger(tempfile.mkdtemp(dir=folder)),
            callbacks=[stamps],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(Samples(columns), batch_size=size.batch, shuffle=True)
        trainer.fit(Idiomatic(size.net()), loader)
        asked = stamps.stamps[9:]
        return (asked[-1] - asked[0]) / (len(asked) - 1)

    return run


# ------------------------------------------------------------------------------------- what is told


def require_equal(size: Size, program: Any, columns: dict[str, Tensor]) -> None:
    """RuntimeError unless both nets, with the same weights, have the same loss."""
    module, net = module_of(program)(size.config(program)), size.net()
    with torch.no_grad():
        for theirs, ours in zip(net.parameters(), module.parameters(), strict=True):
            theirs.copy_(ours)
    batch = tuple(column[: size.batch] for column in columns.values())
    totals: dict[str, Tensor] = {}
    with module.rehearsal(totals=lambda total: totals.update([total])):
        module.update(batch)
    if not torch.allclose(totals["total_model"], net.losses(*batch)["loss"]):
        raise RuntimeError(f"{program.__file__} is not the net that is written here")


def measure(size: Size, rounds: int) -> list[Verdict]:
    columns = size.rows()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        program = size.generated(folder)
        require_equal(size, program, columns)
        costs = in_turn(
            {
                "raw": raw(size, list(columns.values())),
                "step": step(size, program, columns),
                "fit": through_fit(size, program, columns, folder),
                "lightning": lightning(size, list(columns.values()), folder),
            },
            rounds,
        )
    told = {name: 1000 * statistics.median(each) for name, each in costs.items()}
    print(size.name, "  ".join(f"{name} {ms:.3f} ms" for name, ms in told.items()), flush=True)
    where = f"{told['raw']:.2f} ms, batch {size.batch}"
    most = told["lightning"] / told["raw"]
    return [
        ratio(f"generated step / raw loop ({where})", costs["step"], costs["raw"], size.budget),
        ratio(f"under fit / raw loop ({where})", costs["fit"], costs["raw"], size.budget),
        speed_up(
            f"Lightning / under fit ({where})",
            costs["lightning"],
            costs["fit"],
            2.0,
            note=f"the raw loop: {most:.2f}",
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of a training step, as ratios.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=[size.name for size in SIZES])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)(\.|$)")
    sizes = [size for size in SIZES if asked.size in (None, size.name)]
    return report(
        f"Training step, torch {torch.__version__}, one thread",
        [verdict for size in sizes for verdict in measure(size, asked.rounds)],
    )


if __name__ == "__main__":
    raise SystemExit(main())
