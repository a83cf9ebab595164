"""VTA: against a plain loop over time, its boundary rules, its losses, and what sees the action."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from expc_runtime.worlds.sampling import gumbel
from expc_runtime.worlds.vta import VTA

torch.set_num_threads(1)

EMBED, ACTIONS, HIDDEN = 12, 3, 10
BATCH, STEPS = 3, 9
READ, COPY = (8.0, -8.0), (-8.0, 8.0)


def small(hidden: int = HIDDEN, **options: object) -> VTA:
    torch.manual_seed(0)
    vta = VTA(
        EMBED,
        ACTIONS,
        abs_belief=6,
        obs_belief=7,
        abs_stoch=4,
        obs_stoch=5,
        hidden=hidden,
        **options,
    )
    for p in vta.parameters():  # away from zeros and ones, which hide mistakes
        p.data += 0.3 * torch.randn_like(p)
    return vta


def chunk(
    dtype: torch.dtype = torch.float32, batch: int = BATCH, steps: int = STEPS
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    embed = torch.randn(batch, steps, EMBED, dtype=dtype, requires_grad=True)
    action = F.one_hot(torch.randint(ACTIONS, (batch, steps)), ACTIONS).to(dtype)
    is_first = torch.zeros(batch, steps, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[1:, 4] = is_first[-1, 6] = True
    return embed, action, is_first


Noise = tuple[Tensor, Tensor, Tensor]


def same_noise(vta: VTA, batch: int = BATCH, steps: int = STEPS) -> Noise:
    """Boundary and latent noise that stays the same from one call to the next."""
    torch.manual_seed(2)
    dtype = vta.abs_start.dtype
    boundary = gumbel(batch, steps, 2).to(dtype) * vta.training
    latents = [torch.randn(batch, steps, size, dtype=dtype) for size in (4, 5)]
    vta.boundary_noise = lambda b, t: boundary[:b, :t]
    vta.latent_noise = lambda b, t: (latents[0][:b, :t], latents[1][:b, :t])
    return boundary, latents[0], latents[1]


def sure(vta: VTA, *logit: float) -> VTA:
    """Both detectors give these logits [READ, COPY] for whatever they see."""
    with torch.no_grad():
        vta.detector.logit.weight.zero_()
        vta.detector.logit.bias.copy_(torch.tensor(logit))
        vta.prior_detector_logit.weight.zero_()
        vta.prior_detector_logit.bias.copy_(torch.tensor(logit))
    return vta


def reads_over(vta: VTA, steps: int = 1001) -> list[int]:
    """Frames of one whole episode in eval mode at which it reads."""
    embed, action, is_first = chunk(batch=1, steps=steps)
    is_first[:, 1:] = False
    with torch.no_grad():
        post, _ = vta.eval().observe(embed, action, is_first)
    return [t for t, read in enumerate(post["read"][0].tolist()) if read]


# The oracle: one frame at a time, whole matrices, the formulas as they stand.


def whole(joined: nn.Module) -> Tensor:
    return torch.cat(list(joined.weight.values()), 1)


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    return x * norm.weight + norm.bias


def block(joined: nn.Module, *parts: Tensor) -> Tensor:
    return F.silu(normed(torch.cat(parts, -1) @ whole(joined).T, joined.norm))


def recurrent(cell: nn.Module, entered: Tensor, state: Tensor) -> Tensor:
    x = normed(torch.cat([entered, state], -1) @ cell.linear.weight.T, cell.norm)
    reset, candidate, update = x.chunk(3, -1)
    update = (update - 1).sigmoid()
    return update * torch.tanh(reset.sigmoid() * candidate) + (1 - update) * state


def gaussian(layer: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (features @ layer.weight.T + layer.bias).chunk(2, -1)
    return mean, F.softplus(std) + 0.1


def prior_of(prior: nn.Module, belief: Tensor) -> tuple[Tensor, Tensor]:
    return gaussian(prior.moments, belief if prior.body is None else block(prior.body, belief))


def detected(detector: nn.Module, x: Tensor) -> Tensor:
    """Conv1d over time, batch statistics in train mode."""
    x = x.transpose(1, 2)
    for conv, norm in zip(detector.convs, detector.norms, strict=True):
        x = F.conv1d(x, conv.weight.permute(1, 2, 0), padding=1)
        if detector.training:
            mean, var = x.mean((0, 2), keepdim=True), x.var((0, 2), unbiased=False, keepdim=True)
        else:
            mean, var = norm.running_mean[None, :, None], norm.running_var[None, :, None]
        x = (x - mean) / (var + 1e-5).sqrt()
        x = F.silu(x * norm.weight[None, :, None] + norm.bias[None, :, None])
    logit = detector.logit
    return F.conv1d(x, logit.weight.permute(1, 2, 0), logit.bias, padding=1).transpose(1, 2)


def forced(vta: VTA, raw: Tensor, seg_len: int, seg_num: int) -> Tensor:
    scale = vta.force_scale
    if scale > 0 and seg_num >= vta.max_seg_num:
        return torch.tensor([-scale, scale], dtype=raw.dtype)
    if scale > 0 and seg_len >= vta.max_seg_len:
        return torch.tensor([scale, -scale], dtype=raw.dtype)
    return raw


def choice(vta: VTA, logit: Tensor, noise: Tensor) -> Tensor:
    p = ((logit + noise) / vta.temp).softmax(-1)
    hard = F.one_hot(p.argmax(), 2).to(p.dtype)
    return hard + p - p.detach()


def plain_step(
    vta: VTA,
    before: dict[str, Tensor],
    raw: Tensor,
    action: Tensor,
    noise: tuple[Tensor, Tensor, Tensor],
    embed: Tensor | None,
) -> dict[str, Tensor]:
    """One frame of one episode; every tensor is a vector."""
    seg_len, seg_num = int(before["seg_len"]), int(before["seg_num"])
    logit = forced(vta, raw, seg_len, seg_num)
    r, c = choice(vta, logit, noise[0])
    hard = int(r.item() > 0.5)
    entered = block(vta.abs_input, before["abs_stoch"], action)
    new = recurrent(vta.abs_cell, entered, before["abs_belief"])
    abs_belief = r * new + c * before["abs_belief"]
    abs_prior = prior_of(vta.abs_prior, abs_belief)
    if embed is None:
        abs_post = abs_prior
    else:
        abs_post = gaussian(vta.abs_post.moments, block(vta.abs_post.body, abs_belief, embed))
    abs_new = abs_post[0] + abs_post[1] * noise[1]
    abs_stoch = r * abs_new + c * before["abs_stoch"]
    feat = torch.cat([abs_belief, abs_stoch])
    extra = [action] if vta.obs_action_input else []
    entered = block(vta.obs_input, before["obs_stoch"], feat, *extra)
    gone_on = recurrent(vta.obs_cell, entered, before["obs_belief"])
    obs_belief = r * block(vta.obs_reset, feat) + c * gone_on
    obs_prior = prior_of(vta.obs_prior, obs_belief)
    if embed is None:
        obs_post = obs_prior
    else:
        seen = block(vta.obs_post.body, obs_belief, feat, embed)
        obs_post = gaussian(vta.obs_post.moments, seen)
    obs_stoch = obs_post[0] + obs_post[1] * noise[2]
    prior_raw = plain_prior_raw(vta, before)
    return {
        "abs_belief": abs_belief,
        "abs_stoch": abs_stoch,
        "abs_mean": abs_post[0],
        "abs_std": abs_post[1],
        "obs_belief": obs_belief,
        "obs_stoch": obs_stoch,
        "obs_mean": obs_post[0],
        "obs_std": obs_post[1],
        "read": r,
        "boundary_raw": raw,
        "boundary_logit": logit,
        "seg_len": torch.tensor(hard + (1 - hard) * (seg_len + 1)),
        "seg_num": torch.tensor(seg_num + hard),
        "prior_abs_mean": abs_prior[0],
        "prior_abs_std": abs_prior[1],
        "prior_obs_mean": obs_prior[0],
        "prior_obs_std": obs_prior[1],
        "prior_boundary_raw": prior_raw,
        "prior_boundary_logit": forced(vta, prior_raw, seg_len, seg_num),
    }


def plain_prior_raw(vta: VTA, before: dict[str, Tensor]) -> Tensor:
    feat = torch.cat([before["obs_belief"], before["obs_stoch"]])
    hidden = block(vta.prior_detector, feat)
    return hidden @ vta.prior_detector_logit.weight.T + vta.prior_detector_logit.bias


def plain_start(vta: VTA) -> dict[str, Tensor]:
    sizes = {"abs_stoch": 4, "obs_belief": 7, "obs_stoch": 5}
    zeros = {name: torch.zeros(size, dtype=vta.abs_start.dtype) for name, size in sizes.items()}
    count = torch.tensor(0)
    return zeros | {"abs_belief": vta.abs_start, "seg_len": count, "seg_num": count}


def plainly(
    vta: VTA,
    embed: Tensor,
    action: Tensor,
    is_first: Tensor,
    noise: Noise,
    reward: Tensor | None = None,
) -> dict[str, Tensor]:
    seen = embed if reward is None else torch.cat([embed, reward[..., None]], -1)
    raw = detected(vta.detector, seen)
    episodes = []
    for b in range(len(embed)):
        states: list[dict[str, Tensor]] = []
        for t in range(embed.shape[1]):
            anew = t == 0 or bool(is_first[b, t])
            before = plain_start(vta) if anew else states[-1]
            taken = torch.zeros_like(action[b, t]) if anew else action[b, t]
            here = (noise[0][b, t], noise[1][b, t], noise[2][b, t])
            states.append(plain_step(vta, before, raw[b, t], taken, here, embed[b, t]))
        episodes.append({n: torch.stack([state[n] for state in states]) for n in states[0]})
    return {n: torch.stack([episode[n] for episode in episodes]) for n in episodes[0]}


def check_against_the_plain_loop(vta: VTA, reward: Tensor | None = None) -> None:
    noise = same_noise(vta)
    embed, action, is_first = chunk(torch.float64)
    post, prior = vta.observe(embed, action, is_first, reward)
    plain = plainly(vta, embed, action, is_first, noise, reward)
    fast = {name: post[name] for name in plain if not name.startswith("prior_")}
    fast |= {name: prior[name[6:]] for name in plain if name.startswith("prior_")}
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(post["read_prob"], plain["boundary_raw"].softmax(-1)[..., 0])
    different = (post["boundary_raw"] != post["boundary_logit"]).any(-1)
    assert torch.equal(post["forced"], different)

    torch.manual_seed(5)
    weights = {n: torch.randn_like(v) for n, v in plain.items() if v.is_floating_point()}
    totals = [sum((side[n] * w).sum() for n, w in weights.items()) for side in (fast, plain)]
    named = dict(vta.named_parameters()) | {"embed": embed}
    fast_grads, plain_grads = (torch.autograd.grad(t, list(named.values())) for t in totals)
    for name, quick, slow in zip(named, fast_grads, plain_grads, strict=True):
        torch.testing.assert_close(quick, slow, msg=lambda m, name=name: f"{name}: {m}")
        assert slow.abs().sum() > 0, name


@pytest.mark.parametrize(
    "options",
    [
        {"force_scale": 0.0},
        {"max_seg_len": 2, "max_seg_num": 3},
        {"max_seg_len": 2, "force_scale": 0.5, "temp": 2.0},  # the noise can overcome the force
        {"obs_action_input": True, "detector_depth": 2},
        {"hidden": 7},  # as wide as obs_belief: that prior is a single Linear
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_chunk_is_the_plain_loop_in_values_and_in_gradients(
    options: dict[str, object], training: bool
) -> None:
    check_against_the_plain_loop(small(**options).double().train(training))


def test_the_posterior_detector_may_see_the_reward() -> None:
    vta = small(posterior_input="embed_reward").double()
    torch.manual_seed(6)
    check_against_the_plain_loop(vta, torch.randn(BATCH, STEPS, dtype=torch.float64))
    with pytest.raises(ValueError, match="needs the reward"):
        vta.observe(*chunk(torch.float64))
    with pytest.raises(ValueError, match="takes no reward"):
        small().observe(*chunk(), torch.zeros(BATCH, STEPS))


@pytest.mark.parametrize("option", ["posterior_input", "imag_boundary"])
def test_an_unknown_choice_names_the_known_ones(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be one of .*, not 'x'"):
        small(**{option: "x"})


def test_sizes_are_those_of_the_study() -> None:
    vta = VTA(4096, 5)
    assert sum(p.numel() for p in vta.parameters()) == 15_454_468  # 15.45 M
    assert sum(p.numel() for p in vta.detector.parameters()) == 6_295_554  # 6.30 M
    assert vta.out_features == 1088
    assert vta.abs_prior.body is None and vta.obs_prior.body is None


def test_the_first_state() -> None:
    vta = small()
    state = vta.initial(2)
    torch.testing.assert_close(state["abs_belief"], vta.abs_start.expand(2, -1))
    assert state["abs_belief"].requires_grad
    for level in ("abs", "obs"):
        assert not state[f"{level}_stoch"].any() and not state[f"{level}_mean"].any()
        assert (state[f"{level}_std"] == 0.1).all()
    assert not state["obs_belief"].any()
    assert state["read"].tolist() == [1.0, 1.0]
    assert state["seg_len"].tolist() == state["seg_num"].tolist() == [0, 0]
    assert not VTA(EMBED, ACTIONS).abs_start.any()


def test_states_look_the_same_wherever_they_come_from() -> None:
    vta = small()
    embed, action, is_first = chunk()
    post, _ = vta.observe(embed, action, is_first)
    state = {name: value[:, 0] for name, value in post.items()}
    looks = [
        {name: (value.shape, value.dtype) for name, value in state.items()}
        for state in (
            vta.initial(BATCH),
            state,
            vta.filter(state, embed[:, 1], action[:, 1], is_first[:, 1]),
            vta.imagine(state, action[:, 1]),
        )
    ]
    assert looks[0] == looks[1] == looks[2] == looks[3]
    feat = vta.features(post)
    assert feat.shape == (BATCH, STEPS, vta.out_features)
    torch.testing.assert_close(
        feat,
        torch.cat([post[n] for n in ("abs_belief", "abs_stoch", "obs_belief", "obs_stoch")], -1),
    )


# Acting and imagining.


def step_oracle(
    vta: VTA, state: dict[str, Tensor], action: Tensor, noise: Noise, embed: Tensor | None
) -> list[dict[str, Tensor]]:
    made = []
    for b in range(len(action)):
        before = {name: value[b] for name, value in state.items()}
        here = (noise[0][b, 0], noise[1][b, 0], noise[2][b, 0])
        raw = plain_prior_raw(vta, before)
        seen = None if embed is None else embed[b]
        made.append(plain_step(vta, before, raw, action[b], here, seen))
    return made


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("act", [True, False], ids=["filter", "imagine"])
def test_acting_and_imagining_take_the_priors_boundary(training: bool, act: bool) -> None:
    vta = small(max_seg_len=2, obs_action_input=True).double().train(training)
    noise = same_noise(vta)
    embed, action, is_first = chunk(torch.float64)
    post, _ = vta.observe(embed, action, is_first)
    state = {name: value[:, 5] for name, value in post.items()}
    seen = embed[:, 6] if act else None
    never = torch.zeros(BATCH, dtype=torch.bool)
    if act:
        made = vta.filter(state, embed[:, 6], action[:, 6], never)
    else:
        made = vta.imagine(state, action[:, 6])
    for b, plain in enumerate(step_oracle(vta, state, action[:, 6], noise, seen)):
        for name in made.keys() & plain.keys():
            torch.testing.assert_close(made[name][b], plain[name])


@pytest.mark.parametrize("logit", [READ, COPY])
def test_filtering_with_sure_detectors_is_observing_the_chunk(logit: tuple[float, float]) -> None:
    """With the same boundaries in posterior and prior only the latents are left to differ."""
    vta = sure(small(max_seg_len=3).double(), *logit)
    noise = same_noise(vta)
    embed, action, is_first = chunk(torch.float64)
    post, _ = vta.observe(embed, action, is_first)
    state = vta.initial(BATCH)
    for t in range(STEPS):
        now = [n[:, t : t + 1] for n in noise]
        vta.boundary_noise = lambda b, n, now=now: now[0]
        vta.latent_noise = lambda b, n, now=now: (now[1], now[2])
        state = vta.filter(state, embed[:, t], action[:, t], is_first[:, t])
        for name, value in state.items():
            torch.testing.assert_close(value, post[name][:, t])


def test_filtering_a_first_frame_starts_anew_without_an_action() -> None:
    vta = small().double()
    same_noise(vta)
    embed, action, is_first = chunk(torch.float64)
    post, _ = vta.observe(embed, action, is_first)
    state = {name: value[:, 5] for name, value in post.items()}
    first = torch.tensor([True, False, True])
    filtered = vta.filter(state, embed[:, 6], action[:, 6], first)
    anew = vta.filter(vta.initial(BATCH), embed[:, 6], torch.zeros_like(action[:, 6]), first)
    going_on = vta.filter(state, embed[:, 6], action[:, 6], torch.zeros_like(first))
    for name, value in filtered.items():
        torch.testing.assert_close(value[first], anew[name][first])
        torch.testing.assert_close(value[~first], going_on[name][~first])
    assert not torch.allclose(filtered["boundary_raw"], going_on["boundary_raw"])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("none", [0] * 8), ("fixed", [0, 0, 1, 0, 1, 0, 1, 0]), ("prior", [1] * 8)],
)
def test_imagined_boundaries_follow_their_rule(rule: str, expected: list[int]) -> None:
    """`fixed` reads when seg_len >= max_seg_len - 1, counted from 0 at the start, 1 at a read."""
    vta = sure(small(imag_boundary=rule, max_seg_len=3), *READ)
    state, reads = vta.initial(1), []
    lengths, numbers = [0], [0]
    with torch.no_grad():
        for _ in range(8):
            state = vta.imagine(state, torch.zeros(1, ACTIONS))
            reads.append(int(state["read"].item()))
            lengths.append(int(state["seg_len"].item()))
            numbers.append(int(state["seg_num"].item()))
    assert reads == expected
    assert lengths[1:] == [1 if r else n + 1 for r, n in zip(reads, lengths, strict=False)]
    assert numbers[1:] == [n + r for r, n in zip(reads, numbers, strict=False)]
    assert state["forced"].item() is (rule != "prior")


def test_imagination_under_no_grad_is_the_same_and_frozen_weights_pass_gradients() -> None:
    vta = small()
    same_noise(vta)
    vta.requires_grad_(False)
    action = torch.zeros(BATCH, ACTIONS, requires_grad=True)
    dreamt = vta.imagine(vta.imagine(vta.initial(BATCH), action), action)
    with torch.no_grad():
        blind = vta.imagine(vta.imagine(vta.initial(BATCH), action), action)
    for name, value in blind.items():
        torch.testing.assert_close(value, dreamt[name])
        assert not value.requires_grad
    vta.features(dreamt).square().sum().backward()
    assert action.grad is not None and action.grad.abs().sum() > 0


# What sees the action.


@pytest.mark.parametrize("sees", [False, True])
def test_inside_a_segment_the_prior_sees_the_action_only_if_told_so(sees: bool) -> None:
    vta = sure(small(obs_action_input=sees, max_seg_len=100).eval(), *COPY)
    same_noise(vta)
    embed, action, is_first = chunk()
    is_first[:, 1:] = False
    _, prior = vta.observe(embed, action, is_first)
    _, other = vta.observe(embed, action.roll(1, -1), is_first)
    changed = (prior["obs_mean"] != other["obs_mean"]).any(-1)
    # The first frame has no action in either case.
    assert not changed[:, 0].any()
    assert changed[:, 1:].all() if sees else not changed.any()


@pytest.mark.parametrize("sees", [False, True])
def test_inside_a_segment_imagination_sees_the_action_only_if_told_so(sees: bool) -> None:
    vta = small(obs_action_input=sees, imag_boundary="none")
    same_noise(vta)
    left, right = (F.one_hot(torch.full((BATCH,), a), ACTIONS).float() for a in (0, 1))
    one, other = (vta.features(vta.imagine(vta.initial(BATCH), a)) for a in (left, right))
    assert torch.equal(one, other) is not sees


def test_at_a_read_the_action_enters_either_way() -> None:
    vta = sure(small(), *READ)
    same_noise(vta)
    left, right = (F.one_hot(torch.full((BATCH,), a), ACTIONS).float() for a in (0, 1))
    one, other = (vta.imagine(vta.initial(BATCH), a) for a in (left, right))
    assert (one["abs_belief"] != other["abs_belief"]).any(-1).all()


def test_nothing_before_a_first_frame_and_no_action_into_it_matters_after_it() -> None:
    """Beyond the two frames that the posterior detector sees across the join."""
    vta = sure(small().eval(), 0.5, 0.0)
    same_noise(vta)
    embed, action, is_first = chunk()
    post, prior = vta.observe(embed, action, is_first)
    other = torch.cat([torch.randn(BATCH, 4, EMBED), embed[:, 4:]], 1)
    again = vta.observe(other, torch.cat([action[:, :5].roll(1, -1), action[:, 5:]], 1), is_first)
    for ours, theirs in zip((post, prior), again, strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name][1, 4:], value[1, 4:])
    assert not torch.equal(again[0]["abs_belief"][0, 4:], post["abs_belief"][0, 4:])


# The boundary rules, over a whole episode in eval mode.


def test_a_detector_that_never_reads_is_forced_every_thirty_frames() -> None:
    vta = sure(small(max_seg_len=30, force_scale=10.0), *COPY)
    assert reads_over(vta) == list(range(30, 1001, 30))
    assert reads_over(vta)[-1] == 990


def test_a_detector_that_always_reads_is_stopped_after_two_hundred() -> None:
    """The number limit has precedence over the length limit, which is met again and again."""
    vta = sure(small(max_seg_len=30, max_seg_num=200, force_scale=10.0), *READ)
    assert reads_over(vta) == list(range(200))


@pytest.mark.parametrize(("logit", "reads"), [(COPY, []), (READ, list(range(1001)))])
def test_without_force_both_limits_are_off(logit: tuple[float, float], reads: list[int]) -> None:
    vta = sure(small(max_seg_len=30, max_seg_num=200, force_scale=0.0), *logit)
    assert reads_over(vta) == reads


def test_a_tie_goes_to_read() -> None:
    assert reads_over(sure(small(force_scale=0.0), 0.0, 0.0), steps=7) == list(range(7))


def test_a_detector_calibrated_to_a_tenth_never_reads_in_eval_and_does_in_training() -> None:
    vta = sure(small(force_scale=0.0), *torch.tensor([0.1, 0.9]).log().tolist())
    assert reads_over(vta) == []
    torch.manual_seed(3)
    embed, action, is_first = chunk(batch=1, steps=1001)
    with torch.no_grad():
        post, _ = vta.train().observe(embed, action, is_first)
    torch.testing.assert_close(post["read_prob"], torch.full((1, 1001), 0.1))
    assert 0.06 < post["read"].mean().item() < 0.14


def test_forced_reads_are_told_apart_from_free_ones() -> None:
    vta = sure(small(max_seg_len=2), *COPY).eval()
    post, prior = vta.observe(*chunk(batch=1, steps=7))  # a new episode begins at 6
    report = vta.report(post, prior)
    assert post["read"][0].tolist() == [0, 0, 1, 0, 1, 0, 0]
    assert post["forced"][0].tolist() == [bool(r) for r in post["read"][0]]
    assert (report["forced_ratio"], report["free_ratio"]) == (post["read"].mean(), 0.0)
    free = sure(small(), *READ).eval()
    report = free.report(*free.observe(*chunk()))
    assert (report["forced_ratio"], report["free_ratio"]) == (0.0, 1.0)


def test_counters_start_anew_with_an_episode() -> None:
    post, _ = sure(small().eval(), *READ).observe(*chunk())
    assert post["seg_num"][2].tolist() == [1, 2, 3, 4, 1, 2, 1, 2, 3]
    post, _ = sure(small().eval(), *COPY).observe(*chunk())
    assert post["seg_len"][2].tolist() == [1, 2, 3, 4, 1, 2, 1, 2, 3]


def test_temperature_changes_gradients_and_no_choice() -> None:
    reads, grads = [], []
    for temp in (0.5, 1.0, 4.0):
        vta = small(temp=temp)
        same_noise(vta)
        post, _ = vta.observe(*chunk())
        reads.append(post["read"].detach())
        grads.append(torch.autograd.grad(post["read"].sum(), vta.detector.logit.bias)[0])
    assert torch.equal(reads[0], reads[1]) and torch.equal(reads[1], reads[2])
    assert 0 < reads[0].mean() < 1
    assert not torch.allclose(grads[0], grads[1]) and not torch.allclose(grads[1], grads[2])


def test_read_is_exactly_zero_or_one_with_the_gradient_of_its_probability() -> None:
    vta = small(force_scale=0.0, temp=2.0)
    noise, _, _ = same_noise(vta)
    post, _ = vta.observe(*chunk())
    assert ((post["read"] == 0) | (post["read"] == 1)).all()
    soft = ((post["boundary_raw"] + noise) / 2.0).softmax(-1)[..., 0]
    given, expected = (
        torch.autograd.grad(x.sum(), post["boundary_raw"], retain_graph=True)[0]
        for x in (post["read"], soft)
    )
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_posterior_detector_sees_one_frame_more_on_each_side_per_layer(depth: int) -> None:
    vta = small(detector_depth=depth).eval()
    embed, _, _ = chunk(batch=1)
    other = embed.detach().clone()
    other[0, 4] += 1.0
    changed = (vta.detector(embed) != vta.detector(other)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(4 - depth - 1, 4 + depth + 2))


def test_whole_episodes_use_the_running_statistics_of_training() -> None:
    vta = small()
    embed, action, is_first = chunk()
    before = vta.detector.norms[0].running_mean.clone()
    vta.observe(embed, action, is_first)
    assert not torch.equal(vta.detector.norms[0].running_mean, before)
    vta.eval()
    alone, _ = vta.observe(embed[:1], action[:1], is_first[:1])
    beside, _ = vta.observe(embed, action, is_first)
    torch.testing.assert_close(alone["read_prob"], beside["read_prob"][:1])


# Losses: goldens of two-dimensional latents.


def two_dimensional(read: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    post = {
        "abs_mean": [0.5, 0.0],
        "abs_std": [1.0, 0.5],
        "obs_mean": [1.0, 1.0],
        "obs_std": [0.5, 0.5],
        "boundary_logit": [1.0, 0.0],
    }
    prior = {name: [float("std" in name)] * 2 for name in post}
    as_leaves = [
        {n: torch.tensor([[v]]).requires_grad_() for n, v in side.items()} for side in (post, prior)
    ]
    as_leaves[0]["read"] = torch.tensor([[float(read)]], requires_grad=True)
    return as_leaves[0], as_leaves[1]


@pytest.mark.parametrize(("read", "kl", "loss"), [(1, 2.079442, 1.358609), (0, 1.636294, 1.092721)])
def test_kl_of_both_levels_and_of_the_boundary(read: int, kl: float, loss: float) -> None:
    dyn, rep, mask = small().kl(*two_dimensional(read))
    assert dyn.item() == pytest.approx(kl, abs=1e-6)
    assert rep.item() == pytest.approx(kl, abs=1e-6)
    assert mask.item() == pytest.approx(0.110944, abs=1e-6)
    assert (0.5 * dyn + 0.1 * rep + mask).item() == pytest.approx(loss, abs=1e-6)


def moved_by(loss: Tensor, *sides: dict[str, Tensor]) -> set[str]:
    named = {
        f"{k}{n}": v for k, side in zip(("q_", "p_"), sides, strict=True) for n, v in side.items()
    }
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n for n, g in zip(named, grads, strict=True) if g is not None and bool(g.any())}


def test_dyn_moves_the_priors_rep_the_posteriors_and_both_the_gate() -> None:
    post, prior = two_dimensional(1)
    dyn, rep, mask = small().kl(post, prior)
    levels = {"abs_mean", "abs_std", "obs_mean", "obs_std"}
    assert moved_by(dyn, post, prior) == {f"p_{n}" for n in levels} | {"q_read"}
    assert moved_by(rep, post, prior) == {f"q_{n}" for n in levels} | {"q_read"}
    assert moved_by(mask, post, prior) == {"p_boundary_logit"}


def test_the_boundary_pays_for_the_abstract_level() -> None:
    post, prior = two_dimensional(1)
    vta = small()
    (price,) = torch.autograd.grad(vta.kl(post, prior)[1], post["read"])
    abstract, observed = vta.kl_per_frame(post, prior)
    torch.testing.assert_close(price, abstract)
    assert abstract.item() == pytest.approx(2.079442 - 1.636294, abs=1e-6)
    assert observed.item() == pytest.approx(1.636294, abs=1e-6)


def test_the_free_nats_are_on_the_sum_of_both_levels_in_each_frame() -> None:
    post, prior = two_dimensional(0)
    assert [small(free=5.0).kl(post, prior)[i].item() for i in (0, 1)] == [5.0, 5.0]
    assert moved_by(small(free=5.0).kl(post, prior)[0], post, prior) == set()
    two = [
        {n: torch.cat([v, w], 1) for n, v, w in zip(a, a.values(), b.values(), strict=True)}
        for a, b in zip(two_dimensional(0), two_dimensional(1), strict=True)
    ]
    assert small(free=2.0).kl(*two)[0].item() == pytest.approx((2.0 + 2.079442) / 2, abs=1e-6)


def test_kl_per_frame_is_that_of_the_distributions() -> None:
    vta = small()
    post, prior = vta.observe(*chunk())
    for level, kl in zip(("abs", "obs"), vta.kl_per_frame(post, prior), strict=True):
        q, p = (Normal(s[f"{level}_mean"], s[f"{level}_std"]) for s in (post, prior))
        torch.testing.assert_close(kl, kl_divergence(q, p).sum(-1))
        assert kl.shape == (BATCH, STEPS)


def test_the_rate_prior_is_the_kl_of_two_coins() -> None:
    post, _ = two_dimensional(1)
    assert small(rate=0.1).rate_prior(post).item() == pytest.approx(1.129457, abs=1e-6)
    assert small(rate=0.5).rate_prior({"boundary_logit": torch.zeros(1, 1, 2)}).item() == 0.0
    sure_of_it = {"boundary_logit": torch.tensor([[[200.0, -200.0]]])}
    assert small(rate=0.1).rate_prior(sure_of_it).isfinite()
    with pytest.raises(ValueError, match="rate must be inside"):
        small().rate_prior(post)


def test_the_report_is_of_figures_that_nothing_optimises() -> None:
    vta = small()
    post, prior = vta.observe(*chunk())
    report = vta.report(post, prior)
    assert all(v.ndim == 0 and not v.requires_grad for v in report.values())
    torch.testing.assert_close(report["boundary_ratio"], post["read"].detach().mean())
    torch.testing.assert_close(report["kl_mask"], vta.kl(post, prior)[2].detach())
    for side, state in (("post", post), ("prior", prior)):
        for level in ("abs", "obs"):
            std = state[f"{level}_std"].detach()
            entropy = Normal(torch.zeros_like(std), std).entropy().sum(-1).mean()
            torch.testing.assert_close(report[f"{side}_{level}_entropy"], entropy)
    assert report["sanitised"].item() == 0


def test_what_a_draw_had_to_repair_is_counted_and_stays_in_the_losses() -> None:
    vta = small()
    vta.obs_post.moments.bias.data[0] = float("nan")  # one mean of five
    post, prior = vta.observe(*chunk())
    assert post["obs_stoch"].isfinite().all()
    assert vta.report(post, prior)["sanitised"].item() == BATCH * STEPS
    assert vta.kl(post, prior)[0].isnan()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("force_scale", [0.0, 10.0])
def test_sixteen_bit_runs_are_finite_and_keep_a_float32_state(
    half: torch.dtype, force_scale: float
) -> None:
    vta = small(force_scale=force_scale, rate=0.1, max_seg_len=3)
    embed, action, is_first = chunk()
    with torch.autocast("cpu", half):
        post, prior = vta.observe(embed.to(half), action, is_first)
        now = {name: value[:, 0] for name, value in post.items()}
        acted = vta.filter(now, embed[:, 1].to(half), action[:, 1], is_first[:, 1])
        dreamt = vta.imagine(now, action[:, 0])
        total = vta.features(post).sum() + sum(vta.kl(post, prior)) + vta.rate_prior(post)
    for value in (*post.values(), *prior.values(), *acted.values(), *dreamt.values()):
        assert value.dtype in (torch.float32, torch.int64, torch.bool)
        assert value.isfinite().all()
    total.backward()
    for name, p in vta.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
