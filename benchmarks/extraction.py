"""Activations of all layers of a model, extracted from real text: ours against other ways.

The model has GPT-2-small's shape and random weights, which serve for timing. The other ways are the
training guide's, which runs the model once for each layer; one padded pass with transformers'
`output_hidden_states=True`; and SAELens's activation store. All ways run in turn in every round, in
fp32 and, where the processor is fast at it, also in bf16. Further figures are what part of the
rate of matrix products each way reaches, the peak of memory, and what computing in bf16 costs.

Goals: 20 times faster than the guide's way, twice as fast as one padded pass, 3 times faster than
SAELens; and at most 1.1 times the memory for ten times the tokens.

    python benchmarks/extraction.py [--text FILE] [--quick] [--check] [--out DIR]
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import (
    Goal,
    dtype_name,
    median_seconds,
    name_with_text,
    parse_flags,
    report,
    run_in_own_process,
    synchronize,
    text_name,
    torch_device,
    upper_median,
)
from torch import Tensor

from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.core.devices import compute_dtype
from sae_analysis.extractor.extraction import extract
from sae_analysis.extractor.store import ActivationStore
from sae_analysis.loaders.corpora import TextCorpus
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.loaders.windows import pack_windows
from sae_analysis.models.language_model import (
    LanguageModel,
    fuse_gelu,
    hidden_of,
    hooked,
    load_model,
)
from sae_analysis.saes.reconstruction import Reconstruction
from sae_analysis.saes.sae import SAE
from sae_analysis.trainer.runs import train

CONTEXT = 512  # tokens of a window, and of a padded text
BATCH = 8  # windows or texts in one forward pass
TEXT_HELP = "a Parquet, JSONL or text file to read in place of the installed documentation"
# What ours is compared with: names in goals, and how many times faster ours should be.
PEERS = {
    "guide": ("the guide's way", 20),
    "hidden_states": ("one padded pass", 2),
    "saelens": ("SAELens", 3),
}
# To see what bf16 costs, an SAE of this size is trained on this layer of the pocket model.
POCKET_LAYER = 2
D_HIDDEN = 1024
TARGET_L0 = 50
TRAIN_SHARE = 0.9  # of each shard's rows; FVU is measured on the rest


@dataclass
class Way:
    """One way to extract."""

    name: str  # in the table
    tokens: int  # asked for in each round; 50 times as many on a GPU
    dtype: torch.dtype = torch.float32  # that it multiplies in


PADDED_PASS = (
    "transformers' `output_hidden_states=True`, one padded pass of the model without its LM head"
)
AUTOCAST = "SAELens's activation store with `autocast_lm`, its way to compute in bf16"
WAYS = {
    "guide": Way("The guide's ancestor", 1000),
    "hidden_states": Way(PADDED_PASS, 8000),
    "saelens": Way("SAELens's activation store", 8000),
    "ours": Way("`extract`, to the last byte on disk", 8000),
    "saelens_bf16": Way(AUTOCAST, 8000, torch.bfloat16),
    "ours_bf16": Way("`extract` from the model in bf16", 16_000, torch.bfloat16),
}


@dataclass
class Budget:
    """How much is run."""

    rounds: int  # of timing
    max_tokens: int | None  # in a round, for every way; None: each way's own number
    memory_tokens: tuple[int, int]  # peaks of memory are compared for these
    bf16_tokens: int  # on which the cost of bf16 is measured
    bf16_tokens_emulated: int  # the same where bf16 is emulated, a hundred times slower


FULL = Budget(
    rounds=3,
    max_tokens=None,
    memory_tokens=(100_000, 1_000_000),
    bf16_tokens=300_000,
    bf16_tokens_emulated=80_000,
)
QUICK = Budget(
    rounds=1,
    max_tokens=2000,
    memory_tokens=(5000, 20_000),
    bf16_tokens=20_000,
    bf16_tokens_emulated=20_000,
)


# Texts and model


def read_texts(path: str) -> list[str]:
    """2,000 documents of a file, or of the installed documentation.

    Their order is random, so that a few batches have lengths like those of all.
    """
    corpus = TextCorpus(path) if path else DocsCorpus()
    texts = [document.text for document in islice(corpus, 20_000)]
    random.Random(0).shuffle(texts)
    return texts[:2000]


def random_gpt2(device: str, quick: bool) -> LanguageModel:
    """A GPT-2-small with random weights and the pocket model's tokenizer.

    In fp32, as transformers makes it. A quick run gets a tiny one.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 128, "n_head": 2} if quick else {}
    network = GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, **size)).to(device)
    return LanguageModel(network, load_model("pocket", "cpu").tokenizer, "gpt2-shape")


