"""Parts of a world model: encoder, dynamics, decoder, layers of its heads, behaviour. Their code is `expc_runtime.worlds`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from expc.components.core import Component, Params

Size = Annotated[int, Field(ge=1)]
Nats = Annotated[float, Field(ge=0)]


class Convolutions(Params):
    """Parameters of the convolutional encoder and decoder."""

    depth: Size = Field(
        32, description="channels of the first layer; each next one has twice as many"
    )


class Dense(Params):
    """Parameters of `dense`."""

    layers: Size = Field(2, description="hidden layers")
    units: Size = Field(512, description="width of each")


class Rssm(Params):
    """Parameters of `rssm`."""

    deter: Size = Field(512, description="size of the recurrent state")
    stoch: Size = Field(32, description="categorical variables")
    classes: Size = Field(32, description="classes of each")
    hidden: Size = Field(512, description="width of the layers between")
    unimix: float = Field(
        0.01, ge=0, lt=1, description="share of the uniform distribution mixed in"
    )
    free: Nats = Field(1.0, description="nats of KL that cost nothing")


class Vta(Params):
    """Parameters of `vta`."""

    abs_belief: Size = Field(512, description="recurrent state of the abstract level")
    obs_belief: Size = Field(512, description="recurrent state of the observation level")
    abs_stoch: Size = Field(32, description="Gaussian variables of the abstract level")
    obs_stoch: Size = Field(32, description="Gaussian variables of the observation level")
    hidden: Size = Field(512, description="width of the layers between")
    detector_depth: Size = Field(1, description="convolutions over time of the boundary detector")
    max_seg_len: Size = Field(
        50, description="a segment of this length ends, if `force_scale` is above 0"
    )
    max_seg_num: Size = Field(
        200, description="no segment starts after so many, if `force_scale` is above 0"
    )
    temp: float = Field(
        1.0, gt=0, description="temperature of the relaxed boundary: gradients only"
    )
    force_scale: float = Field(
        10.0, ge=0, description="logit that forces a boundary; 0 forces none"
    )
    rate: float = Field(
        0.0, ge=0, lt=1, description="prior share of boundaries; 0 leaves the term out"
    )
    min_std: float = Field(0.1, gt=0, description="smallest standard deviation")
    free: Nats = Field(1.0, description="nats of KL that cost nothing, of both levels together")
    posterior_input: Literal["embed", "embed_reward"] = Field(
        "embed", description="what the posterior boundary detector reads"
    )
    imag_boundary: Literal["prior", "fixed", "none"] = Field(
        "prior", description="boundaries in imagination: drawn, at `max_seg_len`, or never"
    )
    obs_action_input: bool = Field(
        False, description="whether the observation level sees the action within a segment"
    )


class ActorCritic(Params):
    """Parameters of `actor_critic`."""

    horizon: Annotated[int, Field(ge=2)] = Field(15, description="steps imagined")
    gradient: Literal["reinforce", "dynamics"] = Field(
        "reinforce", description="how the actor learns: score function, or through the dynamics"
    )
    entropy: float = Field(3e-4, ge=0, description="weight of the actor's entropy")
    entropy_through: Literal["dynamics", "actor"] = Field(
        "dynamics",
        description="how far the entropy's gradient goes: through imagined states too, or the actor alone",
    )
    discount: float = Field(0.997, gt=0, le=1, description="worth of the next step")
    decay: float = Field(0.95, ge=0, le=1, description="lambda of the return")
    normalise: bool = Field(False, description="divide advantages by the range of returns")
    slow_rate: float = Field(
        0.02, gt=0, le=1, description="share of the critic that its slow copy takes"
    )
    unimix: float = Field(0.01, ge=0, lt=1, description="share of uniform actions mixed in")


def _balanced(params: Params) -> Mapping[str, tuple[str, float]]:
    """DreamerV3's KL balance (Hafner 2023, section "World model learning")."""
    return {"dyn": ("kl_dyn", 0.5), "rep": ("kl_rep", 0.1)}


def _segmented(params: Vta) -> Mapping[str, tuple[str, float]]:
    """The balance of both levels, the prior detector's own term, and a rate prior where a rate is set."""
    rate = {"rate": ("kl_rate", 1.0)} if params.rate else {}
    return {**_balanced(params), "mask": ("kl_mask", 1.0), **rate}


def _observed(params: Vta) -> tuple[str, ...]:
    return ("reward",) if params.posterior_input == "embed_reward" else ()


def _dead_limits(params: Vta) -> Mapping[str, str]:
    """Without a force there are no limits; only a fixed boundary in imagination still reads the length."""
    if params.force_scale:
        return {}
    length = {} if params.imag_boundary == "fixed" else {"max_seg_len": "force_scale"}
    return {**length, "max_seg_num": "force_scale"}


