"""Activations of all layers of a GPT-2-small shape (random weights serve for timing) on real text: ours against the guide's way, one padded pass, and SAELens."""

import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import Goal, median_seconds, parse_flags, report

from sae_analysis.core.devices import compute_dtype
from sae_analysis.models.language_model import fuse_gelu

CONTEXT, BATCH = 512, 8


def texts_of(path: str) -> list[str]:
    """Two thousand documents or so, in random order, so that a few batches have lengths like those
    of all.
    """
    from sae_analysis.loaders.corpora import TextCorpus
    from sae_analysis.loaders.docs import DocsCorpus

    texts = [
        document.text for document in islice(TextCorpus(path) if path else DocsCorpus(), 20_000)
    ]
    random.Random(0).shuffle(texts)
    return texts[:2000]


def gpt2(device: str, quick: bool):
    """A GPT-2 with random weights and the pocket model's tokenizer, in fp32, as transformers makes
    it.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from sae_analysis.models.language_model import LanguageModel, load_model

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 128, "n_head": 2} if quick else {}
    return LanguageModel(
        GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, **size)).to(device),
        load_model("pocket", "cpu").tokenizer,
        "gpt2-shape",
    )


class Ways:
    """The ways to get every layer's activations of the first `tokens` tokens or so.

    Each returns how many tokens it read.
    """

    def __init__(self, model, own, texts: list[str], folder: str):
        # `own` is the same model as `load_model` gives it
        self.model, self.own, self.texts, self.folder, self.runs = model, own, texts, folder, 0
        self.layers = list(range(model.n_layers))
        if model.tokenizer.pad_token is None:
            model.tokenizer.pad_token = model.tokenizer.eos_token

    def padded(self, tokens: int):
        """Batches of truncated and padded texts, as `(ids, mask)`."""
        read = 0
        for start in range(0, len(self.texts), BATCH):
            if read >= tokens:
                return
            found = self.model.tokenizer(
                self.texts[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=CONTEXT,
                return_tensors="pt",
            )
            read += int(found["attention_mask"].sum())
            yield (
                found["input_ids"].to(self.model.device),
                found["attention_mask"].to(self.model.device),
            )

    @torch.no_grad()
    def guide(self, tokens: int) -> int:
        """The guide's ancestor:

        for each layer a forward pass of its own, with padding and LM head, and fp32 rows kept.
        """
        for layer in self.layers:
            kept = []
            with_hook = self.model.blocks[layer].register_forward_hook(
                lambda module, args, output: kept.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
            rows = []
            for ids, mask in self.padded(tokens):
                self.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
                rows.append(kept.pop()[mask.bool()].float().cpu())
            with_hook.remove()
        return sum(map(len, rows))

    @torch.no_grad()
    def hidden_states(self, tokens: int) -> int:
        """transformers' `output_hidden_states=True`, one padded pass of the model without its LM
        head.
        """
        count = 0
        for ids, mask in self.padded(tokens):
            states = self.model.model.transformer(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
            rows = [state[mask.bool()].float().cpu() for state in states[1:]]
            count += len(rows[0])
        return count

    def saelens(self, tokens: int, autocast: bool = False) -> int:
        """SAELens's activation store:

        windows packed and tokenised beforehand, all hooks in one pass of TransformerLens's bridge
        to the same model.
        """
        if not hasattr(self, "store"):
            self.store = self._store()
        self.store.autocast_lm, count = autocast, 0
        while count < tokens:
            found = self.store.get_multi_hook_activations(self.store.get_batch_tokens(BATCH))
            count += next(iter(found.values())).shape[:2].numel()
        return count

    def _store(self):
        from datasets import Dataset
        from sae_lens.training.activations_store import ActivationsStore
        from transformer_lens.model_bridge import TransformerBridge

        from sae_analysis.loaders.windows import pack_windows as pack

        self.model.model.save_pretrained(f"{self.folder}/model")
        self.model.tokenizer.save_pretrained(f"{self.folder}/model")
        lens = TransformerBridge.boot_transformers(
            f"{self.folder}/model", tokenizer=self.model.tokenizer, device=str(self.model.device)
        )
        hooks = {f"blocks.{layer}.hook_out": self.model.d_model for layer in self.layers}
        windows = Dataset.from_dict(
            {
                "input_ids": [
                    window.input_ids for window in pack(self.texts, self.model.tokenizer, CONTEXT)
                ]
            }
        )
        return ActivationsStore.from_config_multi_hook(
            lens,
            dataset=windows,
            hook_names=list(hooks),
            hook_d_ins=hooks,
            streaming=False,
            context_size=CONTEXT,
            store_batch_size_prompts=BATCH,
            prepend_bos=False,
            device=self.model.device,
        )

    def saelens_bf16(self, tokens: int) -> int:
        """SAELens's activation store with `autocast_lm`, its way to compute in bf16."""
        return self.saelens(tokens, autocast=True)

    def ours(self, tokens: int) -> int:
        """`extract`, to the last byte on disk."""
        from sae_analysis.extractor.extraction import extract

        self.runs += 1
        stores = extract(
            self.own,
            self.texts,
            self.layers,
            tokens,
            f"{self.folder}/{self.runs}",
            batch_size=BATCH,
            context_length=CONTEXT,
        )
        return len(stores[0])

    def ours_bf16(self, tokens: int) -> int:
        """`extract` from the model in bf16."""
        self.own.model.to(torch.bfloat16)
        try:
            return self.ours(tokens)
        finally:
            self.own.model.to(torch.float32)

    def padding(self) -> float:
        """Positions that a padded batch has for each token."""
        batches = list(self.padded(2**62))
        return sum(ids.numel() for ids, mask in batches) / sum(
            int(mask.sum()) for ids, mask in batches
        )


