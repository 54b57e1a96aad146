"""Whole training steps (loss, backward, clip, optimiser, decoder constraint, statistics) once L0 has settled near 75: ours against the peers' own."""

import numpy as np
import pandas as pd
import torch
from harness import Goal, median_seconds, parse_flags, report, time_in_turn
from peers import DictionaryLearning, SAELens

from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.core.devices import compute_dtype
from sae_analysis.trainer.normalizer import Normalizer
from sae_analysis.trainer.step import Stepper, initial_sae

BATCH, L0, D_MODEL = 2048, 75, 768
GOALS = {4096: 8.0, 24_576: 12.0}


def activations(rows: int, device: str) -> torch.Tensor:
    """Real activations 768 wide:

    the pocket model's residual stream after blocks 1, 2 and 3, side by side; bf16, as a store holds
    them.
    """
    import tempfile

    from sae_analysis.extractor.extraction import extract
    from sae_analysis.loaders.docs import DocsCorpus
    from sae_analysis.models.language_model import load_model

    with tempfile.TemporaryDirectory() as folder:
        stores = extract(load_model("pocket"), DocsCorpus(), [1, 2, 3], rows, folder)
        take = np.random.default_rng(0).permutation(len(stores[1]))
        parts = [store.rows(take).float() for store in stores.values()]
        return (
            torch.cat([part / part.pow(2).mean().sqrt() for part in parts], 1).bfloat16().to(device)
        )


def settled(
    rows: torch.Tensor, sample: torch.Tensor, d_hidden: int, steps: int, device: str
) -> tuple[Stepper, float]:
    """Our stepper after `steps` steps on normalised rows, and the L0 it then has."""
    sae = initial_sae(
        sample.float().cpu(), SAEConfig(d_model=D_MODEL, d_hidden=d_hidden, target_l0=L0), 0
    ).to(device)
    stepper = Stepper(sae, TrainConfig(batch_size=BATCH), 2000)
    found = [
        stepper.step(rows[(i * BATCH) % (len(rows) - BATCH) :][:BATCH]).l0 for i in range(steps)
    ]
    return stepper, float(np.mean(found[-10:]))


def contest(
    raw: torch.Tensor, d_hidden: int, settle: int, rounds: int, device: str
) -> tuple[list[dict], dict]:
    """Every trainer steps on the same normalised rows:

    ours in the dtype it multiplies in, the peers' in fp32, as their loaders hand them over.
    """
    normalizer = Normalizer.of(
        raw[:20_000].float().cpu(), raw.float().pow(2).mean().sqrt().item()
    ).to(device)
    low = torch.cat([normalizer.apply(part, compute_dtype(device)) for part in raw.split(16_384)])
    full = low.float()
    stepper, l0 = settled(low, low[:8192], d_hidden, settle, device)
    common = dict(d_model=D_MODEL, d_hidden=d_hidden, l0=L0, steps=1000, lr=1e-3, device=device)
    peers = {
        "dictionary_learning JumpReLU": DictionaryLearning("jumprelu", **common),
        "dictionary_learning BatchTopK": DictionaryLearning("batchtopk", **common),
        "SAELens JumpReLU": SAELens(batch=BATCH, **common),
    }
    # elsewhere bf16 is many times slower
    if compute_dtype(device) == torch.bfloat16:
        peers["SAELens JumpReLU, autocast"] = SAELens(batch=BATCH, autocast=True, **common)
    turn = iter(range(10**9))

    def batch(rows: torch.Tensor) -> torch.Tensor:
        return rows[(next(turn) * BATCH) % (len(rows) - BATCH) :][:BATCH]

    works = {
        "ours": lambda: stepper.step(batch(low)),
        "ours, normalising included": lambda: stepper.step(
            normalizer.apply(batch(raw), stepper.dtype)
        ),
        **{name: lambda peer=peer: peer.step(batch(full)) for name, peer in peers.items()},
    }
    seconds = time_in_turn(works, rounds, warmup=2)
    x, W = raw[:BATCH], torch.randn(d_hidden, D_MODEL, device=device)
    product = {
        str(dtype)[6:]: median_seconds(lambda: x.to(dtype) @ W_low.T, 3)
        for dtype in {torch.float32, compute_dtype(device)}
        for W_low in [W.to(dtype)]
    }
    table = [
        {
            "d_hidden": d_hidden,
            "trainer": name,
            "ms a step": 1000 * s,
            "tokens/s": BATCH / s,
            "times slower than ours": s / seconds["ours"],
        }
        for name, s in seconds.items()
    ]
    return table, {
        "l0": l0,
        "sparse": stepper.sparse,
        "near": stepper.progress.near,
        "encoder product (ms)": {k: 1000 * v for k, v in product.items()},
        "share of our step that is one encoder product": (
            product[str(stepper.dtype)[6:]] / seconds["ours"]
        ),
        "GFLOP/s": {k: 2 * BATCH * D_MODEL * d_hidden / v / 1e9 for k, v in product.items()},
    }


def main() -> None:
    a = parse_flags(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, table, figures, goals = activations(30_000 if a.quick else 120_000, device), [], {}, []
    for d_hidden, goal in {1024: 0.0}.items() if a.quick else GOALS.items():
        entries, figures[str(d_hidden)] = contest(
            rows,
            d_hidden,
            20 if a.quick else 200,
            2 if a.quick else 9 if d_hidden < 10_000 else 3,
            device,
        )
        table += entries
        slower = {entry["trainer"]: entry["times slower than ours"] for entry in entries}
        if not a.quick:
            goals += [
                Goal(f"times faster than {peer} at d_hidden {d_hidden}", slower[peer], goal)
                for peer in ("dictionary_learning JumpReLU", "SAELens JumpReLU")
            ]
            goals.append(
                Goal(
                    f"L0 settled at d_hidden {d_hidden}: relative distance from {L0}",
                    abs(figures[str(d_hidden)]["l0"] - L0) / L0,
                    0.1,
                    at_least=False,
                )
            )
    for size, found in figures.items():
        print(f"d_hidden {size}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    report(
        "trainer_speed",
        pd.DataFrame(table),
        {"batch": BATCH, "d_model": D_MODEL, "target_l0": L0, "rows": len(rows)},
        goals,
        a,
        figures,
    )


if __name__ == "__main__":
    main()
