"""Which features fire where the assistant begins to speak: our survey against the spec's loop.

The spec of the chat analysis came with public code, whose loop is repeated here. Both ways read the
same prompts with a small Llama-shaped model and SAEs of 131,072 latents, must find the same
features, and run in processes of their own, for their peaks of memory.

Goals: 10 times faster than the spec's loop, with at most a quarter of its memory.

    python benchmarks/analysis.py [--quick] [--check] [--out DIR]
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from dictionary_learning.utils import load_dictionary
from harness import Goal, parse_flags, process_memory, report, run_in_own_process
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_analysis.analysis.survey import Survey, chosen_sources, run_survey
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.loaders.prompts import load_prompts
from sae_analysis.models.language_model import load_model
from sae_analysis.saes.dictionary_learning import save_dictionary
from sae_analysis.saes.families import SAEFamily, register_family
from sae_analysis.saes.weights import sae_from_weights

LAYERS = (11, 15)
TOKENS = ("asst", "endheader", "newline")  # the last three tokens of a prompt, in this order
D_MODEL = 256
BATCH = 8  # prompts in one forward pass
MAX_TOKENS = 512  # of a prompt, in the spec's loop
PROMPT_SHARE = 0.3  # a feature is universal if it is active on this share of prompts
ACTIVATION_THRESHOLD = 0.01  # a feature is active above this


@dataclass
class Budget:
    """How much is analysed."""

    d_hidden: int
    prompts: int


FULL = Budget(d_hidden=131_072, prompts=140)
QUICK = Budget(d_hidden=2048, prompts=20)


# What is analysed


def write_inputs(folder: Path, budget: Budget) -> None:
    """Writes the model, its SAEs and the prompts."""
    torch.manual_seed(0)
    write_model(folder)
    write_saes(folder, budget.d_hidden)
    write_prompts(folder, budget.prompts)


def write_model(folder: Path) -> None:
    """A Llama of 17 layers with random weights, and the pocket model's tokenizer."""
    tokenizer = load_model("pocket", "cpu").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=688,
        num_hidden_layers=17,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def write_saes(folder: Path, d_hidden: int) -> None:
    """An SAE of random directions for each layer, in dictionary_learning's format."""
    for layer in LAYERS:
        directions = torch.randn(d_hidden, D_MODEL) / D_MODEL**0.5
        sae = sae_from_weights(
            W_enc=2 * directions.T,
            b_enc=torch.zeros(d_hidden),
            W_dec=directions,
            b_dec=torch.zeros(D_MODEL),
            threshold=0.6,
        )
        save_dictionary(sae, dictionary_folder(folder, layer))


def dictionary_folder(folder: Path, layer: int) -> Path:
    """Where the SAE of a layer lies."""
    return folder / "saes" / f"resid_post_layer_{layer}" / "trainer_1"


