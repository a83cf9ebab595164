"""What an update of the world model costs beside a plain transcription of the same formulas.

- ours: an update as expc generates it, on `expc_runtime.worlds`;
- plain: `pinpad_plain.py`, the style of the published ports: scans that concatenate, every head in
  the scan, NCHW, `torch.distributions`, plain Adam.

Both train world, actor and critic on one thread in float32, on a batch that is there already. That
their losses and gradients agree, on the same weights and noise, is tested in
tests/runtime/test_worlds_against_plain.py. Every measurement is a process of its own: CPU seconds
of its updates after the first ones, and its peak memory, in which torch itself is 0.25 GiB. With
the entropy's gradient through the dynamics, as in the original, imagination keeps its graph; without
it ours imagines without gradients, where the plain one only detaches the actor's features.

python -m benchmarks.pinpad_update
python -m benchmarks.pinpad_update --size small --dynamics vta --entropy through --rounds 3
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from benchmarks.pinpad_plain import Agent, DynamicsKind, Sizes
from benchmarks.pinpad_plain import Batch as Columns
from benchmarks.project import ROOT
from benchmarks.ratios import Verdict, report, speed_up
from expc_runtime import losses
from expc_runtime.module import Batch, Module, detach_tree
from expc_runtime.optim import Drive
from expc_runtime.worlds.behaviour import (
    ReturnRange,
    critic_loss,
    imagine,
    lambda_return,
    policy_gradient,
    polyak,
    slow_copy,
)
from expc_runtime.worlds.nets import Actor, BinaryHead, ConvDecoder, ConvEncoder, TwoHotHead
from expc_runtime.worlds.rssm import RSSM
from expc_runtime.worlds.vta import VTA


@dataclass(frozen=True)
class Size:
    """Widths, the shape of a batch, and how many updates make one measurement."""

    name: str
    widths: Sizes
    batch: int
    length: int
    updates: int
    budget: float = 3.0

    def sizes(self, dynamics: DynamicsKind, entropy: str) -> Sizes:
        made = replace(
            self.widths, dynamics=dynamics, entropy_through_dynamics=entropy == "through"
        )
        return made


SIZES = (
    Size("small", Sizes(width=128, stoch=16, classes=16, depth=8), 8, 32, updates=8),
    Size("study", Sizes(), 12, 40, updates=2),
)
DYNAMICS: tuple[DynamicsKind, ...] = ("rssm", "vta")
ENTROPY = ("through", "detached")


class Ours(Module):
    """The class that expc generates, with the study's numbers in place."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, units = sizes.width, {"layers": 2, "units": sizes.width}
        self.encoder = ConvEncoder(depth=sizes.depth)
        self.dynamics: Any = dynamics(sizes, self.encoder.out_features)
        features = self.dynamics.out_features
        self.decoder = ConvDecoder(features, depth=sizes.depth)
        self.reward_head = TwoHotHead(features, bins=255, layers=2, units=width)
        self.cont_head = BinaryHead(features, layers=2, units=width)
        self.actor = Actor(features, sizes.actions, unimix=0.01, **units)
        self.critic = TwoHotHead(features, layers=2, units=width)
        self.slow_critic = slow_copy(self.critic)
        self.return_range = ReturnRange()

    @property
    def world(self) -> tuple[torch.nn.Module, ...]:
        return (self.encoder, self.dynamics, self.decoder, self.reward_head, self.cont_head)

    def update(self, batch: Batch) -> None:
        self.improve(self.learn(batch))

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """The world model's step; gives the posterior states."""
        image, action, reward, is_first, cont = batch
        with self.only(*self.world):
            embed = self.encoder(image)
            seen = (reward,) if self.sizes.posterior_input == "embed_reward" else ()
            post, prior = self.dynamics.observe(embed, action, is_first, *seen)
            feat = self.dynamics.features(post)
            image_loss = losses.mse_sum(self.decoder(feat), image)
            reward_loss = losses.twohot_symlog(self.reward_head(feat), reward)
            cont_loss = losses.bce(self.cont_head(feat), cont)
            dyn_loss, rep_loss, *mask_loss = self.dynamics.kl(post, prior)
            total_world = image_loss + reward_loss + cont_loss + 0.5 * dyn_loss + 0.1 * rep_loss
            told = {"image": image_loss, "reward": reward_loss, "cont": cont_loss}
            told |= {"dyn": dyn_loss, "rep": rep_loss}
            if mask_loss:
                told["mask"] = mask_loss[0]
                total_world = total_world + mask_loss[0]
            if self.sizes.dynamics == "vta" and self.sizes.rate > 0:
                told["rate"] = self.dynamics.rate_prior(post)
                total_world = total_world + self.sizes.rate_scale * told["rate"]
            self.record(**self.dynamics.report(post, prior), **told, total_world=total_world)
            self.step("world", total_world)
        return detach_tree(post)

    def improve(self, post: dict[str, Tensor]) -> None:
        """Actor and critic, in imagination from ``post``."""
        sizes = self.sizes
        still = sizes.gradient == "reinforce" and not sizes.entropy_through_dynamics
        with self.only(self.actor):
            with torch.no_grad() if still else nullcontext():
                trajectory = imagine(self.dynamics, self.actor, post, horizon=sizes.horizon)
                returns, weights, baseline = lambda_return(
                    trajectory, self.reward_head, self.cont_head, self.critic
                )
            scale = self.return_range(returns)
            policy_loss, entropy_loss = policy_gradient(
                self.actor, trajectory, returns, weights, baseline, gradient=sizes.gradient
            )
            total_actor = policy_loss + sizes.entropy * entropy_loss
            self.record(policy=policy_loss, entropy=entropy_loss, scale=scale)
            self.step("actor", total_actor)
        with self.only(self.critic):
            trajectory, returns = detach_tree(trajectory), returns.detach()
            value_loss, slow_loss = critic_loss(
                self.critic, self.slow_critic, trajectory, returns, weights
            )
            self.record(value=value_loss, slow=slow_loss)
            self.step("critic", value_loss + slow_loss)
            polyak(self.slow_critic, self.critic, rate=0.02)

    def drives(self) -> dict[str, Drive]:
        world = [p for net in self.world for p in net.parameters()]
        return {
            "world": Drive(Adam(world, lr=1e-4, eps=1e-8, fused=True), clip=1000.0),
            "actor": Drive(_adam(self.actor), clip=100.0),
            "critic": Drive(_adam(self.critic), clip=100.0),
        }


