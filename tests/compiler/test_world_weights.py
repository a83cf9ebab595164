"""The numbers of weights that the compiler states without torch are those of the nets."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from expc.components.core import Component
from expc.components.worlds import DYNAMICS, ENCODERS
from expc_runtime.worlds.nets import ConvEncoder
from expc_runtime.worlds.rssm import RSSM
from expc_runtime.worlds.vta import VTA

NETS = {"rssm": RSSM, "vta": VTA}
OF = {component.name: component for component in (*DYNAMICS, *ENCODERS)}


def stated(component: Component, embed: int, **params: Any) -> int:
    assert component.weights is not None
    return component.weights(component.params(**params), embed, 5)


def counted(name: str, embed: int, **params: Any) -> int:
    with torch.device("meta"):
        net = NETS[name](embed, 5, **params)
    return sum(each.numel() for each in net.parameters())


@pytest.mark.parametrize(("name", "millions"), [("rssm", 5.78), ("vta", 15.45)])
def test_the_published_sizes(name: str, millions: float) -> None:
    assert stated(OF[name], 4096) == counted(name, 4096)
    assert round(counted(name, 4096) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("rssm", {"deter": 24, "stoch": 3, "classes": 7, "hidden": 20}),
        ("vta", {"hidden": 20, "abs_belief": 20, "obs_belief": 28, "abs_stoch": 3, "obs_stoch": 5}),
        ("vta", {"hidden": 16, "detector_depth": 3, "posterior_input": "embed_reward"}),
        ("vta", {"hidden": 16, "obs_belief": 16, "obs_action_input": True}),
    ],
)
def test_any_size(name: str, params: dict[str, Any]) -> None:
    assert stated(OF[name], 96, **params) == counted(name, 96, **params)


@pytest.mark.parametrize("depth", [4, 32])
def test_the_width_of_an_embedding(depth: int) -> None:
    encoder = OF["conv_encoder"]
    assert encoder.width is not None
    assert encoder.width(encoder.params(depth=depth)) == ConvEncoder(depth=depth).out_features


@pytest.mark.parametrize("name", NETS)
def test_what_is_reported_is_declared(name: str) -> None:
    net = NETS[name](8, 5, hidden=8)
    action, first = torch.eye(5)[None, :3], torch.tensor([[True, False, False]])
    post, prior = net.observe(torch.randn(1, 3, 8), action, first)
    assert list(net.report(post, prior)) == list(OF[name].reports)
