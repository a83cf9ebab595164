"""Segment boundaries of whole episodes: what is read from pixels, from the dynamics, and warned of."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from torch import nn

from expc_runtime.errors import BadValue, MissingInput
from expc_runtime.evals import boundaries, pictures
from expc_runtime.evals.boundaries import BoundaryAlignment
from expc_runtime.evals.episodes import Episode, event, frame_delta, held_out, large_deltas
from expc_runtime.evals.evaluate import Measured, Subject
from expc_runtime.evals.segments import Segments, segments
from expc_runtime.state import read_json
from expc_runtime.worlds.rssm import RSSM
from expc_runtime.worlds.vta import VTA

CPU = torch.device("cpu")
EMBED, SIDE = 3, 8
SMALL = {"abs_belief": 4, "obs_belief": 4, "abs_stoch": 2, "obs_stoch": 2, "hidden": 4}


def flags(frames: Iterable[int], length: int) -> Any:
    marked = np.zeros(length, dtype=bool)
    marked[list(frames)] = True
    return marked


def episode(length: int, *, rewarded: Iterable[int] = (), pads: Iterable[int] = ()) -> Episode:
    """Frames that differ from one another a little, and at pads much."""
    entered = flags(pads, length)
    level = np.cumsum(1 + 20 * entered) % 200
    image = np.broadcast_to(level[:, None, None, None], (length, SIDE, SIDE, 3)).astype(np.uint8)
    action = np.eye(5, dtype=np.float32)[np.arange(length) % 5]
    reward = 10 * flags(rewarded, length).astype(np.float32)
    return Episode("0", image, action, reward, flags([0], length), {"pad_enter": entered})


def save(source: Episode, folder: Path, number: int = 0) -> None:
    (folder / "held_out").mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"held_out/{number}.npz",
        image=source.image,
        action=source.action,
        reward=source.reward,
        is_first=source.is_first,
        **{f"event_{name}": column for name, column in source.declared.items()},
    )


class World(nn.Module):
    """An encoder and a dynamics, as every world model has them."""

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics

    def encoder(self, image: Any) -> Any:
        return image.mean((1, 2))


def world(read: float | None = None, **settings: Any) -> World:
    """VTA; with ``read``, a detector that says READ with this probability whatever it sees."""
    torch.manual_seed(0)
    dynamics = VTA(EMBED, 5, **{**SMALL, **settings})
    if read is not None:
        with torch.no_grad():
            dynamics.detector.logit.weight.zero_()
            dynamics.detector.logit.bias.copy_(torch.tensor([np.log(read / (1 - read)), 0.0]))
    return World(dynamics).eval()


def measure(
    module: nn.Module, tmp_path: Path, *sources: Episode, **asked: Any
) -> tuple[Measured, dict[str, Any]]:
    for number, source in enumerate(sources):
        save(source, tmp_path / "train", number)
    (tmp_path / "eval").mkdir()
    asked = {"events": ("pad_enter",), "pictures": (), "episodes": len(sources), **asked}
    subject = Subject(module, tmp_path / "train", tmp_path / "eval", CPU)
    found = BoundaryAlignment(**asked).measure(subject)
    report = read_json(tmp_path / "eval/boundary_eval.json")
    assert report is not None
    return found, report


# Events


def test_frame_delta_is_the_mean_change_of_pixels() -> None:
    image = np.zeros((4, SIDE, SIDE, 3), dtype=np.uint8)
    image[:] = np.array([0, 10, 10, 250])[:, None, None, None]
    delta = frame_delta(image)
    assert delta.tolist() == [0, 10, 0, 240]
    assert np.percentile(delta, 90) == pytest.approx(171)
    assert large_deltas(delta, 90).tolist() == [False, False, False, True]


def test_brighter_and_darker_count_the_same() -> None:
    image = np.array([[[[255, 0, 0]]], [[[0, 255, 0]]]], dtype=np.uint8)
    assert frame_delta(image).tolist() == [0, 170]


def test_where_most_frames_stand_still_every_frame_is_a_delta_event() -> None:
    assert large_deltas(np.array([0.0] * 19 + [5.0]), 90).all()


def test_events_come_from_rewards_from_pixels_and_from_the_environment() -> None:
    source = episode(20, rewarded=[4], pads=[7, 9])
    found = {name: np.flatnonzero(event(source, name, 90)).tolist() for name in (
        "reward", "pad_enter", "frame_delta", "reward_or_delta"
    )}  # fmt: skip
    assert found == {
        "reward": [4],
        "pad_enter": [7, 9],
        "frame_delta": [7, 9],
        "reward_or_delta": [4, 7, 9],
    }
    with pytest.raises(BadValue, match=r"no event respawn; it has .*pad_enter"):
        event(source, "respawn", 90)


def test_episodes_are_taken_by_number(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(episode(number + 2), tmp_path, number)
    assert [(e.name, len(e)) for e in held_out(tmp_path, 2)] == [("1", 3), ("2", 4)]


def test_what_is_no_episode_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="held out no episodes"):
        held_out(tmp_path, 1)
    save(episode(9), tmp_path)
    path = tmp_path / "held_out/0.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MissingInput, match=r"0\.npz cannot be read"):
        held_out(tmp_path, 1)
    np.savez(path, **{**vars(episode(9)), "declared": 0, "reward": np.zeros(8)})
    with pytest.raises(MissingInput, match=r"9 frames, but columns of \[8, 9\]"):
        held_out(tmp_path, 1)


# Segments


def test_a_detector_that_never_reads_is_forced_every_max_seg_len_frames() -> None:
    found = segments(world(0.01, max_seg_len=30, force_scale=10.0), episode(1001), CPU)
    assert np.flatnonzero(found.read).tolist() == list(range(30, 991, 30))  # 33 of them
    assert (found.forced == found.read).all()
    assert found.read_prob == pytest.approx(np.full(1001, 0.01), abs=1e-6)  # before any limit
    assert found.seg_len[[29, 30, 31]].tolist() == [30, 1, 2]
    assert found.seg_num[[29, 30, 1000]].tolist() == [0, 1, 33]


def test_a_detector_that_always_reads_stops_at_max_seg_num() -> None:
    found = segments(world(0.99, max_seg_num=200, force_scale=10.0), episode(1001), CPU)
    assert np.flatnonzero(found.read).tolist() == list(range(200))
    assert not found.forced.any()  # what is forced from then on is COPY


def test_a_rate_of_a_tenth_reads_never_when_chosen_and_a_tenth_when_drawn() -> None:
    found = segments(world(0.1, force_scale=0.0), episode(1001), CPU)
    assert not found.read.any()
    assert found.train_ratio == pytest.approx(0.1, abs=0.04)


def test_measuring_leaves_the_module_as_it_was() -> None:
    module = world()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = segments(module, episode(30), CPU)
    assert not any(part.training for part in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    again = segments(module, episode(30), CPU)
    assert (first.read == again.read).all()
    assert (first.read_prob == again.read_prob).all()


def test_frames_are_encoded_in_parts_and_seen_as_one() -> None:
    module = world(posterior_input="embed_reward")
    source = episode(150, rewarded=[140], pads=[70])
    image = torch.from_numpy(source.image.copy())[None].float() / 255
    given = [torch.from_numpy(a)[None] for a in (source.action, source.is_first, source.reward)]
    with torch.no_grad():
        post, _ = module.dynamics.observe(image.mean((2, 3)), *given)
    assert segments(module, source, CPU).read_prob == pytest.approx(post["read_prob"][0].numpy())


def test_a_dynamics_without_boundaries_says_so() -> None:
    module = World(RSSM(EMBED, 5, deter=4, stoch=2, classes=2, hidden=4))
    with pytest.raises(BadValue, match="RSSM has no boundaries"):
        segments(module, episode(5), CPU)


# The measurement


def test_figures_are_means_over_episodes_but_for_p(tmp_path: Path) -> None:
    settings = {"max_seg_len": 10, "force_scale": 10.0}
    hits, misses = episode(41, pads=[10, 20]), episode(41, pads=[5, 15])
    found, report = measure(world(0.01, **settings), tmp_path, hits, misses)
    assert found.metrics["pad_enter.event_at_boundary"] == pytest.approx((2 / 4 + 0) / 2)
    assert found.metrics["pad_enter.lift_over_event_rate"] == pytest.approx(0.5 / (2 / 41) / 2)
    each = [e["events"][0]["perm_p_value"] for e in report["episodes"]]
    assert each[0] < found.metrics["pad_enter.perm_p_value"] < each[1] == 1
    assert [e["boundaries"] for e in report["episodes"]] == [[10, 20, 30, 40]] * 2
    assert found.metrics["boundary_ratio_eval"] == pytest.approx(4 / 41)
    assert found.metrics["forced_ratio"] == 1


def test_floors_are_what_chance_reaches(tmp_path: Path) -> None:
    found, _ = measure(
        world(0.01, max_seg_len=10), tmp_path, episode(50, pads=[3]), permutations=99
    )
    assert found.floors == {
        "pad_enter.event_at_boundary": 0.02,
        "pad_enter.event_at_nonboundary": 0.02,
        "pad_enter.lift_over_event_rate": 1.0,
        "pad_enter.auc_read_prob": 0.5,
        "pad_enter.perm_p_value": 0.01,
        "pad_enter.periodic_baseline": 0.02,
    }


def test_a_figure_that_no_episode_has_is_null_with_a_reason(tmp_path: Path) -> None:
    found, report = measure(world(0.1, force_scale=0.0), tmp_path, episode(40, pads=[3]))
    null = {name for name, value in found.metrics.items() if value is None}
    assert null == {
        "pad_enter.event_at_boundary",
        "pad_enter.lift_over_event_rate",
        "pad_enter.perm_p_value",
        "pad_enter.periodic_baseline",
        "forced_ratio",
    }
    assert found.reasons == dict.fromkeys(null, "no frame is a boundary")
    assert report["metrics"]["forced_ratio"] is None
    text = (tmp_path / "eval/boundary_eval.json").read_text()
    assert "NaN" not in text and "Infinity" not in text


def heads(found: Measured) -> set[str]:
    return {warning.partition("\n")[0] for warning in found.warnings}


@pytest.mark.parametrize(
    ("read", "settings", "said"),
    [
        (0.1, {"force_scale": 0.0}, {"no frame is a boundary in eval mode"}),
        (0.9, {"force_scale": 0.0}, {"nearly every frame is a boundary"}),
        (
            0.1,
            {"max_seg_len": 7},
            {
                "some boundaries are forced by a limit, not found",
                "boundaries are as many, or as far apart, as max_seg_len makes them",
            },
        ),
        (
            0.9,
            {"max_seg_num": 9},
            {
                "boundaries end at max_seg_num",
                "boundaries come in runs, which makes the p-values too small",
            },
        ),
    ],
)
def test_boundaries_that_nobody_found_are_warned_of(
    tmp_path: Path, read: float, settings: dict[str, Any], said: set[str]
) -> None:
    found, _ = measure(world(read, **settings), tmp_path, episode(50, pads=range(0, 50, 9)))
    assert heads(found) - {"figures without a value"} == said


@pytest.mark.parametrize(
    ("reads", "force", "said"),
    [
        ([7, 14, 21, 28, 35, 42], 10.0, "boundaries are as many, or as far apart, as max_seg_len"),
        ([7, 14, 21, 28, 35, 42], 0.0, "boundaries are periodic"),
        (
            [1, 5, 6, 20, 30, 33, 47],
            10.0,
            "boundaries are as many, or as far apart, as max_seg_len",
        ),
        ([1, 5, 6, 20, 30, 33, 47], 0.0, ""),  # (50 - 1) // 7 of them by chance
    ],
)
def test_a_limit_without_a_force_is_not_to_blame(reads: list[int], force: float, said: str) -> None:
    read = np.isin(np.arange(50), reads)
    none, quiet = np.zeros(50), np.zeros(50, bool)
    found = Segments(read, none, quiet, none, none, none, none, None, 0)
    dynamics = world(max_seg_len=7, force_scale=force).dynamics
    told = [head for head, _ in boundaries._odd(found, dynamics)]
    assert [head.startswith(said) for head in told] == [True] * bool(said)


def test_events_that_are_none_or_too_many_are_warned_of(tmp_path: Path) -> None:
    still = episode(50)
    still.image[:] = 0
    asked = {"events": ("frame_delta", "reward"), "episodes": 3, "permutations": 30}
    found, _ = measure(world(0.1, max_seg_len=7), tmp_path, still, **asked)
    assert heads(found) >= {
        "frame_delta: ties at the percentile make far too many frames events",
        "reward never happens",
        "fewer episodes are held out than were asked for",
        "the permutation test has too few draws for as many events",
    }


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_episodes_are_measured(tmp_path: Path, length: int) -> None:
    asked = {"events": ("pad_enter", "frame_delta", "reward", "reward_or_delta")}
    found, _ = measure(
        world(), tmp_path, episode(length), pictures=("grid", "internal", "fired"), **asked
    )
    assert set(found.reasons) == {name for name, value in found.metrics.items() if value is None}


@pytest.mark.parametrize(
    "wrong",
    [{"events": ()}, {"events": ("reward", "reward")}, {"pictures": ("grids",)}, {"percentile": 100}, {"permutations": 0},
     {"episodes": 0}, {"length": 1}],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BoundaryAlignment(**wrong)


# Pictures


def strip(length: int, reads: Iterable[int], **events: Iterable[int]) -> pictures.Strip:
    read = flags(reads, length)
    zeros = np.zeros(length)
    found = Segments(
        read, 0.2 + 0.6 * read, read & False, zeros, read.cumsum(), zeros, zeros, 0.1, 0
    )
    source = episode(length, rewarded=events.get("reward", ()))
    return pictures.Strip(source, found, {name: flags(at, length) for name, at in events.items()})


def test_the_window_has_most_boundaries_or_else_rewards_or_else_change() -> None:
    assert pictures.window(strip(50, [3, 30, 33]), 10) == slice(24, 34)
    assert pictures.window(strip(50, [], reward=[40]), 10) == slice(31, 41)
    changing = strip(50, [])
    changing.source.image[:] = 0
    changing.source.image[20] = 255
    assert pictures.window(changing, 10) == slice(12, 22)  # there and back
    changing.source.image[:] = 0
    assert pictures.window(changing, 10) == slice(0, 10)
    assert pictures.window(strip(6, [2]), 10) == slice(0, 6)


@pytest.mark.parametrize("draw", ["grid", "internal", "fired"])
@pytest.mark.parametrize("reads", [[], [4], range(37)])
def test_pictures_are_drawn_of_any_episode(tmp_path: Path, draw: str, reads: Iterable[int]) -> None:
    path = getattr(pictures, f"boundary_{draw}")(strip(37, reads, reward=[4]), 20, tmp_path)
    assert path == tmp_path / f"boundary_{draw}.png"
    head = path.read_bytes()[:24]
    assert head[1:4] == b"PNG"
    assert int.from_bytes(head[16:20]) > 1000  # pixels across


def test_borders_are_red_where_read_and_blue_where_copy() -> None:
    drawn = strip(5, [2])
    for frame, colour in ((1, pictures.COPY), (2, pictures.READ)):
        framed = pictures._framed(drawn, frame)
        assert "#" + bytes(framed[0, 0]).hex() == colour
        assert (framed[1:-1, 1:-1] == drawn.source.image[frame]).all()


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    drawn = strip(30, [4, 9], reward=[4])
    first = pictures.boundary_grid(drawn, 20, tmp_path).read_bytes()
    assert pictures.boundary_grid(drawn, 20, tmp_path).read_bytes() == first
