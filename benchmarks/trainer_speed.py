"""Training speed: whole steps of our trainer against those of dictionary_learning and SAELens.

A step is everything a trainer does with a batch: loss, backward, clipping, optimiser, decoder
constraint and statistics. All trainers step on the same normalised activations (width 768, batches
of 2,048 rows, target L0 75), one after the other in every round. Ours is timed once its L0 is near
the target, since its speed depends on L0. It computes in the dtype it picks for the device; the
peers get fp32, as their own loaders give them. SAELens with autocast is timed too where bf16 is
fast.

Goals: 8 times faster than the JumpReLU trainers of both peers at 4,096 latents and 12 times at
24,576, with our L0 within 10% of its target.

    python benchmarks/trainer_speed.py [--quick] [--check] [--out DIR]
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import (
    Goal,
    dtype_name,
    median_seconds,
    parse_flags,
    report,
    time_in_turn,
    torch_device,
)
from peers import DictionaryLearning, Peer, SAELens
from torch import Tensor

from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.core.devices import compute_dtype
from sae_analysis.extractor.extraction import extract
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.models.language_model import load_model
from sae_analysis.trainer.normalizer import Normalizer
from sae_analysis.trainer.step import Stepper, StepStats, initial_sae

BATCH = 2048  # rows a step
TARGET_L0 = 75
D_MODEL = 768
# for each number of latents, how many times faster than a peer we want to be
SPEEDUP_GOALS = {4096: 8.0, 24_576: 12.0}
PEERS_WITH_GOALS = ("dictionary_learning JumpReLU", "SAELens JumpReLU")


@dataclass
class Budget:
    """How much is run."""

    rows: int  # of activations
    steps_before: int  # steps of ours before it is timed
    rounds: int  # of timing
    rounds_wide: int  # of timing, for SAEs of 10,000 latents or more


FULL = Budget(rows=120_000, steps_before=200, rounds=9, rounds_wide=3)
QUICK = Budget(rows=30_000, steps_before=20, rounds=2, rounds_wide=2)


# The rows


def pocket_activations(rows: int, device: str) -> Tensor:
    """Real activations of width 768, `[rows, 768]`, in bf16 as a store holds them.

    They are the pocket model's residual streams after blocks 1, 2 and 3, side by side.
    """
    with tempfile.TemporaryDirectory() as folder:
        stores = extract(load_model("pocket"), DocsCorpus(), [1, 2, 3], rows, folder)
        order = np.random.default_rng(0).permutation(len(stores[1]))
        parts = []
        for store in stores.values():
            part = store.rows(order).float()  # [rows, 256]
            parts.append(part / part.pow(2).mean().sqrt())
    return torch.cat(parts, 1).bfloat16().to(device)


class TrainingRows:
    """The same rows in the three forms that trainers read, `[rows, d_model]` each."""

    def __init__(self, raw: Tensor, device: str):
        sample = raw[:20_000].float().cpu()
        scale = raw.float().pow(2).mean().sqrt().item()
        self.raw = raw
        self.normalizer = Normalizer.of(sample, scale).to(device)
        # in the dtype in which our trainer multiplies
        self.low = self._normalised(compute_dtype(device))
        # in fp32
        self.full = self.low.float()
        self._batches_read = 0

    def _normalised(self, dtype: torch.dtype) -> Tensor:
        """The raw rows, normalised in pieces."""
        pieces = [self.normalizer.apply(piece, dtype) for piece in self.raw.split(16_384)]
        return torch.cat(pieces)

    def next_batch(self, rows: Tensor) -> Tensor:
        """The next batch of one of the forms, `[batch, d_model]`. All trainers share the count."""
        start = batch_start(self._batches_read, len(rows))
        self._batches_read += 1
        return rows[start : start + BATCH]


def batch_start(number: int, rows: int) -> int:
    """The first row of batch `number`; batches start over at the end of the rows."""
    return (number * BATCH) % (rows - BATCH)


# The trainers


def stepper_near_target(
    rows: Tensor, d_hidden: int, steps: int, device: str
) -> tuple[Stepper, float]:
    """Our stepper after `steps` steps on normalised rows, and its mean L0 over the last ten."""
    config = SAEConfig(d_model=D_MODEL, d_hidden=d_hidden, target_l0=TARGET_L0)
    sae = initial_sae(rows[:8192].float().cpu(), config, 0).to(device)
    stepper = Stepper(sae, TrainConfig(batch_size=BATCH), 2000)
    l0_values = []
    for number in range(steps):
        start = batch_start(number, len(rows))
        figures = stepper.step(rows[start : start + BATCH])
        l0_values.append(StepStats.read(figures).l0)
    return stepper, float(np.mean(l0_values[-10:]))


def make_peers(d_hidden: int, device: str) -> dict[str, Peer]:
    """The peers' trainers by name."""
    settings: dict[str, Any] = dict(
        d_model=D_MODEL, d_hidden=d_hidden, l0=TARGET_L0, steps=1000, lr=1e-3, device=device
    )
    peers: dict[str, Peer] = {
        "dictionary_learning JumpReLU": DictionaryLearning("jumprelu", **settings),
        "dictionary_learning BatchTopK": DictionaryLearning("batchtopk", **settings),
        "SAELens JumpReLU": SAELens(batch=BATCH, **settings),
    }
    # where the device emulates bf16, autocast is many times slower
    if compute_dtype(device) == torch.bfloat16:
        peers["SAELens JumpReLU, autocast"] = SAELens(batch=BATCH, autocast=True, **settings)
    return peers


