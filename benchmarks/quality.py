"""The frontier of sparsity against fidelity: our SAEs and the peers'.

All are trained on the same rows of the pocket model with the same budget, and measured on held-out
text by one evaluator. A peer gets the best of several learning rates at each target L0. Two jobs
run at a time, one thread each. Beside the table, every run is written to a CSV file, and the
frontiers are plotted.

Goals, at every layer and target: FVU and loss recovered as good as those of the best peer, within
one standard deviation over the seeds; our L0 within 5% of the target; at most 5% dead latents.

    python benchmarks/quality.py [--text FILE] [--quick] [--check] [--out DIR]
"""

import argparse
import os
import tempfile
import time
import warnings

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import Goal, device_name, name_with_text, parse_flags, report, text_name
from peers import Peer, SAELens, input_scale, make_peer
from torch import Tensor

from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.extractor.extraction import extract
from sae_analysis.extractor.shuffling import row_batches
from sae_analysis.extractor.store import ActivationStore, open_store
from sae_analysis.interpreter.evaluation import evaluate
from sae_analysis.loaders.corpora import TextCorpus
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.loaders.documents import Document
from sae_analysis.models.language_model import LanguageModel, load_model
from sae_analysis.saes.dictionary_learning import from_dictionary
from sae_analysis.saes.sae import SAE
from sae_analysis.saes.weights import sae_from_weights
from sae_analysis.trainer.runs import train
from sae_analysis.trainer.split import split_rows

BATCH = 1024
D_HIDDEN = 1024
TEXT_HELP = "a file of text, such as Wikipedia's, in place of the installed documentation"
# Learning rates tried for each peer at each target; ours chooses its own.
PEER_RATES = {
    "dictionary_learning JumpReLU": (2e-3, 4e-3, 8e-3),
    "dictionary_learning BatchTopK": (6e-3, 1.2e-2, 2.4e-2),
    "SAELens JumpReLU": (3e-3, 6e-3, 1.2e-2),
}
RATES_LAYER = 2  # of the pocket model, on which the peers' rates are chosen
L0_TOLERANCE = 0.1  # a peer whose L0 is further from the target, relatively, is not compared
FIGURES = ("l0", "fvu", "loss_recovered", "kl", "dead", "dense")
FIGURES_PLOTTED = {"fvu": "variance unexplained", "loss_recovered": "loss recovered"}


@dataclass
class Budget:
    """How much is trained and measured."""

    tokens: int  # trained on
    heldout: int  # tokens measured on
    layers: tuple[int, ...]
    targets: tuple[int, ...]  # of L0
    seeds: tuple[int, ...]
    peer_rates: dict[str, tuple[float, ...]]


FULL = Budget(
    tokens=300_000,
    heldout=24_000,
    layers=(1, 2),
    targets=(32, 75, 128),
    seeds=(0, 1, 2),
    peer_rates=PEER_RATES,
)
QUICK = Budget(
    tokens=40_000,
    heldout=8000,
    layers=(2,),
    targets=(32,),
    seeds=(0,),
    peer_rates={peer: rates[1:2] for peer, rates in PEER_RATES.items()},
)


@dataclass(frozen=True)
class Job:
    """One SAE to train and measure."""

    folder: str  # where the rows lie
    text: str  # a file of text; empty for the installed documentation
    tokens: int
    heldout: int
    trainer: str
    layer: int
    target: int
    seed: int
    rate: float | None = None  # learning rate; None: as the trainer chooses


# Training


def train_sae(job: Job) -> SAE:
    """An SAE for raw activations, by the job's trainer."""
    store = open_store(Path(job.folder) / f"layer_{job.layer}_states").head(job.tokens)
    config = TrainConfig(epochs=1, batch_size=BATCH, seed=job.seed)
    if job.trainer == "ours":
        sae_config = SAEConfig(d_model=store.d_model, d_hidden=D_HIDDEN, target_l0=job.target)
        return train(store, sae_config, config).final
    return train_peer(job, store, config)


