"""Data made of known sparse features: which trainer finds them?

The features have unequal frequencies and fire in correlated groups. Measured are the mean maximum
cosine similarity between true features and decoder directions, and recall, the share of features
that some latent points at. Two jobs run at a time, one thread each.

Goals: ours finds the features as well as the best peer, each peer at the best of its learning
rates, within one standard deviation over the seeds.

    python benchmarks/ground_truth.py [--quick] [--check] [--out DIR]
"""

import os
import time
import warnings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import Goal, parse_flags, report
from peers import input_scale, make_peer
from torch import Tensor
from torch.nn.functional import normalize

from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.extractor.store import ActivationStore
from sae_analysis.trainer.runs import train

D_MODEL = 128
FEATURES = 512
GROUPS = 64
D_HIDDEN = 768
BATCH = 1024
HELDOUT_ROWS = 20_000
FOUND = 0.9  # cosine similarity above which a latent has found a feature
# Learning rates tried for each trainer; ours chooses its own.
RATES: dict[str, tuple[float | None, ...]] = {
    "ours": (None,),
    "ours, falling target": (None,),
    "dictionary_learning JumpReLU": (3e-3, 6e-3, 1.2e-2),
    "dictionary_learning BatchTopK": (3e-3, 6e-3, 1.2e-2),
    "SAELens JumpReLU": (4.5e-3, 6e-3, 1.2e-2),
}
FIGURES_WITH_GOALS = ("mean max cosine", "recall (> 0.9)")


@dataclass(frozen=True)
class Mix:
    """How often features fire: `scale / (rank + offset)` of the rows, by rank from 1."""

    scale: float
    offset: int


MIXES = {
    "3 at a time": Mix(0.8, 9),  # 8% down to 0.15%
    "9 at a time": Mix(3.0, 30),  # 10% down to 0.6%
}


@dataclass
class Budget:
    """How much is trained."""

    rows: int
    seeds: tuple[int, ...]


FULL = Budget(rows=400_000, seeds=(0, 1, 2))
QUICK = Budget(rows=60_000, seeds=(0,))


@dataclass(frozen=True)
class Job:
    """One SAE to train."""

    mix: str
    trainer: str
    rate: float | None  # learning rate; None: as the trainer chooses
    seed: int
    rows: int


# The data


@dataclass(frozen=True)
class Truth:
    """The features that rows are made of.

    Those of one group fire in the same rows more often than chance would have it.
    """

    features: Tensor  # [features, d_model] unit rows
    frequency: Tensor  # [features] share of rows
    group: Tensor  # [features]

    @staticmethod
    def make(mix: Mix, seed: int) -> "Truth":
        """Random features, some frequent and some rare."""
        generator = torch.Generator().manual_seed(seed)
        rank = torch.randperm(FEATURES, generator=generator) + 1
        features = normalize(torch.randn(FEATURES, D_MODEL, generator=generator), dim=1)
        group = torch.randint(GROUPS, (FEATURES,), generator=generator)
        return Truth(features, mix.scale / (rank + mix.offset), group)

    def rows(self, count: int, seed: int) -> Tensor:
        """Rows `[count, d_model]` with a mean square of 1.

        A little noise and a constant part are added, as residual streams have them.
        """
        generator = torch.Generator().manual_seed(10_000 + seed)
        # in a quarter of the rows a group is favoured, threefold
        is_favoured = torch.rand(count, GROUPS, generator=generator) < 0.25
        factor = torch.where(is_favoured[:, self.group], 2.0, 2 / 3)  # [count, features]
        fires = torch.rand(count, FEATURES, generator=generator) < self.frequency * factor
        strength = fires * (0.5 + torch.rand(count, FEATURES, generator=generator))
        noise = 0.02 * torch.randn(count, D_MODEL, generator=generator)
        x = strength @ self.features + noise + self.features.mean(0)
        return x / x.pow(2).mean().sqrt()

    @property
    def l0(self) -> float:
        """How many features fire in a row, on average."""
        return self.frequency.sum().item()


# Training


@dataclass
class Outcome:
    """What a trained SAE makes of held-out rows."""

    latents: Tensor  # [rows, d_hidden]
    rebuilt: Tensor  # [rows, d_model]
    decoder: Tensor  # [d_hidden, d_model]


def train_ours(job: Job, rows: Tensor, heldout: Tensor, target_l0: int) -> Outcome:
    """Our trainer; with a falling target, L0 begins at ten times the target."""
    config = TrainConfig(
        epochs=1,
        batch_size=BATCH,
        seed=job.seed,
        l0_at_start=10 if job.trainer == "ours, falling target" else 1,
    )
    sae_config = SAEConfig(d_model=D_MODEL, d_hidden=D_HIDDEN, target_l0=target_l0)
    sae = train(ActivationStore([rows]), sae_config, config).final
    return Outcome(sae.encode(heldout), sae(heldout), sae.W_dec.detach())


def train_peer(job: Job, rows: Tensor, heldout: Tensor, target_l0: int) -> Outcome:
    """A peer's trainer, on the same rows in random order."""
    steps = len(rows) // BATCH
    peer = make_peer(
        job.trainer,
        BATCH,
        d_model=D_MODEL,
        d_hidden=D_HIDDEN,
        l0=target_l0,
        steps=steps,
        lr=job.rate,
        seed=job.seed,
    )
    scale = input_scale(job.trainer, D_MODEL)
    order = torch.from_numpy(np.random.default_rng(job.seed).permutation(len(rows)))
    for step in range(steps):
        batch = order[step * BATCH : (step + 1) * BATCH]
        peer.step(rows[batch] / scale)
    latents = peer.encode(heldout / scale)
    return Outcome(latents, peer.decode(latents) * scale, peer.decoder)


