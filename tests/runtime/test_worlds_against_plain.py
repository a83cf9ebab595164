"""The fast world model and its plain transcription: the same numbers from the same weights and noise.

The transcription, benchmarks/pinpad_plain.py, shares no code with the runtime. Every weight of it is
laid into ours, every draw that ours makes is handed to it, and losses, gradients of every parameter,
returns and one whole update have to agree.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[2]))

import torch.distributions as torchd
from benchmarks import pinpad_plain as plain
from benchmarks.pinpad_update import Ours, batch_of, started
from torch import Tensor, nn

from expc_runtime.module import detach_tree
from expc_runtime.worlds import nets, rssm, vta
from expc_runtime.worlds.behaviour import (
    critic_loss,
    imagine,
    lambda_return,
    policy_gradient,
)

BATCH, LENGTH = 2, 8
SMALL = plain.Sizes(width=24, stoch=5, classes=7, depth=3, horizon=5, max_seg_len=3, max_seg_num=2)
VTA = replace(SMALL, dynamics="vta")

CASES = {
    "rssm": SMALL,
    "rssm, entropy detached": replace(SMALL, entropy_through_dynamics=False),
    "rssm, gradient through the dynamics": replace(SMALL, gradient="dynamics"),
    "vta, forced": VTA,
    "vta, free": replace(VTA, force_scale=0.0, temp=2.0, rate=0.1, rate_scale=0.5),
    "vta, action at every step": replace(
        VTA, obs_action_input=True, entropy_through_dynamics=False
    ),
    "vta, detector sees the reward": replace(VTA, posterior_input="embed_reward"),
    "vta, gradient through the dynamics": replace(VTA, gradient="dynamics", force_scale=1.0),
}


# ------------------------------------------------------------------------------------ the same noise


class Tape(plain.Draws):
    """Draws that ours made, by name, for the plain one to make again."""

    def __init__(self) -> None:
        self.drawn: dict[str, list[Tensor]] = defaultdict(list)
        self.spare = False  # the plain scan draws from the prior, too, which nothing reads

    def keep(self, name: str, noise: Tensor) -> Tensor:
        self.drawn[name].append(noise)
        return noise

    def keep_frames(self, name: str, noise: Tensor) -> Tensor:
        self.drawn[name].extend(noise.unbind(1))
        return noise

    def one_hot(self, name: str, dist: torchd.OneHotCategorical) -> Tensor:
        if name == "prior" and self.spare:
            return torch.zeros_like(dist.probs)
        below = dist.probs.cumsum(-1)[..., :-1] <= self.drawn[name].pop(0).unsqueeze(-1)
        return nn.functional.one_hot(below.sum(-1), dist.probs.shape[-1]).float()

    def normal(self, name: str, mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * self.drawn[name.split("_")[0]].pop(0)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        return self.drawn[name].pop(0)


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """What the runtime draws from here on is kept."""
    tape = Tape()
    uniform, latents = nets.uniform, vta.VTA.latent_noise

    def of_rssm(self: rssm.RSSM, batch: int, steps: int) -> Tensor:
        noise = uniform(batch, steps, self.latent_shape[0])
        return tape.keep_frames("post" if steps > 1 else "prior", noise)

    def of_levels(self: vta.VTA, batch: int, steps: int) -> tuple[Tensor, Tensor]:
        noise = latents(self, batch, steps)
        for level, each in zip(("abs", "obs"), noise, strict=True):
            tape.keep_frames(level, each)
        return noise

    def of_boundary(*shape: int, device: torch.device | None = None) -> Tensor:
        return -(-tape.keep_frames("boundary", uniform(*shape)).log()).log()

    monkeypatch.setattr(rssm.RSSM, "noise", of_rssm)
    monkeypatch.setattr(vta.VTA, "latent_noise", of_levels)
    monkeypatch.setattr(vta, "gumbel", of_boundary)
    monkeypatch.setattr(nets, "uniform", lambda *a, **k: tape.keep("action", uniform(*a, **k)))
    return tape


# ---------------------------------------------------------------------------------- the same weights

Named = dict[str, Tensor]


def embed_last(weight: Tensor, sizes: plain.Sizes) -> Tensor:
    """(out, embed): ours flattens the last plane as (row, column, channel), theirs channel first."""
    return weight.unflatten(1, (8 * sizes.depth, 16)).transpose(1, 2).flatten(1)


def as_ours(theirs: Named, sizes: plain.Sizes) -> Named:
    """Parameters of the plain models, or their gradients, by the names and shapes they have here."""
    dynamics = rssm_as_ours if sizes.dynamics == "rssm" else vta_as_ours
    ours = {f"dynamics.{k}": v for k, v in dynamics(below(theirs, "dynamics"), sizes).items()}
    for net in ("encoder", "decoder"):
        for name, value in below(theirs, f"{net}.layers").items():
            index, rest = name.split(".", 1)
            ours[f"{net}.layers.{2 * (int(index) // 3) + int(index) % 3}.{rest}"] = value
    for rest in ("weight", "bias"):
        ours[f"decoder.last.{rest}"] = ours.pop(f"decoder.layers.6.{rest}")
    ours |= {f"decoder.linear.{k}": v for k, v in below(theirs, "decoder.linear").items()}
    heads = {"reward": "reward_head", "cont": "cont_head", "actor": "actor", "value": "critic"}
    for theirs_name, name in heads.items():
        for place, part in ((0, "layers.0.0"), (1, "layers.0.1"), (3, "layers.1.0")):
            ours |= moved(theirs, f"{theirs_name}.{part}", f"{name}.layers.{place}")
        ours |= moved(theirs, f"{theirs_name}.layers.1.1", f"{name}.layers.4")
        ours |= moved(theirs, f"{theirs_name}.out", f"{name}.layers.6")
    return ours


def below(named: Named, prefix: str) -> Named:
    return {k.removeprefix(f"{prefix}."): v for k, v in named.items() if k.startswith(f"{prefix}.")}


def moved(named: Named, prefix: str, to: str) -> Named:
    return {f"{to}.{k}": v for k, v in below(named, prefix).items()}


def joined(theirs: Named, dense: str, to: str, sizes: plain.Sizes, **parts: int) -> Named:
    """A dense layer over concatenated parts, as one weight for each part."""
    pieces = torch.split(theirs[f"{dense}.0.weight"], list(parts.values()), dim=1)
    made = {f"{to}.weight.{k}": v for k, v in zip(parts, pieces, strict=True)}
    if "embed" in parts:
        made[f"{to}.weight.embed"] = embed_last(made[f"{to}.weight.embed"], sizes)
    return made | moved(theirs, f"{dense}.1", f"{to}.norm")


def rssm_as_ours(theirs: Named, sizes: plain.Sizes) -> Named:
    width, latent, embed = sizes.width, sizes.stoch * sizes.classes, 128 * sizes.depth
    return {
        "start": theirs["start"][0],
        **joined(theirs, "img_in", "input", sizes, stoch=latent, action=sizes.actions),
        **moved(theirs, "cell", "cell"),
        **joined(theirs, "img_out", "prior", sizes, deter=width),
        **moved(theirs, "img_stats", "prior_logit"),
        **joined(theirs, "obs_out", "post", sizes, deter=width, embed=embed),
        **moved(theirs, "obs_stats", "post_logit"),
    }


def vta_as_ours(theirs: Named, sizes: plain.Sizes) -> Named:
    width, size, embed = sizes.width, sizes.stoch, 128 * sizes.depth
    act, feat = sizes.actions, width + size
    step = {"action": act} if sizes.obs_action_input else {}
    obs_post = {"belief": width, "abs_feat": feat, "embed": embed}
    return {
        "abs_start": theirs["start"][0],
        **detector_as_ours(theirs, sizes),
        **joined(theirs, "prior_detector.0", "prior_detector", sizes, obs_feat=feat),
        **moved(theirs, "prior_detector.1", "prior_detector_logit"),
        **joined(theirs, "abs_in", "abs_input", sizes, stoch=size, action=act),
        **moved(theirs, "abs_cell", "abs_cell"),
        **moments(theirs, "abs_prior", "abs_prior"),
        **joined(theirs, "abs_post.hidden", "abs_post.body", sizes, belief=width, embed=embed),
        **moments(theirs, "abs_post", "abs_post"),
        **joined(theirs, "obs_start", "obs_reset", sizes, abs_feat=feat),
        **joined(theirs, "obs_in", "obs_input", sizes, stoch=size, abs_feat=feat, **step),
        **moved(theirs, "obs_cell", "obs_cell"),
        **moments(theirs, "obs_prior", "obs_prior"),
        **joined(theirs, "obs_post.hidden", "obs_post.body", sizes, **obs_post),
        **moments(theirs, "obs_post", "obs_post"),
    }


def moments(theirs: Named, layer: str, to: str) -> Named:
    return {
        f"{to}.moments.{name}": torch.cat(
            [theirs[f"{layer}.mean.{name}"], theirs[f"{layer}.std.{name}"]]
        )
        for name in ("weight", "bias")
    }


def detector_as_ours(theirs: Named, sizes: plain.Sizes) -> Named:
    taps = theirs["post_detector.0.weight"].permute(2, 0, 1)
    embed = embed_last(taps[..., : 128 * sizes.depth].flatten(0, 1), sizes)
    taps = torch.cat([embed.unflatten(0, taps.shape[:2]), taps[..., 128 * sizes.depth :]], -1)
    return {
        "detector.convs.0.weight": taps,
        **moved(theirs, "post_detector.1", "detector.norms.0"),
        "detector.logit.weight": theirs["post_detector.3.weight"].permute(2, 0, 1),
        "detector.logit.bias": theirs["post_detector.3.bias"],
    }


def named(agent: plain.Agent, of: str = "data") -> Named:
    """Parameters (or their ``grad``) of the plain models."""
    nets = (agent.world, agent.behaviour)
    parameters = [pair for net in nets for pair in net.named_parameters()]
    return {
        name: getattr(p, of)
        for name, p in parameters
        if not name.startswith("slow_value") and getattr(p, of) is not None
    }


def pair(sizes: plain.Sizes, tape: Tape) -> tuple[Ours, plain.Agent]:
    """Both with the same weights, none of them where a gradient would vanish."""
    torch.manual_seed(3)
    agent, ours = plain.Agent(sizes, tape), started(sizes)
    tape.spare = True
    with torch.no_grad():
        for net in (agent.world, agent.behaviour):
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
        agent.behaviour.slow_value.load_state_dict(agent.behaviour.value.state_dict())
        weights = as_ours(named(agent), sizes)
        for name, p in ours.named_parameters():
            if not name.startswith("slow_critic"):
                p.copy_(weights.pop(name))
        assert not weights
    ours.slow_critic.load_state_dict(ours.critic.state_dict())
    return ours, agent


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[plain.Sizes]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield CASES[request.param]
    torch.set_num_threads(threads)


# -------------------------------------------------------------------------------------------- agree


def close(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Float32 apart: the two add up in different orders."""
    scale = float(theirs.detach().abs().max())
    assert torch.allclose(ours, theirs, rtol=2e-3, atol=1e-4 * scale + 1e-7), (
        f"{what}: {float((ours - theirs).abs().max()):.3g} apart, of at most {scale:.3g}"
    )


