"""Data made of known sparse features, with unequal frequencies and correlations: which trainer finds them? Mean maximum cosine similarity and recall."""

import os
import time

os.environ["OMP_NUM_THREADS"] = "1"
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from harness import Goal, parse_flags, report

D_MODEL, FEATURES, D_HIDDEN, BATCH = 128, 512, 768, 1024
# a feature's frequency is a/(rank + b): 8% down to 0.15%, or 10% down to 0.6%
MIXES = {"3 at a time": (0.8, 9), "9 at a time": (3.0, 30)}
RATES = {
    "ours": (None,),
    "ours, falling target": (None,),
    "dictionary_learning JumpReLU": (3e-3, 6e-3, 1.2e-2),
    "dictionary_learning BatchTopK": (3e-3, 6e-3, 1.2e-2),
    "SAELens JumpReLU": (4.5e-3, 6e-3, 1.2e-2),
}


@dataclass(frozen=True)
class Truth:
    """What rows are made of:

    features in groups that fire together, each with a frequency and a range of strengths.
    """

    features: torch.Tensor  # [features, d_model] unit rows
    frequency: torch.Tensor  # [features] share of rows; falls as one over the rank
    # [features] members of a group fire in the same rows more often than chance would have it
    group: torch.Tensor

    @staticmethod
    def make(mix: str, seed: int) -> "Truth":
        g, (most, flat) = torch.Generator().manual_seed(seed), MIXES[mix]
        rank = torch.randperm(FEATURES, generator=g) + 1
        return Truth(
            torch.nn.functional.normalize(torch.randn(FEATURES, D_MODEL, generator=g), dim=1),
            most / (rank + flat),
            torch.randint(64, (FEATURES,), generator=g),
        )

    def rows(self, n: int, seed: int) -> torch.Tensor:
        """`[n, d_model]`, mean square 1, with a little noise and a constant part, as residual
        streams have.
        """
        g = torch.Generator().manual_seed(10_000 + seed)
        # in a quarter of the rows a group is favoured, threefold
        on_group = (torch.rand(n, 64, generator=g) < 0.25)[:, self.group]
        chance = self.frequency * torch.where(on_group, 2.0, 2 / 3)
        strength = (torch.rand(n, FEATURES, generator=g) < chance) * (
            0.5 + torch.rand(n, FEATURES, generator=g)
        )
        x = (
            strength @ self.features
            + 0.02 * torch.randn(n, D_MODEL, generator=g)
            + self.features.mean(0)
        )
        return x / x.pow(2).mean().sqrt()

    @property
    def l0(self) -> float:
        return self.frequency.sum().item()


def found_by(decoder: torch.Tensor, truth: Truth) -> dict[str, float]:
    """How well unit rows of a decoder cover the true features, all of them and the rarest quarter,
    and what share of latents is a true feature.
    """
    cosine = torch.nn.functional.normalize(decoder, dim=1) @ truth.features.T
    best, rare = cosine.max(0).values, truth.frequency <= truth.frequency.quantile(0.25)
    return {
        "mean max cosine": best.mean().item(),
        "recall (> 0.9)": (best > 0.9).float().mean().item(),
        "recall of the rarest quarter": (best[rare] > 0.9).float().mean().item(),
        "latents that are a feature": (cosine.max(1).values > 0.9).float().mean().item(),
    }