# Measuring


def cover_of_features(decoder: Tensor, truth: Truth) -> dict[str, float]:
    """How well decoder directions `[d_hidden, d_model]` cover the true features.

    All of them and the rarest quarter, and what share of latents is a true feature.
    """
    cosine = normalize(decoder, dim=1) @ truth.features.T  # [d_hidden, features]
    best = cosine.max(0).values  # [features]
    is_rare = truth.frequency <= truth.frequency.quantile(0.25)
    best_of_latents = cosine.max(1).values  # [d_hidden]
    return {
        "mean max cosine": best.mean().item(),
        "recall (> 0.9)": share_above(best, FOUND),
        "recall of the rarest quarter": share_above(best[is_rare], FOUND),
        "latents that are a feature": share_above(best_of_latents, FOUND),
    }


def share_above(values: Tensor, limit: float) -> float:
    """The share of values above a limit."""
    return (values > limit).float().mean().item()


def unexplained(x: Tensor, rebuilt: Tensor) -> float:
    """FVU, the fraction of variance unexplained, of rows `[rows, d_model]`."""
    return ((rebuilt - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


def measure(job: Job) -> dict[str, Any]:
    """Trains and measures one SAE, in a process of the pool."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    truth = Truth.make(MIXES[job.mix], job.seed)
    rows = truth.rows(job.rows, 1)
    heldout = truth.rows(HELDOUT_ROWS, 2)
    begin = time.time()
    train_sae = train_ours if job.trainer.startswith("ours") else train_peer
    outcome = train_sae(job, rows, heldout, round(truth.l0))
    is_active = outcome.latents > 0  # [rows, d_hidden]
    return {
        "mix": job.mix,
        "trainer": job.trainer,
        "learning rate": job.rate,
        "seed": job.seed,
        "true l0": truth.l0,
        "l0": is_active.float().sum(1).mean().item(),
        "fvu": unexplained(heldout, outcome.rebuilt),
        "dead": (~is_active.any(0)).float().mean().item(),
        **cover_of_features(outcome.decoder, truth),
        "seconds": time.time() - begin,
    }


# Jobs, table and goals


def rates_to_try(trainer: str, quick: bool) -> tuple[float | None, ...]:
    """All learning rates of a trainer; in a quick run the second alone."""
    rates = RATES[trainer]
    if quick and len(rates) > 1:
        return rates[1:2]
    return rates


def make_jobs(budget: Budget, quick: bool) -> list[Job]:
    """Every mix with every trainer, learning rate and seed."""
    jobs = []
    for mix in MIXES:
        for trainer in RATES:
            for rate in rates_to_try(trainer, quick):
                jobs += [Job(mix, trainer, rate, seed, budget.rows) for seed in budget.seeds]
    return jobs


def run_jobs(jobs: list[Job]) -> pd.DataFrame:
    """One row a job; prints each as it comes."""
    runs: list[dict[str, Any]] = []
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for run in pool.map(measure, jobs):
            runs.append(run)
            print(
                f"{len(runs)}/{len(jobs)}: {run['mix']}, {run['trainer']}, mean max cosine"
                f" {run['mean max cosine']:.3f}",
                flush=True,
            )
    return pd.DataFrame(runs)


def mean_over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Means of all figures, and standard deviations of those that have goals."""
    settings = ["mix", "trainer", "learning rate"]
    grouped = runs.drop(columns="seed").groupby(settings, sort=False, dropna=False)
    deviations = grouped[["recall (> 0.9)", "mean max cosine"]].std(ddof=0).add_suffix(" std")
    return grouped.mean().join(deviations).reset_index()


def make_goals(table: pd.DataFrame) -> list[Goal]:
    """Each of our two settings against the best peer, on every mix."""
    goals = []
    for _, of_mix in table.groupby("mix", sort=False):
        is_ours = of_mix.trainer.str.startswith("ours")
        for _, ours in of_mix[is_ours].iterrows():
            for figure in FIGURES_WITH_GOALS:
                goals.append(make_goal(ours, of_mix[~is_ours], figure))
    return goals


def make_goal(ours: pd.Series, peers: pd.DataFrame, figure: str) -> Goal:
    """Ours against the best peer at its best learning rate, less one standard deviation."""
    best = peers.loc[peers[figure].idxmax()]
    slack = max(ours[f"{figure} std"], best[f"{figure} std"])
    peer = f"best peer: {best.trainer} {best[figure]:.3f} at L0 {best.l0:.1f}"
    return Goal(
        f"{ours.mix}, {ours.trainer}: {figure} ({peer})", ours[figure], best[figure] - slack
    )


def main() -> None:
    """Trains all SAEs and reports."""
    args = parse_flags(__doc__)
    budget = QUICK if args.quick else FULL
    table = mean_over_seeds(run_jobs(make_jobs(budget, args.quick)))
    settings = {
        "d_model": D_MODEL,
        "features": FEATURES,
        "d_hidden": D_HIDDEN,
        "batch": BATCH,
        "rows": budget.rows,
        "seeds": budget.seeds,
    }
    report("ground_truth", table, settings, [] if args.quick else make_goals(table), args)


if __name__ == "__main__":
    main()
