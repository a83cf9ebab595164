"""Imagination, returns and the losses of actor and critic, against float64 NumPy on a toy world."""

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from expc_runtime.worlds.behaviour import (
    ReturnRange,
    Trajectory,
    critic_loss,
    discounted,
    imagine,
    lambda_return,
    policy_gradient,
    polyak,
    slow_copy,
)
from expc_runtime.worlds.nets import Actor, BinaryHead, RealHead, TwoHotHead

Array = NDArray[np.float64]

torch.set_num_threads(1)

SIZE, ACTIONS = 3, 4


class Toy(nn.Module):
    """x' = tanh(x A + a B); the features are x itself, and `told` rides along unused."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(SIZE, SIZE))
        self.b = nn.Parameter(torch.randn(ACTIONS, SIZE))

    def imagine(self, state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        return {"x": torch.tanh(state["x"] @ self.a + action @ self.b), "told": state["told"]}

    def features(self, state: dict[str, Tensor]) -> Tensor:
        return state["x"]


class World:
    """A toy dynamics with linear heads, float64, and start states (B, T) = (2, 3)."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.dynamics = Toy().double()
        self.actor = Actor(SIZE, ACTIONS, layers=0).double()
        self.reward = RealHead(SIZE, layers=0).double()
        self.cont = BinaryHead(SIZE, layers=0).double()
        self.critic = RealHead(SIZE, layers=0).double()
        for head in (self.actor, self.reward, self.cont, self.critic):
            for p in head.parameters():
                nn.init.normal_(p)
        x = torch.randn(2, 3, SIZE, dtype=torch.float64)
        self.start = {"x": x, "told": torch.arange(6).reshape(2, 3)}

    def roll(self, horizon: int) -> Trajectory:
        return imagine(self.dynamics, self.actor, self.start, horizon)

    def judge(self, trajectory: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        return lambda_return(trajectory, self.reward, self.cont, self.critic)


def numbers(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())


def weights_of(head: nn.Module) -> tuple[Array, Array]:
    (linear,) = (part for part in head.modules() if isinstance(part, nn.Linear))
    return numbers(linear.weight), numbers(linear.bias)


def ref_linear(x: Array, weight: Array, bias: Array) -> Array:
    return x @ weight.T + bias


def ref_probs(logits: Array) -> Array:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(0.99 * p / p.sum(-1, keepdims=True) + 0.01 / ACTIONS)


def ref_returns(reward: Array, value: Array, going: Array, decay: float) -> Array:
    """The recursion as it is written: from the last step, which gets its value whole."""

    def of(k: int) -> Array:
        after = value[k] if k == len(reward) - 1 else of(k + 1)
        return np.asarray(reward[k] + going[k] * ((1 - decay) * value[k] + decay * after))

    return np.stack([of(k) for k in range(len(reward))])


def ref_judge(world: World, feat: Array) -> tuple[Array, Array, Array]:
    """Returns, weights, baseline (H - 1, N) of features (H, N, F)."""
    reward, value, logit = (
        ref_linear(feat, *weights_of(head))[..., 0]
        for head in (world.reward, world.critic, world.cont)
    )
    going = 0.997 / (1 + np.exp(-logit))
    weights = np.stack([going[:k].prod(0) for k in range(len(feat) - 1)])
    return ref_returns(reward[1:], value[1:], going[1:], 0.95), weights, value[:-1]


def ref_roll(
    world: World, taken: Array, seen: Array, weight: Array, bias: Array
) -> tuple[Array, Array]:
    """Features and the policy's probabilities at them, had the actor other weights.

    Straight through: the actions `taken` move as the probabilities at the features `seen` do.
    """
    a, b = numbers(world.dynamics.a), numbers(world.dynamics.b)
    before = ref_probs(ref_linear(seen, *weights_of(world.actor)))
    moved = taken + ref_probs(ref_linear(seen, weight, bias)) - before
    feat = [numbers(world.start["x"]).reshape(-1, SIZE)]
    for action in moved:
        feat.append(np.tanh(feat[-1] @ a + action @ b))
    return np.stack(feat), ref_probs(ref_linear(np.stack(feat), weight, bias))


def ref_entropy(probs: Array) -> Array:
    return np.asarray(-(probs * np.log(probs)).sum(-1))


def slopes(loss: Callable[[Array, Array], float], actor: Actor) -> list[Array]:
    """Central differences of `loss` by the actor's weight and bias."""
    found = []
    at = weights_of(actor)
    for which in (0, 1):
        slope = np.zeros_like(at[which])
        for place in np.ndindex(slope.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [at[0].copy(), at[1].copy()]
                moved[which][place] += step
                ends.append(loss(*moved))
            slope[place] = (ends[0] - ends[1]) / 2e-5
        found.append(slope)
    return found


def gradients(loss: Tensor, actor: Actor) -> list[Array]:
    (linear,) = (part for part in actor.modules() if isinstance(part, nn.Linear))
    return [numbers(g) for g in torch.autograd.grad(loss, [linear.weight, linear.bias])]


def assert_same(got: list[Array], expected: list[Array]) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------------
# Imagination


def test_every_state_of_the_batch_starts_a_trajectory() -> None:
    world = World(0)
    trajectory = world.roll(5)
    assert trajectory["feat"].shape == (5, 6, SIZE)
    assert trajectory["action"].shape == trajectory["logits"].shape == (4, 6, ACTIONS)
    assert torch.equal(trajectory["feat"][0], world.start["x"].reshape(6, SIZE))


def test_each_feature_follows_from_the_one_before_by_the_action_between() -> None:
    world = World(1)
    trajectory = world.roll(6)
    feat, action = numbers(trajectory["feat"]), numbers(trajectory["action"])
    weights = weights_of(world.actor)
    expected, _ = ref_roll(world, action, feat[:-1], *weights)
    np.testing.assert_allclose(feat, expected, rtol=1e-9, atol=1e-9)
    logits = ref_linear(feat[:-1], *weights)
    np.testing.assert_allclose(numbers(trajectory["logits"]), logits, rtol=1e-9, atol=1e-9)


def test_actions_are_drawn_by_the_actor_at_the_feature() -> None:
    """From one start, often: the frequencies are those of the policy."""
    world = World(2)
    many = {"x": world.start["x"][:1, :1].expand(100, 200, -1), "told": torch.zeros(100, 200)}
    action = numbers(imagine(world.dynamics, world.actor, many, 2)["action"][0])
    assert set(np.unique(action)) == {0.0, 1.0} and (action.sum(-1) == 1).all()
    probs = numbers(world.actor.probs(world.start["x"][0, 0]))
    assert (abs(action.mean(0) - probs) < 4 * np.sqrt(probs * (1 - probs) / 20_000)).all()


def test_no_gradient_flows_into_a_feature_through_the_actor() -> None:
    """With a dynamics that ignores its actions the start gets the gradient of x' = tanh(x A) alone."""
    world = World(3)
    with torch.no_grad():
        world.dynamics.b.zero_()
    x = world.start["x"].requires_grad_()
    trajectory = world.roll(3)
    told = trajectory["action"].sum() + trajectory["logits"].sum()
    (got,) = torch.autograd.grad(told, x, allow_unused=True)
    assert got is None or not got.any()


def test_without_gradients_a_trajectory_has_none() -> None:
    with torch.no_grad():
        assert not any(x.requires_grad for x in World(4).roll(3).values())


@pytest.mark.parametrize("horizon", [-1, 0, 1])
def test_a_horizon_has_two_steps(horizon: int) -> None:
    with pytest.raises(ValueError, match=f"not {horizon}"):
        World(5).roll(horizon)


# ------------------------------------------------------------------------------------------------
# Returns


def test_the_lambda_return_has_the_published_values() -> None:
    """r (1, 0, 2), values of the next states (.4, .3, .2), d .9, lambda .95."""
    reward, value = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.4, 0.3, 0.2])
    returns = discounted(reward, value, torch.full((3,), 0.9), 0.95)
    expected = torch.tensor([2.623177, 1.877400, 2.180000])
    torch.testing.assert_close(returns, expected, rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 20), decay=st.floats(0, 1))
