"""Networks over a shogi board: sizes, formulas written out once more, and what they refuse."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expc_runtime.data.arrays import Arrays
from expc_runtime.models import LinearHead, MLPMixer, PlanesViT, ResNet, ViT
from expc_runtime.models.boards import BoardTokens, planes
from expc_runtime.models.convs import Conv2d
from expc_runtime.models.dropout import Dropout

torch.set_num_threads(1)

MOST = (18, 4, 4, 4, 4, 2, 2)  # of each kind in hand

Net = ResNet | MLPMixer | ViT | PlanesViT


def small(name: str) -> Net:
    """A net of each class that is quick to run; its weights and statistics are not the initial ones."""
    torch.manual_seed(0)
    net: Net
    match name:
        case "resnet":
            net = ResNet(channels=(4, 6), blocks=(2, 1), strides=(1, 2), expansion=2, embedding=5)
        case "mixer":
            net = MLPMixer(
                width=12, layers=2, token_width=10, channel_width=20, dropout=0.3, embedding=5
            )
        case "vit":
            net = ViT(width=12, depth=2, heads=3, mlp_ratio=2, dropout=0.3, embedding=5)
        case _:
            net = PlanesViT(width=12, depth=2, heads=3, mlp_ratio=1.5, dropout=0.3)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) / 4)
    return net


NAMES = ["resnet", "mixer", "vit", "planes"]


def positions(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boards and hands with every piece and every possible count; no legal positions."""
    make = torch.Generator().manual_seed(seed)
    board = torch.randint(0, 29, (count, 9, 9), generator=make, dtype=torch.uint8)
    counts = [torch.randint(0, most + 1, (count,), generator=make) for most in MOST * 2]
    return board, torch.stack(counts, 1).to(torch.uint8)


def size_of(*nets: nn.Module) -> int:
    return sum(p.numel() for net in nets for p in net.parameters())


# --------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("make", "features", "backbone", "full", "groups"),
    [
        (ResNet, 2048, 13_945_312, 17_012_665, 4),
        (MLPMixer, 256, 8_786_544, 9_171_273, 16),
        (ViT, 512, 18_998_752, 19_766_713, 6),
        (PlanesViT, 256, 3_998_720, 4_383_449, 6),
        # the reduced net of three stages
        (lambda: ResNet(channels=(16, 32, 64, 128)), 512, 885_088, 885_088 + 767_961, 4),
    ],
    ids=["resnet", "mixer", "vit", "planes", "reduced"],
)
def test_sizes_are_those_of_the_original(
    make: Callable[[], Net], features: int, backbone: int, full: int, groups: int
) -> None:
    with torch.device("meta"):
        net = make()
        heads = LinearHead(net.out_features, out=1496), LinearHead(net.out_features, out=1)
    assert net.out_features == features
    assert size_of(net) == backbone
    assert size_of(net, *heads) == full
    assert len(net.groups) == groups


def test_groups_hold_all_but_the_ends() -> None:
    """Freezing every group leaves tokens, position, the first linear layer and the last norm."""
    for name in NAMES:
        net = small(name)
        inside = {id(p) for p in net.groups.parameters()}
        outside = {n for n, p in net.named_parameters() if id(p) not in inside}
        ends = ("tokens", "widen", "position", "norm")
        assert inside and all(n.removeprefix("encoder.").startswith(ends) for n in outside), outside


def test_a_stage_may_have_any_stride_and_ends_9_5_3_2_by_default() -> None:
    seen: list[tuple[int, ...]] = []
    for strides, sides in (((1, 2, 2, 2), [9, 5, 3, 2]), ((1, 1, 2, 1), [9, 9, 5, 5])):
        net = ResNet(channels=(2, 2, 2, 2), blocks=(1, 1, 1, 1), strides=strides, expansion=1)
        seen.clear()
        for group in net.groups:
            group.register_forward_hook(lambda m, x, y: seen.append(tuple(y.shape[2:])))
        net(*positions(2))
        assert seen == [(side, side) for side in sides]


# ------------------------------------------------------------------------------- formulas, once more


