"""Variational temporal abstraction (Kim et al. 2019) with the recurrent blocks of DreamerV3.

Two levels of Gaussian latents. The abstract level changes only where a boundary detector says
READ (a new segment begins) and is carried on where it says COPY; the observation level starts
anew from the abstract one at READ and goes on by its own recurrence at COPY.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expc_runtime.worlds.init import output_
from expc_runtime.worlds.sampling import (
    gumbel,
    normal,
    normal_entropy,
    normal_kl,
    sanitised,
    straight_through,
    wide,
)
from expc_runtime.worlds.unroll import Cell, Joined, Unrolled, anew

__all__ = ["VTA"]

Latent = dict[str, Tensor]
Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
Level = tuple[Tensor, Tensor, Tensor, Tensor]
"""belief, stoch, mean and std of one level."""
PosteriorInput = Literal["embed", "embed_reward"]
ImaginedBoundary = Literal["prior", "fixed", "none"]

_RATE_EPS = 1e-6


class VTA(nn.Module):
    """The abstract level `abs_*` under the observation level `obs_*`, gated by `read`.

    A state is a dict of (..., size): abs_belief, abs_stoch, abs_mean, abs_std and the same of
    obs, float32; and of (...): `read` (1 READ, 0 COPY, with the straight-through gradient),
    `read_prob` (READ by the raw logits), `seg_len` and `seg_num` (int64: frames in this segment,
    segments begun), `forced` (bool: a limit or a rule replaced the detector's logits); and the
    logits [READ, COPY] (..., 2) `boundary_raw` of the detector and `boundary_logit` after forcing.
    Features are [abs_belief, abs_stoch, obs_belief, obs_stoch].

    Where `seg_len` has reached `max_seg_len` the logits become (+F, -F), F = `force_scale`; with
    precedence, where `seg_num` has reached `max_seg_num`, (-F, +F). F = 0 turns both limits off.
    In train mode boundaries are drawn (Gumbel noise, `temp` shapes the gradient alone); in eval
    mode READ is p >= 0.5. Latents are drawn in both.

    `imag_boundary` rules `imagine`: the detector ("prior"), READ every `max_seg_len` frames
    ("fixed"), or never ("none"). `obs_action_input` gives the action to the observation level at
    every step; without it the action enters at READ only. `rate` is that of `rate_prior`.
    """

    force: Tensor

    def __init__(
        self,
        embed: int,
        actions: int,
        *,
        abs_belief: int = 512,
        obs_belief: int = 512,
        abs_stoch: int = 32,
        obs_stoch: int = 32,
        hidden: int = 512,
        detector_depth: int = 1,
        max_seg_len: int = 50,
        max_seg_num: int = 200,
        temp: float = 1.0,
        force_scale: float = 10.0,
        rate: float = 0.0,
        min_std: float = 0.1,
        free: float = 1.0,
        posterior_input: PosteriorInput = "embed",
        imag_boundary: ImaginedBoundary = "prior",
        obs_action_input: bool = False,
    ) -> None:
        super().__init__()
        _one_of("posterior_input", posterior_input, get_args(PosteriorInput))
        _one_of("imag_boundary", imag_boundary, get_args(ImaginedBoundary))
        self.max_seg_len, self.max_seg_num = max_seg_len, max_seg_num
        self.temp, self.force_scale, self.rate = temp, force_scale, rate
        self.min_std, self.free = min_std, free
        self.takes_reward = posterior_input == "embed_reward"
        self.imag_boundary, self.obs_action_input = imag_boundary, obs_action_input
        abs_feat, obs_feat = abs_belief + abs_stoch, obs_belief + obs_stoch
        self.out_features = abs_feat + obs_feat

        toward_read = force_scale * torch.tensor([1.0, -1.0])
        self.register_buffer("force", toward_read, persistent=False)
        self.detector = Detector(embed + self.takes_reward, hidden, detector_depth)
        self.prior_detector = Joined(hidden, obs_feat=obs_feat)
        self.prior_detector_logit = output_(nn.Linear(hidden, 2))

        self.abs_start = nn.Parameter(torch.zeros(abs_belief))
        self.abs_input = Joined(hidden, stoch=abs_stoch, action=actions)
        self.abs_cell = Cell(hidden, abs_belief)
        self.abs_prior = Prior(abs_belief, hidden, abs_stoch, min_std)
        self.abs_post = Posterior(hidden, abs_stoch, min_std, belief=abs_belief, embed=embed)

        self.obs_reset = Joined(obs_belief, abs_feat=abs_feat)
        step = {"action": actions} if obs_action_input else {}
        self.obs_input = Joined(hidden, stoch=obs_stoch, abs_feat=abs_feat, **step)
        self.obs_cell = Cell(hidden, obs_belief)
        self.obs_prior = Prior(obs_belief, hidden, obs_stoch, min_std)
        self.obs_post = Posterior(
            hidden, obs_stoch, min_std, belief=obs_belief, abs_feat=abs_feat, embed=embed
        )

    # The interface of dynamics.

    def initial(self, batch: int) -> Latent:
        """The state before the first frame: the learned abstract belief, all else 0, READ."""
        none = self.abs_start.new_zeros(batch)
        abs_stoch = self.abs_start.new_zeros(batch, self.abs_prior.stoch)
        obs_stoch = self.abs_start.new_zeros(batch, self.obs_prior.stoch)
        count = torch.zeros_like(none, dtype=torch.int64)
        return {
            "abs_belief": self.abs_start.expand(batch, -1),
            "abs_stoch": abs_stoch,
            "abs_mean": abs_stoch,
            "abs_std": torch.full_like(abs_stoch, self.min_std),
            "obs_belief": self.abs_start.new_zeros(batch, self.obs_cell.size),
            "obs_stoch": obs_stoch,
            "obs_mean": obs_stoch,
            "obs_std": torch.full_like(obs_stoch, self.min_std),
            "read": torch.ones_like(none),
            "read_prob": torch.full_like(none, 0.5),
            "boundary_raw": self.abs_start.new_zeros(batch, 2),
            "boundary_logit": self.abs_start.new_zeros(batch, 2),
            "forced": torch.zeros_like(none, dtype=torch.bool),
            "seg_len": count,
            "seg_num": count,
        }

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, reward: Tensor | None = None
    ) -> tuple[Latent, Latent]:
        """Posterior and prior of a chunk, both (B, T, ...).

        `embed` (B, T, embed), `action` (B, T, actions) the one that led here, `is_first` (B, T)
        bool; `reward` (B, T) exactly when `posterior_input` is "embed_reward", else ValueError.
        The state starts anew, without an action, where `is_first` and at t = 0. The prior has
        the statistics of both levels and its own detector's `boundary_raw` and `boundary_logit`.
        """
        first = is_first | (torch.arange(is_first.shape[1], device=is_first.device) == 0)
        state = self.initial(len(embed))
        gate = self._gate(self._detected(embed, reward), first, state)
        post = self._levels(state, gate, first, action, embed)
        return post, self._prior(post, first)

    def filter(self, state: Latent, embed: Tensor, action: Tensor, is_first: Tensor) -> Latent:
        """One step as in acting: the prior's boundary, then the posterior's latents.

        embed (B, embed), action (B, actions), is_first (B,) bool.
        """
        state = anew(state, self.initial(len(embed)), is_first)
        first = is_first[:, None]
        before = _restarted(self._obs_feat(state)[:, None], first)
        gate = self._gate(self._prior_raw(before), first, state)
        return _now(self._levels(state, gate, first, action[:, None], embed[:, None]))

    def imagine(self, state: Latent, action: Tensor) -> Latent:
        """One step by the prior, its boundary by `imag_boundary`: state (N, ...), action (N, A)."""
        if self.imag_boundary == "prior":
            raw = self._prior_raw(self._obs_feat(state)[:, None])
            gate = _now(self._gate(raw, None, state))
        else:
            gate = _now(self._ruled(state))
        read = gate["read"].unsqueeze(-1)
        abs_draw, obs_draw = (noise[:, 0] for noise in self.latent_noise(len(action), 1))

        entered = self.abs_input(stoch=state["abs_stoch"], action=action)
        parts = Parts(self.abs_cell.gates, self.abs_cell.bias(), self.abs_prior)
        abs_level = self._abs_step(
            state["abs_belief"], state["abs_stoch"], read, abs_draw, entered, parts
        )
        abs_feat = torch.cat(abs_level[:2], -1)

        step = {"action": action} if self.obs_action_input else {}
        entered = self.obs_input(stoch=state["obs_stoch"], abs_feat=abs_feat, **step)
        reset = self.obs_reset(abs_feat=abs_feat)
        parts = Parts(self.obs_cell.gates, self.obs_cell.bias(), self.obs_prior)
        obs_level = self._obs_step(state["obs_belief"], read, obs_draw, entered, reset, parts)
        return gate | _named("abs", abs_level) | _named("obs", obs_level)

    def features(self, state: Latent) -> Tensor:
        """[abs_belief, abs_stoch, obs_belief, obs_stoch] (..., out_features)."""
        return torch.cat([self._abs_feat(state), self._obs_feat(state)], -1)

    # Losses.

    def kl(self, post: Latent, prior: Latent) -> tuple[Tensor, Tensor, Tensor]:
        """dyn, rep, mask; 0-dim, each a mean over (b, t).

        dyn = max(`free`, read KL_abs + KL_obs) of sg(post) against the prior, rep of the post
        against sg(prior). The gate keeps its gradient in both: the boundary pays for the abstract
        level's KL. mask = KL(sg(posterior boundary) || prior boundary) of the forced logits
        trains the prior's detector alone.
        """
        still_post, still_prior = _detached(post), _detached(prior)
        dyn = _levels_kl(post["read"], still_post, prior).clamp(min=self.free).mean()
        rep = _levels_kl(post["read"], post, still_prior).clamp(min=self.free).mean()
        mask = _boundary_kl(still_post["boundary_logit"], prior["boundary_logit"]).mean()
        return dyn, rep, mask

    def kl_per_frame(self, post: Latent, prior: Latent) -> tuple[Tensor, Tensor]:
        """KL(post || prior) of the abstract and of the observation level, each (B, T), ungated."""
        return _level_kl("abs", post, prior), _level_kl("obs", post, prior)

    def rate_prior(self, post: Latent) -> Tensor:
        """Mean of KL(Bernoulli(p) || Bernoulli(`rate`)), p = READ by the forced logits; 0-dim."""
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"rate_prior: rate must be inside (0, 1), not {self.rate}")
        read = post["boundary_logit"].softmax(-1)[..., 0].clamp(_RATE_EPS, 1.0 - _RATE_EPS)
        copy = 1.0 - read
        cost = read * (read / self.rate).log() + copy * (copy / (1.0 - self.rate)).log()
        return cost.mean()

    @torch.no_grad()
    def report(self, post: Latent, prior: Latent) -> Latent:
        """Figures for the log, 0-dim: nothing here is optimised.

        `boundary_ratio` is the share of READ; `forced_ratio` and `free_ratio` split it by
        `forced`. `kl_mask` is the boundary's KL, entropies are in nats, `sanitised` counts the
        statistics that a draw could not use as they were.
        """
        read, forced = post["read"], post["forced"]
        both = {"post": post, "prior": prior}
        entropies = {
            f"{side}_{level}_entropy": normal_entropy(state[f"{level}_std"]).mean()
            for side, state in both.items()
            for level in ("abs", "obs")
        }
        levels = [(post[f"{level}_mean"], post[f"{level}_std"]) for level in ("abs", "obs")]
        return {
            "boundary_ratio": read.mean(),
            "forced_ratio": (read * forced).mean(),
            "free_ratio": (read * ~forced).mean(),
            "kl_mask": _boundary_kl(post["boundary_logit"], prior["boundary_logit"]).mean(),
            **entropies,
            "sanitised": sum(
                (sanitised(mean, std, self.min_std) for mean, std in levels),
                start=read.new_zeros(()),
            ),
        }

    # Noise: one call each, so that a chunk draws at once.

    def boundary_noise(self, batch: int, steps: int) -> Tensor:
        """What is added to [READ, COPY] logits before the choice: (B, T, 2); 0 in eval mode."""
        if self.training:
            return gumbel(batch, steps, 2, device=self.abs_start.device)
        return self.abs_start.new_zeros(batch, steps, 2)

    def latent_noise(self, batch: int, steps: int) -> tuple[Tensor, Tensor]:
        """Standard normal draws of both levels: (B, T, abs_stoch), (B, T, obs_stoch)."""
        abs_shape = (batch, steps, self.abs_prior.stoch)
        obs_shape = (batch, steps, self.obs_prior.stoch)
        start = self.abs_start
        abs_noise = torch.randn(abs_shape, dtype=start.dtype, device=start.device)
        return abs_noise, torch.randn(obs_shape, dtype=start.dtype, device=start.device)

    # Boundaries.

    def _detected(self, embed: Tensor, reward: Tensor | None) -> Tensor:
        if self.takes_reward != (reward is not None):
            wants = "needs the reward" if self.takes_reward else "takes no reward"
            raise ValueError(f"VTA.observe {wants} with this posterior_input")
        if reward is not None:
            embed = torch.cat([embed, reward.unsqueeze(-1).to(embed.dtype)], -1)
        return wide(self.detector(embed))

    def _prior_raw(self, obs_feat: Tensor) -> Tensor:
        return wide(self.prior_detector_logit(self.prior_detector(obs_feat=obs_feat)))

    def _gate(self, raw: Tensor, first: Tensor | None, state: Latent) -> Latent:
        """READ or COPY for each frame of (B, T), from raw logits (B, T, 2); no `first`: none is."""
        noise = self.boundary_noise(*raw.shape[:2])
        chosen = self._chosen(raw, noise, first, state)
        logit = torch.where(chosen.over_len.unsqueeze(-1), self.force, raw)
        logit = torch.where(chosen.over_num.unsqueeze(-1), -self.force, logit)
        odds = ((logit + noise) / self.temp).softmax(-1)[..., 0]
        return {
            "read": straight_through(chosen.read.to(odds.dtype), odds),
            "read_prob": raw.softmax(-1)[..., 0],
            "boundary_raw": raw,
            "boundary_logit": logit,
            "forced": chosen.over_len | chosen.over_num,
            "seg_len": chosen.seg_len,
            "seg_num": chosen.seg_num,
        }

    @torch.no_grad()
    def _chosen(self, raw: Tensor, noise: Tensor, first: Tensor | None, state: Latent) -> "_Chosen":
        """The choice for each frame, its counters, and which limits it met.

        A choice needs the counters and they need the choice before, but neither needs a latent:
        the answers for the free and both forced cases are there before the loop, which picks one.
        """
        cases = (raw, self.force, -self.force)
        answers = [_reads(logit + noise).unbind(1) for logit in cases]
        length, number = state["seg_len"], state["seg_num"]
        restarts = [None] * raw.shape[1] if first is None else first.unbind(1)
        never = torch.zeros_like(answers[0][0])
        frames = []
        for restart, free, at_len, at_num in zip(restarts, *answers, strict=True):
            if restart is not None:
                length, number = length.masked_fill(restart, 0), number.masked_fill(restart, 0)
            over_len, over_num, read = never, never, free
            if self.force_scale > 0:
                over_len, over_num = length >= self.max_seg_len, number >= self.max_seg_num
                read = torch.where(over_num, at_num, torch.where(over_len, at_len, free))
            length, number = (length + 1).masked_fill(read, 1), number + read
            frames.append((read, over_len, over_num, length, number))
        return _Chosen(*(torch.stack(column, 1) for column in zip(*frames, strict=True)))

    def _ruled(self, state: Latent) -> Latent:
        """The gate of an imagined step that no detector decides, (N, 1)."""
        length, number = state["seg_len"][:, None], state["seg_num"][:, None]
        read = torch.zeros_like(length, dtype=torch.bool)
        if self.imag_boundary == "fixed":
            read = length >= self.max_seg_len - 1
        sure = read.to(state["read"].dtype)
        none = sure.new_zeros(*sure.shape, 2)
        return {
            "read": sure,
            "read_prob": sure,
            "boundary_raw": none,
            "boundary_logit": none,
            "forced": torch.ones_like(read),
            "seg_len": (length + 1).masked_fill(read, 1),
            "seg_num": number + read,
        }

    # Levels.

    def _levels(
        self, state: Latent, gate: Latent, first: Tensor, action: Tensor, embed: Tensor
    ) -> Latent:
        """Posterior states (B, T, ...) that follow `state` (B, ...).

        The abstract level does not see the observation level: it runs through all frames first,
        and what the observation level needs of it is multiplied for all frames at once.
        """
        action = action.masked_fill(first.unsqueeze(-1), 0.0)
        abs_noise, obs_noise = self.latent_noise(*first.shape)
        keep = (~first).unsqueeze(-1).to(abs_noise.dtype)
        read = gate["read"].unsqueeze(-1)
        moments = self.abs_post.unrolled(embed=embed)
        abs_level = self._abs_level(state, read, keep, action, moments, abs_noise)
        abs_feat = self._abs_feat(abs_level)
        moments = self.obs_post.unrolled(abs_feat=abs_feat, embed=embed)
        given = {"abs_feat": abs_feat} | ({"action": action} if self.obs_action_input else {})
        obs_level = self._obs_level(state, read, keep, given, moments, obs_noise)
        return gate | abs_level | obs_level

    def _abs_level(
        self,
        state: Latent,
        gate: Tensor,
        keep: Tensor,
        action: Tensor,
        moments: Moments,
        noise: Tensor,
    ) -> Latent:
        enter = Unrolled(self.abs_input.project(action=action), self.abs_input.weight["stoch"])
        cell = self.abs_cell
        parts = Parts(cell.unrolled(*keep.shape[:2]), cell.bias(), moments)
        belief, stoch = state["abs_belief"], state["abs_stoch"]
        starts = (1.0 - keep) * self.abs_start
        frames = []
        for kept, read, draw, start in _columns(keep, gate, noise, starts):
            belief, stoch = torch.addcmul(start, belief, kept), stoch * kept
            entered = self.abs_input.finish(enter(stoch))
            frames.append(self._abs_step(belief, stoch, read, draw, entered, parts))
            belief, stoch = frames[-1][:2]
        return _stacked("abs", frames)

    def _obs_level(
        self,
        state: Latent,
        gate: Tensor,
        keep: Tensor,
        given: Latent,
        moments: Moments,
        noise: Tensor,
    ) -> Latent:
        resets = self.obs_reset(abs_feat=given["abs_feat"])
        enter = Unrolled(self.obs_input.project(**given), self.obs_input.weight["stoch"])
        cell = self.obs_cell
        parts = Parts(cell.unrolled(*keep.shape[:2]), cell.bias(), moments)
        belief, stoch = state["obs_belief"], state["obs_stoch"]
        frames = []
        for kept, read, draw, reset in _columns(keep, gate, noise, resets):
            entered = self.obs_input.finish(enter(stoch * kept))
            frames.append(self._obs_step(belief * kept, read, draw, entered, reset, parts))
            belief, stoch = frames[-1][:2]
        return _stacked("obs", frames)

    def _abs_step(
        self,
        belief: Tensor,
        stoch: Tensor,
        read: Tensor,
        draw: Tensor,
        entered: Tensor,
        parts: "Parts",
    ) -> "Level":
        """One frame (B, ...): new at READ, carried on at COPY."""
        gates = parts.gates(torch.cat([entered, belief], -1))
        belief = torch.lerp(belief, self.abs_cell.renew(gates, belief, parts.bias), read)
        mean, std = parts.moments(belief)
        stoch = torch.lerp(stoch, normal(mean, std, draw, self.min_std), read)
        return belief, stoch, mean, std

    def _obs_step(
        self,
        belief: Tensor,
        read: Tensor,
        draw: Tensor,
        entered: Tensor,
        reset: Tensor,
        parts: "Parts",
    ) -> "Level":
        """One frame (B, ...): `reset` at READ, its own recurrence at COPY."""
        gates = parts.gates(torch.cat([entered, belief], -1))
        belief = torch.lerp(self.obs_cell.renew(gates, belief, parts.bias), reset, read)
        mean, std = parts.moments(belief)
        return belief, normal(mean, std, draw, self.min_std), mean, std

    def _prior(self, post: Latent, first: Tensor) -> Latent:
        """What the priors say of the states `post` (B, T, ...), each before its frame is seen."""
        feat = self._obs_feat(post)
        raw = self._prior_raw(_restarted(F.pad(feat[:, :-1], (0, 0, 1, 0)), first))
        abs_mean, abs_std = self.abs_prior(post["abs_belief"])
        obs_mean, obs_std = self.obs_prior(post["obs_belief"])
        # A forced logit is the same constant on both sides.
        forced = post["forced"].unsqueeze(-1)
        return {
            "abs_mean": abs_mean,
            "abs_std": abs_std,
            "obs_mean": obs_mean,
            "obs_std": obs_std,
            "read_prob": raw.softmax(-1)[..., 0],
            "boundary_raw": raw,
            "boundary_logit": torch.where(forced, post["boundary_logit"].detach(), raw),
        }

    def _abs_feat(self, state: Latent) -> Tensor:
        return torch.cat([state["abs_belief"], state["abs_stoch"]], -1)

    def _obs_feat(self, state: Latent) -> Tensor:
        return torch.cat([state["obs_belief"], state["obs_stoch"]], -1)


class Detector(nn.Module):
    """Posterior boundary detector over time: (B, T, in_features) -> logits [READ, COPY] (B, T, 2).

    `depth` x [convolution of 3 frames, BatchNorm, SiLU], and one such convolution to the logits.
    """

    def __init__(self, in_features: int, hidden: int, depth: int) -> None:
        super().__init__()
        sizes = [in_features] + [hidden] * depth
        self.convs = nn.ModuleList(TimeConv(before, hidden, bias=False) for before in sizes[:-1])
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(depth))
        self.logit = TimeConv(sizes[-1], 2, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = wide(conv(x))
            x = F.silu(norm(x.flatten(0, 1)).view(x.shape))
        logit: Tensor = self.logit(x)
        return logit


class TimeConv(nn.Module):
    """Conv1d of kernel 3 and padding 1 over time: (B, T, in_features) -> (B, T, out).

    One matrix product for all three taps, then shifted sums. `weight` is (3, out, in_features),
    a Conv1d's permuted, and starts as PyTorch starts a Conv1d's.
    """

    def __init__(self, in_features: int, out: int, *, bias: bool) -> None:
        super().__init__()
        like = nn.Conv1d(in_features, out, 3, bias=bias)
        self.weight = nn.Parameter(like.weight.detach().permute(2, 0, 1).contiguous())
        self.bias = like.bias

    def forward(self, x: Tensor) -> Tensor:
        taps = F.linear(x, self.weight.flatten(0, 1))
        before, here, after = taps.chunk(3, -1)
        here = here + F.pad(before[:, :-1], (0, 0, 1, 0)) + F.pad(after[:, 1:], (0, 0, 0, 1))
        return here if self.bias is None else here + self.bias


class Gaussian(nn.Module):
    """Features (..., features) -> mean, std (..., stoch); std = softplus + `min_std`."""

    def __init__(self, features: int, stoch: int, min_std: float) -> None:
        super().__init__()
        self.stoch, self.min_std = stoch, min_std
        # Mean and deviation are two output layers in one product; each starts by its own fans.
        both = [output_(nn.Linear(features, stoch)) for _ in range(2)]
        self.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in both]))
        self.bias = nn.Parameter(torch.zeros(2 * stoch))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.moments(wide(F.linear(features, self.weight, self.bias)))

    def moments(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The products (..., 2 stoch) -> mean, std."""
        mean, std = raw.chunk(2, -1)
        return mean, F.softplus(std) + self.min_std


class Prior(nn.Module):
    """belief (..., belief) -> mean, std; a hidden layer only where belief is not `hidden` wide."""

    def __init__(self, belief: int, hidden: int, stoch: int, min_std: float) -> None:
        super().__init__()
        self.stoch = stoch
        self.body = Joined(hidden, belief=belief) if belief != hidden else None
        self.moments = Gaussian(hidden, stoch, min_std)

    def forward(self, belief: Tensor) -> tuple[Tensor, Tensor]:
        features = belief if self.body is None else self.body(belief=belief)
        moments: tuple[Tensor, Tensor] = self.moments(features)
        return moments


class Posterior(nn.Module):
    """[belief, other parts] -> Linear, LayerNorm, SiLU -> mean, std."""

    def __init__(self, hidden: int, stoch: int, min_std: float, **sizes: int) -> None:
        super().__init__()
        self.body = Joined(hidden, **sizes)
        self.moments = Gaussian(hidden, stoch, min_std)

    def unrolled(self, **parts: Tensor) -> Moments:
        """belief (B, belief) -> mean, std, step by step; the other parts are (B, T, size)."""
        base = self.body.project(**parts)
        look = Unrolled(base, self.body.weight["belief"])
        bias = self.moments.bias.expand(*base.shape[:2], -1)
        read = Unrolled(bias, self.moments.weight)
        return lambda belief: self.moments.moments(read(self.body.finish(look(belief))))


class Parts(NamedTuple):
    """What a step of a level multiplies by, and the bias of its cell's norm."""

    gates: Callable[[Tensor], Tensor]
    bias: Tensor
    moments: Moments


class _Chosen(NamedTuple):
    """(B, T) each: bools and counters."""

    read: Tensor
    over_len: Tensor
    over_num: Tensor
    seg_len: Tensor
    seg_num: Tensor


def _reads(scores: Tensor) -> Tensor:
    """A tie goes to READ."""
    return scores[..., 0] >= scores[..., 1]


def _columns(*columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """(B, T, size) each -> for each frame (B, size) of all."""
    return zip(*(column.unbind(1) for column in columns), strict=True)


def _stacked(level: str, frames: Sequence[Level]) -> Latent:
    return _named(level, [torch.stack(column, 1) for column in zip(*frames, strict=True)])


def _named(level: str, values: Sequence[Tensor]) -> Latent:
    names = (f"{level}_belief", f"{level}_stoch", f"{level}_mean", f"{level}_std")
    return dict(zip(names, values, strict=True))


def _restarted(before: Tensor, first: Tensor) -> Tensor:
    """The observation level of the state before: nothing where a new episode begins."""
    return before.masked_fill(first.unsqueeze(-1), 0.0)


def _now(states: Latent) -> Latent:
    return {name: value[:, 0] for name, value in states.items()}


def _detached(state: Latent) -> Latent:
    return {name: value.detach() for name, value in state.items()}


def _levels_kl(read: Tensor, post: Latent, prior: Latent) -> Tensor:
    return read * _level_kl("abs", post, prior) + _level_kl("obs", post, prior)


def _level_kl(level: str, post: Latent, prior: Latent) -> Tensor:
    mean, std = f"{level}_mean", f"{level}_std"
    return normal_kl(post[mean], post[std], prior[mean], prior[std])


def _boundary_kl(post_logit: Tensor, prior_logit: Tensor) -> Tensor:
    log_post, log_prior = wide(post_logit).log_softmax(-1), wide(prior_logit).log_softmax(-1)
    return (log_post.exp() * (log_post - log_prior)).sum(-1)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"VTA: {name} must be one of {', '.join(allowed)}, not {value!r}")