def test_the_lambda_return_is_its_recursion(seed: int, steps: int, decay: float) -> None:
    rng = np.random.default_rng(seed)
    reward, value, going = rng.normal(size=(3, steps, 5))
    inputs = [torch.from_numpy(x) for x in (reward, value, going)]
    got = discounted(inputs[0], inputs[1], inputs[2], decay)
    np.testing.assert_allclose(got.numpy(), ref_returns(reward, value, going, decay), rtol=1e-9)


def test_with_lambda_0_a_return_sees_one_step_and_with_1_all_of_them() -> None:
    reward, value = torch.rand(4, 2), torch.rand(4, 2)
    going = torch.full((4, 2), 0.5)
    torch.testing.assert_close(discounted(reward, value, going, 0.0), reward + 0.5 * value)
    whole = sum(0.5**k * reward[k] for k in range(4)) + 0.5**4 * value[-1]
    torch.testing.assert_close(discounted(reward, value, going, 1.0)[0], whole)


def test_returns_weights_and_baseline_are_of_the_steps_they_are_named_after() -> None:
    world = World(6)
    trajectory = world.roll(7)
    got = world.judge(trajectory)
    for a, b in zip(got, ref_judge(world, numbers(trajectory["feat"])), strict=True):
        assert a.shape == (6, 6)
        np.testing.assert_allclose(numbers(a), b, rtol=1e-9, atol=1e-9)
    returns, weights, _ = got
    assert returns.requires_grad and not weights.requires_grad
    assert (weights[0] == 1).all()


