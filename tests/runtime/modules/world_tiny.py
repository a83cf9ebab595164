# A module in the style of the compiler's, written by hand for the tests of the runtime.
"""A very small world model of Visual Pin Pad.

python tests/runtime/modules/world_tiny.py --env-steps 60 --dynamics rssm
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from expc_runtime import losses
from expc_runtime.checkpoint import Checkpoint
from expc_runtime.clocks import EnvSteps, Minutes, Updates
from expc_runtime.envs.pinpad import PinPad
from expc_runtime.fit import fit
from expc_runtime.flags import Run, start
from expc_runtime.gates import Until
from expc_runtime.module import Batch, Module, detach_tree
from expc_runtime.optim import Drive, parameters
from expc_runtime.ports import Latent
from expc_runtime.replay import Evaluate, Replay
from expc_runtime.worlds.behaviour import (
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

PROGRAM = "7d0e4e1a2b11"  # names this program and its values; results carry it


@dataclass(frozen=True)
class Config(Run):
    """Every number the spec sets; each is a flag."""

    out: str = "runs/tiny/by_hand/train"
    # env
    layout: str = "three"
    time_limit: int = 12
    env_batch: int = 2
    # model
    depth: int = 2
    dynamics: str = "vta"
    # replay
    capacity: int = 1000
    batch: int = 3
    length: int = 6
    train_ratio: float = 6.0
    prefill: int = 40
    pretrain: int = 2
    # optim
    lr: float = 0.0003
    # until
    env_steps: int = 100
    # evaluate
    every: int = 40
    episodes: int = 2
    policy: str = "mode"
    # checkpoint
    every_minutes: float = 10.0
    precision: str = "32"


def dynamics_of(cfg: Config, embed: int) -> RSSM | VTA:
    if cfg.dynamics == "rssm":
        return RSSM(embed, 5, deter=8, stoch=2, classes=3, hidden=8)
    return VTA(embed, 5, abs_belief=8, obs_belief=8, abs_stoch=4, obs_stoch=4, hidden=8)


class Train(Module):
    """Replayed sequences -> a model of the world; its imagination -> an actor and a critic."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = ConvEncoder(depth=cfg.depth)
        self.dynamics = dynamics_of(cfg, self.encoder.out_features)
        self.decoder = ConvDecoder(self.dynamics.out_features, depth=cfg.depth)
        self.reward_head = TwoHotHead(self.dynamics.out_features, units=8)
        self.cont_head = BinaryHead(self.dynamics.out_features, units=8)
        self.actor = Actor(self.dynamics.out_features, 5, units=8)
        self.critic = TwoHotHead(self.dynamics.out_features, units=8)
        self.slow_critic = slow_copy(self.critic)

    def update(self, batch: Batch) -> None:
        """One batch: forward, losses, and an optimizer step for each total."""
        image, action, reward, is_first, cont = batch
        with self.only(self.encoder, self.dynamics, self.decoder, self.reward_head, self.cont_head):
            embed = self.encoder(image)
            post, prior = self.dynamics.observe(embed, action, is_first)
            feat = self.dynamics.features(post)
            image_loss = losses.mse_sum(self.decoder(feat), image)
            reward_loss = losses.twohot_symlog(self.reward_head(feat), reward)
            cont_loss = losses.bce(self.cont_head(feat), cont)
            dyn_loss, rep_loss, *_ = self.dynamics.kl(post, prior)
            report = self.dynamics.report(post, prior)
            total_world = image_loss + reward_loss + cont_loss + 0.5 * dyn_loss + 0.1 * rep_loss
            self.record(report, image=image_loss, reward=reward_loss, cont=cont_loss)
            self.step("world", total_world)
        with self.only(self.actor):
            post_sg = detach_tree(post)
            trajectory = imagine(self.dynamics, self.actor, post_sg, horizon=3)
            returns, weights, baseline = lambda_return(
                trajectory, self.reward_head, self.cont_head, self.critic
            )
            policy_loss, entropy_loss = policy_gradient(
                self.actor, trajectory, returns, weights, baseline
            )
            total_actor = policy_loss + 0.0003 * entropy_loss
            self.record(policy=policy_loss, entropy=entropy_loss, total_actor=total_actor)
            self.step("actor", total_actor)
        with self.only(self.critic):
            trajectory_sg = detach_tree(trajectory)
            value_loss, slow_loss = critic_loss(
                self.critic, self.slow_critic, trajectory_sg, returns.detach(), weights.detach()
            )
            total_critic = value_loss + slow_loss
            self.record(value=value_loss, slow=slow_loss, total_critic=total_critic)
            self.step("critic", total_critic)
            polyak(self.slow_critic, self.critic, rate=0.02)

    def initial(self, batch: int) -> Latent:
        """The state before the first frame, of that many environments."""
        with torch.no_grad():
            return self.dynamics.initial(batch)

    def act(
        self, image: Tensor, action: Tensor, is_first: Tensor, state: Latent
    ) -> tuple[Tensor, Latent]:
        """One step of every environment: the state with this frame in it, and what the actor would do."""
        with torch.no_grad():
            embed = self.encoder(image)
            state = self.dynamics.filter(state, embed, action, is_first)
            feat = self.dynamics.features(state)
            policy = self.actor.probs(feat)
        return policy, state

    def drives(self) -> dict[str, Drive]:
        """One optimizer for each total."""
        cfg = self.cfg
        world = parameters(
            self.encoder, self.dynamics, self.decoder, self.reward_head, self.cont_head
        )
        return {
            "world": Drive(Adam(world, lr=cfg.lr, fused=True), clip=1000.0),
            "actor": Drive(Adam(parameters(self.actor), lr=cfg.lr, fused=True), clip=100.0),
            "critic": Drive(Adam(parameters(self.critic), lr=cfg.lr, fused=True), clip=100.0),
        }


def replay(cfg: Config) -> Replay:
    return Replay(
        PinPad(layout=cfg.layout, time_limit=cfg.time_limit, batch=cfg.env_batch),
        columns=("image", "action", "reward", "is_first", "cont"),
        capacity=cfg.capacity,
        batch=cfg.batch,
        length=cfg.length,
        train_ratio=cfg.train_ratio,
        prefill=EnvSteps(cfg.prefill),
        pretrain=Updates(cfg.pretrain),
        evaluate=Evaluate(EnvSteps(cfg.every), episodes=cfg.episodes, policy=cfg.policy),
    )


def main(cfg: Config) -> int:
    """Run this stage and leave its result.json; returns the exit code."""
    return fit(
        Train,
        cfg,
        replay(cfg),
        until=Until(EnvSteps(cfg.env_steps)),
        precision=cfg.precision,
        checkpoint=Checkpoint(every=Minutes(cfg.every_minutes)),
        monitor={"best": "eval/return"},
        file=__file__,
        program=PROGRAM,
    )


if __name__ == "__main__":
    raise SystemExit(start(main, Config))