def train_peer(job: Job, store: ActivationStore, config: TrainConfig) -> SAE:
    """A peer's SAE, trained on the rows that ours is trained on."""
    split = split_rows(store, config)
    scale = split.scale * input_scale(job.trainer, store.d_model)
    peer = make_peer(
        job.trainer,
        BATCH,
        d_model=store.d_model,
        d_hidden=D_HIDDEN,
        l0=job.target,
        steps=len(split.train) // BATCH,
        lr=job.rate,
        seed=job.seed,
    )
    for x in row_batches(store, split.without_sinks(split.train), BATCH, job.seed):
        peer.step(x.float() / scale)
    sae = as_jumprelu(peer)
    check_same(sae, peer, store.rows(np.arange(500)).float() / scale)
    raw = sae.fold(scale)
    raw.metadata["layer"] = job.layer
    raw.metadata["norm_limit"] = split.norm_limit
    raw.metadata["context_length"] = store.manifest.get("context_length", 512)
    return raw


def as_jumprelu(peer: Peer) -> SAE:
    """A peer's SAE in our class; all of them are JumpReLU SAEs at inference."""
    if isinstance(peer, SAELens):
        theirs = peer.sae
        return sae_from_weights(
            W_enc=theirs.W_enc,
            b_enc=theirs.b_enc,
            W_dec=theirs.W_dec,
            b_dec=theirs.b_dec,
            threshold=theirs.threshold,
            centred=True,
        )
    return from_dictionary(peer.trainer.ae)


@torch.no_grad()
def check_same(sae: SAE, peer: Peer, x: Tensor) -> None:
    """Both rebuild rows `[rows, d_model]` alike."""
    theirs = peer.decode(peer.encode(x))
    is_same = (sae(x) - theirs).norm(dim=1) < 1e-3 * theirs.norm(dim=1)
    assert is_same.float().mean() > 0.98, (
        "a latent may tip over its threshold by rounding here and there, no more"
    )


# Measuring


def open_corpus(text: str) -> TextCorpus | DocsCorpus:
    """The file of text, or the installed documentation."""
    return TextCorpus(text) if text else DocsCorpus()


@cache
def model_and_heldout(text: str) -> tuple[LanguageModel, list[Document]]:
    """The model and the held-out documents, read once by each process."""
    return load_model("pocket"), list(islice(open_corpus(text).heldout(), 400))