def test_a_horizon_of_two_has_one_return() -> None:
    world = World(7)
    trajectory = world.roll(2)
    returns, weights, baseline = world.judge(trajectory)
    assert returns.shape == baseline.shape == (1, 6) and (weights == 1).all()


# ------------------------------------------------------------------------------------------------
# The actor


def test_reinforce_by_hand_on_three_steps() -> None:
    """One start, logits that depend on nothing: the gradient by the logits z is

    mean over k of -w_k A_k dlog p_a / dz_j, dlog p_a / dz_j = .99 s_a ([a = j] - s_j) / p_a.
    """
    actor = Actor(1, 3, layers=0).double()
    (linear,) = (part for part in actor.modules() if isinstance(part, nn.Linear))
    z = np.array([0.3, -0.2, 1.0])
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.from_numpy(z))
    taken, w, gain = [2, 0, 1], np.array([1.0, 0.9, 0.5]), np.array([2.0, -1.0, 3.0])
    s = np.exp(z) / np.exp(z).sum()
    p = 0.99 * s + 0.01 / 3
    loss = -np.mean([w[k] * gain[k] * np.log(p[a]) for k, a in enumerate(taken)])
    slope = -np.mean(
        [w[k] * gain[k] * 0.99 * s[a] * (np.eye(3)[a] - s) / p[a] for k, a in enumerate(taken)], 0
    )
    trajectory = {
        "feat": torch.zeros(4, 1, 1).double(),
        "action": torch.eye(3).double()[taken][:, None],
        "logits": torch.from_numpy(z).expand(3, 1, 3),
    }
    column = [torch.from_numpy(x)[:, None] for x in (gain + 5.0, w, np.full(3, 5.0))]
    policy_loss, entropy_loss = policy_gradient(actor, trajectory, *column)
    assert policy_loss.item() == pytest.approx(loss)
    assert entropy_loss.item() == pytest.approx((p * np.log(p)).sum())
    (got,) = torch.autograd.grad(policy_loss, [linear.bias])
    np.testing.assert_allclose(got.numpy(), slope, rtol=1e-9)


def reinforce(world: World, trajectory: Trajectory, scale: float = 1.0) -> Callable[..., float]:
    """The policy's loss by the actor's weights: features, actions and advantages stay as they are."""
    feat, action = numbers(trajectory["feat"]), numbers(trajectory["action"])
    returns, weights, baseline = ref_judge(world, feat)

    def loss(weight: Array, bias: Array) -> float:
        probs = ref_probs(ref_linear(feat[:-1], weight, bias))
        likelihood = np.log((probs * action).sum(-1))
        return float(-(weights * likelihood * (returns - baseline) / scale).mean())

    return loss


@pytest.mark.parametrize("scale", [None, 3.5])
def test_reinforce_without_gradients_in_the_trajectory(scale: float | None) -> None:
    world = World(8)
    with torch.no_grad():
        trajectory = world.roll(5)
        judged = world.judge(trajectory)
    by = None if scale is None else torch.tensor(scale)
    policy_loss, entropy_loss = policy_gradient(world.actor, trajectory, *judged, scale=by)
    loss = reinforce(world, trajectory, scale or 1.0)
    assert policy_loss.item() == pytest.approx(loss(*weights_of(world.actor)))
    assert_same(gradients(policy_loss, world.actor), slopes(loss, world.actor))

    feat = numbers(trajectory["feat"])[:-1]

    def spread(weight: Array, bias: Array) -> float:
        return float(-ref_entropy(ref_probs(ref_linear(feat, weight, bias))).mean())

    assert entropy_loss.item() == pytest.approx(spread(*weights_of(world.actor)))
    policy_loss, entropy_loss = policy_gradient(world.actor, trajectory, *judged, scale=by)
    assert_same(gradients(entropy_loss, world.actor), slopes(spread, world.actor))