def gradients_close(ours: Ours, agent: plain.Agent, sizes: plain.Sizes) -> set[str]:
    """Names of the parameters that had one."""
    left = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    kept = named(agent, "grad")
    zeros = {k: torch.zeros_like(v) for k, v in named(agent).items()}
    right = as_ours(zeros | kept, sizes)
    for name, grad in left.items():
        close(grad, right.pop(name), f"gradient of {name}")
    assert all(not grad.any() for grad in right.values())
    return set(left)


def test_world_terms_and_their_gradients(case: plain.Sizes, tape: Tape) -> None:
    ours, agent = pair(case, tape)
    batch = batch_of(case, BATCH, LENGTH)
    totals: dict[str, Tensor] = {}
    with ours.rehearsal(totals=lambda total: totals.update([total])) as records:
        ours.learn(batch)
        figures = records.means()
    totals["total_world"].backward()
    with plain.requires_grad(agent.world):
        _, _, terms = agent.world.losses(batch)
        agent.world.total(terms).backward()
    assert not any(tape.drawn.values())
    for name, term in terms.items():
        assert figures[name] == pytest.approx(term.mean().item(), rel=1e-4), name
    trained = gradients_close(ours, agent, case)
    assert {name.split(".")[0] for name in trained} == {
        "encoder",
        "dynamics",
        "decoder",
        "reward_head",
        "cont_head",
    }