def speeds(ways: Ways, sizes: dict[str, int], rounds: int) -> pd.DataFrame:
    """Tokens a second of each way, the ways in turn in every round; medians."""
    found: dict[str, list[float]] = {name: [] for name in sizes}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for i in range(rounds + 1):
        for name, tokens in sizes.items():
            wait()
            begin = time.perf_counter()
            # the first round warms up
            count = getattr(ways, name)(tokens if i else min(tokens, CONTEXT))
            wait()
            if i:
                found[name].append(count / (time.perf_counter() - begin))
    table = pd.DataFrame(
        [
            {
                "way": (getattr(ways, name).__doc__ or name).split(":")[0].strip(' ."'),
                "key": name,
                "tokens": sizes[name],
                "tokens/s": sorted(rates)[len(rates) // 2],
            }
            for name, rates in found.items()
        ]
    )
    return table


def products(ways: Ways) -> dict[str, float]:
    """FLOP/s of the model's own kind of product (`[tokens, d] @ [d, 4 d]`), in each dtype."""
    d, found = ways.model.d_model, {}
    for dtype in {torch.float32, compute_dtype(str(ways.model.device))}:
        x, W = (
            torch.randn(BATCH * CONTEXT, d, device=ways.model.device).to(dtype),
            torch.randn(d, 4 * d, device=ways.model.device).to(dtype),
        )
        found[str(dtype)[6:]] = 2 * BATCH * CONTEXT * d * 4 * d / median_seconds(lambda: x @ W, 5)
    return found


def accuracy(folder: str, tokens: int) -> dict[str, float]:
    """What computing the pocket model in bf16 costs:

    error of its activations, and FVU on fp32 rows of SAEs trained on either.
    """
    from sae_analysis.core.config import SAEConfig, TrainConfig
    from sae_analysis.extractor.extraction import extract
    from sae_analysis.extractor.store import ActivationStore
    from sae_analysis.loaders.docs import DocsCorpus
    from sae_analysis.models.language_model import load_model
    from sae_analysis.saes.reconstruction import Reconstruction
    from sae_analysis.trainer.runs import train

    stores = {
        str(dtype)[6:]: extract(
            load_model("pocket", "cpu", dtype),
            DocsCorpus(),
            [0, 2],
            tokens,
            f"{folder}/{dtype}",
            dtype=torch.float32,
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    truth, found = stores["float32"], {}
    for layer in truth:
        a, b = (
            stores[kind][layer].rows(np.arange(min(tokens, 50_000))).float()
            for kind in ("float32", "bfloat16")
        )
        found[f"layer {layer}: squared error of bf16 over variance"] = (
            (a - b).pow(2).sum() / (a - a.mean(0)).pow(2).sum()
        ).item()
    for kind, by_layer in stores.items():
        store = by_layer[2]
        sae = train(
            ActivationStore(
                [part[: int(0.9 * len(part))] for part in store.parts], 2, path=store.path
            ),
            SAEConfig(d_model=store.d_model, d_hidden=1024, target_l0=50),
            TrainConfig(epochs=1, batch_size=1024),
        ).final
        measured = Reconstruction(store.d_model, 1024)
        for part in truth[2].parts:
            x = part[int(0.9 * len(part)) :].float()
            x = x[x.norm(dim=1) < sae.metadata["norm_limit"]]
            latents = sae.encode(x)
            measured.update(x, latents, sae.decode(latents))
        found[f"FVU on fp32 rows of an SAE trained on {kind} ones"] = measured.figures()["fvu"]
        found[f"its L0 (asked: 50), {kind}"] = measured.figures()["l0"]
    return found


MEMORY = """
import sys
from sae_analysis.extractor.extraction import extract
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.models.language_model import load_model
extract(load_model("pocket", "cpu"), DocsCorpus(), [0, 1, 2, 3], int(sys.argv[1]), sys.argv[2])
print(next(int(line.split()[1])/1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))   # ru_maxrss would be the parent's
"""


def peak_memory(folder: str, tokens: int) -> float:
    """MB that a process held at most while extracting all layers of the pocket model."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tokens), f"{folder}/{tokens}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return float(out.stdout.split()[-1])


def main() -> None:
    a = parse_flags(
        __doc__,
        text="a Parquet, JSONL or text file to read in place of the installed documentation",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scale = 1 if device == "cpu" else 50
    sizes = {
        "guide": 1000 * scale,
        "hidden_states": 8000 * scale,
        "saelens": 8000 * scale,
        "ours": 8000 * scale,
    }
    # elsewhere bf16 is many times slower
    if compute_dtype(device) == torch.bfloat16:
        sizes |= {"saelens_bf16": 8000 * scale, "ours_bf16": 16_000 * scale}
    with tempfile.TemporaryDirectory() as folder:
        own = gpt2(device, a.quick)
        fuse_gelu(own.model)
        ways = Ways(gpt2(device, a.quick), own, texts_of(a.text), folder)
        rates = products(ways)
        table = speeds(
            ways,
            {name: min(tokens, 2000) for name, tokens in sizes.items()} if a.quick else sizes,
            1 if a.quick else 3,
        )
        # a token's, in the blocks' products; attention itself adds a few per cent
        flop = 24 * ways.model.n_layers * ways.model.d_model**2
        table["share of the product rate"] = [
            flop * rate / rates["bfloat16" if key.endswith("bf16") else "float32"]
            for key, rate in zip(table.key, table["tokens/s"])
        ]
        print(table.to_string(index=False), flush=True)
        finish(
            a,
            table,
            {
                "positions in padded batches for each token": ways.padding(),
                "GFLOP/s": {kind: rate / 1e9 for kind, rate in rates.items()},
            },
            folder,
        )


def finish(a, table: pd.DataFrame, figures: dict, folder: str) -> None:
    """What does not depend on the text, and the report."""
    few, many = (5000, 20_000) if a.quick else (100_000, 1_000_000)
    if not a.text:
        figures["peak memory (MB)"] = {
            str(tokens): peak_memory(folder, tokens) for tokens in (few, many)
        }
        # where it is emulated, bf16 is a hundred times slower
        figures["computing in bf16"] = accuracy(
            folder, 20_000 if a.quick else 300_000 if "bfloat16" in figures["GFLOP/s"] else 80_000
        )
    for name, value in figures.items():
        print(name, value)
    speed = table.set_index("key")["tokens/s"]
    memory = list(figures.get("peak memory (MB)", {}).values())
    peers = (
        ("guide", "the guide's way", 20),
        ("hidden_states", "one padded pass", 2),
        ("saelens", "SAELens", 3),
    )
    goals = [
        Goal(f"times faster than {peer}, both in fp32", speed["ours"] / speed[key], limit)
        for key, peer, limit in peers
    ]
    if "ours_bf16" in speed:
        goals += [
            Goal(
                f"times faster than {peer}, each as it comes (ours in bf16 here)",
                speed["ours_bf16"] / speed[key],
                limit,
            )
            for key, peer, limit in peers
        ]
        goals.append(
            Goal(
                "times faster than SAELens, both in bf16",
                speed["ours_bf16"] / speed["saelens_bf16"],
                3,
            )
        )
    if memory:
        goals.append(
            Goal(
                f"memory for {many:,} tokens over that for {few:,}",
                memory[1] / memory[0],
                1.1,
                at_least=False,
            )
        )
    # no way that does the same products can be faster than this one by more
    table["times at the whole product rate"] = 1 / table["share of the product rate"]
    report(
        "extraction" + (f"-{Path(a.text).stem}" if a.text else ""),
        table.drop(columns="key"),
        {
            "context": CONTEXT,
            "batch": BATCH,
            "text": Path(a.text).name if a.text else "installed documentation",
        },
        [] if a.quick else goals,
        a,
        figures,
    )


if __name__ == "__main__":
    main()
