"""Evidence for every feature of an SAE from 1,000 texts, timed against the forward passes alone.

`interpret` collects the evidence of all features in one pass. It is also compared with the training
guide's loop, which runs the model anew for every feature and text; that loop is timed on a few
features and texts and scaled up. The model has GPT-2-small's shape and random weights, which serve
for timing. A second part interprets SAEs of 131,072 latents on the pocket model, for their memory.

Goals: at most 1.5 times the time of the forward passes alone, 1,000 times faster than the guide's
loop, and at 131,072 latents at most 1.25 times the memory for three times the texts.

    python benchmarks/interpretation.py [--quick] [--check] [--out DIR]
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from extraction import random_gpt2, read_texts
from harness import (
    Goal,
    parse_flags,
    process_memory,
    report,
    run_in_own_process,
    seconds_of,
    torch_device,
)
from torch import Tensor

from sae_analysis.core.config import SAEConfig
from sae_analysis.interpreter.batches import rows_from_texts
from sae_analysis.interpreter.features import interpret
from sae_analysis.models.language_model import LanguageModel, fuse_gelu, load_model
from sae_analysis.saes.jumprelu import JumpReLUSAE

CONTEXT = 512  # tokens of a text that are read at once
TARGET_L0 = 75
LATENTS_AT_ONCE = 4096  # latents whose thresholds are set at once, to save memory
POCKET_LAYER = 2  # where the wide SAEs read the pocket model


@dataclass
class Budget:
    """How much is run."""

    texts: int
    layer: int  # of the GPT-2 shape
    d_hidden: int
    loop_features: int  # features and texts on which the guide's loop is timed
    loop_texts: int
    wide_d_hidden: int
    wide_texts: tuple[int, ...]  # one wide SAE is interpreted on each of these numbers of texts


FULL = Budget(
    texts=1000,
    layer=6,
    d_hidden=4096,
    loop_features=2,
    loop_texts=25,
    wide_d_hidden=131_072,
    wide_texts=(100, 300),
)
QUICK = Budget(
    texts=60,
    layer=1,
    d_hidden=512,
    loop_features=2,
    loop_texts=5,
    wide_d_hidden=4096,
    wide_texts=(20,),
)


# An SAE without training


def random_sae(model: LanguageModel, d_hidden: int, texts: list[str], layer: int) -> JumpReLUSAE:
    """An SAE of random directions that is about as sparse as a trained one.

    About 75 latents are active on a token, with densities as uneven as those of trained SAEs.
    """
    generator = torch.Generator().manual_seed(0)
    config = SAEConfig(d_model=model.d_model, d_hidden=d_hidden, target_l0=TARGET_L0)
    sae = JumpReLUSAE(config, {"layer": layer, "context_length": CONTEXT})
    batches = rows_from_texts(model, texts[:40], layer)
    rows = torch.cat([batch.hidden[batch.counted].float().cpu() for batch in batches])
    with torch.no_grad():
        sae.W_enc.normal_(generator=generator)
        sae.W_dec.normal_(generator=generator)
        sae.b_enc.copy_(-(rows.mean(0) @ sae.W_enc))
        weight = torch.rand(d_hidden, generator=generator).pow(4)  # [d_hidden]
        density = (weight * TARGET_L0 / weight.sum()).clamp(2e-5, 0.5)
        set_thresholds(sae, rows, density)
    return sae


def set_thresholds(sae: JumpReLUSAE, rows: Tensor, density: Tensor) -> None:
    """Sets thresholds so that latents have these densities `[d_hidden]`, the shares of active rows.

    Pre-activations are taken to be normally distributed, with their mean and deviation on the rows
    `[rows, d_model]`.
    """
    for latents in torch.arange(len(density)).split(LATENTS_AT_ONCE):
        pre_activation = rows @ sae.W_enc[:, latents] + sae.b_enc[latents]  # [rows, latents]
        deviations = torch.special.ndtri(1 - density[latents].double()).float()
        threshold = pre_activation.mean(0) + pre_activation.std(0) * deviations
        sae.threshold[latents] = threshold.clamp(min=0.1)


# The ways


@dataclass
class Interpretation:
    """What one interpretation took, and what it found."""

    forward_seconds: float  # the forward passes alone, to the layer
    seconds: float  # the whole interpretation
    tokens: int
    l0: float
    dead: float  # share of features


def time_interpretation(
    sae: JumpReLUSAE, model: LanguageModel, texts: list[str], layer: int
) -> Interpretation:
    """Times the forward passes alone, then the whole interpretation."""
    begin = time.perf_counter()
    batches = rows_from_texts(model, texts, layer, CONTEXT)
    tokens = sum(int(batch.counted.sum()) for batch in batches)
    middle = time.perf_counter()
    features = interpret(sae, model, texts, layer)
    end = time.perf_counter()
    return Interpretation(
        forward_seconds=middle - begin,
        seconds=end - middle,
        tokens=tokens,
        l0=features.reading.evidence.active.sum().item() / features.facts["tokens"],
        dead=float(features.table.dead.mean()),
    )


@torch.no_grad()
def guide_loop(
    sae: JumpReLUSAE, model: LanguageModel, texts: list[str], features: int, layer: int
) -> None:
    """The training guide's way: for each feature, the texts on which it fires, strongest first.

    Each text is run through the model by itself, and all latents are computed to look at one.
    """
    for feature in range(features):
        firing = list(texts_with_feature(sae, model, texts, feature, layer))
        firing.sort(key=lambda peak: -peak[0])


def texts_with_feature(
    sae: JumpReLUSAE, model: LanguageModel, texts: list[str], feature: int, layer: int
) -> Iterator[tuple[float, str, int]]:
    """(activation, text, position) where a feature peaks, for the texts on which it fires."""
    for text in texts:
        ids = model.encode(text)[:CONTEXT] or [0]
        output = model.model(
            input_ids=torch.tensor([ids], device=model.device),
            output_hidden_states=True,
            use_cache=False,
        )
        hidden = output.hidden_states[layer + 1][0].float()  # [positions, d_model]
        latents = sae.encode(hidden)  # [positions, d_hidden]
        position = int(latents[:, feature].argmax())
        activation = latents[position, feature].item()
        if activation > 0:
            yield activation, text, position


def guide_seconds(
    sae: JumpReLUSAE, model: LanguageModel, texts: list[str], budget: Budget
) -> float:
    """Seconds of the guide's loop for all features and texts, scaled up from a few of each."""
    few_texts = texts[: budget.loop_texts]
    seconds = seconds_of(
        lambda: guide_loop(sae, model, few_texts, budget.loop_features, budget.layer)
    )
    seconds_a_pass = seconds / (budget.loop_features * budget.loop_texts)
    return seconds_a_pass * len(texts) * budget.d_hidden