def _adam(net: torch.nn.Module) -> Adam:
    return Adam(net.parameters(), lr=3e-5, eps=1e-5, fused=True)


def dynamics(sizes: Sizes, embed: int) -> RSSM | VTA:
    width, stoch = sizes.width, sizes.stoch
    if sizes.dynamics == "rssm":
        shape = {"stoch": stoch, "classes": sizes.classes}
        return RSSM(embed, sizes.actions, deter=width, hidden=width, **shape)
    return VTA(
        embed,
        sizes.actions,
        abs_belief=width,
        obs_belief=width,
        abs_stoch=stoch,
        obs_stoch=stoch,
        hidden=width,
        max_seg_len=sizes.max_seg_len,
        max_seg_num=sizes.max_seg_num,
        temp=sizes.temp,
        force_scale=sizes.force_scale,
        rate=sizes.rate,
        posterior_input=sizes.posterior_input,
        obs_action_input=sizes.obs_action_input,
    )


def started(sizes: Sizes) -> Ours:
    """Ours, ready to train."""
    module = Ours(sizes)
    module.start("32", total_updates=None, updates_per_epoch=1)
    return module


def batch_of(sizes: Sizes, batch: int, length: int, seed: int = 0) -> Columns:
    """Random frames with a few rewards and joins of episodes."""
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand(batch, length, generator=g)
    image = torch.rand(batch, length, 64, 64, 3, generator=g)
    action = torch.randint(sizes.actions, (batch, length), generator=g)
    is_first = torch.rand(batch, length, generator=g) < 0.04
    is_first[:, 0] = True
    one_hot = F.one_hot(action, sizes.actions).float()
    return image, one_hot, 10.0 * (draw < 0.03), is_first, torch.ones(batch, length)


# -------------------------------------------------------------------------------------- measurement


class Cost(NamedTuple):
    seconds: float  # CPU, of one update
    gib: float  # most memory the process had


def updates_of(side: str, sizes: Sizes, batch: Columns) -> Callable[[], object]:
    if side == "plain":
        agent = Agent(sizes)
        return lambda: agent.train(batch)
    module = started(sizes)
    return lambda: module.training_step([batch], 0)


def measured_here(side: str, size: Size, sizes: Sizes) -> Cost:
    """Of this process, which is to do nothing else."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    update = updates_of(side, sizes, batch_of(sizes, size.batch, size.length))
    update()
    began = time.process_time()
    for _ in range(size.updates):
        update()
    seconds = (time.process_time() - began) / size.updates
    return Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measured(side: str, size: Size, dynamics: DynamicsKind, entropy: str) -> Cost:
    """The same in a child; RuntimeError if it fails."""
    chosen = ["--size", size.name, "--dynamics", dynamics, "--entropy", entropy]
    argv = [sys.executable, "-m", "benchmarks.pinpad_update", "--child", side, *chosen]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exits {done.returncode}:\n{done.stderr}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def compare(size: Size, dynamics: DynamicsKind, entropy: str, rounds: int) -> Verdict:
    costs: dict[str, list[Cost]] = {"ours": [], "plain": []}
    for turn in range(rounds):
        for side in sorted(costs, reverse=turn % 2 == 1):
            costs[side].append(measured(side, size, dynamics, entropy))
    what = f"{size.name} {dynamics}, entropy {entropy}"
    told = {side: Cost(*map(statistics.median, zip(*c, strict=True))) for side, c in costs.items()}
    print(what, *(_figures(side, cost) for side, cost in told.items()), sep="  ", flush=True)
    plain, ours = ([cost.seconds for cost in costs[side]] for side in ("plain", "ours"))
    memory = f"peak memory {told['ours'].gib / told['plain'].gib:.2f}x"
    return speed_up(f"plain / ours ({what})", plain, ours, size.budget, note=memory)


def _figures(side: str, cost: Cost) -> str:
    return f"{side} {1000 * cost.seconds:.0f} ms ({1 / cost.seconds:.2f}/s) {cost.gib:.2f} GiB"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cost of a world model's update, as ratios.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=[size.name for size in SIZES])
    parser.add_argument("--dynamics", choices=DYNAMICS)
    parser.add_argument("--entropy", choices=ENTROPY)
    parser.add_argument("--child", choices=("ours", "plain"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    sizes = [size for size in SIZES if asked.size in (None, size.name)]
    if asked.child:
        size = sizes[0]
        cost = measured_here(asked.child, size, size.sizes(asked.dynamics, asked.entropy))
        print(json.dumps(cost))
        return 0
    verdicts = [
        compare(size, dynamics, entropy, asked.rounds)
        for size in sizes
        for dynamics in DYNAMICS
        for entropy in ENTROPY
        if asked.dynamics in (None, dynamics) and asked.entropy in (None, entropy)
    ]
    return report(f"World model's update, torch {torch.__version__}, one thread", verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