def test_reinforce_with_gradients_in_the_trajectory_moves_the_entropy_through_it() -> None:
    """The policy's term is the same; the entropy also sees where the actions lead."""
    world = World(9)
    trajectory = world.roll(5)
    policy_loss, entropy_loss = policy_gradient(world.actor, trajectory, *world.judge(trajectory))
    loss = reinforce(world, trajectory)
    assert policy_loss.item() == pytest.approx(loss(*weights_of(world.actor)))
    feat, action = numbers(trajectory["feat"]), numbers(trajectory["action"])

    def spread(weight: Array, bias: Array) -> float:
        _, probs = ref_roll(world, action, feat[:-1], weight, bias)
        return float(-ref_entropy(probs[:-1]).mean())

    assert entropy_loss.item() == pytest.approx(spread(*weights_of(world.actor)))
    both = gradients(policy_loss + entropy_loss, world.actor)
    expected = [a + b for a, b in zip(slopes(loss, world.actor), slopes(spread, world.actor), strict=True)]  # fmt: skip
    assert_same(both, expected)


@pytest.mark.parametrize("scale", [None, 3.5])
def test_through_the_dynamics_the_loss_is_the_weighted_advantage(scale: float | None) -> None:
    world = World(10)
    trajectory = world.roll(5)
    judged = world.judge(trajectory)
    by = None if scale is None else torch.tensor(scale)
    policy_loss, _ = policy_gradient(
        world.actor, trajectory, *judged, gradient="dynamics", scale=by
    )
    feat, action = numbers(trajectory["feat"]), numbers(trajectory["action"])
    _, weights, _ = ref_judge(world, feat)

    def loss(weight: Array, bias: Array) -> float:
        moved, _ = ref_roll(world, action, feat[:-1], weight, bias)
        returns, _, baseline = ref_judge(world, moved)
        return float(-(weights * (returns - baseline)).mean() / (scale or 1.0))

    assert policy_loss.item() == pytest.approx(loss(*weights_of(world.actor)))
    assert_same(gradients(policy_loss, world.actor), slopes(loss, world.actor))


def test_through_the_dynamics_needs_gradients_there() -> None:
    world = World(11)
    with torch.no_grad():
        trajectory = world.roll(3)
        judged = world.judge(trajectory)
    with pytest.raises(ValueError, match="no gradient"):
        policy_gradient(world.actor, trajectory, *judged, gradient="dynamics")


# ------------------------------------------------------------------------------------------------
# The critic


def ref_code(x: Array, bins: int) -> Array:
    place = (np.sign(x) * np.log1p(abs(x)) + 20) / 40 * (bins - 1)
    return np.maximum(0.0, 1.0 - abs(np.arange(bins) - place[..., None]))


def test_the_critic_learns_returns_and_its_slow_copy_by_the_weights() -> None:
    torch.manual_seed(12)
    critic, slow = (TwoHotHead(SIZE, bins=21, units=8).double() for _ in range(2))
    for p in (*critic.parameters(), *slow.parameters()):
        nn.init.normal_(p, std=0.5)
    feat = torch.randn(4, 5, SIZE, dtype=torch.float64, requires_grad=True)
    returns = (torch.randn(3, 5, dtype=torch.float64) * 20).requires_grad_()
    weights = torch.rand(3, 5, dtype=torch.float64)
    got = critic_loss(critic, slow, {"feat": feat}, returns, weights)
    log_p = numbers(critic(feat[:-1]).log_softmax(-1))
    for loss, target in zip(got, (returns, slow.mode(feat[:-1])), strict=True):
        cost = -(ref_code(numbers(target), 21) * log_p).sum(-1)
        assert loss.item() == pytest.approx((numbers(weights) * cost).mean(), rel=1e-6)
    sum(got).backward()  # type: ignore[union-attr]
    assert feat.grad is None and returns.grad is None
    assert all(p.grad is None for p in slow.parameters())
    assert all(p.grad is not None for p in critic.parameters())