@dataclass
class Workload:
    """What all ways read."""

    model: LanguageModel  # as transformers makes it
    own: LanguageModel  # the same model, as `load_model` gives it
    texts: list[str]
    folder: str  # for what is written

    def padded_batches(self, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches `(ids, mask)` of cut and padded texts, `[batch, positions]` each.

        Ends with the batch in which `tokens` are reached.
        """
        read = 0
        for start in range(0, len(self.texts), BATCH):
            if read >= tokens:
                return
            batch = self.model.tokenizer(
                self.texts[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=CONTEXT,
                return_tensors="pt",
            )
            ids = batch["input_ids"]
            mask = batch["attention_mask"]
            read += int(mask.sum())
            yield ids.to(self.model.device), mask.to(self.model.device)

    def positions_a_token(self) -> float:
        """How many positions padded batches have for each token; 1 is without padding."""
        positions = 0
        tokens = 0
        for ids, mask in self.padded_batches(2**62):
            positions += ids.numel()
            tokens += int(mask.sum())
        return positions / tokens


def make_workload(args: argparse.Namespace, device: str, folder: str) -> Workload:
    """The texts, and the model twice."""
    own = random_gpt2(device, args.quick)
    fuse_gelu(own.model)
    model = random_gpt2(device, args.quick)
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    return Workload(model, own, read_texts(args.text), folder)


# The ways: each reads about `tokens` tokens and returns how many it did


@torch.no_grad()
def guide(work: Workload, tokens: int) -> int:
    """The training guide's way: a padded forward pass with LM head for each layer."""
    for layer in range(work.model.n_layers):
        rows = guide_layer(work, layer, tokens)
    return sum(map(len, rows))


def guide_layer(work: Workload, layer: int, tokens: int) -> list[Tensor]:
    """The fp32 rows of one layer, `[rows, d_model]` for each batch."""
    outputs: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        outputs.append(hidden_of(output))

    rows = []
    with hooked([(work.model.blocks[layer], keep)]):
        for ids, mask in work.padded_batches(tokens):
            work.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
            rows.append(outputs.pop()[mask.bool()].float().cpu())
    return rows


@torch.no_grad()
def hidden_states(work: Workload, tokens: int) -> int:
    """One padded pass of the model without its LM head gives the rows of all layers."""
    count = 0
    for ids, mask in work.padded_batches(tokens):
        states = work.model.model.transformer(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        rows = [state[mask.bool()].float().cpu() for state in states[1:]]
        count += len(rows[0])
    return count


def make_saelens_store(work: Workload) -> Any:
    """SAELens's activation store with a hook on every block.

    It reads windows that were packed and tokenised beforehand, with TransformerLens's bridge to the
    same model.
    """
    from datasets import Dataset
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens.model_bridge import TransformerBridge

    model = work.model
    model_folder = f"{work.folder}/model"
    model.model.save_pretrained(model_folder)
    model.tokenizer.save_pretrained(model_folder)
    bridge = TransformerBridge.boot_transformers(
        model_folder, tokenizer=model.tokenizer, device=str(model.device)
    )
    windows = pack_windows(work.texts, model.tokenizer, CONTEXT)
    widths = {f"blocks.{layer}.hook_out": model.d_model for layer in range(model.n_layers)}
    return ActivationsStore.from_config_multi_hook(
        bridge,
        dataset=Dataset.from_dict({"input_ids": [window.input_ids for window in windows]}),
        hook_names=list(widths),
        hook_d_ins=widths,
        streaming=False,
        context_size=CONTEXT,
        store_batch_size_prompts=BATCH,
        prepend_bos=False,
        device=model.device,
    )


def saelens(store: Any, autocast: bool, tokens: int) -> int:
    """SAELens's store reads batch after batch; with `autocast` in bf16."""
    store.autocast_lm = autocast
    count = 0
    while count < tokens:
        activations = store.get_multi_hook_activations(store.get_batch_tokens(BATCH))
        first = next(iter(activations.values()))  # [batch, positions, d_model]
        count += first.shape[0] * first.shape[1]
    return count


def ours(work: Workload, tokens: int) -> int:
    """`extract`, to the last byte on disk."""
    stores = extract(
        work.own,
        work.texts,
        list(range(work.own.n_layers)),
        tokens,
        tempfile.mkdtemp(dir=work.folder),
        batch_size=BATCH,
        context_length=CONTEXT,
    )
    return len(stores[0])


def ours_bf16(work: Workload, tokens: int) -> int:
    """`extract` from the model in bf16."""
    work.own.model.to(torch.bfloat16)
    try:
        return ours(work, tokens)
    finally:
        work.own.model.to(torch.float32)


def make_readers(work: Workload, device: str) -> dict[str, Callable[[int], int]]:
    """The functions of all ways that this device is fast at, by the key in `WAYS`."""
    store = make_saelens_store(work)
    readers = {
        "guide": partial(guide, work),
        "hidden_states": partial(hidden_states, work),
        "saelens": partial(saelens, store, False),
        "ours": partial(ours, work),
    }
    if compute_dtype(device) == torch.bfloat16:  # elsewhere bf16 is many times slower
        readers["saelens_bf16"] = partial(saelens, store, True)
        readers["ours_bf16"] = partial(ours_bf16, work)
    return readers


# Speed


def tokens_to_ask(key: str, device: str, budget: Budget) -> int:
    """How many tokens a way is asked for in each round."""
    tokens = WAYS[key].tokens
    if device != "cpu":
        tokens *= 50
    return min(tokens, budget.max_tokens or tokens)


def token_rate(read: Callable[[int], int], tokens: int) -> float:
    """Tokens a second of one way, until the GPU has finished too."""
    synchronize()
    begin = time.perf_counter()
    count = read(tokens)
    synchronize()
    return count / (time.perf_counter() - begin)


def measure_speeds(
    readers: dict[str, Callable[[int], int]], device: str, budget: Budget
) -> pd.DataFrame:
    """Median tokens a second of each way; every round runs all ways, one after the other."""
    for read in readers.values():
        read(CONTEXT)  # warms up
    sizes = {key: tokens_to_ask(key, device, budget) for key in readers}
    rates: dict[str, list[float]] = {key: [] for key in readers}
    for _ in range(budget.rounds):
        for key, read in readers.items():
            rates[key].append(token_rate(read, sizes[key]))
    rows = []
    for key, values in rates.items():
        rows.append(
            {
                "way": WAYS[key].name,
                "key": key,
                "tokens": sizes[key],
                "tokens/s": upper_median(values),
            }
        )
    return pd.DataFrame(rows)


def product_rates(d_model: int, device: str) -> dict[str, float]:
    """FLOP/s of the model's own kind of product, `[tokens, d] @ [d, 4 d]`, in each dtype."""
    tokens = BATCH * CONTEXT
    flop = 2 * tokens * d_model * 4 * d_model
    rates = {}
    for dtype in dict.fromkeys([torch.float32, compute_dtype(device)]):
        x = torch.randn(tokens, d_model, device=device).to(dtype)
        weight = torch.randn(d_model, 4 * d_model, device=device).to(dtype)
        rates[dtype_name(dtype)] = flop / median_seconds(partial(torch.matmul, x, weight), 5)
    return rates


def product_shares(
    table: pd.DataFrame, rates: dict[str, float], model: LanguageModel
) -> list[float]:
    """What share of the rate of products each way reaches.

    A token's products in the blocks are counted; attention itself would add a few per cent.
    """
    flop = 24 * model.n_layers * model.d_model**2
    shares = []
    for key, tokens_a_second in zip(table.key, table["tokens/s"]):
        shares.append(flop * tokens_a_second / rates[dtype_name(WAYS[key].dtype)])
    return shares


# What computing in bf16 costs


def extract_in_both(folder: str, tokens: int) -> dict[str, dict[int, ActivationStore]]:
    """Rows of two layers of the pocket model, kept in fp32, by the dtype the model computed in."""
    stores = {}
    for dtype in (torch.float32, torch.bfloat16):
        stores[dtype_name(dtype)] = extract(
            load_model("pocket", "cpu", dtype),
            DocsCorpus(),
            [0, POCKET_LAYER],
            tokens,
            f"{folder}/{dtype}",
            dtype=torch.float32,
        )
    return stores


def relative_error(truth: ActivationStore, other: ActivationStore) -> float:
    """Squared error of a store's rows over the variance of the true ones."""
    first = np.arange(min(len(truth), 50_000))
    x = truth.rows(first).float()
    error = (x - other.rows(first).float()).pow(2).sum()
    return (error / (x - x.mean(0)).pow(2).sum()).item()


def train_on_beginnings(store: ActivationStore) -> SAE:
    """An SAE trained on the first rows of each shard."""
    parts = [part[: training_rows(part)] for part in store.parts]
    return train(
        ActivationStore(parts, POCKET_LAYER, path=store.path),
        SAEConfig(d_model=store.d_model, d_hidden=D_HIDDEN, target_l0=TARGET_L0),
        TrainConfig(epochs=1, batch_size=1024),
    ).final


def training_rows(part: Tensor) -> int:
    """How many rows of a shard are trained on."""
    return int(TRAIN_SHARE * len(part))


def figures_on_ends(sae: SAE, store: ActivationStore) -> dict[str, float]:
    """FVU and L0 of an SAE on the last rows of each shard, those with large norms left out."""
    reconstruction = Reconstruction(store.d_model, D_HIDDEN)
    for part in store.parts:
        x = part[training_rows(part) :].float()
        x = x[x.norm(dim=1) < sae.metadata["norm_limit"]]
        latents = sae.encode(x)
        reconstruction.update(x, latents, sae.decode(latents))
    return reconstruction.figures()


def cost_of_bf16(folder: str, tokens: int) -> dict[str, float]:
    """What it costs to compute the pocket model in bf16.

    The error of its activations, and FVU on fp32 rows of SAEs that were trained on either.
    """
    stores = extract_in_both(folder, tokens)
    truth = stores["float32"]
    figures = {}
    for layer in truth:
        name = f"layer {layer}: squared error of bf16 over variance"
        figures[name] = relative_error(truth[layer], stores["bfloat16"][layer])
    for kind, by_layer in stores.items():
        sae = train_on_beginnings(by_layer[POCKET_LAYER])
        measured = figures_on_ends(sae, truth[POCKET_LAYER])
        figures[f"FVU on fp32 rows of an SAE trained on {kind} ones"] = measured["fvu"]
        figures[f"its L0 (asked: {TARGET_L0}), {kind}"] = measured["l0"]
    return figures


# Figures and goals


def pocket_figures(folder: str, budget: Budget, device: str) -> dict[str, Any]:
    """What is measured on the pocket model and the installed documentation, whatever the text."""
    peaks = {}
    for tokens in budget.memory_tokens:
        peaks[str(tokens)] = run_in_own_process(
            "extraction_memory", "extraction_peak", tokens, f"{folder}/{tokens}"
        )
    is_fast = compute_dtype(device) == torch.bfloat16
    tokens = budget.bf16_tokens if is_fast else budget.bf16_tokens_emulated
    return {"peak memory (MB)": peaks, "computing in bf16": cost_of_bf16(folder, tokens)}


def speed_goals(speed: pd.Series) -> list[Goal]:
    """Ours against the other ways, from tokens a second by key."""
    goals = []
    for key, (peer, limit) in PEERS.items():
        name = f"times faster than {peer}, both in fp32"
        goals.append(Goal(name, speed["ours"] / speed[key], limit))
    if "ours_bf16" not in speed:
        return goals
    for key, (peer, limit) in PEERS.items():
        name = f"times faster than {peer}, each as it comes (ours in bf16 here)"
        goals.append(Goal(name, speed["ours_bf16"] / speed[key], limit))
    ratio = speed["ours_bf16"] / speed["saelens_bf16"]
    goals.append(Goal("times faster than SAELens, both in bf16", ratio, 3))
    return goals


def memory_goal(peaks: dict[str, float], budget: Budget) -> Goal:
    """Memory must hardly grow with the number of tokens."""
    few, many = budget.memory_tokens
    name = f"memory for {many:,} tokens over that for {few:,}"
    return Goal(name, peaks[str(many)] / peaks[str(few)], 1.1, at_least=False)


def main() -> None:
    """Times all ways, takes the further figures, and reports."""
    args = parse_flags(__doc__, text=TEXT_HELP)
    budget = QUICK if args.quick else FULL
    device = torch_device()
    with tempfile.TemporaryDirectory() as folder:
        work = make_workload(args, device, folder)
        rates = product_rates(work.model.d_model, device)
        table = measure_speeds(make_readers(work, device), device, budget)
        table["share of the product rate"] = product_shares(table, rates, work.model)
        print(table.to_string(index=False), flush=True)
        figures: dict[str, Any] = {
            "positions in padded batches for each token": work.positions_a_token(),
            "GFLOP/s": {dtype: rate / 1e9 for dtype, rate in rates.items()},
        }
        if not args.text:
            figures |= pocket_figures(folder, budget, device)
    for name, value in figures.items():
        print(name, value)
    goals = speed_goals(table.set_index("key")["tokens/s"])
    if not args.text:
        goals.append(memory_goal(figures["peak memory (MB)"], budget))
    # no way that does the same products can be faster than this one by more
    table["times at the whole product rate"] = 1 / table["share of the product rate"]
    settings = {"context": CONTEXT, "batch": BATCH, "text": text_name(args.text)}
    name = name_with_text("extraction", args.text)
    report(name, table.drop(columns="key"), settings, [] if args.quick else goals, args, figures)


if __name__ == "__main__":
    main()
