"""RSSM: against a plain loop over time, and what the state may and may not depend on."""

from itertools import product

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from expc_runtime.worlds.rssm import RSSM

torch.set_num_threads(1)

EMBED, ACTIONS, DETER, STOCH, CLASSES, HIDDEN = 12, 3, 8, 4, 5, 10
BATCH, STEPS = 3, 7


def small(**options: float) -> RSSM:
    torch.manual_seed(0)
    rssm = RSSM(EMBED, ACTIONS, deter=DETER, stoch=STOCH, classes=CLASSES, hidden=HIDDEN, **options)
    for p in rssm.parameters():  # away from zeros and ones, which hide mistakes
        p.data += 0.3 * torch.randn_like(p)
    return rssm


def chunk(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    embed = torch.randn(BATCH, STEPS, EMBED, dtype=dtype, requires_grad=True)
    action = F.one_hot(torch.randint(ACTIONS, (BATCH, STEPS)), ACTIONS).to(dtype)
    is_first = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[1, 4] = is_first[2, 2] = is_first[2, 6] = True
    return embed, action, is_first


def same_noise(rssm: RSSM, steps: int = STEPS) -> Tensor:
    torch.manual_seed(2)
    noise = torch.rand(BATCH, steps, STOCH)
    rssm.noise = lambda batch, steps: noise[:, :steps]  # type: ignore[method-assign]
    return noise


# The oracle: one frame at a time, whole matrices, the formulas as they stand.


def whole(joined: nn.Module) -> Tensor:
    return torch.cat(list(joined.weight.values()), 1)


def block(joined: nn.Module, *parts: Tensor) -> Tensor:
    x = torch.cat(parts, -1) @ whole(joined).T
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    x = x * joined.norm.weight + joined.norm.bias
    return x * x.sigmoid()


def recurrent(cell: nn.Module, entered: Tensor, state: Tensor) -> Tensor:
    x = torch.cat([entered, state], -1) @ cell.linear.weight.T
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    reset, candidate, update = (x * cell.norm.weight + cell.norm.bias).chunk(3, -1)
    reset, update = reset.sigmoid(), (update - 1).sigmoid()
    return update * torch.tanh(reset * candidate) + (1 - update) * state


def grouped(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], STOCH, CLASSES)


def probabilities(logit: Tensor) -> Tensor:
    return 0.99 * logit.softmax(-1) + 0.01 / CLASSES


def drawn(logit: Tensor, noise: Tensor) -> Tensor:
    probs = probabilities(logit)
    hard = torch.zeros_like(probs)
    for place in product(*(range(n) for n in noise.shape)):
        total = 0.0
        for c in range(CLASSES):
            total += probs[place][c].item()
            if noise[place].item() < total or c == CLASSES - 1:
                hard[place][c] = 1.0
                break
    return hard + probs - probs.detach()


def mode(logit: Tensor) -> Tensor:
    return F.one_hot(logit.argmax(-1), CLASSES).to(logit.dtype)


def plainly(
    rssm: RSSM, embed: Tensor, action: Tensor, is_first: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    def prior(deter: Tensor) -> Tensor:
        return grouped(rssm.prior_logit(block(rssm.prior, deter)))

    start = torch.tanh(rssm.start)[None]
    start_stoch = mode(prior(start)).detach()
    states: list[tuple[Tensor, ...]] = []
    for t in range(embed.shape[1]):
        rows = []
        for b in range(len(embed)):
            anew = t == 0 or bool(is_first[b, t])
            deter = start if anew else states[-1][0][b : b + 1]
            stoch = start_stoch if anew else states[-1][1][b : b + 1]
            taken = torch.zeros_like(action[b : b + 1, t]) if anew else action[b : b + 1, t]
            deter = recurrent(rssm.cell, block(rssm.input, stoch.flatten(1), taken), deter)
            logit = grouped(rssm.post_logit(block(rssm.post, deter, embed[b : b + 1, t])))
            rows.append((deter, drawn(logit, noise[b : b + 1, t]), logit, prior(deter)))
        states.append(tuple(torch.cat(column) for column in zip(*rows, strict=True)))
    names = ("deter", "stoch", "logit", "prior")
    return {n: torch.stack(c, 1) for n, c in zip(names, zip(*states, strict=True), strict=True)}


def gradients(rssm: RSSM, embed: Tensor, total: Tensor) -> dict[str, Tensor]:
    named = dict(rssm.named_parameters()) | {"embed": embed}
    found = torch.autograd.grad(total, list(named.values()))
    return dict(zip(named, found, strict=True))


def test_a_chunk_is_the_plain_loop_in_values_and_in_gradients() -> None:
    rssm = small().double()
    noise = same_noise(rssm)
    embed, action, is_first = chunk(torch.float64)
    post, prior = rssm.observe(embed, action, is_first)
    plain = plainly(rssm, embed, action, is_first, noise)
    for name in ("deter", "stoch", "logit"):
        torch.testing.assert_close(post[name], plain[name])
    torch.testing.assert_close(prior["logit"], plain["prior"])

    weights = {name: torch.randn_like(plain[name]) for name in plain}
    fast_total = sum((post[n] * weights[n]).sum() for n in ("deter", "stoch", "logit"))
    fast_total = fast_total + (prior["logit"] * weights["prior"]).sum()
    plain_total = sum((plain[n] * weights[n]).sum() for n in plain)
    fast, slow = gradients(rssm, embed, fast_total), gradients(rssm, embed, plain_total)
    for name, grad in slow.items():
        torch.testing.assert_close(fast[name], grad, msg=lambda m, name=name: f"{name}: {m}")
        assert grad.abs().sum() > 0, name


def test_two_passes_backward_give_twice_the_gradient() -> None:
    rssm = small()
    post, prior = rssm.observe(*chunk())
    total = rssm.features(post).square().sum() + sum(rssm.kl(post, prior))
    total.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in rssm.named_parameters()}
    total.backward()
    for name, p in rssm.named_parameters():
        torch.testing.assert_close(p.grad, 2 * once[name], msg=name)