def step_on(peer: Peer, rows: TrainingRows) -> Callable[[], None]:
    """A function that takes one step of a peer."""
    return lambda: peer.step(rows.next_batch(rows.full))


def steps_to_time(
    stepper: Stepper, peers: dict[str, Peer], rows: TrainingRows
) -> dict[str, Callable[[], Any]]:
    """For each trainer a function that takes one step."""

    def ours() -> None:
        """A step on rows that are normalised already, as the peers get them."""
        stepper.step(rows.next_batch(rows.low))

    def ours_from_raw() -> None:
        """A step on raw rows."""
        x = rows.normalizer.apply(rows.next_batch(rows.raw), stepper.dtype)
        stepper.step(x)

    steps: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "ours, normalising included": ours_from_raw,
    }
    for name, peer in peers.items():
        steps[name] = step_on(peer, rows)
    return steps


# The figures


def encoder_product_seconds(x: Tensor, d_hidden: int, device: str) -> dict[str, float]:
    """Seconds of one encoder product, `[batch, d_model] @ [d_model, d_hidden]`, in each dtype.

    Converting the batch `x` is included.
    """
    weight = torch.randn(d_hidden, D_MODEL, device=device)  # [d_hidden, d_model]
    seconds = {}
    for dtype in dict.fromkeys([torch.float32, compute_dtype(device)]):
        low_weight = weight.to(dtype)
        seconds[dtype_name(dtype)] = median_seconds(lambda: x.to(dtype) @ low_weight.T, 3)
    return seconds


def step_figures(
    stepper: Stepper, l0: float, step_seconds: float, products: dict[str, float]
) -> dict[str, Any]:
    """What explains the speed of our step: its L0, and the encoder product that it contains."""
    flop = 2 * BATCH * D_MODEL * stepper.sae.config.d_hidden
    own_product = products[dtype_name(stepper.dtype)]
    return {
        "l0": l0,
        "sparse": stepper.sparse,
        "near": stepper.progress.near,
        "encoder product (ms)": {dtype: 1000 * s for dtype, s in products.items()},
        "share of our step that is one encoder product": own_product / step_seconds,
        "GFLOP/s": {dtype: flop / s / 1e9 for dtype, s in products.items()},
    }


def table_rows(d_hidden: int, seconds: dict[str, float]) -> list[dict[str, Any]]:
    """The table's rows for one number of latents, from seconds a step."""
    rows = []
    for trainer, step_seconds in seconds.items():
        rows.append(
            {
                "d_hidden": d_hidden,
                "trainer": trainer,
                "ms a step": 1000 * step_seconds,
                "tokens/s": BATCH / step_seconds,
                "times slower than ours": step_seconds / seconds["ours"],
            }
        )
    return rows


def compare_trainers(
    raw: Tensor, d_hidden: int, budget: Budget, device: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Times all trainers at one number of latents: the table's rows, and figures on our step."""
    rows = TrainingRows(raw, device)
    stepper, l0 = stepper_near_target(rows.low, d_hidden, budget.steps_before, device)
    steps = steps_to_time(stepper, make_peers(d_hidden, device), rows)
    rounds = budget.rounds if d_hidden < 10_000 else budget.rounds_wide
    seconds = time_in_turn(steps, rounds, warmup=2)
    products = encoder_product_seconds(raw[:BATCH], d_hidden, device)
    figures = step_figures(stepper, l0, seconds["ours"], products)
    return table_rows(d_hidden, seconds), figures


def goals_at(d_hidden: int, rows: list[dict[str, Any]], l0: float) -> list[Goal]:
    """How many times faster we are than two peers, and whether our L0 is near its target."""
    times_slower = {row["trainer"]: row["times slower than ours"] for row in rows}
    goals = []
    for peer in PEERS_WITH_GOALS:
        name = f"times faster than {peer} at d_hidden {d_hidden}"
        goals.append(Goal(name, times_slower[peer], SPEEDUP_GOALS[d_hidden]))
    name = f"L0 settled at d_hidden {d_hidden}: relative distance from {TARGET_L0}"
    goals.append(Goal(name, abs(l0 - TARGET_L0) / TARGET_L0, 0.1, at_least=False))
    return goals


def main() -> None:
    """Compares the trainers at each number of latents and reports."""
    args = parse_flags(__doc__)
    device = torch_device()
    budget = QUICK if args.quick else FULL
    raw = pocket_activations(budget.rows, device)
    table: list[dict[str, Any]] = []
    figures: dict[str, dict[str, Any]] = {}
    goals: list[Goal] = []
    for d_hidden in [1024] if args.quick else SPEEDUP_GOALS:
        rows, figures[str(d_hidden)] = compare_trainers(raw, d_hidden, budget, device)
        table += rows
        if not args.quick:
            goals += goals_at(d_hidden, rows, figures[str(d_hidden)]["l0"])
    for size, values in figures.items():
        print(f"d_hidden {size}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    settings = {"batch": BATCH, "d_model": D_MODEL, "target_l0": TARGET_L0, "rows": len(raw)}
    report("trainer_speed", pd.DataFrame(table), settings, goals, args, figures)


if __name__ == "__main__":
    main()
