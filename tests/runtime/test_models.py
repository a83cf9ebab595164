"""Networks: shapes, sizes, and what a batch of one or another precision may not change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from expc_runtime.models import MLP, ConvNet, LinearHead

torch.set_num_threads(1)


def size_of(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 4),
    in_channels=st.integers(1, 3),
    channels=st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple),
    side=st.integers(1, 17),
    norm=st.booleans(),
)
def test_conv_net_gives_its_last_channels_for_any_plane(
    batch: int, in_channels: int, channels: tuple[int, ...], side: int, norm: bool
) -> None:
    net = ConvNet(in_channels=in_channels, channels=channels, norm=norm, dropout=0.1).eval()
    features = net(torch.rand(batch, in_channels, side, side))
    assert features.shape == (batch, net.out_features) == (batch, channels[-1])


def test_conv_net_is_convolution_norm_relu_and_the_mean_over_the_plane() -> None:
    torch.manual_seed(0)
    net = ConvNet(in_channels=2, channels=(3, 5)).eval()
    first, second = (m for m in net.modules() if isinstance(m, nn.Conv2d))
    image = torch.randn(4, 2, 8, 8)
    # Fresh running statistics are mean 0 and variance 1.
    shrink = (1 + 1e-5) ** -0.5
    x = (nn.functional.conv2d(image, first.weight, padding=1) * shrink).relu()
    x = (nn.functional.conv2d(x, second.weight, stride=2, padding=1) * shrink).relu()
    assert x.shape == (4, 5, 4, 4)
    torch.testing.assert_close(net(image), x.mean((2, 3)))


@pytest.mark.parametrize(
    ("norm", "size"),
    [(True, 16 * 9 + 2 * 16 + 32 * 16 * 9 + 2 * 32), (False, 16 * 9 + 16 + 32 * 16 * 9 + 32)],
)
def test_conv_net_has_a_bias_where_it_has_no_norm(norm: bool, size: int) -> None:
    assert size_of(ConvNet(norm=norm)) == size


def test_conv_net_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ConvNet(channels=())


def test_mlp_flattens_and_ends_in_its_last_hidden() -> None:
    net = MLP(in_features=64, hidden=(10, 7))
    assert net(torch.rand(3, 1, 8, 8)).shape == (3, 7)
    assert net.out_features == 7
    assert size_of(net) == 64 * 10 + 10 + 10 * 7 + 7


def test_mlp_without_hidden_layers_is_the_flat_input() -> None:
    x = torch.rand(3, 2, 4)
    net = MLP(in_features=8, hidden=())
    assert net.out_features == 8
    assert torch.equal(net(x), x.flatten(1))


@pytest.mark.parametrize("hidden", [None, 12])
@pytest.mark.parametrize("lead", [(5,), (2, 5)])
def test_head_with_one_output_drops_the_dimension(
    hidden: int | None, lead: tuple[int, ...]
) -> None:
    features = torch.rand(*lead, 6)
    assert LinearHead(6, out=3, hidden=hidden)(features).shape == (*lead, 3)
    assert LinearHead(6, out=1, hidden=hidden)(features).shape == lead
    assert LinearHead(6, out=1, hidden=hidden)(features[:1]).shape == (1, *lead[1:])


def test_head_sizes_of_the_shogi_net() -> None:
    """On the 2048 features of its ResNet: reachable squares, legal moves or policy, value."""
    assert [size_of(LinearHead(2048, out=out)) for out in (81, 1496, 1)] == [
        165_969,
        3_065_304,
        2_049,
    ]


def test_hidden_head_is_linear_gelu_linear() -> None:
    torch.manual_seed(0)
    head = LinearHead(6, out=3, hidden=4)
    inner, last = (m for m in head.modules() if isinstance(m, nn.Linear))
    x = torch.randn(5, 6)
    torch.testing.assert_close(head(x), last(nn.functional.gelu(inner(x))))


@pytest.mark.parametrize(
    ("plain", "dropped"),
    [
        (ConvNet(channels=(4, 4)), ConvNet(channels=(4, 4), dropout=0.5)),
        (MLP(64, hidden=(8, 8)), MLP(64, hidden=(8, 8), dropout=0.5)),
        (
            nn.Sequential(nn.Flatten(), LinearHead(64, out=3, hidden=8)),
            nn.Sequential(nn.Flatten(), LinearHead(64, out=3, hidden=8, dropout=0.5)),
        ),
    ],
    ids=["ConvNet", "MLP", "LinearHead"],
)
def test_dropout_acts_in_training_only_and_renames_no_weight(
    plain: nn.Module, dropped: nn.Module
) -> None:
    dropped.load_state_dict(plain.state_dict())
    image = torch.rand(16, 1, 8, 8)
    assert torch.equal(dropped.eval()(image), plain.eval()(image))
    torch.manual_seed(0)
    assert not torch.equal(dropped.train()(image), dropped(image))


@pytest.mark.parametrize(
    "net",
    [ConvNet(channels=(4, 6)), MLP(64), nn.Sequential(nn.Flatten(), LinearHead(64, out=1))],
    ids=["ConvNet", "MLP", "LinearHead"],
)
def test_a_sample_is_answered_alike_alone_and_in_a_batch(net: nn.Module) -> None:
    image = torch.rand(8, 1, 8, 8)
    alone: list[Tensor] = [net.eval()(image[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(net(image), torch.cat(alone))


@pytest.mark.parametrize(
    "net",
    [ConvNet(channels=(4, 6)), MLP(64), nn.Sequential(nn.Flatten(), LinearHead(64, out=1))],
    ids=["ConvNet", "MLP", "LinearHead"],
)
def test_every_parameter_gets_a_gradient(net: nn.Module) -> None:
    answer = net.train()(torch.rand(8, 1, 8, 8))
    slopes = torch.autograd.grad((answer * torch.rand_like(answer)).sum(), [*net.parameters()])
    assert all(s.isfinite().all() for s in slopes)
    assert all(s.count_nonzero() for s in slopes)
