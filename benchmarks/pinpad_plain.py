"""The world-model study's update, transcribed plainly: what `pinpad_update.py` measures ours against.

Written from the formulas as one would write them in the style of the published PyTorch ports of
DreamerV3 (Hafner et al. 2023): a Python scan that concatenates what it has so far with the next
step, every head inside the scan, NCHW convolutions with a channel LayerNorm that permutes there and
back, `torch.distributions`, a plain `torch.optim.Adam` per group. The dynamics are an RSSM (Hafner
et al. 2019, 2023) or VTA (Kim et al. 2019) with the study's changes. No speed is thrown away on
purpose, and none is sought.

A batch is (image, action, reward, is_first, cont): (B, T, 64, 64, 3) float32 in 0..1,
(B, T, actions) one-hot, (B, T), (B, T) bool, (B, T).
"""

# mypy: disable-error-code="no-untyped-call, no-any-return, type-arg"

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributions as torchd
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
DynamicsKind = Literal["rssm", "vta"]


@dataclass(frozen=True)
class Sizes:
    """Widths and switches; the defaults are the study's."""

    dynamics: DynamicsKind = "rssm"
    width: int = 512  # deter, both beliefs, hidden layers, heads
    stoch: int = 32
    classes: int = 32
    depth: int = 32
    horizon: int = 15
    actions: int = 5
    max_seg_len: int = 50
    max_seg_num: int = 200
    temp: float = 1.0
    force_scale: float = 10.0
    rate: float = 0.0
    rate_scale: float = 0.0
    posterior_input: Literal["embed", "embed_reward"] = "embed"
    obs_action_input: bool = False
    gradient: Literal["reinforce", "dynamics"] = "reinforce"
    entropy: float = 3e-4
    entropy_through_dynamics: bool = True


class Draws:
    """Where the randomness comes from; a test puts its own in place. `name` says what is drawn."""

    def one_hot(self, name: str, dist: torchd.OneHotCategorical) -> Tensor:
        return dist.sample()

    def normal(self, name: str, mean: Tensor, std: Tensor) -> Tensor:
        return torchd.Normal(mean, std).rsample()

    def uniform(self, name: str, like: Tensor) -> Tensor:
        return torch.rand_like(like)


# ----------------------------------------------------------------------------------- distributions


class OneHotDist(torchd.OneHotCategorical):
    """One-hot classes with 1% of uniform probability and straight-through gradients."""

    def __init__(self, logits: Tensor, unimix: float = 0.01) -> None:
        probs = F.softmax(logits, dim=-1)
        probs = probs * (1.0 - unimix) + unimix / probs.shape[-1]
        super().__init__(logits=torch.log(probs))

    def straight_through(self, hard: Tensor) -> Tensor:
        return hard.detach() + (self.probs - self.probs.detach())

    def best(self) -> Tensor:
        """The likeliest class."""
        return F.one_hot(torch.argmax(self.logits, dim=-1), self.logits.shape[-1]).float()


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log(torch.abs(x) + 1.0)


def symexp(x: Tensor) -> Tensor:
    return torch.sign(x) * (torch.exp(torch.abs(x)) - 1.0)