def joined(net: Net, board: Tensor, hand: Tensor, everywhere: bool) -> Tensor:
    """(B, 81, 2 E) by loops: the table's row of each piece, and the hand in all cells or the first."""
    assert not isinstance(net, PlanesViT)
    table, layer = net.tokens.pieces.weight, net.tokens.hand
    rows = []
    for squares, counts in zip(board.reshape(-1, 81).tolist(), hand.tolist(), strict=True):
        held = layer.weight @ torch.tensor(counts, dtype=torch.float32) + layer.bias
        none = torch.zeros_like(held)
        rows.append(
            torch.stack(
                [
                    torch.cat([table[piece], held if everywhere or cell == 0 else none])
                    for cell, piece in enumerate(squares)
                ]
            )
        )
    return torch.stack(rows)


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def plain_batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def plain_resnet(net: ResNet, board: Tensor, hand: Tensor) -> Tensor:
    x = joined(net, board, hand, everywhere=True).transpose(1, 2).reshape(len(board), -1, 9, 9)
    for group in net.groups:
        for block in group.children():
            convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
            norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
            y = plain_batch_norm(F.conv2d(x, convs[0].weight), norms[0]).clamp(min=0)
            y = F.conv2d(y, convs[1].weight, stride=convs[1].stride, padding=1)
            y = plain_batch_norm(y, norms[1]).clamp(min=0)
            y = plain_batch_norm(F.conv2d(y, convs[2].weight), norms[2])
            if len(convs) == 4:
                x = plain_batch_norm(F.conv2d(x, convs[3].weight, stride=convs[1].stride), norms[3])
            x = (y + x).clamp(min=0)
    return x.flatten(2).mean(-1)


def linear(name: str, at: nn.Module) -> nn.Linear:
    found = at.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def linears(at: nn.Module) -> list[nn.Linear]:
    return [m for m in at.modules() if isinstance(m, nn.Linear)]


def layer_norms(at: nn.Module) -> list[nn.LayerNorm]:
    return [m for m in at.modules() if isinstance(m, nn.LayerNorm)]


def plain_mixer(net: MLPMixer, board: Tensor, hand: Tensor) -> Tensor:
    x = normed(joined(net, board, hand, everywhere=False), net.tokens_norm)
    x = torch.einsum("bnf,cf->bnc", x, net.widen.weight) + net.widen.bias
    for block in net.groups:
        (norm_cells, norm_channels), (up, down, wide, narrow) = layer_norms(block), linears(block)
        y = torch.einsum("bnc,tn->btc", normed(x, norm_cells), up.weight) + up.bias[:, None]
        x = x + torch.einsum("btc,nt->bnc", gelu(y), down.weight) + down.bias[:, None]
        y = torch.einsum("bnc,kc->bnk", normed(x, norm_channels), wide.weight) + wide.bias
        x = x + torch.einsum("bnk,ck->bnc", gelu(y), narrow.weight) + narrow.bias
    return normed(x, net.norm).mean(1)


def plain_transformer(net: ViT | PlanesViT, cells: Tensor) -> Tensor:
    encoder = net.encoder
    x = cells @ encoder.widen.weight.T + encoder.widen.bias + encoder.position
    for block in net.groups:
        norm_attention, norm_mlp = layer_norms(block)
        qkv, mix, wide, narrow = linears(block)
        y = normed(x, norm_attention)
        weights, biases = qkv.weight.chunk(3), qkv.bias.chunk(3)
        query, key, value = (y @ w.T + b for w, b in zip(weights, biases, strict=True))
        heard = []
        of_heads = zip(query.chunk(3, -1), key.chunk(3, -1), value.chunk(3, -1), strict=True)
        for q, k, v in of_heads:
            score = torch.einsum("bic,bjc->bij", q, k) / 4**0.5
            share = score.exp() / score.exp().sum(-1, keepdim=True)
            heard.append(torch.einsum("bij,bjc->bic", share, v))
        x = x + torch.cat(heard, -1) @ mix.weight.T + mix.bias
        y = gelu(normed(x, norm_mlp) @ wide.weight.T + wide.bias)
        x = x + y @ narrow.weight.T + narrow.bias
    return normed(x, encoder.norm).mean(1)


