"""Lightning's Trainer, kept quiet and told nothing: epochs, precision, saving, measuring are ours."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch

from expc_runtime.errors import BadValue
from expc_runtime.feeds import TrainingFeed
from expc_runtime.module import Batch, Module
from expc_runtime.ranks import ALONE, Ranks

__all__ = ["Chunks", "Told", "device_of", "trainer"]


class Chunks:
    """The chunks of the epoch that the module is in, from where it is to ``total`` updates."""

    def __init__(self, module: Module, feed: TrainingFeed, total: int | None) -> None:
        self._module = module
        self._feed = feed
        self._total = total

    def __iter__(self) -> Iterator[Iterable[Batch]]:
        module = self._module
        first = self._feed.updates_after(module.epoch)
        stop = None if self._total is None else self._total - first
        return self._feed.chunks(module.epoch, module.updates - first, stop)


class Told(pl.Callback):
    """Hands Lightning's hooks on; ``end_epoch`` says whether training ends."""

    def __init__(self, start: Callable[[], None], end_epoch: Callable[[], bool]) -> None:
        self._start = start
        self._end_epoch = end_epoch

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._end_epoch():
            trainer.should_stop = True


def device_of(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of that name; ``auto`` is a GPU if there is one. Each of several ranks has its own.

    Raises BadValue.
    """
    if ranks.size > 1:
        return _device_of_rank(name, ranks)
    if name == "auto":
        name = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadValue(f"there is no device {name!r} here: {reason}") from error
    return device


def _device_of_rank(name: str, ranks: Ranks) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise BadValue(
            f"{ranks.size} ranks and --device {name}: each has a device of its own; say cuda or cpu"
        )
    if ranks.size > torch.cuda.device_count():
        raise BadValue(
            f"{ranks.size} ranks want a GPU each, and {torch.cuda.device_count()} are to be seen: ask "
            "for fewer (run.devices), or give the run more (CUDA_VISIBLE_DEVICES)"
        )
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


def trainer(
    device: torch.device, folder: Path, told: pl.Callback, *, boards: bool = True
) -> pl.Trainer:
    """A Trainer that decides nothing; TensorBoard's files go into ``folder``, if there are ``boards``."""
    from pytorch_lightning.loggers import TensorBoardLogger

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)(\.|$)")
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1 if device.type == "cpu" else [device.index or 0],
        max_epochs=-1,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard") if boards else False,
        callbacks=[told],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