def _dead_entropy(params: ActorCritic) -> Mapping[str, str]:
    return {} if params.entropy else {"entropy_through": "entropy"}


# Numbers of weights, as the runtime's layers have them. A "layer" is a Linear without bias and a LayerNorm.


def _linear(into: int, out: int) -> int:
    return (into + 1) * out


def _layer(into: int, out: int) -> int:
    return into * out + 2 * out


def _cell(into: int, size: int) -> int:
    """The recurrent block: one layer of [input, state] to three gates."""
    return _layer(into + size, 3 * size)


def _gaussian(belief: int, hidden: int, stoch: int) -> int:
    """A prior of one level: a hidden layer only where the belief is not as wide."""
    between = _layer(belief, hidden) if belief != hidden else 0
    return between + _linear(hidden, 2 * stoch)


def rssm_weights(params: Rssm, embed: int, actions: int) -> int:
    """How many weights `rssm` has, for an embedding of that width."""
    flat, hidden, deter = params.stoch * params.classes, params.hidden, params.deter
    moves = _layer(flat + actions, hidden) + _cell(hidden, deter) + deter
    return moves + _layer(deter, hidden) + _layer(deter + embed, hidden) + 2 * _linear(hidden, flat)


def vta_weights(params: Vta, embed: int, actions: int) -> int:
    """How many weights `vta` has, for an embedding of that width."""
    p, hidden = params, params.hidden
    abstract, observed = p.abs_belief + p.abs_stoch, p.obs_belief + p.obs_stoch
    return (
        _detectors(p, embed, observed)
        + p.abs_belief
        + _layer(p.abs_stoch + actions, hidden)
        + _cell(hidden, p.abs_belief)
        + _gaussian(p.abs_belief, hidden, p.abs_stoch)
        + _layer(p.abs_belief + embed, hidden)
        + _linear(hidden, 2 * p.abs_stoch)
        + _layer(abstract, p.obs_belief)
        + _layer(p.obs_stoch + abstract + (actions if p.obs_action_input else 0), hidden)
        + _cell(hidden, p.obs_belief)
        + _gaussian(p.obs_belief, hidden, p.obs_stoch)
        + _layer(p.obs_belief + abstract + embed, hidden)
        + _linear(hidden, 2 * p.obs_stoch)
    )


def _detectors(params: Vta, embed: int, observed: int) -> int:
    """Convolutions over three frames of the posterior's detector, and the layers of the prior's."""
    seen, hidden = embed + (params.posterior_input == "embed_reward"), params.hidden
    first = 3 * seen * hidden + 2 * hidden
    further = (params.detector_depth - 1) * (3 * hidden * hidden + 2 * hidden)
    posterior = first + further + 3 * hidden * 2 + 2
    return posterior + _layer(observed, hidden) + _linear(hidden, 2)


def _embedded(params: Convolutions) -> int:
    """64x64 halved four times, the channels doubled at each but the first."""
    return 4 * 4 * 8 * params.depth


ENCODERS = (
    Component(
        "encoder", "conv_encoder", "strided convolutions, 64x64 to 4x4", Convolutions,
        "expc_runtime.worlds.nets:ConvEncoder", width=_embedded,
    ),
)  # fmt: skip

DECODERS = (
    Component(
        "decoder", "conv_decoder", "transposed convolutions, 4x4 to 64x64", Convolutions,
        "expc_runtime.worlds.nets:ConvDecoder",
    ),
)  # fmt: skip

_SEGMENTS: Mapping[str, str] = {
    "boundary_ratio": "", "forced_ratio": "lower", "free_ratio": "", "kl_mask": "lower",
    "post_abs_entropy": "", "post_obs_entropy": "", "prior_abs_entropy": "", "prior_obs_entropy": "",
    "sanitised": "lower",
}  # fmt: skip

DYNAMICS = (
    Component(
        "dynamics", "rssm", "recurrent state with categorical variables (Hafner 2023, DreamerV3)", Rssm,
        "expc_runtime.worlds.rssm:RSSM", terms=_balanced, weights=rssm_weights,
        reports={"post_entropy": "", "prior_entropy": ""},
    ),
    Component(
        "dynamics", "vta", "two levels and learned segment boundaries (Kim 2019, VTA)", Vta,
        "expc_runtime.worlds.vta:VTA", terms=_segmented, terms_of=("rate",), off=_dead_limits,
        weights=vta_weights, observes=_observed, observes_of=("posterior_input",), reports=_SEGMENTS, traits=frozenset({"boundaries"}),
    ),
)  # fmt: skip

LAYERS = (Component("layers", "dense", "fully connected layers with LayerNorm and SiLU", Dense),)

BEHAVIOURS = (
    Component(
        "behaviour", "actor_critic", "an actor and a critic trained in imagination (Hafner 2023)", ActorCritic,
        off=_dead_entropy,
    ),
)  # fmt: skip