def test_sizes_are_those_of_the_study() -> None:
    rssm = RSSM(4096, 5)
    size = {n: sum(p.numel() for p in part.parameters()) for n, part in rssm.named_children()}
    assert size == {
        "input": 512 * (1024 + 5) + 1024,  # 0.53 M
        "cell": 1536 * 1024 + 3072,  # 1.58 M
        "prior": 512 * 512 + 1024,  # 0.26 M
        "prior_logit": 1024 * 512 + 1024,  # 0.53 M
        "post": 512 * (512 + 4096) + 1024,  # 2.36 M
        "post_logit": 1024 * 512 + 1024,  # 0.53 M
    }
    assert sum(p.numel() for p in rssm.parameters()) == 5_778_432
    assert rssm.out_features == 1536


def test_the_first_state_is_learned_and_its_latent_the_priors_mode() -> None:
    rssm = small()
    state = rssm.initial(2)
    torch.testing.assert_close(state["deter"], torch.tanh(rssm.start).expand(2, DETER))
    logit = grouped(rssm.prior_logit(block(rssm.prior, torch.tanh(rssm.start))))
    torch.testing.assert_close(state["stoch"], mode(logit).expand(2, STOCH, CLASSES))
    assert state["deter"].requires_grad and not state["stoch"].requires_grad
    assert RSSM(EMBED, ACTIONS).start.abs().sum() == 0


def test_filtering_frame_by_frame_is_observing_the_chunk() -> None:
    rssm = small().double()
    noise = same_noise(rssm)
    embed, action, is_first = chunk(torch.float64)
    post, _ = rssm.observe(embed, action, is_first)
    state = rssm.initial(BATCH)
    for t in range(STEPS):
        rssm.noise = lambda batch, steps, t=t: noise[:, t : t + 1]  # type: ignore[method-assign]
        state = rssm.filter(state, embed[:, t], action[:, t], is_first[:, t])
        assert state.keys() == post.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, post[name][:, t])


def test_nothing_before_a_first_frame_and_no_action_into_it_matters_after_it() -> None:
    rssm = small()
    same_noise(rssm)
    embed, action, is_first = chunk()
    post, _ = rssm.observe(embed, action, is_first)
    other = torch.cat([torch.randn(BATCH, 4, EMBED), embed[:, 4:]], 1)
    past, _ = rssm.observe(other, torch.cat([action[:, :5].flip(-1), action[:, 5:]], 1), is_first)
    torch.testing.assert_close(past["deter"][1, 4:], post["deter"][1, 4:])
    assert not torch.allclose(past["deter"][0, 4:], post["deter"][0, 4:])


def test_a_chunk_starts_anew_whatever_its_first_flag_says() -> None:
    rssm = small()
    same_noise(rssm)
    embed, action, is_first = chunk()
    unmarked = is_first.clone()
    unmarked[:, 0] = False
    flagged, _ = rssm.observe(embed, action, is_first)
    bare, _ = rssm.observe(embed, action, unmarked)
    torch.testing.assert_close(bare["deter"], flagged["deter"])


def test_imagination_follows_the_prior() -> None:
    rssm = small().double()
    noise = same_noise(rssm)
    embed, action, is_first = chunk(torch.float64)
    state = {name: value[:, 3] for name, value in rssm.observe(embed, action, is_first)[0].items()}
    dreamt = rssm.imagine(state, action[:, 4])
    entered = block(rssm.input, state["stoch"].flatten(1), action[:, 4])
    deter = recurrent(rssm.cell, entered, state["deter"])
    logit = grouped(rssm.prior_logit(block(rssm.prior, deter)))
    torch.testing.assert_close(dreamt["deter"], deter)
    torch.testing.assert_close(dreamt["logit"], logit)
    torch.testing.assert_close(dreamt["stoch"], drawn(logit, noise[:, 0]))
    with torch.no_grad():
        blind = rssm.imagine(state, action[:, 4])
    torch.testing.assert_close(blind["stoch"], dreamt["stoch"])
    assert not blind["deter"].requires_grad