def test_states_and_predictions(case: plain.Sizes, tape: Tape) -> None:
    ours, agent = pair(case, tape)
    image, action, reward, is_first, _ = batch_of(case, BATCH, LENGTH)
    seen = (reward,) if case.posterior_input == "embed_reward" else ()
    with torch.no_grad():
        post, prior = ours.dynamics.observe(ours.encoder(image), action, is_first, *seen)
        embed = agent.world.encoder(image)
        post_plain, prior_plain = agent.world.dynamics.observe(embed, action, is_first, reward)
        feat, feat_plain = ours.dynamics.features(post), agent.world.dynamics.get_feat(post_plain)
        close(feat, feat_plain, "features")
        close(ours.decoder(feat), agent.world.decoder(feat_plain), "image")
    for name in set(prior) & set(prior_plain):
        close(prior[name], prior_plain[name], f"prior {name}")
    if case.dynamics == "vta":
        close(post["read"], post_plain["boundary"][..., 0], "boundary")
        close(post["seg_len"].float(), post_plain["seg_len"][..., 0], "seg_len")
        close(post["seg_num"].float(), post_plain["seg_num"][..., 0], "seg_num")


def test_behaviour_terms_and_their_gradients(case: plain.Sizes, tape: Tape) -> None:
    ours, agent = pair(case, tape)
    start, start_plain = starts(ours, agent, case, tape)
    behaviour = agent.behaviour
    through = case.gradient == "dynamics" or case.entropy_through_dynamics
    with ours.only(ours.actor):
        with torch.set_grad_enabled(through):
            trajectory = imagine(ours.dynamics, ours.actor, start, case.horizon)
            heads = ours.reward_head, ours.cont_head, ours.critic
            returns, weights, baseline = lambda_return(trajectory, *heads)
        policy, entropy = policy_gradient(
            ours.actor, trajectory, returns, weights, baseline, gradient=case.gradient
        )
        # Entropy as heavy as the policy, or its gradient would be lost beside it.
        (policy + entropy).backward()
    draw_the_wasted_step(tape)
    with plain.requires_grad(behaviour.actor):
        feat, action = behaviour.imagine(start_plain)
        terms, targets = behaviour.actor_losses(feat, action)
        (terms["policy"] + terms["entropy"]).backward()
    assert not any(tape.drawn.values())
    close(trajectory["feat"], feat, "imagined features")
    close(trajectory["action"], action[:-1], "actions")
    close(returns, targets["returns"][..., 0], "returns")
    close(weights, targets["weights"][:-1, :, 0], "weights")
    close(baseline, targets["value"][..., 0], "baseline")
    close(policy, terms["policy"], "policy loss")
    close(entropy, terms["entropy"], "entropy loss")
    close(ours.return_range(returns), targets["scale"], "range of returns")
    assert {name.split(".")[0] for name in gradients_close(ours, agent, case)} == {"actor"}

    ours.actor.zero_grad()
    behaviour.actor.zero_grad()
    with ours.only(ours.critic):
        value, slow = critic_loss(
            ours.critic, ours.slow_critic, detach_tree(trajectory), returns.detach(), weights
        )
        (value + slow).backward()
    with plain.requires_grad(behaviour.value):
        terms = behaviour.critic_losses(feat, targets["returns"], targets["weights"])
        (terms["value"] + terms["slow"]).backward()
    close(value, terms["value"], "value loss")
    close(slow, terms["slow"], "slow value loss")
    assert {name.split(".")[0] for name in gradients_close(ours, agent, case)} == {"critic"}