# Wide SAEs


def interpret_wide(texts: int, d_hidden: int) -> dict[str, float]:
    """Memory and time of interpreting a wide SAE on the pocket model.

    Runs in a process of its own, since it looks at the process's peak of memory.
    """
    some_texts = read_texts("")[:texts]
    model = load_model("pocket", "cpu")
    sae = random_sae(model, d_hidden, some_texts, POCKET_LAYER)
    memory_before = process_memory("VmRSS")
    begin = time.perf_counter()
    features = interpret(sae, model, some_texts, POCKET_LAYER, logits=False)
    evidence = features.reading.evidence
    return {
        "latents": d_hidden,
        "texts": texts,
        "tokens": evidence.tokens + evidence.held_tokens,
        "L0": evidence.active.sum().item() / max(evidence.tokens, 1),
        "seconds": time.perf_counter() - begin,
        "MB before (model and SAE)": memory_before,
        "peak MB": process_memory("VmHWM"),
    }


def measure_wide(budget: Budget) -> list[dict[str, float]]:
    """What `interpret_wide` measures on each number of texts; prints it as it comes."""
    measured = []
    for texts in budget.wide_texts:
        figures = run_in_own_process(
            "interpretation", "interpret_wide", texts, budget.wide_d_hidden
        )
        print(figures, flush=True)
        measured.append(figures)
    return measured


# Table and goals


def table_of(result: Interpretation, loop_seconds: float, budget: Budget) -> pd.DataFrame:
    """Seconds of each way, and their ratio to those of the forward passes alone."""
    guide = f"the guide's loop, from {budget.loop_features} features on {budget.loop_texts} texts"
    seconds = {
        "forward passes alone, to the layer": result.forward_seconds,
        "ours: all evidence, labels and their tests, tokens promoted": result.seconds,
        guide: loop_seconds,
    }
    table = pd.DataFrame({"way": list(seconds), "seconds": list(seconds.values())})
    table["times the forward passes"] = table.seconds / result.forward_seconds
    return table


def make_goals(
    result: Interpretation, loop_seconds: float, wide: list[dict[str, float]]
) -> list[Goal]:
    """Time against both other ways, and memory, which must not grow with the texts."""
    relative_time = result.seconds / result.forward_seconds
    relative_memory = wide[1]["peak MB"] / wide[0]["peak MB"]
    return [
        Goal("time over that of the forward passes alone", relative_time, 1.5, at_least=False),
        Goal("times faster than the guide's loop", loop_seconds / result.seconds, 1000),
        Goal(
            "peak memory at 131,072 latents for 3 times the texts",
            relative_memory,
            1.25,
            at_least=False,
        ),
    ]


def main() -> None:
    """Times the three ways, interprets the wide SAEs, and reports."""
    args = parse_flags(__doc__)
    budget = QUICK if args.quick else FULL
    device = torch_device()
    model = random_gpt2(device, args.quick)
    fuse_gelu(model.model)  # as load_model gives it
    texts = read_texts("")[: budget.texts]
    sae = random_sae(model, budget.d_hidden, texts, budget.layer).to(device)
    time_interpretation(sae, model, texts[:20], budget.layer)  # warms up
    result = time_interpretation(sae, model, texts, budget.layer)
    loop_seconds = guide_seconds(sae, model, texts, budget)
    table = table_of(result, loop_seconds, budget)
    print(table.to_string(index=False), flush=True)
    wide = measure_wide(budget)
    settings = {
        "layer": budget.layer,
        "latents": budget.d_hidden,
        "model": "GPT-2-small shape, fp32",
    }
    figures: dict[str, Any] = {
        "texts": len(texts),
        "tokens": result.tokens,
        "l0": result.l0,
        "dead": result.dead,
        "wide SAEs": wide,
    }
    goals = [] if args.quick else make_goals(result, loop_seconds, wide)
    report("interpretation", table, settings, goals, args, figures)


if __name__ == "__main__":
    main()
