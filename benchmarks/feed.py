"""How fast rows come from a store in many shards: for a trainer's batches, on a CPU.

A batch takes rows from all over the store. Asked for one batch at a time, every call looks through
all shards. The feed fetches many batches at once, whatever their size. It is compared with one
`index_select` on a single tensor, which is the most that a store without shards could give, and
with calls for each batch alone.

Goal: one million rows a second at width 768 with one core, for batches of 256 and of 4,096.

    python benchmarks/feed.py [--quick] [--check] [--out DIR]
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd
import torch
from harness import Goal, parse_flags, report, time_in_turn

from sae_analysis.core.config import TrainConfig
from sae_analysis.extractor.shuffling import whole_batches
from sae_analysis.extractor.store import ActivationStore
from sae_analysis.trainer.feed import RowFeed
from sae_analysis.trainer.normalizer import Normalizer
from sae_analysis.trainer.split import split_rows

D_MODEL = 768
SHARD_ROWS = 32_768
GOAL = 1.0  # million rows a second
BATCHES = (256, 4096)


@dataclass(frozen=True)
class Budget:
    """How much is run."""

    shards: int  # of 32,768 rows
    rows: int  # that are read in a round
    rounds: int


FULL = Budget(shards=48, rows=262_144, rounds=5)
QUICK = Budget(shards=4, rows=16_384, rounds=2)


class Unnormalised(Normalizer):
    """Hands rows on as they are, so that fetching alone is timed."""

    def apply(self, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return x


def contestants(store: ActivationStore, batch: int, rows: int) -> dict[str, Callable[[], int]]:
    """The ways to read the first `rows` rows of an epoch, each a function without arguments."""
    config = TrainConfig(batch_size=batch)
    split = split_rows(store, config)
    like = torch.zeros(D_MODEL)
    feed = RowFeed(store, split, config, Unnormalised(1.0, like, like), torch.bfloat16)
    flat = torch.cat(store.parts)
    piece = next(whole_batches(split.train, batch, config.seed))[:rows]
    batches = [piece[start : start + batch] for start in range(0, len(piece), batch)]
    steps = len(batches)
    return {
        "the feed": lambda: use(given.x for given in islice(feed.epoch(0), steps)),
        "each batch alone": lambda: use(store.rows(indices) for indices in batches),
        "one tensor": lambda: use(flat.index_select(0, torch.from_numpy(i)) for i in batches),
    }


def use(batches: Iterable[torch.Tensor]) -> int:
    """Takes batch after batch, and forgets it as a trainer does; returns the rows of all."""
    return sum(len(batch) for batch in batches)


def measure(budget: Budget) -> pd.DataFrame:
    """Million rows a second of every way, for every batch size."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(SHARD_ROWS, D_MODEL, generator=generator).bfloat16()
        for _ in range(budget.shards)
    ]
    store = ActivationStore(parts, layer=0)
    lines = []
    for batch in BATCHES:
        ways = contestants(store, batch, budget.rows)
        seconds = time_in_turn(ways, budget.rounds)
        for name, took in seconds.items():
            lines.append({"batch": batch, "way": name, "million rows/s": budget.rows / took / 1e6})
    return pd.DataFrame(lines)


def main() -> None:
    args = parse_flags(__doc__)
    torch.set_num_threads(1)
    budget = QUICK if args.quick else FULL
    table = measure(budget)
    goals = []
    for batch in () if args.quick else BATCHES:
        line = table[(table["batch"] == batch) & (table["way"] == "the feed")]
        measured = float(np.asarray(line["million rows/s"])[0])
        goals.append(Goal(f"batches of {batch}: million rows/s of the feed", measured, GOAL))
    report("feed", table, vars(budget) | {"d_model": D_MODEL}, goals, args)


if __name__ == "__main__":
    main()