def write_prompts(folder: Path, prompts: int) -> None:
    """Prompts of many lengths: a question and the piece of documentation that it is about."""
    documents = islice(DocsCorpus(), 0, 40 * prompts, 40)
    lines = []
    for number, document in enumerate(documents):
        content = f"Say in one sentence what this is about:\n\n{document.text[:900]}"
        label = "odd" if number % 2 else "even"
        lines.append(json.dumps({"content": content, "label": label}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


# The spec's loop


def spec_loop(folder: Path) -> int:
    """How many universal features the loop of the public code finds.

    Model and SAE are loaded anew for each layer and token type, prompts are padded, every latent is
    computed at every position, and statistics are Python loops over features. Its errors in
    positions, which cost no time, are mended, so that both ways must find the same. Variables live
    as long as they do there, since memory is compared.
    """
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["content"] for line in lines]
    count = 0
    for layer in LAYERS:
        for position in range(-len(TOKENS), 0):
            model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
            tokenizer = load_tokenizer(folder / "model")
            dictionary, _ = load_dictionary(str(dictionary_folder(folder, layer)), device="cpu")
            latents = latents_at(model, tokenizer, dictionary, prompts, layer, position)
            count += count_universal(latents)
    return count


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer that pads on the right."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize(tokenizer: Any, prompts: list[str]) -> Any:
    """A padded batch of prompts in the model's chat format."""
    texts = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        texts.append(
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        )
    return tokenizer(
        texts,
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=MAX_TOKENS,
        add_special_tokens=False,
    )


@torch.no_grad()
def latents_at(
    model: Any, tokenizer: Any, dictionary: Any, prompts: list[str], layer: int, position: int
) -> Tensor:
    """Latents `[prompts, d_hidden]` at one position of each prompt, counted from its end."""
    kept = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenize(tokenizer, prompts[start : start + BATCH])
        hidden = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
        latents = dictionary.encode(hidden)  # [batch, positions, d_hidden]
        for number, mask in enumerate(batch["attention_mask"]):
            length = int(mask.sum())
            kept.append(latents[number, length + position].clone())
    return torch.stack(kept)


def count_universal(latents: Tensor) -> int:
    """How many features are active on enough prompts, from latents `[prompts, d_hidden]`."""
    prompts, d_hidden = latents.shape
    count = 0
    for feature in range(d_hidden):
        activations = latents[:, feature]
        active = (activations > ACTIVATION_THRESHOLD).sum().item()
        if active >= int(prompts * PROMPT_SHARE):
            feature_statistics(activations)  # the public code records them
            count += 1
    return count


def feature_statistics(activations: Tensor) -> tuple[float, float, float]:
    """Mean over the prompts on which a feature is active, maximum and minimum."""
    active = activations[activations > ACTIVATION_THRESHOLD]
    mean = active.mean().item() if len(active) else 0.0
    return mean, activations.max().item(), activations.min().item()


# Ours


def ours(folder: Path) -> int:
    """How many universal features our survey finds."""
    family = SAEFamily(
        name="small",
        model=str(folder / "model"),
        repo="",
        pattern="resid_post_layer_{layer}/trainer_{trainer}",
        layers=LAYERS,
        trainer=1,
        folder=str(folder / "saes"),
    )
    register_family(family)
    survey = Survey(
        load_prompts(folder / "prompts.jsonl"),
        chosen_sources(["small"]),
        analyses=("universal",),
        threshold=PROMPT_SHARE,
        activation_threshold=ACTIVATION_THRESHOLD,
        batch_size=BATCH,
        device="cpu",
    )
    (results,) = run_survey(survey)
    return len(results.universal)


# The comparison

WAYS = {"the spec's loop": spec_loop, "ours": ours}


def measure(way: str, folder: str) -> dict[str, float]:
    """Seconds and peak memory of one way.

    Runs in a process of its own, since it looks at the process's peak of memory. Imports are not
    counted.
    """
    memory_before = process_memory("VmRSS")
    begin = time.perf_counter()
    features = WAYS[way](Path(folder))
    return {
        "features found": float(features),
        "seconds": time.perf_counter() - begin,
        "peak MB": process_memory("VmHWM"),
        "MB before": memory_before,
    }


def check_same_features(table: pd.DataFrame) -> None:
    """Exits unless both ways found the same features; a few may lie on the threshold."""
    counts = table["features found"]
    if counts.max() - counts.min() > 0.001 * counts.max():
        by_way = dict(zip(table.way, counts))
        sys.exit(f"the two ways found different features: {by_way}")


def make_goals(table: pd.DataFrame) -> list[Goal]:
    """Ours against the spec's loop, in time and memory."""
    ways = table.set_index("way")
    spec = ways.loc["the spec's loop"]
    own = ways.loc["ours"]
    relative_memory = own["peak MB"] / spec["peak MB"]
    return [
        Goal("times faster than the spec's loop", spec.seconds / own.seconds, 10),
        Goal("peak memory over that of the spec's loop", relative_memory, 0.25, at_least=False),
    ]


def main() -> None:
    """Runs both ways once and reports."""
    args = parse_flags(__doc__)
    budget = QUICK if args.quick else FULL
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), budget)
        for way in WAYS:
            figures = run_in_own_process("analysis", "measure", way, folder)
            rows.append({"way": way, **figures})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False), flush=True)
    check_same_features(table)
    settings = {
        "latents": budget.d_hidden,
        "prompts": budget.prompts,
        "layers": LAYERS,
        "token types": TOKENS,
        "batch": BATCH,
        "rounds": 1,
    }
    report("analysis", table, settings, [] if args.quick else make_goals(table), args)


if __name__ == "__main__":
    main()