class TwoHotDist:
    """A number as a distribution over 255 places between symlog values of -20 and 20."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.buckets = torch.linspace(-20.0, 20.0, steps=logits.shape[-1], device=logits.device)

    def mode(self) -> Tensor:
        return symexp(torch.sum(torch.softmax(self.logits, -1) * self.buckets, -1, keepdim=True))

    def log_prob(self, x: Tensor) -> Tensor:
        """x (..., 1) -> (...)"""
        x = symlog(x)
        count = len(self.buckets)
        below = torch.sum((self.buckets <= x[..., None]).to(torch.int32), dim=-1) - 1
        above = count - torch.sum((self.buckets > x[..., None]).to(torch.int32), dim=-1)
        below = torch.clip(below, 0, count - 1).long()
        above = torch.clip(above, 0, count - 1).long()
        equal = below == above
        to_below = torch.where(equal, 1, torch.abs(self.buckets[below] - x))
        to_above = torch.where(equal, 1, torch.abs(self.buckets[above] - x))
        total = to_below + to_above
        target = (
            F.one_hot(below, num_classes=count) * (to_above / total)[..., None]
            + F.one_hot(above, num_classes=count) * (to_below / total)[..., None]
        )
        log_pred = self.logits - torch.logsumexp(self.logits, -1, keepdim=True)
        return (target.squeeze(-2) * log_pred).sum(-1)


# -------------------------------------------------------------------------------------------- nets


def hidden_init(m: nn.Module) -> None:
    if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        space = 1 if isinstance(m, nn.Linear) else m.kernel_size[0] * m.kernel_size[1]
        fan = space * (m.weight.shape[0] + m.weight.shape[1]) / 2.0
        std = math.sqrt(1.0 / fan) / 0.87962566103423978
        nn.init.trunc_normal_(m.weight, std=std, a=-2.0 * std, b=2.0 * std)
        if m.bias is not None:
            m.bias.data.fill_(0.0)


def output_init(outscale: float) -> Callable[[nn.Module], None]:
    def init(m: nn.Module) -> None:
        if isinstance(m, nn.Linear | nn.ConvTranspose2d):
            space = 1 if isinstance(m, nn.Linear) else m.kernel_size[0] * m.kernel_size[1]
            fan = space * (m.weight.shape[0] + m.weight.shape[1]) / 2.0
            limit = math.sqrt(3.0 * outscale / fan)
            nn.init.uniform_(m.weight, a=-limit, b=limit)
            if m.bias is not None:
                m.bias.data.fill_(0.0)

    return init


def dense(inputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, units, bias=False), nn.LayerNorm(units, eps=1e-3), nn.SiLU()
    ).apply(hidden_init)


def output(inputs: int, units: int, outscale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, units)
    layer.apply(output_init(outscale))
    return layer


class MLP(nn.Module):
    """Two hidden layers and an output."""

    def __init__(self, inputs: int, units: int, outputs: int, outscale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(dense(inputs, units), dense(units, units))
        self.out = output(units, outputs, outscale)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))


class ChannelNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x)
        return x.permute(0, 3, 1, 2)


class SamePadConv(nn.Conv2d):
    """Kernel 4, stride 2, padded so that the sides halve."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [1, 1, 1, 1]), self.weight, self.bias, self.stride)


class ConvEncoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = [3, depth, 2 * depth, 4 * depth, 8 * depth]
        for before, after in pairwise(channels):
            layers += [SamePadConv(before, after, 4, 2, bias=False), ChannelNorm(after), nn.SiLU()]
        self.layers = nn.Sequential(*layers).apply(hidden_init)
        self.out_features = 8 * depth * 16

    def forward(self, image: Tensor) -> Tensor:
        x = image - 0.5
        x = x.reshape((-1, *image.shape[-3:]))
        x = x.permute(0, 3, 1, 2)
        x = self.layers(x)
        x = x.reshape([x.shape[0], math.prod(x.shape[1:])])
        return x.reshape([*image.shape[:-3], x.shape[-1]])


