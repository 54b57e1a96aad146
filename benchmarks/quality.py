"""The frontier of sparsity against fidelity: our SAEs and the peers', trained on the same rows with the same budget, measured on held-out text by one evaluator."""

import os
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"  # two jobs at a time, one thread each
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import Goal, device_name, parse_flags, report

BATCH, D_HIDDEN, TARGETS, SEEDS, LAYERS = 1024, 1024, (32, 75, 128), (0, 1, 2), (1, 2)
# learning rates tried at each target
PEERS = {
    "dictionary_learning JumpReLU": (2e-3, 4e-3, 8e-3),
    "dictionary_learning BatchTopK": (6e-3, 1.2e-2, 2.4e-2),
    "SAELens JumpReLU": (3e-3, 6e-3, 1.2e-2),
}
FIGURES = ("l0", "fvu", "loss_recovered", "kl", "dead", "dense")


@dataclass(frozen=True)
class Job:
    folder: str
    trainer: str
    layer: int
    target: int
    seed: int
    rate: float | None = None
    tokens: int = 300_000
    heldout: int = 24_000


def trained(job: Job):
    """A JumpReLU SAE for raw activations, by the job's trainer."""
    from sae_analysis.core.config import SAEConfig, TrainConfig
    from sae_analysis.extractor.shuffling import row_batches as batches
    from sae_analysis.extractor.store import open_store
    from sae_analysis.trainer.runs import train
    from sae_analysis.trainer.split import split_rows as choose_rows

    store = open_store(Path(job.folder) / f"layer_{job.layer}_states").head(job.tokens)
    config = TrainConfig(epochs=1, batch_size=BATCH, seed=job.seed)
    if job.trainer == "ours":
        return train(
            store, SAEConfig(d_model=store.d_model, d_hidden=D_HIDDEN, target_l0=job.target), config
        ).final
    rows = choose_rows(store, config)
    used = rows.without_sinks(rows.train)
    # its bandwidth of 0.001 is meant for rows of length one, as its own loader gives
    unit = job.trainer == "dictionary_learning JumpReLU"
    scale = rows.scale * (store.d_model**0.5 if unit else 1)
    peer = make_peer(job, store.d_model, len(rows.train) // BATCH)
    for x in batches(store, used, BATCH, job.seed):
        peer.step(x.float() / scale)
    return as_jumprelu(peer, store, scale, job, rows.norm_limit)


def make_peer(job: Job, d_model: int, steps: int):
    from peers import DictionaryLearning, SAELens

    common = dict(
        d_model=d_model, d_hidden=D_HIDDEN, l0=job.target, steps=steps, lr=job.rate, seed=job.seed
    )
    if job.trainer == "SAELens JumpReLU":
        return SAELens(batch=BATCH, **common)
    return DictionaryLearning("jumprelu" if "JumpReLU" in job.trainer else "batchtopk", **common)


@torch.no_grad()
def as_jumprelu(peer, store, scale: float, job: Job, norm_limit: float):
    """A peer's SAE in our class:

    all of them are JumpReLU at inference. Checked on rows against the peer's own encode and decode.
    """
    from sae_analysis.core.config import SAEConfig
    from sae_analysis.saes.dictionary_learning import from_dictionary
    from sae_analysis.saes.jumprelu import JumpReLUSAE

    if hasattr(peer, "sae"):  # SAELens, which subtracts b_dec from its input
        sae, lens = (
            JumpReLUSAE(SAEConfig(d_model=store.d_model, d_hidden=D_HIDDEN, target_l0=None)),
            peer.sae,
        )
        weights = {
            "W_enc": lens.W_enc,
            "b_enc": lens.b_enc - lens.b_dec @ lens.W_enc,
            "W_dec": lens.W_dec,
            "b_dec": lens.b_dec,
            "threshold": lens.threshold.clamp(min=0),
        }
        sae.load_state_dict({name: w.detach().float() for name, w in weights.items()})
    else:
        sae = from_dictionary(peer.trainer.ae)
    x = store.rows(np.arange(500)).float() / scale
    theirs = peer.decode(peer.encode(x))
    same = (sae(x) - theirs).norm(dim=1) < 1e-3 * theirs.norm(dim=1)
    assert same.float().mean() > 0.98, (
        "a latent may tip over its threshold by rounding here and there, no more"
    )
    raw = sae.fold(scale)
    raw.metadata.update(
        {
            "layer": job.layer,
            "norm_limit": norm_limit,
            "context_length": store.manifest.get("context_length", 512),
        }
    )
    return raw


def measure(job: Job) -> dict:
    """Trains and evaluates one SAE."""
    import warnings

    warnings.filterwarnings("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    from sae_analysis.interpreter.evaluation import evaluate

    begin = time.time()
    sae = trained(job)
    seconds = time.time() - begin
    quality = evaluate(
        sae, *judge(job.folder), job.layer, num_tokens=job.heldout, loss_tokens=job.heldout // 4
    )
    return {
        "trainer": job.trainer,
        "layer": job.layer,
        "target": job.target,
        "seed": job.seed,
        "learning rate": job.rate,
        **{key: quality[key] for key in FIGURES},
        "seconds to train": seconds,
    }


def corpus_of(folder: str):
    from sae_analysis.loaders.corpora import TextCorpus
    from sae_analysis.loaders.docs import DocsCorpus

    text = (Path(folder) / "text").read_text()
    return TextCorpus(text) if text else DocsCorpus()


@cache
def judge(folder: str) -> tuple:
    """The model and the held-out documents, read once by each process."""
    from sae_analysis.models.language_model import load_model

    return load_model("pocket"), list(islice(corpus_of(folder).heldout(), 400))


def with_progress(results, total: int) -> list[dict]:
    """The results as they come, each with a line."""
    found, begin = [], time.time()
    for result in results:
        found.append(result)
        print(
            f"{len(found)}/{total} after {time.time() - begin:.0f} s: {result['trainer']}, layer"
            f" {result['layer']}, L0 {result['l0']:.1f} of {result['target']}, FVU"
            f" {result['fvu']:.4f}",
            flush=True,
        )
    return found


def best_rates(pool, base: Job) -> tuple[dict[tuple[str, int], float], dict[Job, dict]]:
    """For each peer and target the learning rate, of those tried, with the lowest FVU on layer 2
    among those that come within a tenth of that L0 if any does; and what was measured.
    """
    jobs = [
        replace(base, trainer=peer, target=target, rate=rate)
        for peer, rates in PEERS.items()
        for target in TARGETS
        for rate in rates
    ]
    found = pd.DataFrame(with_progress(pool.map(measure, jobs), len(jobs)))
    print(
        found.drop(columns=["layer", "seed"]).to_string(index=False, float_format="%.4g"),
        flush=True,
    )
    found["off"] = (found.l0 / found.target - 1).abs() > 0.1
    best = {
        key: float(group.sort_values(["off", "fvu"]).iloc[0]["learning rate"])
        for key, group in found.groupby(["trainer", "target"])
    }
    return best, dict(zip(jobs, found.drop(columns="off").to_dict("records")))


def goals(summary: pd.DataFrame) -> list[Goal]:
    """Ours against the best peer at every layer and target, with one standard deviation of slack."""
    found = []
    for (layer, target), group in summary.groupby(["layer", "target"]):
        ours, peers = group[group.trainer == "ours"].iloc[0], group[group.trainer != "ours"]
        away = (peers.l0 / target - 1).abs() > 0.1
        for peer in peers[away].itertuples():
            print(
                f"not compared, since its L0 is {peer.l0:.1f}: {peer.trainer}, layer {layer},"
                f" target {target}"
            )
        peers = peers[~away]
        if peers.empty:
            continue
        fvu, loss = peers.loc[peers.fvu.idxmin()], peers.loc[peers.loss_recovered.idxmax()]
        at = f"layer {layer}, L0 {target}"
        found += [
            Goal(
                f"{at}: FVU (best peer: {fvu.trainer} {fvu.fvu:.4f} at L0 {fvu.l0:.1f})",
                ours.fvu,
                fvu.fvu + max(fvu.fvu_std, ours.fvu_std),
                at_least=False,
            ),
            Goal(
                f"{at}: loss recovered (best peer: {loss.trainer} {loss.loss_recovered:.4f} at L0"
                f" {loss.l0:.1f})",
                ours.loss_recovered,
                loss.loss_recovered - max(loss.loss_recovered_std, ours.loss_recovered_std),
            ),
            Goal(f"{at}: L0, relative distance", abs(ours.l0 / target - 1), 0.05, at_least=False),
            Goal(f"{at}: dead", ours.dead, 0.05, at_least=False),
        ]
    return found


def plot(summary: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    layers = sorted(summary.layer.unique())
    fig, axes = plt.subplots(
        2, len(layers), figsize=(4.4 * len(layers), 6), squeeze=False, sharex=True
    )
    for column, layer in enumerate(layers):
        for row, (key, name) in enumerate(
            (("fvu", "variance unexplained"), ("loss_recovered", "loss recovered"))
        ):
            ax = axes[row][column]
            for trainer, group in summary[summary.layer == layer].groupby("trainer", sort=False):
                group = group.sort_values("l0")
                ax.errorbar(
                    group.l0,
                    group[key],
                    yerr=group[f"{key}_std"],
                    marker="o",
                    ms=4,
                    capsize=2,
                    label=trainer,
                    lw=2 if trainer == "ours" else 1,
                    zorder=3 if trainer == "ours" else 2,
                )
            ax.set(
                ylabel=name,
                title=f"layer {layer}" if row == 0 else None,
                xlabel="L0 on held-out text" if row else None,
            )
            ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    fig.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="lower center",
        ncol=4,
        frameon=False,
        fontsize=8,
    )
    fig.savefig(path, dpi=130)


def main() -> None:
    a = parse_flags(
        __doc__, text="a file of text, such as Wikipedia's, in place of the installed documentation"
    )
    global SEEDS, TARGETS, LAYERS, PEERS
    if a.quick:
        SEEDS, TARGETS, LAYERS, PEERS = (
            (0,),
            (32,),
            (2,),
            {peer: rates[1:2] for peer, rates in PEERS.items()},
        )
    from sae_analysis.extractor.extraction import extract
    from sae_analysis.models.language_model import load_model

    begin = time.time()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, get_context("spawn")) as pool,
    ):
        (Path(folder) / "text").write_text(a.text)
        base = Job(
            folder,
            "ours",
            2,
            75,
            0,
            tokens=40_000 if a.quick else 300_000,
            heldout=8000 if a.quick else 24_000,
        )
        extract(load_model("pocket"), corpus_of(folder), list(LAYERS), base.tokens, folder)
        rates, measured = best_rates(pool, base)
        jobs = [
            replace(
                base,
                trainer=trainer,
                layer=layer,
                target=target,
                seed=seed,
                rate=rates.get((trainer, target)),
            )
            for trainer in ("ours", *PEERS)
            for layer in LAYERS
            for target in TARGETS
            for seed in SEEDS
        ]
        left = [job for job in jobs if job not in measured]
        measured |= dict(zip(left, with_progress(pool.map(measure, left), len(left))))
        runs = pd.DataFrame([measured[job] for job in jobs])
    grouped = runs.groupby(["trainer", "layer", "target"], sort=False)
    summary = (
        grouped[[*FIGURES, "seconds to train"]]
        .mean()
        .join(grouped[list(FIGURES)].std(ddof=0).add_suffix("_std"))
        .reset_index()
    )
    name = "quality" + (f"-{Path(a.text).stem}" if a.text else "")
    stem = f"{name}{'-quick' if a.quick else ''}-{device_name()}"
    a.out.mkdir(parents=True, exist_ok=True)
    runs.to_csv(a.out / f"{stem}.csv", index=False)
    plot(summary, a.out / f"{stem}.png")
    settings = {
        "batch": BATCH,
        "d_hidden": D_HIDDEN,
        "tokens": base.tokens,
        "seeds": SEEDS,
        "learning rates of the peers": {
            f"{peer}, L0 {target}": rate for (peer, target), rate in rates.items()
        },
        "text": Path(a.text).name if a.text else "installed documentation",
        "minutes": (time.time() - begin) / 60,
    }
    report(name, summary, settings, [] if a.quick else goals(summary), a)


if __name__ == "__main__":
    main()