def measure(job: Job) -> dict[str, Any]:
    """Trains and evaluates one SAE, in a process of the pool."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begin = time.time()
    sae = train_sae(job)
    seconds = time.time() - begin
    model, documents = model_and_heldout(job.text)
    quality = evaluate(
        sae, model, documents, job.layer, num_tokens=job.heldout, loss_tokens=job.heldout // 4
    )
    return {
        "trainer": job.trainer,
        "layer": job.layer,
        "target": job.target,
        "seed": job.seed,
        "learning rate": job.rate,
        **{figure: quality[figure] for figure in FIGURES},
        "seconds to train": seconds,
    }


def with_progress(results: Iterable[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """The results; prints each as it comes."""
    received: list[dict[str, Any]] = []
    begin = time.time()
    for result in results:
        received.append(result)
        print(
            f"{len(received)}/{total} after {time.time() - begin:.0f} s: {result['trainer']}, layer"
            f" {result['layer']}, L0 {result['l0']:.1f} of {result['target']}, FVU"
            f" {result['fvu']:.4f}",
            flush=True,
        )
    return received


def measure_all(pool: ProcessPoolExecutor, jobs: list[Job]) -> dict[Job, dict[str, Any]]:
    """What is measured of each job."""
    return dict(zip(jobs, with_progress(pool.map(measure, jobs), len(jobs))))


# Jobs


def jobs_to_choose_rates(base: Job, budget: Budget) -> list[Job]:
    """Every peer at every target with each of its learning rates."""
    jobs = []
    for peer, rates in budget.peer_rates.items():
        for target in budget.targets:
            jobs += [replace(base, trainer=peer, target=target, rate=rate) for rate in rates]
    return jobs


def best_rates(results: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """For each (peer, target) the learning rate with the lowest FVU.

    Where any rate comes near the target L0, only those that do are compared.
    """
    runs = pd.DataFrame(results)
    columns = runs.drop(columns=["layer", "seed"])
    print(columns.to_string(index=False, float_format="%.4g"), flush=True)
    runs["is_off"] = is_off_target(runs.l0, runs.target)
    best = {}
    for key, group in runs.groupby(["trainer", "target"]):
        best[key] = float(group.sort_values(["is_off", "fvu"]).iloc[0]["learning rate"])
    return best


def is_off_target(l0: pd.Series, target: pd.Series | int) -> pd.Series:
    """Whether each L0 is too far from its target to be compared."""
    return (l0 / target - 1).abs() > L0_TOLERANCE


def jobs_to_compare(base: Job, budget: Budget, rates: dict[tuple[str, int], float]) -> list[Job]:
    """Every trainer at every layer, target and seed, the peers at their best learning rates."""
    jobs = []
    for trainer in ("ours", *budget.peer_rates):
        for layer in budget.layers:
            for target in budget.targets:
                rate = rates.get((trainer, target))
                job = replace(base, trainer=trainer, layer=layer, target=target, rate=rate)
                jobs += [replace(job, seed=seed) for seed in budget.seeds]
    return jobs


@dataclass
class Comparison:
    """All that was measured."""

    rates: dict[tuple[str, int], float]  # of each peer at each target
    runs: pd.DataFrame  # one row for each trainer, layer, target and seed


def compare(text: str, budget: Budget) -> Comparison:
    """Extracts rows, chooses the peers' learning rates, then trains and measures all SAEs."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
    ):
        base = Job(
            folder,
            text,
            budget.tokens,
            budget.heldout,
            trainer="ours",
            layer=RATES_LAYER,
            target=budget.targets[0],
            seed=0,
        )
        extract(load_model("pocket"), open_corpus(text), budget.layers, budget.tokens, folder)
        measured = measure_all(pool, jobs_to_choose_rates(base, budget))
        rates = best_rates(list(measured.values()))
        jobs = jobs_to_compare(base, budget, rates)
        measured |= measure_all(pool, [job for job in jobs if job not in measured])
    return Comparison(rates, pd.DataFrame([measured[job] for job in jobs]))


# Summary and goals


