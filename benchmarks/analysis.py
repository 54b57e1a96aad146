"""Which features fire where the assistant begins to speak: our survey against the loop of the public code behind the spec, on a small Llama-shaped model with SAEs of 131,072 latents."""

import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from harness import Goal, parse_flags, report

LAYERS, TOKENS, BATCH, THRESHOLD, ACTIVE = (11, 15), ("asst", "endheader", "newline"), 8, 0.3, 0.01


def make(folder: Path, d_hidden: int, prompts: int) -> None:
    """The model, its SAEs in dictionary_learning's format, and prompts of many lengths:

    questions about documentation with the text they are about.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from sae_analysis.loaders.docs import DocsCorpus
    from sae_analysis.models.language_model import load_model
    from sae_analysis.saes.dictionary_learning import save_dictionary
    from sae_analysis.saes.weights import sae_from_weights as assemble

    torch.manual_seed(0)
    tokenizer = load_model("pocket", "cpu").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=17,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for layer in LAYERS:
        rows = torch.randn(d_hidden, 256) / 16
        save_dictionary(
            assemble(rows.T * 2, torch.zeros(d_hidden), rows, torch.zeros(256), 0.6),
            folder / "saes" / f"resid_post_layer_{layer}" / "trainer_1",
        )
    texts = [document.text for document in islice(DocsCorpus(), 40 * prompts)][::40]
    lines = [
        json.dumps(
            {
                "content": f"Say in one sentence what this is about:\n\n{text[:900]}",
                "label": "odd" if i % 2 else "even",
            }
        )
        for i, text in enumerate(texts)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def spec_loop(folder: Path) -> int:
    """The loop of the public code: model and SAE are loaded for each layer and token type, prompts
    are padded and cut at 512 tokens, every latent is computed at every position, and statistics are
    Python loops over features. Its errors in positions, which cost no time, are mended, so that
    both ways must find the same.
    """
    from dictionary_learning.utils import load_dictionary
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    found = 0
    for layer in LAYERS:
        for token in TOKENS:
            model, tokenizer = (
                AutoModelForCausalLM.from_pretrained(folder / "model").eval(),
                AutoTokenizer.from_pretrained(folder / "model"),
            )
            tokenizer.padding_side = "right"
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            dictionary, _ = load_dictionary(
                str(folder / "saes" / f"resid_post_layer_{layer}" / "trainer_1"), device="cpu"
            )
            offset = TOKENS.index(token)
            rows = []
            for start in range(0, len(prompts), BATCH):
                texts = [
                    tokenizer.apply_chat_template(
                        [{"role": "user", "content": prompt["content"]}],
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                    for prompt in prompts[start : start + BATCH]
                ]
                batch = tokenizer(
                    texts,
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=512,
                    add_special_tokens=False,
                )
                with torch.no_grad():
                    hidden = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
                    latents = dictionary.encode(hidden)  # [batch, positions, latents]
                for i, mask in enumerate(batch["attention_mask"]):
                    rows.append(latents[i, int(mask.sum()) - len(TOKENS) + offset].clone())
            values = torch.stack(rows)
            for feature in range(values.shape[1]):
                column = values[:, feature]
                count = (column > ACTIVE).sum().item()
                if count >= int(len(prompts) * THRESHOLD):
                    active = column[column > ACTIVE]
                    _ = (
                        active.mean().item() if count else 0.0,
                        column.max().item(),
                        column.min().item(),
                    )
                    found += 1
    return found


def ours(folder: Path) -> int:
    from sae_analysis.analysis.survey import Survey, chosen_sources, run_survey
    from sae_analysis.loaders.prompts import load_prompts
    from sae_analysis.saes.families import SAEFamily as Published
    from sae_analysis.saes.families import register_family as register

    register(
        Published(
            "small",
            str(folder / "model"),
            "",
            "resid_post_layer_{layer}/trainer_{trainer}",
            LAYERS,
            1,
            str(folder / "saes"),
        )
    )
    (findings,) = run_survey(
        Survey(
            load_prompts(folder / "prompts.jsonl"),
            chosen_sources(["small"]),
            analyses=("universal",),
            threshold=THRESHOLD,
            activation_threshold=ACTIVE,
            batch_size=BATCH,
            device="cpu",
        )
    )
    return len(findings.universal)


def measured(way: str, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one way, in a process of its own; importing is not counted."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import analysis, dictionary_learning.utils, sae_analysis.analysis.survey, transformers
held = lambda kind: next(int(line.split()[1])/1024 for line in open("/proc/self/status") if line.startswith(kind))
before, begin = held("VmRSS"), time.perf_counter()
found = analysis.{way}(Path({str(folder)!r}))
print(found, time.perf_counter() - begin, held("VmHWM"), before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found, seconds, peak, before = map(float, done.stdout.split()[-4:])
    return {"features found": found, "seconds": seconds, "peak MB": peak, "MB before": before}


def main() -> None:
    a = parse_flags(__doc__)
    d_hidden, prompts, rounds = (2048, 20, 1) if a.quick else (131_072, 140, 1)
    names = {"spec_loop": "the spec's loop", "ours": "ours"}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), d_hidden, prompts)
        runs = pd.DataFrame(
            [
                {"way": names[way], **measured(way, Path(folder))}
                for _ in range(rounds)
                for way in names
            ]
        )
    table = runs.groupby("way", sort=False).median().reset_index()
    by = table.set_index("way")
    print(table.to_string(index=False), flush=True)
    few, many = sorted(by["features found"])
    # a few lie on the threshold
    if many - few > 0.001 * many:
        sys.exit(f"the two ways found different features: {by['features found'].to_dict()}")
    goals = [
        Goal(
            "times faster than the spec's loop",
            by.seconds["the spec's loop"] / by.seconds["ours"],
            10,
        ),
        Goal(
            "peak memory over that of the spec's loop",
            by["peak MB"]["ours"] / by["peak MB"]["the spec's loop"],
            0.25,
            at_least=False,
        ),
    ]
    report(
        "analysis",
        table,
        {
            "latents": d_hidden,
            "prompts": prompts,
            "layers": LAYERS,
            "token types": TOKENS,
            "batch": BATCH,
            "rounds": rounds,
        },
        [] if a.quick else goals,
        a,
    )


if __name__ == "__main__":
    main()
