"""Batches on their way from the host to the device of the training."""

from collections.abc import Iterable, Iterator

import torch

from expc_runtime.module import Batch

__all__ = ["on_device"]


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on ``device``. With CUDA, the next one is copied while this one is trained on."""
    if device.type == "cuda":
        return _copied_ahead(batches, device)
    return _copied(batches, device)


def _copied(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield tuple([column.to(device) for column in batch])


def _copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Copies run on a stream of their own, from pinned memory, one batch ahead."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        pinned = [column.pin_memory() for column in batch]
        with torch.cuda.stream(side):
            copied = tuple([column.to(device, non_blocking=True) for column in pinned])
            there = side.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = copied, there
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(batch: Batch, there: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch, for the stream that computes: it waits for this copy, and the memory for it."""
    computes = torch.cuda.current_stream(device)
    computes.wait_event(there)
    for column in batch:
        column.record_stream(computes)
    return batch