def plain_planes(board: Tensor, hand: Tensor) -> Tensor:
    """(B, 104, 9, 9) by loops over cells and pieces in hand."""
    made = torch.zeros(len(board), 104, 9, 9)
    for row, (squares, counts) in enumerate(zip(board.tolist(), hand.tolist(), strict=True)):
        for y in range(9):
            for x in range(9):
                if squares[y][x]:
                    made[row, squares[y][x] - 1, y, x] = 1
        first = 28
        for count, most in zip(counts, MOST * 2, strict=True):
            for plane in range(first, first + count):
                made[row, plane] = 1
            first += most
        assert first == 104
    return made


def plain(name: str, net: Any, board: Tensor, hand: Tensor) -> Tensor:
    match name:
        case "resnet":
            return plain_resnet(net, board, hand)
        case "mixer":
            return plain_mixer(net, board, hand)
        case "vit":
            return plain_transformer(net, joined(net, board, hand, everywhere=False))
        case _:
            return plain_transformer(net, plain_planes(board, hand).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_features_and_gradients_are_those_of_the_formulas(name: str) -> None:
    net = small(name).eval()
    board, hand = positions(3)
    given, wanted = net(board, hand), plain(name, net, board, hand)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # on a CPU other kernels
        torch.testing.assert_close(net(board, hand), wanted, rtol=1e-5, atol=1e-5)
    weights = list(net.parameters())
    towards = torch.randn_like(given)
    slopes = torch.autograd.grad((given * towards).sum(), weights)
    wanted_slopes = torch.autograd.grad((wanted * towards).sum(), weights)
    for slope, wanted_slope in zip(slopes, wanted_slopes, strict=True):
        torch.testing.assert_close(slope, wanted_slope, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_the_resnet_is_that_of_torch_in_training() -> None:
    """Statistics of the batch inside, running statistics behind: a plain copy of the first block."""
    net = small("resnet").train()
    block: Any = next(iter(net.groups[0].children()))
    x = torch.randn(4, 10, 9, 9)
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    before = block.get_buffer("narrow_norm.running_mean").clone()

    def norm(y: Tensor, by: nn.BatchNorm2d) -> Tensor:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, correction=0)
        return (y - mean) / (var + 1e-5).sqrt() * by.weight[:, None, None] + by.bias[:, None, None]

    first = F.conv2d(x, convs[0].weight)
    y = norm(first, norms[0]).relu()
    y = norm(F.conv2d(y, convs[1].weight, padding=1), norms[1]).relu()
    y = norm(F.conv2d(y, convs[2].weight), norms[2])
    wanted = (y + norm(F.conv2d(x, convs[3].weight), norms[3])).relu()
    torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
    moved = 0.9 * before + 0.1 * first.mean((0, 2, 3))
    torch.testing.assert_close(norms[0].running_mean, moved)


def test_positions_of_cells_start_small() -> None:
    """Normal with 0.02, cut off at +-2 as trunc_normal_ has it (which is never reached)."""
    torch.manual_seed(0)
    position = ViT().encoder.position.detach()
    assert position.shape == (81, 512)
    assert float(position.std()) == pytest.approx(0.02, rel=0.02)
    assert float(position.mean()) == pytest.approx(0, abs=5e-4)


# -------------------------------------------------------------------------------------------- planes


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_planes_are_pieces_and_hands_in_thermometer_code(count: int, seed: int) -> None:
    board, hand = positions(count, seed)
    made = planes(board, hand)
    assert made.dtype == torch.uint8 and made.shape == (count, 104, 9, 9)
    assert torch.equal(made.float(), plain_planes(board, hand))
    assert torch.equal(made[:, :28].sum((1, 2, 3)), (board != 0).sum((1, 2)))


def test_planes_of_a_position_read_off_by_hand() -> None:
    board = torch.zeros(1, 9, 9, dtype=torch.uint8)
    board[0, 6, 2], board[0, 0, 4] = 1, 22  # a pawn of the mover, the king of the opponent
    hand = torch.zeros(1, 14, dtype=torch.uint8)
    hand[0, 0], hand[0, 13] = 2, 1  # two pawns, and the opponent's rook
    made = planes(board, hand)
    assert made[0].flatten(1).any(1).nonzero().flatten().tolist() == [0, 21, 28, 29, 102]
    assert made[0, 0].nonzero().tolist() == [[6, 2]] and made[0, 21].nonzero().tolist() == [[0, 4]]
    assert made[0, [28, 29, 102]].all()


# ---------------------------------------------------------------------------- what is made for a CPU


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("plane", [(h, w) for h in range(1, 6) for w in (h, h + 1)])
def test_a_convolution_is_that_of_torch_on_any_plane(
    side: int, stride: int, plane: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv = Conv2d(3, 4, side, stride).double()
    x = torch.randn(2, 3, *plane, dtype=torch.float64, requires_grad=True)
    given, wanted = conv(x), F.conv2d(x, conv.weight, stride=stride, padding=side // 2)
    torch.testing.assert_close(given, wanted)
    towards = torch.randn_like(wanted)
    slopes = torch.autograd.grad(given, (x, conv.weight), towards)
    wanted_slopes = torch.autograd.grad(wanted, (x, conv.weight), towards)
    for slope, wanted_slope in zip(slopes, wanted_slopes, strict=True):
        torch.testing.assert_close(slope, wanted_slope)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), wanted)


@pytest.mark.parametrize("p", [0.1, 0.15, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    dropout = Dropout(p)
    x = torch.ones(1000, 999, requires_grad=True)
    dropped = dropout(x)
    share = float((dropped == 0).float().mean())
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(slope, dropped.detach())
    # neighbours are drawn by themselves: both dropped in p^2 of the pairs
    pairs = ((dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)).float().mean()
    assert float(pairs) == pytest.approx(p * p, abs=0.002)


def test_dropout_that_is_added_is_the_same_dropout() -> None:
    x, to, dropout = torch.randn(50, 7), torch.randn(50, 7), Dropout(0.3)
    torch.manual_seed(0)
    wanted = to + dropout(x)
    torch.manual_seed(0)
    torch.testing.assert_close(dropout.added(x, to=to), wanted)
    assert torch.equal(dropout.eval().added(x, to=to), to + x)
    assert torch.equal(dropout(x), x)


@pytest.mark.parametrize("name", ["resnet", "mixer", "vit"])
def test_what_is_compiled_is_one_graph(name: str) -> None:
    """What is made for a CPU by hand would break it into many."""
    net = ResNet(channels=(4,) * 4, blocks=(1,) * 4) if name == "resnet" else small(name)
    torch._dynamo.reset()
    compiled = torch.compile(net.train(), backend="eager", fullgraph=True)
    board, hand = positions(3)
    assert compiled(board, hand).shape == (3, net.out_features)


def test_dropout_of_all_or_nothing() -> None:
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


# ------------------------------------------------------------------------------------- what they take


@pytest.mark.parametrize("name", NAMES)
def test_a_board_may_be_of_any_integers_and_have_a_channel(name: str) -> None:
    net = small(name).eval()
    board, hand = positions(3)
    features = net(board, hand)
    assert features.shape == (3, net.out_features) and features.dtype == torch.float32
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(net(board.to(dtype), hand), features)
        assert torch.equal(net(board, hand.to(dtype)), features)
    assert torch.equal(net(board[:, None], hand), features)
    assert torch.equal(net(board, hand.double()), features)
    assert torch.equal(net(board.mT.contiguous().mT, hand), features)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bool])
def test_a_board_that_is_no_integers_is_refused(name: str, dtype: torch.dtype) -> None:
    board, hand = positions(2)
    with pytest.raises(TypeError, match="piece numbers 0 to 28 as integers"):
        small(name)(board.to(dtype), hand)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("board", "hand", "message"),
    [
        ((2, 81), (2, 14), r"a board is .* not \(2, 81\)"),
        ((2, 2, 9, 9), (2, 14), r"a board is .* not \(2, 2, 9, 9\)"),
        ((9, 9), (1, 14), r"a board is .* not \(9, 9\)"),
        ((2, 9, 9), (2, 7), r"a hand is \(2, 14\).* not \(2, 7\)"),
        ((2, 9, 9), (1, 14), r"a hand is \(2, 14\).* not \(1, 14\)"),
    ],
)
def test_other_shapes_are_refused(
    name: str, board: tuple[int, ...], hand: tuple[int, ...], message: str
) -> None:
    made = torch.zeros(board, dtype=torch.uint8), torch.zeros(hand, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        small(name)(*made)


@pytest.mark.parametrize("name", NAMES)
def test_no_hand_is_an_empty_hand(name: str) -> None:
    net = small(name).eval()
    board, hand = positions(3)
    assert torch.equal(net(board), net(board, torch.zeros_like(hand)))


@pytest.mark.parametrize("name", NAMES)
def test_hand_and_board_are_read(name: str) -> None:
    """Rows exchanged in one input alone change every answer: neither is ignored."""
    net = small(name).eval()
    board, hand = positions(4)
    features = net(board, hand)
    assert (net(board, hand.flip(0)) != features).any(1).all()
    assert (net(board.flip(0), hand) != features).any(1).all()
    assert (net(board, hand.flip(1)) != features).any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_position_is_answered_alike_alone_and_in_a_batch(name: str) -> None:
    net = small(name).eval()
    board, hand = positions(5)
    alone = [net(board[i : i + 1], hand[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(net(board, hand), torch.cat(alone))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    net = small(name).train()
    features = net(*positions(8))
    slopes = torch.autograd.grad((features * torch.rand_like(features)).sum(), [*net.parameters()])
    assert all(s.isfinite().all() and s.count_nonzero() for s in slopes)


@pytest.mark.parametrize("name", ["mixer", "vit", "planes"])
def test_dropout_acts_in_training_only(name: str) -> None:
    net, (board, hand) = small(name), positions(4)
    assert torch.equal(net.eval()(board, hand), net(board, hand))
    assert not torch.equal(net.train()(board, hand), net(board, hand))


@pytest.mark.parametrize("make", [ViT, PlanesViT])
def test_checkpointing_changes_no_gradient(make: type[ViT] | type[PlanesViT]) -> None:
    torch.manual_seed(0)
    kept = make(width=12, depth=2, heads=3, dropout=0.3)
    again = make(width=12, depth=2, heads=3, dropout=0.3, checkpointing=True)
    again.load_state_dict(kept.state_dict())
    slopes = []
    for net in (kept.train(), again.train()):
        torch.manual_seed(1)  # the same dropout
        slopes.append(torch.autograd.grad(net(*positions(3)).square().sum(), [*net.parameters()]))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_checkpointing_keeps_less() -> None:
    kept = {}
    for checkpointing in (False, True):
        net = ViT(width=12, depth=4, heads=3, checkpointing=checkpointing).train()
        held: list[int] = []

        def pack(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(*positions(3)).sum()
        kept[checkpointing] = sum(held)
    assert kept[True] < kept[False] / 2


@pytest.mark.parametrize("make", [ViT, PlanesViT])
def test_heads_divide_the_width(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="width of 10 does not divide into 4 heads"):
        make(width=10, heads=4)


def test_stages_have_one_entry_in_every_list() -> None:
    for lists in (
        {"channels": (4, 8)},
        {"channels": (4,), "blocks": (1,)},
        {"channels": (), "blocks": (), "strides": ()},
    ):
        with pytest.raises(ValueError, match="one entry for a stage"):
            ResNet(**lists)


def test_half_of_the_features_is_the_hand() -> None:
    tokens = BoardTokens(embedding=7)
    board, hand = positions(2)
    assert tokens.features == 14
    everywhere, corner = tokens.everywhere(board, hand), tokens.in_corner(board, hand)
    assert everywhere.shape == corner.shape == (2, 81, 14)
    assert torch.equal(everywhere[..., :7], corner[..., :7])
    assert torch.equal(everywhere[:, :1, 7:].expand(-1, 81, -1), everywhere[..., 7:])
    assert torch.equal(everywhere[:, 0], corner[:, 0])
    assert not corner[:, 1:, 7:].any()


# ------------------------------------------------------------------------------------------ in a spec

SPEC = """
expc: 1
name: boards
about: Do policy and value learn from random boards?
stages:
  {use}:
    kind: supervised
    data:
      use: arrays
      file: rows.npz
      columns: {{board: features, hand: features, policy: class_probs, value: prob}}
      batch: 4
    model: {{backbone: {{use: {use}, {params}}}}}
    heads: {{policy: {{use: linear_head, out: 1496}}, value: {{use: linear_head, out: 1}}}}
    loss: {{policy: {{use: kl_div}}, value: {{use: bce}}}}
    optim: {{use: adamw, lr: 1.0e-3, weight_decay: 0.01, decay: weights}}
    precision: 32
    until: {{updates: 2}}
"""

WRITTEN = {
    "resnet": "channels: [4, 8], blocks: [1, 2], strides: [1, 2]",
    "mlp_mixer": "width: 16, layers: 2, token_width: 8, channel_width: 24",
    "vit": "width: 16, depth: 2, heads: 2, checkpointing: true",
    "planes_vit": "width: 16, depth: 2, heads: 2",
}


def compiled(folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    (folder / "pyproject.toml").touch()
    (folder / "boards.yaml").write_text(text)
    board, hand = positions(8)
    policy = F.one_hot(torch.arange(8) * 200, 1496).float()
    columns = {"board": board, "hand": hand, "policy": policy, "value": torch.rand(8)}
    arrays: Any = {name: column.numpy() for name, column in columns.items()}
    np.savez(folder / "rows.npz", **arrays)
    command = [sys.executable, "-m", "expc", "compile", "boards.yaml"]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("use", list(WRITTEN))
def test_a_spec_trains_it(use: str, tmp_path: Path) -> None:
    ended = compiled(tmp_path, SPEC.format(use=use, params=WRITTEN[use]))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    file = tmp_path / "generated" / "boards" / f"{use}.py"
    found = importlib.util.spec_from_file_location(f"boards_{use}", file)
    assert found is not None and found.loader is not None
    program = importlib.util.module_from_spec(found)
    sys.modules[found.name] = program
    found.loader.exec_module(program)
    made = [v for v in vars(program).values() if isinstance(v, type) and v.__module__ == found.name]
    torch.manual_seed(0)
    module: Any = next(v for v in made if issubclass(v, nn.Module))(program.Config())
    module.start("32", total_updates=2, updates_per_epoch=2)
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    columns = Arrays(str(tmp_path / "rows.npz")).tensors().values()
    module.training_step(list(zip(*[column.chunk(2) for column in columns], strict=True)), 0)
    assert module.updates == 2
    assert all(not torch.equal(before[n], p) for n, p in module.named_parameters())


@pytest.mark.parametrize(
    ("use", "params", "message"),
    [
        ("vit", "width: 500", "`vit` has a width of 500, which 8 heads do not divide"),
        ("planes_vit", "heads: 3", "`planes_vit` has a width of 256, which 3 heads do not divide"),
        (
            "resnet",
            "channels: [16, 32]",
            "`resnet` needs one entry for each stage in its lists, and has channels 2, blocks 4, strides 4",
        ),
        ("mlp_mixer", "token_width: 0", "at least 1"),
        ("resnet", "strides: [1, 2, 2, 0]", "at least 1"),
    ],
)
def test_a_net_that_cannot_be_is_a_finding(
    use: str, params: str, message: str, tmp_path: Path
) -> None:
    ended = compiled(tmp_path, SPEC.format(use=use, params=params))
    told = ended.stdout + ended.stderr
    assert ended.returncode == 1 and message in told, told
    assert "boards.yaml:13" in told  # where it is written
