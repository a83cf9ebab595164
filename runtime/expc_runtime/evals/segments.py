"""What a trained dynamics with boundaries makes of a whole episode."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expc_runtime.errors import BadValue
from expc_runtime.evals.episodes import Episode

__all__ = ["Segments", "segments"]

_FRAMES = 64  # that the encoder sees at once; its first layer needs 0.2 MB for each

Flags = NDArray[np.bool_]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Segments:
    """By the posterior, in eval mode; (L,) each."""

    read: Flags  # a new segment begins here
    read_prob: Reals  # READ by the detector's own logits, before any limit
    forced: Flags  # a READ that a limit made
    seg_len: Reals  # frames in this segment so far
    seg_num: Reals  # segments begun so far
    kl_abs: Reals  # nats, of the posterior from the prior, ungated
    kl_obs: Reals
    train_ratio: float | None  # share of READ when boundaries are drawn, as in training
    sanitised: int  # statistics that a draw could not use as they were

    def __len__(self) -> int:
        return len(self.read)


@torch.no_grad()
def segments(module: nn.Module, episode: Episode, device: torch.device) -> Segments:
    """Run ``module.encoder`` and ``module.dynamics`` over ``episode`` as one chunk, B = 1.

    The module's state and mode are left as they were.

    Raises BadValue: its dynamics has no boundaries.
    """
    dynamics: Any = module.dynamics
    if not hasattr(dynamics, "kl_per_frame"):
        raise BadValue(f"{type(dynamics).__name__} has no boundaries to measure")
    embed = _embedded(module, episode, device)
    given = [
        embed,
        torch.from_numpy(episode.action).to(device)[None],
        torch.from_numpy(episode.is_first).to(device)[None],
    ]
    if dynamics.takes_reward:
        given.append(torch.from_numpy(episode.reward).to(device)[None])
    post, prior = dynamics.observe(*given)
    kl_abs, kl_obs = dynamics.kl_per_frame(post, prior)
    read = post["read"] > 0.5
    return Segments(
        read=_flags(read),
        read_prob=_reals(post["read_prob"]),
        forced=_flags(read & post["forced"]),
        seg_len=_reals(post["seg_len"]),
        seg_num=_reals(post["seg_num"]),
        kl_abs=_reals(kl_abs),
        kl_obs=_reals(kl_obs),
        train_ratio=_drawn_ratio(dynamics, given),
        sanitised=int(dynamics.report(post, prior)["sanitised"]),
    )


def _embedded(module: nn.Module, episode: Episode, device: torch.device) -> Tensor:
    encoder: Any = module.encoder
    parts = [
        encoder(torch.from_numpy(episode.image[start : start + _FRAMES]).to(device).float() / 255)
        for start in range(0, len(episode), _FRAMES)
    ]
    return torch.cat(parts)[None]


def _drawn_ratio(dynamics: nn.Module, given: list[Tensor]) -> float | None:
    """Share of READ in train mode: drawn, and normalised by the episode's own statistics.

    None for one frame, which has no statistics.
    """
    if given[0].shape[1] < 2:
        return None
    observe: Any = dynamics.observe
    before = {name: buffer.clone() for name, buffer in dynamics.named_buffers()}
    training = dynamics.training
    dynamics.train()
    try:
        post, _ = observe(*given)
        return float(post["read"].mean())
    finally:
        dynamics.train(training)
        for name, buffer in dynamics.named_buffers():
            buffer.copy_(before[name])


def _flags(values: Tensor) -> Flags:
    return np.asarray(values[0].cpu().numpy(), dtype=np.bool_)


def _reals(values: Tensor) -> Reals:
    return np.asarray(values[0].double().cpu().numpy(), dtype=np.float64)
