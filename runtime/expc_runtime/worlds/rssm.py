"""The recurrent state-space model of DreamerV3 (Hafner et al. 2023), categorical latents."""

import torch
from torch import Tensor, nn

from expc_runtime.worlds.init import output_
from expc_runtime.worlds.sampling import choose, log_mixed, mixed, uniform, wide
from expc_runtime.worlds.unroll import Cell, Joined, Unrolled, anew

__all__ = ["RSSM"]

Latent = dict[str, Tensor]


class RSSM(nn.Module):
    """Deterministic path `deter`, and `stoch` categoricals of `classes` classes each.

    A state is {deter (..., deter), stoch (..., stoch, classes) one-hot, logit (..., stoch,
    classes)}, float32; features are [stoch flat, deter]. `embed` and `actions` are the sizes of
    an observation's embedding and of an action. Probabilities are (1 - `unimix`) softmax +
    `unimix` / classes, in draws and in the KL, which costs at least `free` nats. Multiplies
    under autocast; norms, draws and losses stay in float32.
    """

    def __init__(
        self,
        embed: int,
        actions: int,
        *,
        deter: int = 512,
        stoch: int = 32,
        classes: int = 32,
        hidden: int = 512,
        unimix: float = 0.01,
        free: float = 1.0,
    ) -> None:
        super().__init__()
        self.latent_shape = (stoch, classes)
        self.unimix, self.free = unimix, free
        flat = stoch * classes
        self.out_features = flat + deter
        self.start = nn.Parameter(torch.zeros(deter))
        self.input = Joined(hidden, stoch=flat, action=actions)
        self.cell = Cell(hidden, deter)
        self.prior = Joined(hidden, deter=deter)
        self.prior_logit = output_(nn.Linear(hidden, flat))
        self.post = Joined(hidden, deter=deter, embed=embed)
        self.post_logit = output_(nn.Linear(hidden, flat))

    def initial(self, batch: int) -> Latent:
        """The state before the first observation: `stoch` is the prior's mode, no gradient."""
        deter = self.start.tanh().expand(batch, -1)
        logit = self._prior(deter)
        with torch.no_grad():
            best = logit.argmax(-1, keepdim=True)
            stoch = torch.zeros_like(logit).scatter_(-1, best, 1.0)
        return {"deter": deter, "stoch": stoch, "logit": torch.zeros_like(logit)}

    def observe(self, embed: Tensor, action: Tensor, is_first: Tensor) -> tuple[Latent, Latent]:
        """Posterior and prior of a chunk: the states, and the prior's {deter, logit}; (B, T, ...).

        `embed` (B, T, embed), `action` (B, T, actions) the one that led here, `is_first` (B, T)
        bool. The state starts anew, without an action, where `is_first` and at t = 0.
        """
        batch, steps = is_first.shape
        first = is_first | (torch.arange(steps, device=is_first.device) == 0)
        noise = self.noise(batch, steps)
        post = self._posterior(self.initial(batch), embed, action, first, noise)
        return post, {"deter": post["deter"], "logit": self._prior(post["deter"])}

    def filter(self, state: Latent, embed: Tensor, action: Tensor, is_first: Tensor) -> Latent:
        """One step of `observe`: embed (B, embed), action (B, actions), is_first (B,) bool."""
        state = anew(state, self.initial(len(embed)), is_first)
        made = self._posterior(
            state, embed[:, None], action[:, None], is_first[:, None], self.noise(len(embed), 1)
        )
        return {name: value[:, 0] for name, value in made.items()}

    def imagine(self, state: Latent, action: Tensor) -> Latent:
        """One step by the prior: state (N, ...), action (N, actions) taken in it."""
        entered = self.input(stoch=state["stoch"].flatten(-2), action=action)
        gates = self.cell.gates(torch.cat([entered, state["deter"]], -1))
        deter = self.cell.renew(gates, state["deter"], self.cell.bias())
        logit = self._prior(deter)
        stoch = choose(mixed(logit, self.unimix), self.noise(len(action), 1)[:, 0])
        return {"deter": deter, "stoch": stoch, "logit": logit}

    def features(self, state: Latent) -> Tensor:
        """[stoch flat, deter] (..., out_features)."""
        return torch.cat([state["stoch"].flatten(-2), state["deter"]], -1)

    def kl(self, post: Latent, prior: Latent) -> tuple[Tensor, Tensor]:
        """dyn, rep: KL(sg(post) || prior) and KL(post || sg(prior)), 0-dim.

        Summed over the categoricals, at least `free` for each (b, t), then the mean.
        """
        p, log_p = mixed(post["logit"], self.unimix), log_mixed(post["logit"], self.unimix)
        log_q = log_mixed(prior["logit"], self.unimix)
        dyn = (p.detach() * (log_p.detach() - log_q)).sum((-2, -1))
        rep = (p * (log_p - log_q.detach())).sum((-2, -1))
        return dyn.clamp(min=self.free).mean(), rep.clamp(min=self.free).mean()

    @torch.no_grad()
    def report(self, post: Latent, prior: Latent) -> Latent:
        """post_entropy and prior_entropy in nats, summed over the categoricals; 0-dim."""
        return {
            "post_entropy": self._entropy(post["logit"]),
            "prior_entropy": self._entropy(prior["logit"]),
        }

    def noise(self, batch: int, steps: int) -> Tensor:
        """The uniforms of the latents' draws, (B, T, stoch), in one call."""
        return uniform(batch, steps, self.latent_shape[0], device=self.start.device)

    def _posterior(
        self, state: Latent, embed: Tensor, action: Tensor, first: Tensor, noise: Tensor
    ) -> Latent:
        """States (B, T, ...) that follow `state` (B, ...)."""
        batch, steps = first.shape
        first = first.unsqueeze(-1)
        action = action.masked_fill(first, 0.0)
        enter = Unrolled(self.input.project(action=action), self.input.weight["stoch"])
        gates, bias = self.cell.unrolled(batch, steps), self.cell.bias()
        look = Unrolled(self.post.project(embed=embed), self.post.weight["deter"])
        read = Unrolled(self.post_logit.bias.expand(batch, steps, -1), self.post_logit.weight)
        anew, keep = self.initial(1), (~first).to(noise.dtype)
        starts = (first * anew["deter"]).unbind(1)
        start_stochs = (first * anew["stoch"].flatten(-2)).unbind(1)
        deter, stoch = state["deter"], state["stoch"].flatten(-2)
        deters, stochs, logits = [], [], []
        frames = zip(keep.unbind(1), starts, start_stochs, noise.unbind(1), strict=True)
        for kept, start, start_stoch, draw in frames:
            deter = torch.addcmul(start, deter, kept)
            stoch = torch.addcmul(start_stoch, stoch, kept)
            entered = self.input.finish(enter(stoch))
            deter = self.cell.renew(gates(torch.cat([entered, deter], -1)), deter, bias)
            logit = self._grouped(read(self.post.finish(look(deter))))
            stoch = choose(mixed(logit, self.unimix), draw).flatten(-2)
            deters.append(deter)
            stochs.append(stoch)
            logits.append(logit)
        return {
            "deter": torch.stack(deters, 1),
            "stoch": self._grouped(torch.stack(stochs, 1)),
            "logit": torch.stack(logits, 1),
        }

    def _prior(self, deter: Tensor) -> Tensor:
        return self._grouped(wide(self.prior_logit(self.prior(deter=deter))))

    def _grouped(self, flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:-1], *self.latent_shape)

    def _entropy(self, logit: Tensor) -> Tensor:
        p, log_p = mixed(logit, self.unimix), log_mixed(logit, self.unimix)
        return -(p * log_p).sum((-2, -1)).mean()
