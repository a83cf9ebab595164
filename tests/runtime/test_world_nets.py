"""Encoder, decoder, heads and actor against float64 NumPy written from their description."""

import math
from typing import Any, TypeVar

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from expc_runtime.worlds.nets import (
    Actor,
    BinaryHead,
    ConvDecoder,
    ConvEncoder,
    RealHead,
    TwoHotHead,
)

Array = NDArray[np.float64]
Net = TypeVar("Net", bound=nn.Module)

torch.set_num_threads(1)

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)

# ------------------------------------------------------------------------------------------------
# References. Images are (N, H, W, C); kernels as torch keeps them.


def numbers(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())


def ref_norm_silu(x: Array, norm: nn.LayerNorm) -> Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) / np.sqrt(var + 1e-3) * numbers(norm.weight) + numbers(norm.bias)
    return x / (1.0 + np.exp(-x))


def ref_conv(x: Array, kernel: Array) -> Array:
    """Kernel (out, in, 4, 4), stride 2, one row and column of zeros around."""
    side = x.shape[1] // 2
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((len(x), side, side, kernel.shape[0]))
    for i, j in np.ndindex(side, side):
        patch = x[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        out[:, i, j] = np.einsum("nhwc,ochw->no", patch, kernel)
    return out


def ref_transposed_conv(x: Array, kernel: Array) -> Array:
    """Kernel (in, out, 4, 4): each pixel paints a 4 x 4 patch, two apart; the rim is cut off."""
    side = x.shape[1]
    out = np.zeros((len(x), 2 * side + 2, 2 * side + 2, kernel.shape[1]))
    for i, j in np.ndindex(side, side):
        patch = np.einsum("nc,cohw->nhwo", x[:, i, j], kernel)
        out[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch
    return out[:, 1:-1, 1:-1]


def kinds(net: nn.Module, kind: Any) -> list[Any]:
    return [part for part in net.modules() if isinstance(part, kind)]


def shaken(net: Net) -> Net:
    """In float64, with every parameter moved, so that ones and zeros hide nothing."""
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return net


# ------------------------------------------------------------------------------------------------
# Encoder and decoder


def test_the_encoder_halves_64_to_4() -> None:
    encoder = ConvEncoder()
    seen: list[tuple[int, ...]] = []
    for conv in kinds(encoder, nn.Conv2d):
        conv.register_forward_hook(lambda _conv, _image, plane: seen.append(tuple(plane.shape[1:])))
    embed = encoder(torch.rand(1, 64, 64, 3))
    assert seen == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert embed.shape == (1, 4096) and encoder.out_features == 4096


def test_the_decoder_doubles_4_to_64() -> None:
    decoder = ConvDecoder(1536)
    image = decoder(torch.randn(1, 1536))
    shapes = [tuple(c.weight.shape) for c in kinds(decoder, nn.ConvTranspose2d)]
    assert shapes == [(256, 128, 4, 4), (128, 64, 4, 4), (64, 32, 4, 4), (32, 3, 4, 4)]
    assert [c.bias is not None for c in kinds(decoder, nn.ConvTranspose2d)] == [False] * 3 + [True]
    assert image.shape == (1, 64, 64, 3)


def test_the_encoder_equals_its_description() -> None:
    torch.manual_seed(0)
    encoder = shaken(ConvEncoder(3, in_channels=2, size=16))
    image = torch.rand(5, 16, 16, 2, dtype=torch.float64)
    x = numbers(image) - 0.5
    for conv, norm in zip(kinds(encoder, nn.Conv2d), kinds(encoder, nn.LayerNorm), strict=True):
        x = ref_norm_silu(ref_conv(x, numbers(conv.weight)), norm)
    np.testing.assert_allclose(numbers(encoder(image)), x.reshape(5, -1), rtol=1e-9, atol=1e-9)


def test_the_decoder_equals_its_description() -> None:
    torch.manual_seed(1)
    decoder = shaken(ConvDecoder(7, depth=3, size=32))
    features = torch.randn(4, 7, dtype=torch.float64)
    (linear,) = kinds(decoder, nn.Linear)
    x = numbers(features) @ numbers(linear.weight).T + numbers(linear.bias)
    x = x.reshape(4, 4, 4, 12)
    *hidden, last = kinds(decoder, nn.ConvTranspose2d)
    for conv, norm in zip(hidden, kinds(decoder, nn.LayerNorm), strict=True):
        x = ref_norm_silu(ref_transposed_conv(x, numbers(conv.weight)), norm)
    x = ref_transposed_conv(x, numbers(last.weight)) + numbers(last.bias) + 0.5
    np.testing.assert_allclose(numbers(decoder(features)), x, rtol=1e-9, atol=1e-9)


def test_gradients_of_encoder_and_decoder_equal_finite_differences() -> None:
    torch.manual_seed(2)
    encoder, decoder = shaken(ConvEncoder(2, size=8)), shaken(ConvDecoder(3, depth=2, size=8))
    image = torch.rand(1, 8, 8, 3, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x), (image,))
    inputs = (features, *decoder.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: decoder(x), inputs)
    assert torch.autograd.gradcheck(lambda *_: encoder(image.detach()), (*encoder.parameters(),))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_any_leading_dims(lead: tuple[int, ...]) -> None:
    encoder, decoder = ConvEncoder(2, size=8), ConvDecoder(5, depth=2, size=8)
    image, features = torch.rand(*lead, 8, 8, 3), torch.randn(*lead, 5)
    embed = encoder(image)
    assert embed.shape == (*lead, 32)
    assert decoder(features).shape == (*lead, 8, 8, 3)
    flat = encoder(image.reshape(-1, 8, 8, 3)).reshape(embed.shape)
    torch.testing.assert_close(embed, flat)


@pytest.mark.parametrize("size", [0, 4, 12, 63, 65])
def test_a_size_that_cannot_be_halved_to_4_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        ConvEncoder(size=size)
    with pytest.raises(ValueError, match=f"not {size}"):
        ConvDecoder(4, size=size)


# ------------------------------------------------------------------------------------------------
# How they start


def starting_bound(weight: Tensor) -> float:
    """1 / mean(fan in, fan out); a convolution's fans count its kernel."""
    a, b = weight.shape[:2]
    return 2.0 / ((a + b) * weight.shape[2:].numel())


def test_hidden_weights_are_normal_cut_at_two_deviations() -> None:
    torch.manual_seed(3)
    encoder, decoder = ConvEncoder(), ConvDecoder(64)
    hidden = kinds(encoder, nn.Conv2d) + kinds(decoder, nn.ConvTranspose2d)[:-1]
    hidden += kinds(BinaryHead(512), nn.Linear)[:-1]
    for layer in hidden:
        std = math.sqrt(starting_bound(layer.weight))
        assert layer.bias is None
        assert layer.weight.std().item() == pytest.approx(std, rel=0.06)
        assert layer.weight.abs().max().item() <= 2 * std / 0.8796 + 1e-6
        assert layer.weight.abs().max().item() > 1.9 * std / 0.8796


def test_output_weights_are_uniform_and_their_biases_zero() -> None:
    torch.manual_seed(4)
    decoder = ConvDecoder(64)
    last = kinds(decoder, nn.ConvTranspose2d)[-1]
    outputs = [last, decoder.linear, kinds(Actor(64, 5), nn.Linear)[-1]]
    for layer in [*outputs, kinds(BinaryHead(64), nn.Linear)[-1]]:
        limit = math.sqrt(3 * starting_bound(layer.weight))
        assert not layer.bias.any()
        assert 0.95 * limit < layer.weight.abs().max().item() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.08)