class ConvDecoder(nn.Module):
    def __init__(self, inputs: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 8 * depth * 16)
        self.linear.apply(output_init(1.0))
        layers: list[nn.Module] = []
        channels = [8 * depth, 4 * depth, 2 * depth, depth]
        for before, after in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, padding=1, bias=False),
                ChannelNorm(after),
                nn.SiLU(),
            ]
        last = nn.ConvTranspose2d(depth, 3, 4, 2, padding=1)
        self.layers = nn.Sequential(*layers).apply(hidden_init)
        self.layers.append(last.apply(output_init(1.0)))

    def forward(self, feat: Tensor) -> Tensor:
        x = self.linear(feat)
        x = x.reshape([-1, 4, 4, x.shape[-1] // 16])
        x = x.permute(0, 3, 1, 2)
        x = self.layers(x)
        mean = x.reshape([*feat.shape[:-1], *x.shape[1:]])
        mean = mean.permute(0, 1, 3, 4, 2)
        return mean + 0.5


class GRUCell(nn.Module):
    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(inputs + size, 3 * size, bias=False)
        self.norm = nn.LayerNorm(3 * size, eps=1e-3)
        self.linear.apply(hidden_init)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        parts = self.norm(self.linear(torch.cat([x, state], -1)))
        reset, cand, update = torch.split(parts, [self.size] * 3, -1)
        reset = torch.sigmoid(reset)
        cand = torch.tanh(reset * cand)
        update = torch.sigmoid(update - 1)
        return update * cand + (1 - update) * state


# ---------------------------------------------------------------------------------------- dynamics


def static_scan(
    step: Callable[..., tuple[Any, ...]], inputs: Sequence[Tensor], start: tuple[Any, ...]
) -> list[Any]:
    """Each part of what `step` answers, over the first dimension of `inputs`."""
    last, outputs = start, []
    for index in range(inputs[0].shape[0]):
        last = step(last, *[each[index] for each in inputs])
        if index == 0:
            outputs = [_first(part) for part in last]
        else:
            outputs = [_appended(so_far, part) for so_far, part in zip(outputs, last, strict=True)]
    return outputs


def _first(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: value.clone().unsqueeze(0) for key, value in part.items()}
    return part.clone().unsqueeze(0)


def _appended(so_far: Any, part: Any) -> Any:
    if isinstance(part, dict):
        return {
            key: torch.cat([so_far[key], value.unsqueeze(0)], dim=0) for key, value in part.items()
        }
    return torch.cat([so_far, part.unsqueeze(0)], dim=0)


def swap(x: Tensor) -> Tensor:
    return x.permute([1, 0, *range(2, x.ndim)])


class Dynamics(nn.Module):
    """The scan over a chunk, and what is_first does, for both kinds."""

    out_features: int

    def initial(self, batch: int) -> State:
        raise NotImplementedError

    def obs_step(
        self, state: State | None, action: Tensor, is_first: Tensor, *given: Tensor
    ) -> tuple[State, State]:
        raise NotImplementedError

    def img_step(self, state: State, action: Tensor) -> State:
        raise NotImplementedError

    def get_feat(self, state: State) -> Tensor:
        raise NotImplementedError

    def given(self, embed: Tensor, reward: Tensor) -> list[Tensor]:
        """What each step is given, (B, T, ...)."""
        return [embed]

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, reward: Tensor
    ) -> tuple[State, State]:
        inputs = [swap(x) for x in (action, is_first, *self.given(embed, reward))]
        post, prior = static_scan(
            lambda last, action, is_first, *given: self.obs_step(last[0], action, is_first, *given),
            inputs,
            (None, None),
        )
        return {k: swap(v) for k, v in post.items()}, {k: swap(v) for k, v in prior.items()}

    def restart(
        self, state: State | None, action: Tensor, is_first: Tensor
    ) -> tuple[State, Tensor]:
        """The initial state, and no action, where is_first."""
        if state is None or torch.sum(is_first) == len(is_first):
            return self.initial(len(is_first)), torch.zeros_like(action)
        if torch.sum(is_first) > 0:
            first = is_first.float()[:, None]
            action = action * (1.0 - first)
            initial, state = self.initial(len(is_first)), dict(state)
            for key, value in state.items():
                mask = torch.reshape(first, first.shape + (1,) * (value.ndim - 2))
                state[key] = value * (1.0 - mask) + initial[key] * mask
        return state, action


class RSSM(Dynamics):
    def __init__(self, embed: int, sizes: Sizes, draws: Draws) -> None:
        super().__init__()
        self.sizes, self.draws = sizes, draws
        width, latent = sizes.width, sizes.stoch * sizes.classes
        self.img_in = dense(latent + sizes.actions, width)
        self.cell = GRUCell(width, width)
        self.img_out = dense(width, width)
        self.obs_out = dense(width + embed, width)
        self.img_stats = output(width, latent)
        self.obs_stats = output(width, latent)
        self.start = nn.Parameter(torch.zeros(1, width))
        self.out_features = latent + width

    def get_dist(self, state: State) -> torchd.Independent:
        return torchd.Independent(OneHotDist(state["logit"]), 1)

    def initial(self, batch: int) -> State:
        deter = torch.tanh(self.start).repeat(batch, 1)
        logit = self.shaped(self.img_stats(self.img_out(deter)))
        stoch = OneHotDist(logit).best()
        return {"deter": deter, "stoch": stoch, "logit": torch.zeros_like(logit)}

    def shaped(self, x: Tensor) -> Tensor:
        return x.reshape([*x.shape[:-1], self.sizes.stoch, self.sizes.classes])

    def sample(self, name: str, logit: Tensor) -> Tensor:
        dist = OneHotDist(logit)
        return dist.straight_through(self.draws.one_hot(name, dist))

    def obs_step(
        self, state: State | None, action: Tensor, is_first: Tensor, *given: Tensor
    ) -> tuple[State, State]:
        state, action = self.restart(state, action, is_first)
        prior = self.img_step(state, action)
        x = self.obs_out(torch.cat([prior["deter"], given[0]], -1))
        logit = self.shaped(self.obs_stats(x))
        post = {"deter": prior["deter"], "stoch": self.sample("post", logit), "logit": logit}
        return post, prior

    def img_step(self, state: State, action: Tensor) -> State:
        stoch = state["stoch"].reshape([*state["stoch"].shape[:-2], -1])
        x = self.img_in(torch.cat([stoch, action], -1))
        deter = self.cell(x, state["deter"])
        logit = self.shaped(self.img_stats(self.img_out(deter)))
        return {"deter": deter, "stoch": self.sample("prior", logit), "logit": logit}

    def get_feat(self, state: State) -> Tensor:
        stoch = state["stoch"].reshape([*state["stoch"].shape[:-2], -1])
        return torch.cat([stoch, state["deter"]], -1)

    def losses(self, post: State, prior: State) -> dict[str, Tensor]:
        """(B, T) of each term, unweighted; 0.5 dyn + 0.1 rep is the loss."""
        kl = torchd.kl.kl_divergence
        sg = lambda state: {k: v.detach() for k, v in state.items()}
        rep = kl(self.get_dist(post), self.get_dist(sg(prior)))
        dyn = kl(self.get_dist(sg(post)), self.get_dist(prior))
        return {"dyn": torch.clip(dyn, min=1.0), "rep": torch.clip(rep, min=1.0)}

    def report(self, post: State, prior: State) -> dict[str, Tensor]:
        return {
            "prior_ent": self.get_dist(prior).entropy().mean(),
            "post_ent": self.get_dist(post).entropy().mean(),
        }


class Gaussian(nn.Module):
    """Mean and deviation; a hidden layer first where the input is not `hidden` wide."""

    def __init__(self, inputs: int, hidden: int, size: int) -> None:
        super().__init__()
        self.hidden = dense(inputs, hidden) if inputs != hidden else nn.Identity()
        self.mean, self.std = output(hidden, size), output(hidden, size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(x)
        return self.mean(x), F.softplus(self.std(x)) + 0.1


class VTA(Dynamics):
    """Class 0 of a boundary is READ, class 1 COPY."""

    def __init__(self, embed: int, sizes: Sizes, draws: Draws) -> None:
        super().__init__()
        self.sizes, self.draws = sizes, draws
        width, size = sizes.width, sizes.stoch
        feat, act = width + size, sizes.actions
        seen = embed + (sizes.posterior_input == "embed_reward")
        self.post_detector = nn.Sequential(
            nn.Conv1d(seen, width, 3, padding=1, bias=False),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, 2, 3, padding=1),
        )
        self.prior_detector = nn.Sequential(dense(feat, width), output(width, 2))
        self.abs_in = dense(size + act, width)
        self.abs_cell = GRUCell(width, width)
        self.abs_prior = Gaussian(width, width, size)
        self.abs_post = Gaussian(width + embed, width, size)
        self.obs_start = dense(feat, width)
        self.obs_in = dense(size + feat + act * sizes.obs_action_input, width)
        self.obs_cell = GRUCell(width, width)
        self.obs_prior = Gaussian(width, width, size)
        self.obs_post = Gaussian(width + feat + embed, width, size)
        self.start = nn.Parameter(torch.zeros(1, width))
        self.out_features = 2 * feat

    def initial(self, batch: int) -> State:
        width, size = self.sizes.width, self.sizes.stoch
        zeros = lambda n: self.start.new_zeros(batch, n)
        state = {"abs_belief": self.start.repeat(batch, 1), "obs_belief": zeros(width)}
        for level in ("abs", "obs"):
            state[f"{level}_stoch"], state[f"{level}_mean"] = zeros(size), zeros(size)
            state[f"{level}_std"] = zeros(size) + 0.1
        return state | {
            "boundary": zeros(1) + 1,
            "boundary_logit": zeros(2),
            "seg_len": zeros(1),
            "seg_num": zeros(1),
        }

    def given(self, embed: Tensor, reward: Tensor) -> list[Tensor]:
        seen = embed
        if self.sizes.posterior_input == "embed_reward":
            seen = torch.cat([embed, reward[..., None]], -1)
        logits = self.post_detector(seen.permute(0, 2, 1)).permute(0, 2, 1)
        return [embed, logits]

    def force(self, logits: Tensor, state: State) -> Tensor:
        scale = self.sizes.force_scale
        if scale <= 0:
            return logits
        read = torch.tensor([scale, -scale], device=logits.device)
        logits = torch.where(state["seg_len"] >= self.sizes.max_seg_len, read, logits)
        return torch.where(state["seg_num"] >= self.sizes.max_seg_num, -read, logits)

    def boundary(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            u = self.draws.uniform("boundary", logits).clamp(1e-8, 1.0 - 2.0**-24)
            logits = logits - torch.log(-torch.log(u))
        probs = F.softmax(logits / self.sizes.temp, -1)
        hard = F.one_hot(torch.argmax(probs, -1), 2).float()
        # From left to right, hard + probs - probs rounds, and counters of segments miss their limit.
        mask = hard + (probs - probs.detach())
        return mask[..., :1], mask[..., 1:]

    def sample(self, name: str, mean: Tensor, std: Tensor) -> Tensor:
        mean = torch.where(torch.isnan(mean), torch.zeros_like(mean), mean)
        std = torch.nan_to_num(std, nan=0.1, posinf=1.0, neginf=0.1).clamp(0.1, 100.0)
        return self.draws.normal(name, mean, std)

    def prior_logits(self, state: State) -> Tensor:
        feat = torch.cat([state["obs_belief"], state["obs_stoch"]], -1)
        return self.force(self.prior_detector(feat), state)

    def transit(
        self, state: State, action: Tensor, logits: Tensor, embed: Tensor | None
    ) -> tuple[State, State]:
        """One step with READ and COPY drawn from `logits`; from the prior without `embed`."""
        read, copy = self.boundary(logits)
        seen = "prior" if embed is None else "post"

        x = self.abs_in(torch.cat([state["abs_stoch"], action], -1))
        belief = self.abs_cell(x, state["abs_belief"])
        abs_belief = read * belief + copy * state["abs_belief"]
        abs_prior = self.abs_prior(abs_belief)
        mean, std = abs_prior
        if embed is not None:
            mean, std = self.abs_post(torch.cat([abs_belief, embed], -1))
        drawn = self.sample(f"abs_{seen}", mean, std)
        abs_stoch = read * drawn + copy * state["abs_stoch"]
        abs_feat = torch.cat([abs_belief, abs_stoch], -1)

        x = torch.cat([state["obs_stoch"], abs_feat], -1)
        if self.sizes.obs_action_input:
            x = torch.cat([x, action], -1)
        belief = self.obs_cell(self.obs_in(x), state["obs_belief"])
        obs_belief = read * self.obs_start(abs_feat) + copy * belief
        obs_prior = self.obs_prior(obs_belief)
        obs_mean, obs_std = obs_prior
        if embed is not None:
            obs_mean, obs_std = self.obs_post(torch.cat([obs_belief, abs_feat, embed], -1))
        obs_stoch = self.sample(f"obs_{seen}", obs_mean, obs_std)

        state = {
            "abs_belief": abs_belief,
            "abs_stoch": abs_stoch,
            "abs_mean": mean,
            "abs_std": std,
            "obs_belief": obs_belief,
            "obs_stoch": obs_stoch,
            "obs_mean": obs_mean,
            "obs_std": obs_std,
            "boundary": read,
            "boundary_logit": logits,
            "seg_len": read + copy * (state["seg_len"] + 1),
            "seg_num": read * (state["seg_num"] + 1) + copy * state["seg_num"],
        }
        prior = {
            "abs_mean": abs_prior[0],
            "abs_std": abs_prior[1],
            "obs_mean": obs_prior[0],
            "obs_std": obs_prior[1],
        }
        return state, prior

    def obs_step(
        self, state: State | None, action: Tensor, is_first: Tensor, *given: Tensor
    ) -> tuple[State, State]:
        embed, logits = given
        state, action = self.restart(state, action, is_first)
        prior_logits = self.prior_logits(state)
        post, prior = self.transit(state, action, self.force(logits, state), embed)
        return post, prior | {"boundary_logit": prior_logits}

    def img_step(self, state: State, action: Tensor) -> State:
        return self.transit(state, action, self.prior_logits(state), None)[0]

    def get_feat(self, state: State) -> Tensor:
        names = ("abs_belief", "abs_stoch", "obs_belief", "obs_stoch")
        return torch.cat([state[name] for name in names], -1)

    def normal(self, state: State, level: str) -> torchd.Independent:
        return torchd.Independent(torchd.Normal(state[f"{level}_mean"], state[f"{level}_std"]), 1)

    def detector(self, state: State) -> torchd.Categorical:
        return torchd.Categorical(logits=state["boundary_logit"])

    def losses(self, post: State, prior: State) -> dict[str, Tensor]:
        """(B, T) of each term; 0.5 dyn + 0.1 rep + mask + rate_scale rate is the loss."""
        kl = torchd.kl.kl_divergence
        sg = lambda state: {k: v.detach() for k, v in state.items()}
        read = post["boundary"][..., 0]

        def both(left: State, right: State) -> Tensor:
            levels = [
                kl(self.normal(left, level), self.normal(right, level)) for level in ("abs", "obs")
            ]
            return torch.clip(read * levels[0] + levels[1], min=1.0)

        terms = {"dyn": both(sg(post), prior), "rep": both(post, sg(prior))}
        terms["mask"] = kl(self.detector(sg(post)), self.detector(prior))
        if self.sizes.rate > 0:
            p = F.softmax(post["boundary_logit"], -1)[..., 0].clamp(1e-6, 1 - 1e-6)
            rate = torch.tensor(self.sizes.rate)
            terms["rate"] = p * (torch.log(p) - torch.log(rate)) + (1 - p) * (
                torch.log(1 - p) - torch.log(1 - rate)
            )
        return terms

    def report(self, post: State, prior: State) -> dict[str, Tensor]:
        told = {"boundary_ratio": post["boundary"].mean()}
        told["kl_mask"] = torchd.kl.kl_divergence(self.detector(post), self.detector(prior)).mean()
        for name, state in (("post", post), ("prior", prior)):
            for level in ("abs", "obs"):
                told[f"{name}_{level}_ent"] = self.normal(state, level).entropy().mean()
        return told


# --------------------------------------------------------------------------------------- the agent


class Optimizer:
    """Adam with its own clipping."""

    def __init__(self, parameters: Iterator[nn.Parameter], lr: float, eps: float, clip: float):
        self.parameters = list(parameters)
        self.clip = clip
        self.adam = torch.optim.Adam(self.parameters, lr=lr, eps=eps)

    def __call__(self, loss: Tensor) -> dict[str, float]:
        self.adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        self.adam.zero_grad()
        return {"loss": loss.item(), "grad_norm": norm.item()}


@contextmanager
def requires_grad(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(True)
    yield
    model.requires_grad_(False)


class WorldModel(nn.Module):
    def __init__(self, sizes: Sizes, draws: Draws) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder = ConvEncoder(sizes.depth)
        kind = RSSM if sizes.dynamics == "rssm" else VTA
        self.dynamics: Any = kind(self.encoder.out_features, sizes, draws)
        feat = self.dynamics.out_features
        self.decoder = ConvDecoder(feat, sizes.depth)
        self.reward = MLP(feat, sizes.width, 255, outscale=0.0)
        self.cont = MLP(feat, sizes.width, 1)

    def losses(self, batch: Batch) -> tuple[State, State, dict[str, Tensor]]:
        """(B, T) of each term, unweighted."""
        image, action, reward, is_first, cont = batch
        embed = self.encoder(image)
        post, prior = self.dynamics.observe(embed, action, is_first, reward)
        feat = self.dynamics.get_feat(post)
        mean = self.decoder(feat)
        terms = {
            "image": ((mean - image) ** 2).sum([-3, -2, -1]),
            "reward": -TwoHotDist(self.reward(feat)).log_prob(reward[..., None]),
            "cont": -torchd.Bernoulli(logits=self.cont(feat)).log_prob(cont[..., None])[..., 0],
        }
        return post, prior, terms | self.dynamics.losses(post, prior)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        weights = {"dyn": 0.5, "rep": 0.1, "rate": self.sizes.rate_scale}
        return torch.mean(sum(weights.get(name, 1.0) * term for name, term in terms.items()))  # type: ignore[arg-type]


def lambda_return(
    reward: Tensor, value: Tensor, disc: Tensor, bootstrap: Tensor, decay: float
) -> Tensor:
    """R_k = r_k + d_k ((1 - decay) v_{k+1} + decay R_{k+1})."""
    following = torch.cat([value[1:], bootstrap[None]], 0)
    inputs = reward + disc * following * (1 - decay)
    last, returns = bootstrap, []
    for k in reversed(range(len(inputs))):
        last = inputs[k] + disc[k] * decay * last
        returns.append(last)
    return torch.stack(returns[::-1], 0)


class Behaviour(nn.Module):
    def __init__(self, world: WorldModel, sizes: Sizes, draws: Draws) -> None:
        super().__init__()
        self.sizes, self.draws = sizes, draws
        self.world = [world]  # not a part of this module
        feat = world.dynamics.out_features
        self.actor = MLP(feat, sizes.width, sizes.actions)
        self.value = MLP(feat, sizes.width, 255, outscale=0.0)
        self.slow_value = copy.deepcopy(self.value)
        self.range: Tensor = torch.zeros(2)

    def policy(self, feat: Tensor) -> OneHotDist:
        return OneHotDist(self.actor(feat))

    def imagine(self, start: State) -> tuple[Tensor, Tensor]:
        """feat (H, N, F) and the action (H, N, A) taken there."""
        dynamics = self.world[0].dynamics
        start = {k: v.reshape([-1, *v.shape[2:]]) for k, v in start.items()}

        def step(last: tuple[Any, ...], _: Tensor) -> tuple[State, Tensor, Tensor]:
            state = last[0]
            feat = dynamics.get_feat(state)
            dist = self.policy(feat.detach())
            action = dist.straight_through(self.draws.one_hot("action", dist))
            return dynamics.img_step(state, action), feat, action

        _, feats, actions = static_scan(step, [torch.arange(self.sizes.horizon)], (start,))
        return feats, actions

    def targets(self, feat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (H-1, N, 1), weights (H, N, 1), values (H-1, N, 1)."""
        world = self.world[0]
        reward = TwoHotDist(world.reward(feat)).mode()
        disc = 0.997 * torchd.Bernoulli(logits=world.cont(feat)).mean
        value = TwoHotDist(self.value(feat)).mode()
        returns = lambda_return(reward[1:], value[:-1], disc[1:], value[-1], 0.95)
        weights = torch.cumprod(torch.cat([torch.ones_like(disc[:1]), disc[:-1]], 0), 0).detach()
        return returns, weights, value[:-1]

    def update_range(self, returns: Tensor) -> Tensor:
        """The running 5% to 95% range of returns, at least 1: logged."""
        quantiles = torch.quantile(returns.detach().flatten(), torch.tensor([0.05, 0.95]))
        self.range = 0.01 * quantiles + 0.99 * self.range
        return torch.clip(self.range[1] - self.range[0], min=1.0)

    def actor_losses(self, feat: Tensor, action: Tensor) -> tuple[dict[str, Tensor], State]:
        """The terms of the actor's loss, 0-dim, and the targets they were made from."""
        entropy_feat = feat if self.sizes.entropy_through_dynamics else feat.detach()
        entropy = self.policy(entropy_feat).entropy()[:-1]
        returns, weights, value = self.targets(feat)
        scale = self.update_range(returns)
        policy = self.policy(feat.detach())
        if self.sizes.gradient == "reinforce":
            base = TwoHotDist(self.value(feat[:-1])).mode()
            target = policy.log_prob(action)[:-1][..., None] * (returns - base).detach()
        else:
            target = returns - value
        terms = {
            "policy": torch.mean(-weights[:-1] * target),
            "entropy": -torch.mean(entropy),
        }
        return terms, {"returns": returns, "weights": weights, "value": value, "scale": scale}

    def critic_losses(self, feat: Tensor, returns: Tensor, weights: Tensor) -> dict[str, Tensor]:
        value = TwoHotDist(self.value(feat[:-1].detach()))
        slow = TwoHotDist(self.slow_value(feat[:-1].detach()))
        own = -value.log_prob(returns.detach())
        regular = -value.log_prob(slow.mode().detach())
        return {
            "value": torch.mean(weights[:-1] * own[..., None]),
            "slow": torch.mean(weights[:-1] * regular[..., None]),
        }

    def update_slow(self) -> None:
        mix = 0.02
        for s, d in zip(self.value.parameters(), self.slow_value.parameters(), strict=True):
            d.data = mix * s.data + (1 - mix) * d.data


class Agent:
    """Both models and their optimizers; `train` is one update."""

    def __init__(self, sizes: Sizes, draws: Draws | None = None) -> None:
        self.sizes = sizes
        draws = draws or Draws()
        self.world = WorldModel(sizes, draws)
        self.behaviour = Behaviour(self.world, sizes, draws)
        self.world.requires_grad_(False)
        self.behaviour.requires_grad_(False)
        self.model_opt = Optimizer(self.world.parameters(), lr=1e-4, eps=1e-8, clip=1000.0)
        self.actor_opt = Optimizer(self.behaviour.actor.parameters(), lr=3e-5, eps=1e-5, clip=100.0)
        self.value_opt = Optimizer(self.behaviour.value.parameters(), lr=3e-5, eps=1e-5, clip=100.0)

    def train(self, batch: Batch) -> dict[str, float]:
        start, figures = self.train_world(batch)
        return figures | self.train_behaviour(start)

    def train_world(self, batch: Batch) -> tuple[State, dict[str, float]]:
        with requires_grad(self.world):
            post, prior, terms = self.world.losses(batch)
            figures = named("model", self.model_opt(self.world.total(terms)))
        figures |= {name: term.mean().item() for name, term in terms.items()}
        with torch.no_grad():
            report = self.world.dynamics.report(post, prior)
            figures |= {name: value.item() for name, value in report.items()}
        return {k: v.detach() for k, v in post.items()}, figures

    def train_behaviour(self, start: State) -> dict[str, float]:
        behaviour = self.behaviour
        with requires_grad(behaviour.actor):
            feat, action = behaviour.imagine(start)
            terms, targets = behaviour.actor_losses(feat, action)
            loss = terms["policy"] + self.sizes.entropy * terms["entropy"]
            figures = named("actor", self.actor_opt(loss))
        figures |= {name: term.item() for name, term in terms.items()}
        figures["scale"] = targets["scale"].item()
        with requires_grad(behaviour.value):
            terms = behaviour.critic_losses(feat, targets["returns"], targets["weights"])
            figures |= named("value", self.value_opt(terms["value"] + terms["slow"]))
        behaviour.update_slow()
        return figures | {name: term.item() for name, term in terms.items()}


def named(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in figures.items()}
