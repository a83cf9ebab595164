"""Behaviour learned in imagination: actor and critic on trajectories of the latent dynamics.

The actor-critic of DreamerV3 (Hafner et al. 2023). Time is the first axis here, imagined steps k = 0
.. H - 1, then N start states. All that is not a network is float32, also under autocast.
"""

import copy
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from expc_runtime import losses
from expc_runtime.worlds.nets import Actor, BinaryHead, TwoHotHead, chosen, entropy

__all__ = [
    "ReturnRange",
    "Trajectory",
    "critic_loss",
    "imagine",
    "lambda_return",
    "policy_gradient",
    "polyak",
    "slow_copy",
]

Net = TypeVar("Net", bound=nn.Module)
Latent = dict[str, Tensor]
Trajectory = dict[str, Tensor]
"""feat (H, N, F); action (H - 1, N, A) one-hot, and the logits (H - 1, N, A) it was drawn from."""


class Dynamics(Protocol):
    """What imagination asks of a latent dynamics."""

    def imagine(self, state: Latent, action: Tensor) -> Latent: ...

    def features(self, state: Latent) -> Tensor: ...


class Number(Protocol):
    """A head that gives a real number (...) for features (..., F)."""

    def mode(self, features: Tensor) -> Tensor: ...


def imagine(dynamics: Dynamics, actor: Actor, start: Latent, horizon: int) -> Trajectory:
    """Roll out `horizon` features from each of the states `start`, tensors (B, T, ...).

    Feature 0 is the start's own, N = B T; a_k ~ actor(feat_k), where no gradient flows into feat_k,
    and the state after it is the dynamics' step by a_k. The last feature needs no action. Gradients
    flow through states and straight through actions unless the caller forbids them. A `horizon`
    below 2 is a ValueError.
    """
    if horizon < 2:
        raise ValueError(f"imagine: a horizon of 2 or more, not {horizon}")
    state = {name: value.flatten(0, 1) for name, value in start.items()}
    feats, actions, logits = [dynamics.features(state)], [], []
    for _ in range(horizon - 1):
        logits.append(actor.logits(feats[-1].detach()))
        actions.append(actor.draw(logits[-1]))
        state = dynamics.imagine(state, actions[-1])
        feats.append(dynamics.features(state))
    return {
        "feat": torch.stack(feats),
        "action": torch.stack(actions),
        "logits": torch.stack(logits),
    }


def lambda_return(
    trajectory: Trajectory,
    reward_head: Number,
    cont_head: BinaryHead,
    critic: Number,
    *,
    discount: float = 0.997,
    decay: float = 0.95,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns, weights and baseline, each (H - 1, N) float32, for k = 0 .. H - 2.

    R_k = r_{k+1} + d_{k+1} ((1 - decay) v_{k+1} + decay R_{k+1}) with R_{H-1} = v_{H-1}, d =
    `discount` p(cont). The weight of step k is d_0 ... d_{k-1}, detached; the baseline is v_k.
    """
    feat = trajectory["feat"]
    reward = reward_head.mode(feat[1:])
    going = discount * cont_head.prob(feat)
    value = critic.mode(feat)
    returns = discounted(reward, value[1:], going[1:], decay)
    weights = torch.cat((torch.ones_like(going[:1]), going[:-2])).detach().cumprod(0)
    return returns, weights, value[:-1]


def discounted(reward: Tensor, value: Tensor, going: Tensor, decay: float) -> Tensor:
    """R_k = reward_k + going_k ((1 - decay) value_k + decay R_{k+1}), R_K = value_{K-1}.

    All (K, ...): what one gets for step k, the value and the discount of the state after it.
    """
    inputs = torch.addcmul(reward, going, value, value=1.0 - decay)
    carried = decay * going
    last = value[-1]
    returns = []
    for k in reversed(range(len(inputs))):
        last = torch.addcmul(inputs[k], carried[k], last)
        returns.append(last)
    return torch.stack(returns[::-1])


def policy_gradient(
    actor: Actor,
    trajectory: Trajectory,
    returns: Tensor,
    weights: Tensor,
    baseline: Tensor,
    *,
    gradient: Literal["reinforce", "dynamics"] = "reinforce",
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The policy's loss and its negative mean entropy, both 0-dim float32.

    With the advantage A = (returns - baseline) / `scale` (1 without it): "reinforce" is
    mean(-w log pi(a) sg(A)), "dynamics" is mean(-w A), whose gradient comes through the imagined
    states. The entropy is that of actor(feat): where the trajectory carries gradients, so does it.

    Raises ValueError for "dynamics" where the returns carry no gradient.
    """
    feat, logits = trajectory["feat"][:-1], trajectory["logits"]
    advantage = returns - baseline
    if scale is not None:
        advantage = advantage / scale
    if gradient == "dynamics":
        if torch.is_grad_enabled() and not returns.requires_grad:
            raise ValueError("policy_gradient: the returns carry no gradient of the dynamics")
        policy_loss = -(weights * advantage).mean()
        return policy_loss, -entropy(actor.log_probs(actor.logits(feat))).mean()
    if not logits.requires_grad:  # imagined without gradients: one pass serves both terms
        log_probs = actor.log_probs(actor.logits(feat))
        spread = entropy(log_probs)
    else:
        log_probs = actor.log_probs(logits)
        spread = actor.entropy(feat)
    likelihood = chosen(log_probs, trajectory["action"])
    return -(weights * likelihood * advantage.detach()).mean(), -spread.mean()


def critic_loss(
    critic: TwoHotHead,
    slow_critic: TwoHotHead,
    trajectory: Trajectory,
    returns: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The critic's loss against the returns, and against its slow copy; both 0-dim float32.

    mean(-w log p(sg R)) and mean(-w log p(sg v)), v the slow critic's number.
    """
    feat = trajectory["feat"][:-1].detach()
    logits = critic(feat)
    with torch.no_grad():
        slow = slow_critic.mode(feat)
    value = losses.twohot_symlog(logits, returns.detach(), reduction="none")
    still = losses.twohot_symlog(logits, slow, reduction="none")
    return (weights * value).mean(), (weights * still).mean()


def slow_copy(net: Net) -> Net:
    """A copy of `net` that no gradient reaches; `polyak` moves it."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def polyak(slow: nn.Module, net: nn.Module, rate: float = 0.02) -> None:
    """slow += rate (net - slow), for every parameter."""
    torch._foreach_lerp_(list(slow.parameters()), list(net.parameters()), rate)


class ReturnRange(nn.Module):
    """Running distance between the 5 % and 95 % quantiles of the returns, at least 1.

    The two quantiles start at 0 and keep 0.99 of themselves at each call (Hafner et al. 2023,
    eq. 12).
    """

    KEPT = 0.99
    quantiles: Tensor
    ends: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("quantiles", torch.zeros(2))
        self.register_buffer("ends", torch.tensor([0.05, 0.95]), persistent=False)

    @torch.no_grad()
    def forward(self, returns: Tensor) -> Tensor:
        """Returns of any shape -> the scale, 0-dim float32; takes them into account first."""
        now = torch.quantile(returns.float().flatten(), self.ends)
        self.quantiles.lerp_(now, 1.0 - self.KEPT)
        return (self.quantiles[1] - self.quantiles[0]).clamp(min=1.0)
