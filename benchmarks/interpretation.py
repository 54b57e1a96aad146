"""Evidence for every feature of an SAE from 1,000 texts: ours against the forward passes alone, and against the guide's loop on a slice; 131,072 latents in a stated memory."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from extraction import gpt2, texts_of
from harness import Goal, parse_flags, report

from sae_analysis.core.config import SAEConfig
from sae_analysis.interpreter.batches import rows_from_texts as text_rows
from sae_analysis.interpreter.features import interpret
from sae_analysis.models.language_model import fuse_gelu
from sae_analysis.saes.jumprelu import JumpReLUSAE

LAYER, L0 = 6, 75


def random_sae(model, d_hidden: int, texts: list[str], layer: int) -> JumpReLUSAE:
    """An SAE of random directions, its thresholds set (as if activations along them were normal) so
    that about 75 latents are active on a token, with densities as uneven as those of trained ones.
    """
    generator = torch.Generator().manual_seed(0)
    sae = JumpReLUSAE(
        SAEConfig(d_model=model.d_model, d_hidden=d_hidden, target_l0=L0),
        {"layer": layer, "context_length": 512},
    )
    rows = torch.cat(
        [batch.hidden[batch.counted].float().cpu() for batch in text_rows(model, texts[:40], layer)]
    )
    with torch.no_grad():
        sae.W_enc.normal_(generator=generator)
        sae.W_dec.normal_(generator=generator)
        sae.b_enc.copy_(-(rows.mean(0) @ sae.W_enc))
        weight = torch.rand(d_hidden, generator=generator).pow(4)
        density = (weight * L0 / weight.sum()).clamp(2e-5, 0.5)
        for part in torch.arange(d_hidden).split(4096):
            z = rows @ sae.W_enc[:, part] + sae.b_enc[part]
            sae.threshold[part] = (
                z.mean(0) + z.std(0) * torch.special.ndtri(1 - density[part].double()).float()
            ).clamp(min=0.1)
    return sae


@torch.no_grad()
def guide_loop(model, sae: JumpReLUSAE, texts: list[str], features: int, layer: int) -> float:
    """Seconds of the guide's ancestor:

    for each feature, each text is run through the model by itself, and all latents are computed to
    look at one.
    """
    begin = time.perf_counter()
    for feature in range(features):
        found = []
        for text in texts:
            ids = torch.tensor([model.encode(text)[:512] or [0]], device=model.device)
            hidden = model.model(
                input_ids=ids, output_hidden_states=True, use_cache=False
            ).hidden_states[layer + 1]
            latents = sae.encode(hidden[0].float())
            best = latents[:, feature].argmax().item()
            if latents[best, feature].item() > 0:
                found.append((latents[best, feature].item(), text, best))
        found.sort(key=lambda each: -each[0])
    return time.perf_counter() - begin


def measure(model, sae: JumpReLUSAE, texts: list[str], rounds: int, layer: int) -> dict[str, float]:
    """Median seconds of the forward passes alone and of the whole interpretation, in turn."""
    found: dict[str, list[float]] = {"forward": [], "interpret": []}
    for number in range(rounds + 1):
        some = texts if number else texts[:20]  # the first round warms up
        begin = time.perf_counter()
        tokens = sum(int(rows.counted.sum()) for rows in text_rows(model, some, layer, 512))
        middle = time.perf_counter()
        features = interpret(sae, model, some, layer)
        end = time.perf_counter()
        if number:
            found["forward"].append(middle - begin)
            found["interpret"].append(end - middle)
    active = features.reading.evidence.active.sum().item()
    return {
        **{name: sorted(each)[len(each) // 2] for name, each in found.items()},
        "tokens": tokens,
        "l0": active / features.facts["tokens"],
        "dead": float(features.table.dead.mean()),
    }


WIDE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import interpretation as b
held = lambda kind: next(int(line.split()[1])/1024 for line in open("/proc/self/status") if line.startswith(kind))
from sae_analysis.interpreter.features import interpret
from sae_analysis.models.language_model import load_model
texts, d_hidden = b.texts_of("")[:int(sys.argv[2])], int(sys.argv[3])
model = load_model("pocket", "cpu")
sae = b.random_sae(model, d_hidden, texts, 2)
before, begin = held("VmRSS"), time.perf_counter()
features = interpret(sae, model, texts, 2, logits=False)
evidence = features.reading.evidence
print(before, held("VmHWM"), time.perf_counter() - begin, evidence.tokens + evidence.held_tokens, evidence.active.sum().item()/max(evidence.tokens, 1))
"""


def wide(texts: int, d_hidden: int) -> dict[str, float]:
    """Memory and time of interpreting a wide SAE on the pocket model, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WIDE, str(Path(__file__).parent), str(texts), str(d_hidden)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    before, peak, seconds, tokens, l0 = map(float, done.stdout.split()[-5:])
    return {
        "latents": d_hidden,
        "texts": texts,
        "tokens": tokens,
        "L0": l0,
        "seconds": seconds,
        "MB before (model and SAE)": before,
        "peak MB": peak,
    }


def main() -> None:
    a = parse_flags(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, texts = gpt2(device, a.quick), texts_of("")[: 60 if a.quick else 1000]
    fuse_gelu(model.model)  # as load_model gives it
    layer, d_hidden = (1, 512) if a.quick else (LAYER, 4096)
    sae = random_sae(model, d_hidden, texts, layer).to(device)
    m = measure(model, sae, texts, 1, layer)  # one round of a thousand texts takes minutes
    few, some = (2, 5) if a.quick else (2, 25)
    # a forward pass with one feature looked at
    each = guide_loop(model, sae, texts[:some], few, layer) / (few * some)
    loop = each * len(texts) * d_hidden
    table = pd.DataFrame(
        [
            {"way": "forward passes alone, to the layer", "seconds": m["forward"]},
            {
                "way": "ours: all evidence, labels and their tests, tokens promoted",
                "seconds": m["interpret"],
            },
            {"way": f"the guide's loop, from {few} features on {some} texts", "seconds": loop},
        ]
    )
    table["times the forward passes"] = table.seconds / m["forward"]
    print(table.to_string(index=False), flush=True)
    wides = [wide(20, 4096)] if a.quick else [wide(100, 131_072), wide(300, 131_072)]
    figures = {
        "texts": len(texts),
        **{k: m[k] for k in ("tokens", "l0", "dead")},
        "wide SAEs": wides,
    }
    for each in wides:
        print(each)
    goals = [
        Goal(
            "time over that of the forward passes alone",
            m["interpret"] / m["forward"],
            1.5,
            at_least=False,
        ),
        Goal("times faster than the guide's loop", loop / m["interpret"], 1000),
    ]
    if len(wides) > 1:
        goals.append(
            Goal(
                "peak memory at 131,072 latents for 3 times the texts",
                wides[1]["peak MB"] / wides[0]["peak MB"],
                1.25,
                at_least=False,
            )
        )
    report(
        "interpretation",
        table,
        {"layer": layer, "latents": d_hidden, "model": "GPT-2-small shape, fp32"},
        [] if a.quick else goals,
        a,
        figures,
    )


if __name__ == "__main__":
    main()