def test_imagination_takes_gradients_to_actions_through_frozen_weights() -> None:
    rssm = small()
    rssm.requires_grad_(False)
    action = torch.zeros(BATCH, ACTIONS, requires_grad=True)
    state = rssm.imagine(rssm.initial(BATCH), action)
    rssm.features(rssm.imagine(state, action)).square().sum().backward()
    assert action.grad is not None and action.grad.abs().sum() > 0


def test_features_are_the_flat_latent_and_the_path() -> None:
    rssm = small()
    post, _ = rssm.observe(*chunk())
    feat = rssm.features(post)
    assert feat.shape == (BATCH, STEPS, rssm.out_features)
    torch.testing.assert_close(feat[..., : STOCH * CLASSES], post["stoch"].flatten(2))
    torch.testing.assert_close(feat[..., STOCH * CLASSES :], post["deter"])


# The KL.


def logits(seed: int, scale: float = 3.0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    logit = scale * torch.randn(BATCH, STEPS, STOCH, CLASSES)
    return {"logit": logit.requires_grad_()}


def test_the_kl_is_that_of_the_mixed_distributions() -> None:
    rssm, post, prior = small(), logits(3), logits(4)
    expected = kl_divergence(
        Categorical(probabilities(post["logit"])), Categorical(probabilities(prior["logit"]))
    )
    expected = expected.sum(-1).clamp(min=1.0).mean()
    for loss in rssm.kl(post, prior):
        torch.testing.assert_close(loss, expected)


def test_dyn_moves_the_prior_and_rep_the_posterior() -> None:
    rssm, post, prior = small(), logits(3), logits(4)
    dyn, rep = rssm.kl(post, prior)
    ends = [post["logit"], prior["logit"]]
    moved = [
        [g is not None and bool(g.abs().sum() > 0) for g in grads]
        for grads in (
            torch.autograd.grad(loss, ends, allow_unused=True, retain_graph=True)
            for loss in (dyn, rep)
        )
    ]
    assert moved == [[False, True], [True, False]]


def test_below_the_free_nats_the_kl_costs_them_and_teaches_nothing() -> None:
    post = logits(3, scale=0.1)
    prior = {"logit": post["logit"].detach() + 0.01}
    dyn, rep = small().kl(post, prior)
    assert dyn.item() == rep.item() == 1.0
    rep.backward()
    assert post["logit"].grad is not None and not post["logit"].grad.any()
    free = small(free=0.25).kl(post, prior)
    assert [loss.item() for loss in free] == [0.25, 0.25]


def test_the_free_nats_are_per_frame_not_on_the_mean() -> None:
    post, prior = logits(3), logits(3)
    with torch.no_grad():
        prior["logit"][0, 0] = -prior["logit"][0, 0] * 3
    rssm = small()
    per_frame = kl_divergence(
        Categorical(probabilities(post["logit"])), Categorical(probabilities(prior["logit"]))
    ).sum(-1)
    frames = BATCH * STEPS
    expected = (per_frame[0, 0] + (frames - 1)) / frames
    torch.testing.assert_close(rssm.kl(post, prior)[0], expected)


def test_the_report_has_entropies() -> None:
    rssm, post, prior = small(), logits(3), logits(4)
    report = rssm.report(post, prior)
    for side, state in (("post", post), ("prior", prior)):
        entropy = Categorical(probabilities(state["logit"])).entropy().sum(-1).mean()
        torch.testing.assert_close(report[f"{side}_entropy"], entropy.detach())
    assert all(not v.requires_grad and v.ndim == 0 for v in report.values())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_sixteen_bit_runs_are_finite_and_keep_a_float32_state(half: torch.dtype) -> None:
    rssm = small()
    embed, action, is_first = chunk()
    with torch.autocast("cpu", half):
        post, prior = rssm.observe(embed.to(half), action, is_first)
        dreamt = rssm.imagine({name: value[:, 0] for name, value in post.items()}, action[:, 0])
        total = rssm.features(post).sum() + sum(rssm.kl(post, prior))
    for value in (*post.values(), *prior.values(), *dreamt.values()):
        assert value.dtype is torch.float32 and value.isfinite().all()
    total.backward()
    for name, p in rssm.named_parameters():
        assert p.grad is not None and p.grad.dtype is torch.float32, name
        assert p.grad.isfinite().all(), name