def test_a_slow_copy_starts_equal_and_takes_no_gradient() -> None:
    critic = TwoHotHead(SIZE)
    slow = slow_copy(critic)
    assert not any(p.requires_grad for p in slow.parameters())
    assert all(p.requires_grad for p in critic.parameters())
    for a, b in zip(slow.parameters(), critic.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b


def test_polyak_moves_the_copy_by_the_rate_and_not_the_net() -> None:
    critic = TwoHotHead(SIZE, units=4)
    slow = slow_copy(critic)
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(torch.randn_like(p))
    before = [numbers(p) for p in slow.parameters()], [numbers(p) for p in critic.parameters()]
    for _ in range(3):
        polyak(slow, critic, rate=0.02)
    for p, old, new in zip(slow.parameters(), *before, strict=True):
        expected = new + 0.98**3 * (old - new)
        np.testing.assert_allclose(numbers(p), expected, rtol=1e-5, atol=1e-6)
        assert not p.requires_grad
    for p, new in zip(critic.parameters(), before[1], strict=True):
        np.testing.assert_array_equal(numbers(p), new)


# ------------------------------------------------------------------------------------------------
# The range of returns


def test_the_range_keeps_99_hundredths_of_the_quantiles_it_had() -> None:
    rng, net = np.random.default_rng(0), ReturnRange()
    kept = np.zeros(2)
    for _ in range(40):
        returns = rng.normal(0.0, 50.0, (14, 60))
        kept = 0.99 * kept + 0.01 * np.quantile(returns, [0.05, 0.95])
        scale = net(torch.from_numpy(returns).float().requires_grad_())
        assert scale.shape == () and not scale.requires_grad
        assert scale.item() == pytest.approx(max(1.0, kept[1] - kept[0]), rel=1e-4)
    assert scale.item() > 2


def test_the_range_is_at_least_one() -> None:
    assert ReturnRange()(torch.randn(14, 60) * 1e-3).item() == 1.0


def test_the_range_is_saved_with_the_weights() -> None:
    net, other = ReturnRange(), ReturnRange()
    for _ in range(5):
        net(torch.randn(100) * 1000)
    other.load_state_dict(net.state_dict())
    returns = torch.randn(100)
    assert torch.equal(net(returns), other(returns))


# ------------------------------------------------------------------------------------------------
# Devices and 16 bits


def everything(world: World, horizon: int = 4) -> list[Tensor]:
    """One behaviour step with a two-hot critic."""
    critic = TwoHotHead(SIZE, units=8).to(world.start["x"])
    trajectory = world.roll(horizon)
    judged = lambda_return(trajectory, world.reward, world.cont, critic)
    scale = ReturnRange().to(judged[0].device)(judged[0])
    losses = policy_gradient(world.actor, trajectory, *judged, scale=scale)
    return [
        *judged,
        scale,
        *losses,
        *critic_loss(critic, slow_copy(critic), trajectory, *judged[:2]),
    ]


def of(world: World, move: Callable[[Any], Any]) -> World:
    for net in (world.dynamics, world.actor, world.reward, world.cont, world.critic):
        move(net)
    world.start = {name: move(x) for name, x in world.start.items()}
    return world


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_under_autocast_all_but_the_matrices_is_float32(dtype: Any) -> None:
    world = of(World(13), lambda x: x.float())
    with torch.autocast("cpu", dtype):
        results = everything(world)
    assert {x.dtype for x in results} == {torch.float32}
    assert all(x.isfinite().all() for x in results)


def test_nothing_waits_for_the_device() -> None:
    """Meta tensors have no values: reading one would raise."""
    results = everything(of(World(14), lambda x: x.to("meta")))
    assert [x.shape for x in results[:3]] == [(3, 6)] * 3
    assert all(x.shape == () for x in results[3:])


def test_the_first_critic_knows_nothing() -> None:
    """Uniform logits: both of its losses are ln 255 where all weights are 1."""
    critic = TwoHotHead(SIZE)
    feat, ones = {"feat": torch.randn(3, 5, SIZE)}, torch.ones(2, 5)
    for loss in critic_loss(critic, slow_copy(critic), feat, torch.randn(2, 5), ones):
        assert loss.item() == pytest.approx(math.log(255), abs=1e-5)