def measure(mix: str, trainer: str, rate: float | None, seed: int, rows: int) -> dict:
    import warnings

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    from sae_analysis.core.config import SAEConfig, TrainConfig
    from sae_analysis.extractor.store import ActivationStore
    from sae_analysis.trainer.runs import train

    os.environ["TQDM_DISABLE"] = "1"
    truth = Truth.make(mix, seed)
    data, held, target = truth.rows(rows, 1), truth.rows(20_000, 2), round(truth.l0)
    begin = time.time()
    if trainer.startswith("ours"):
        config = TrainConfig(
            epochs=1, batch_size=BATCH, seed=seed, l0_at_start=10 if "falling" in trainer else 1
        )
        sae = train(
            ActivationStore([data]),
            SAEConfig(d_model=D_MODEL, d_hidden=D_HIDDEN, target_l0=target),
            config,
        ).final
        latents, rebuilt, decoder = sae.encode(held), sae(held), sae.W_dec
    else:
        from peers import DictionaryLearning, SAELens

        steps = rows // BATCH
        common = dict(
            d_model=D_MODEL, d_hidden=D_HIDDEN, l0=target, steps=steps, lr=rate, seed=seed
        )
        peer = (
            SAELens(batch=BATCH, **common)
            if trainer.startswith("SAELens")
            else DictionaryLearning("jumprelu" if "JumpReLU" in trainer else "batchtopk", **common)
        )
        scale = D_MODEL**0.5 if trainer == "dictionary_learning JumpReLU" else 1.0
        order = np.random.default_rng(seed).permutation(rows)
        for i in range(steps):
            peer.step(data[torch.from_numpy(order[i * BATCH : (i + 1) * BATCH])] / scale)
        latents = peer.encode(held / scale)
        rebuilt, decoder = peer.decode(latents) * scale, peer.decoder
    fvu = ((rebuilt - held).pow(2).sum() / (held - held.mean(0)).pow(2).sum()).item()
    return {
        "mix": mix,
        "trainer": trainer,
        "learning rate": rate,
        "seed": seed,
        "true l0": truth.l0,
        "l0": (latents > 0).float().sum(1).mean().item(),
        "fvu": fvu,
        "dead": (~(latents > 0).any(0)).float().mean().item(),
        **found_by(decoder.detach(), truth),
        "seconds": time.time() - begin,
    }


def main() -> None:
    a = parse_flags(__doc__)
    rows, seeds = (60_000, (0,)) if a.quick else (400_000, (0, 1, 2))
    jobs = [
        (mix, trainer, rate, seed, rows)
        for mix in MIXES
        for trainer, rates in RATES.items()
        for rate, seed in product(rates[1:2] if a.quick and rates[0] else rates, seeds)
    ]
    found = []
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for run in pool.map(measure, *zip(*jobs)):
            found.append(run)
            print(
                f"{len(found)}/{len(jobs)}: {run['mix']}, {run['trainer']}, mean max cosine"
                f" {run['mean max cosine']:.3f}",
                flush=True,
            )
    runs = pd.DataFrame(found)
    grouped = runs.drop(columns="seed").groupby(
        ["mix", "trainer", "learning rate"], sort=False, dropna=False
    )
    table = (
        grouped.mean()
        .join(grouped[["recall (> 0.9)", "mean max cosine"]].std(ddof=0).add_suffix(" std"))
        .reset_index()
    )
    report(
        "ground_truth",
        table,
        {
            "d_model": D_MODEL,
            "features": FEATURES,
            "d_hidden": D_HIDDEN,
            "batch": BATCH,
            "rows": rows,
            "seeds": seeds,
        },
        [] if a.quick else goals(table),
        a,
    )


def goals(table: pd.DataFrame) -> list[Goal]:
    """Ours against the best peer, each peer at the best of its learning rates, with one standard
    deviation of slack.
    """
    found = []
    for mix, of_mix in table.groupby("mix", sort=False):
        mine = of_mix.trainer.str.startswith("ours")
        for (_, ours), key in product(
            of_mix[mine].iterrows(), ("mean max cosine", "recall (> 0.9)")
        ):
            best = of_mix.loc[of_mix[~mine][key].idxmax()]
            found.append(
                Goal(
                    f"{mix}, {ours.trainer}: {key} (best peer: {best.trainer} {best[key]:.3f} at L0"
                    f" {best.l0:.1f})",
                    ours[key],
                    best[key] - max(ours[f"{key} std"], best[f"{key} std"]),
                )
            )
    return found


if __name__ == "__main__":
    main()