def starts(
    ours: Ours, agent: plain.Agent, sizes: plain.Sizes, tape: Tape
) -> tuple[plain.State, plain.State]:
    """Posterior states of both, made with the same noise."""
    image, action, reward, is_first, _ = batch_of(sizes, BATCH, LENGTH)
    seen = (reward,) if sizes.posterior_input == "embed_reward" else ()
    with torch.no_grad():
        post, _ = ours.dynamics.observe(ours.encoder(image), action, is_first, *seen)
        embed = agent.world.encoder(image)
        post_plain, _ = agent.world.dynamics.observe(embed, action, is_first, reward)
    tape.spare = False
    return post, post_plain


def draw_the_wasted_step(tape: Tape) -> None:
    """The plain one acts in the last state, too; nothing reads what follows."""
    for drawn in filter(None, tape.drawn.values()):
        drawn.append(drawn[-1])


def test_a_whole_update(case: plain.Sizes, tape: Tape) -> None:
    """Clipping, Adam and the slow critic included: every weight moves alike, twice."""
    ours, agent = pair(case, tape)
    for turn in range(2):
        batch = batch_of(case, BATCH, LENGTH, seed=turn)
        tape.spare = True
        post = ours.learn(batch)
        start, figures = agent.train_world(batch)
        tape.spare = False
        ours.improve(post)
        draw_the_wasted_step(tape)
        figures |= agent.train_behaviour(start)
        for name in ("world", "actor", "critic"):
            theirs = figures[{"world": "model", "critic": "value"}.get(name, name) + "_grad_norm"]
            assert ours.drive(name).norm == pytest.approx(theirs, rel=2e-3), f"{name}, {turn}"
    slow = dict(agent.behaviour.slow_value.named_parameters())
    theirs_slow = as_ours(named(agent) | {f"value.{k}": v for k, v in slow.items()}, case)
    for name, p in ours.slow_critic.named_parameters():
        close(p, theirs_slow[f"critic.{name}"], f"slow critic's {name}")