@pytest.mark.parametrize("head", [TwoHotHead(16), RealHead(16)], ids=["twohot", "real"])
def test_reward_and_critic_start_at_zero(head: Any) -> None:
    features = torch.randn(3, 16)
    assert not head(features).any()
    torch.testing.assert_close(head.mode(features), torch.zeros(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("net", [ConvEncoder(4), ConvDecoder(8, depth=4), Actor(8, 5)], ids=str)
def test_norms_start_at_one_and_zero_with_eps_a_thousandth(net: nn.Module) -> None:
    norms = kinds(net, nn.LayerNorm)
    assert norms
    for norm in norms:
        assert norm.eps == 1e-3 and (norm.weight == 1).all() and not norm.bias.any()


def test_a_copy_of_the_weights_is_the_same_net() -> None:
    one, other = ConvDecoder(5, depth=2, size=16), ConvDecoder(5, depth=2, size=16)
    other.load_state_dict(one.state_dict())
    features = torch.randn(3, 5)
    torch.testing.assert_close(one(features), other(features))


# ------------------------------------------------------------------------------------------------
# Heads


def test_a_head_is_layers_of_linear_norm_silu_and_a_linear() -> None:
    torch.manual_seed(5)
    head = shaken(TwoHotHead(6, bins=9, layers=3, units=10))
    features = torch.randn(2, 4, 6, dtype=torch.float64)
    *hidden, last = kinds(head, nn.Linear)
    assert len(hidden) == 3
    x = numbers(features)
    for linear, norm in zip(hidden, kinds(head, nn.LayerNorm), strict=True):
        x = ref_norm_silu(x @ numbers(linear.weight).T, norm)
    x = x @ numbers(last.weight).T + numbers(last.bias)
    np.testing.assert_allclose(numbers(head(features)), x, rtol=1e-9, atol=1e-9)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    y = (p * np.linspace(-20, 20, 9)).sum(-1)
    mode = np.sign(y) * np.expm1(abs(y))
    np.testing.assert_allclose(numbers(head.mode(features)), mode, rtol=1e-6, atol=1e-6)


def test_the_buckets_are_no_weights() -> None:
    """They follow from the shape; a checkpoint of the weights need not hold them."""
    assert not [name for name in TwoHotHead(4).state_dict() if "table" in name]


def test_probability_of_yes_is_the_sigmoid_of_the_logit() -> None:
    head, features = BinaryHead(6, units=8), torch.randn(3, 6)
    logit = head(features)
    assert logit.shape == (3,)
    torch.testing.assert_close(head.prob(features), 1 / (1 + (-logit).exp()))


# ------------------------------------------------------------------------------------------------
# Actor


def at(logits: list[float], unimix: float = 0.01) -> Actor:
    """An actor that has these logits everywhere; features of size 1."""
    actor = Actor(1, len(logits), layers=0, unimix=unimix)
    with torch.no_grad():
        (linear,) = kinds(actor, nn.Linear)
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor(logits))
    return actor


ANY = torch.zeros(1, 1)


def test_probabilities_and_entropy_have_the_published_values() -> None:
    actor = at([2.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(
        actor.probs(ANY)[0], torch.tensor([0.644298] + [0.088926] * 4), rtol=0, atol=1e-6
    )
    assert actor.entropy(ANY).item() == pytest.approx(1.144013, abs=1e-6)


def test_log_prob_is_the_logarithm_of_the_probability_of_that_action() -> None:
    actor = at([1.0, -2.0, 0.5])
    probs = actor.probs(ANY)[0]
    for k, action in enumerate(torch.eye(3)):
        torch.testing.assert_close(actor.log_prob(ANY, action[None])[0], probs[k].log())


def test_unimix_keeps_every_action_possible() -> None:
    probs = at([1e4, 0.0, 0.0, 0.0, 0.0]).probs(ANY)[0]
    torch.testing.assert_close(probs, torch.tensor([0.992, 0.002, 0.002, 0.002, 0.002]))
    sure = at([1e4, 0.0], unimix=0.0)
    assert sure.entropy(ANY).item() == 0.0
    (slope,) = torch.autograd.grad(sure.entropy(ANY).sum(), [sure.layers[-1].bias])
    assert slope.isfinite().all()


@pytest.mark.parametrize("unimix", [-0.1, 1.5])
def test_unimix_is_a_share(unimix: float) -> None:
    with pytest.raises(ValueError, match="unimix"):
        Actor(4, 5, unimix=unimix)


def test_samples_are_exact_one_hots_as_often_as_the_probabilities_say() -> None:
    torch.manual_seed(6)
    actor = at([2.0, 0.0, -1.0, 0.5, 0.0])
    drawn = actor.sample(torch.zeros(40_000, 1))
    assert ((drawn == 0) | (drawn == 1)).all() and (drawn.sum(-1) == 1).all()
    probs = actor.probs(ANY)[0]
    four_deviations = 4 * (probs * (1 - probs) / 40_000).sqrt()
    assert ((drawn.mean(0) - probs).abs() < four_deviations).all()


def test_a_sample_has_the_gradient_of_the_probabilities() -> None:
    torch.manual_seed(7)
    actor, features, weights = Actor(3, 4, units=8), torch.randn(6, 3), torch.randn(6, 4)
    through = torch.autograd.grad((actor.sample(features) * weights).sum(), [*actor.parameters()])
    direct = torch.autograd.grad((actor.probs(features) * weights).sum(), [*actor.parameters()])
    for a, b in zip(through, direct, strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------
# 16 bits


@HALF
def test_matrices_compute_in_16_bits_and_the_rest_does_not(dtype: Any) -> None:
    """From the same 16-bit logits the answers are those of float32."""
    torch.manual_seed(8)
    actor, number, yes = Actor(6, 5, units=16), TwoHotHead(6, units=16), BinaryHead(6, units=16)
    nn.init.normal_(kinds(number, nn.Linear)[-1].weight)
    features = torch.randn(7, 6)
    with torch.autocast("cpu", dtype):
        logits, bins, logit = actor.logits(features), number(features), yes(features)
        probs, entropy = actor.probs(features), actor.entropy(features)
        action = actor.sample(features)
        log_prob, mode, prob = (
            actor.log_prob(features, action),
            number.mode(features),
            yes.prob(features),
        )
    assert {logits.dtype, bins.dtype, logit.dtype} == {dtype}
    assert {x.dtype for x in (probs, entropy, action, log_prob, mode, prob)} == {torch.float32}
    mixed = 0.99 * logits.double().softmax(-1) + 0.002
    torch.testing.assert_close(probs.double(), mixed, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        entropy.double(), -(mixed * mixed.log()).sum(-1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        log_prob.double(), (mixed.log() * action).sum(-1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(prob.double(), logit.double().sigmoid(), rtol=1e-6, atol=1e-6)
    y = (bins.double().softmax(-1) * torch.linspace(-20, 20, 255).double()).sum(-1)
    torch.testing.assert_close(mode.double(), y.sign() * y.abs().expm1(), rtol=1e-4, atol=1e-4)


@HALF
def test_images_pass_in_16_bits_with_finite_gradients(dtype: Any) -> None:
    torch.manual_seed(9)
    encoder, decoder = ConvEncoder(4, size=16), ConvDecoder(128, depth=4, size=16)
    image = torch.rand(3, 16, 16, 3)
    with torch.autocast("cpu", dtype):
        painted = decoder(encoder(image))
        loss = (painted.float() - image).square().mean()
    loss.backward()
    exact = decoder(encoder(image))
    torch.testing.assert_close(painted.float(), exact, rtol=0.1, atol=0.1)
    for p in (*encoder.parameters(), *decoder.parameters()):
        assert p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all()


def test_nothing_waits_for_the_device() -> None:
    """Meta tensors have no values: reading one would raise."""
    with torch.device("meta"):
        encoder, decoder = ConvEncoder(2, size=8), ConvDecoder(32, depth=2, size=8)
        actor, number, yes = Actor(32, 5), TwoHotHead(32), BinaryHead(32)
        embed = encoder(torch.empty(2, 3, 8, 8, 3))
        assert decoder(embed).shape == (2, 3, 8, 8, 3)
        action = actor.sample(embed)
        assert actor.log_prob(embed, action).shape == actor.entropy(embed).shape == (2, 3)
        assert number.mode(embed).shape == yes.prob(embed).shape == (2, 3)