def mean_over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Means of all figures, and standard deviations of those that measure quality."""
    grouped = runs.groupby(["trainer", "layer", "target"], sort=False)
    means = grouped[[*FIGURES, "seconds to train"]].mean()
    deviations = grouped[list(FIGURES)].std(ddof=0).add_suffix("_std")
    return means.join(deviations).reset_index()


def make_goals(summary: pd.DataFrame) -> list[Goal]:
    """Ours against the best peer at every layer and target.

    Prints the peers that are not compared, since their L0 is too far from the target.
    """
    goals = []
    for (layer, target), group in summary.groupby(["layer", "target"]):
        ours = group[group.trainer == "ours"].iloc[0]
        peers = group[group.trainer != "ours"]
        is_off = is_off_target(peers.l0, target)
        for peer in peers[is_off].itertuples():
            print(
                f"not compared, since its L0 is {peer.l0:.1f}: {peer.trainer}, layer {layer},"
                f" target {target}"
            )
        peers = peers[~is_off]
        if not peers.empty:
            goals += goals_at(f"layer {layer}, L0 {target}", target, ours, peers)
    return goals


def goals_at(point: str, target: int, ours: pd.Series, peers: pd.DataFrame) -> list[Goal]:
    """The goals at one layer and target; `point` is their name."""
    by_fvu = peers.loc[peers.fvu.idxmin()]
    by_loss = peers.loc[peers.loss_recovered.idxmax()]
    fvu_slack = max(by_fvu.fvu_std, ours.fvu_std)
    loss_slack = max(by_loss.loss_recovered_std, ours.loss_recovered_std)
    l0_distance = abs(ours.l0 / target - 1)
    return [
        Goal(
            f"{point}: FVU (best peer: {by_fvu.trainer} {by_fvu.fvu:.4f} at L0 {by_fvu.l0:.1f})",
            ours.fvu,
            by_fvu.fvu + fvu_slack,
            at_least=False,
        ),
        Goal(
            f"{point}: loss recovered (best peer: {by_loss.trainer} {by_loss.loss_recovered:.4f} at"
            f" L0 {by_loss.l0:.1f})",
            ours.loss_recovered,
            by_loss.loss_recovered - loss_slack,
        ),
        Goal(f"{point}: L0, relative distance", l0_distance, 0.05, at_least=False),
        Goal(f"{point}: dead", ours.dead, 0.05, at_least=False),
    ]


# The plot


def plot(summary: pd.DataFrame, path: Path) -> None:
    """A panel for each layer and figure: the figure against L0, one line for each trainer."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    layers = sorted(summary.layer.unique())
    size = (4.4 * len(layers), 6)
    fig, axes = plt.subplots(2, len(layers), figsize=size, squeeze=False, sharex=True)
    for column, layer in enumerate(layers):
        for row, (figure, label) in enumerate(FIGURES_PLOTTED.items()):
            plot_panel(axes[row][column], summary[summary.layer == layer], figure)
            axes[row][column].set_ylabel(label)
        axes[0][column].set_title(f"layer {layer}")
        axes[-1][column].set_xlabel("L0 on held-out text")
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncol=4, frameon=False, fontsize=8)
    fig.savefig(path, dpi=130)


def plot_panel(ax: Any, of_layer: pd.DataFrame, figure: str) -> None:
    """One figure against L0, with one standard deviation; our line is thick and in front."""
    for trainer, group in of_layer.groupby("trainer", sort=False):
        points = group.sort_values("l0")
        is_ours = trainer == "ours"
        ax.errorbar(
            points.l0,
            points[figure],
            yerr=points[f"{figure}_std"],
            marker="o",
            ms=4,
            capsize=2,
            label=trainer,
            lw=2 if is_ours else 1,
            zorder=3 if is_ours else 2,
        )
    ax.spines[["top", "right"]].set_visible(False)


# The report


def write_runs(comparison: Comparison, summary: pd.DataFrame, args: argparse.Namespace) -> None:
    """Writes every run as CSV, and the plot."""
    suffix = "-quick" if args.quick else ""
    stem = f"{name_with_text('quality', args.text)}{suffix}-{device_name()}"
    args.out.mkdir(parents=True, exist_ok=True)
    comparison.runs.to_csv(args.out / f"{stem}.csv", index=False)
    plot(summary, args.out / f"{stem}.png")


def main() -> None:
    """Compares the trainers and reports."""
    args = parse_flags(__doc__, text=TEXT_HELP)
    budget = QUICK if args.quick else FULL
    begin = time.time()
    comparison = compare(args.text, budget)
    summary = mean_over_seeds(comparison.runs)
    write_runs(comparison, summary, args)
    rates = {f"{peer}, L0 {target}": rate for (peer, target), rate in comparison.rates.items()}
    settings = {
        "batch": BATCH,
        "d_hidden": D_HIDDEN,
        "tokens": budget.tokens,
        "seeds": budget.seeds,
        "learning rates of the peers": rates,
        "text": text_name(args.text),
        "minutes": (time.time() - begin) / 60,
    }
    goals = [] if args.quick else make_goals(summary)
    report(name_with_text("quality", args.text), summary, settings, goals, args)


if __name__ == "__main__":
    main()
