"""Training on a GPU: how near a step comes to what the card can do, and what the guide's job takes.

Measures the card's own ceilings first: the speed of its memory, of bf16 matrix products, and of
copies from main memory. A step of ours is then timed for several dictionaries and batches, and
compared with its roofline: five products at the speed of a large one, and Adam's traffic at the
speed of a copy. It also times the feed that brings rows to the GPU and the extraction of all layers
of a model of GPT-2's shape, checks that a resumed run ends with the same bytes, and trains one
layer as the guide does, from which the training of the guide's whole job (12 layers of GPT-2, 10
million tokens, 20 epochs) is extrapolated.

Without a GPU it runs tiny shapes on the CPU, as with --quick, to show that it works.

    python benchmarks/gpu.py [--quick] [--check] [--out DIR]
"""

import hashlib
import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pandas as pd
import torch
from harness import Goal, parse_flags, report, seconds_of, synchronize, torch_device, upper_median
from torch import Tensor

from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.extractor.extraction import ShardReader, extract
from sae_analysis.extractor.store import ActivationStore
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.loaders.windows import pack_windows
from sae_analysis.models.language_model import LanguageModel, load_model
from sae_analysis.models.shards import token_shards
from sae_analysis.trainer.feed import DeviceFeed
from sae_analysis.trainer.gradients import Workspace, dense_pass, fused_pass
from sae_analysis.trainer.runs import train
from sae_analysis.trainer.split import split_rows
from sae_analysis.trainer.step import Stepper, StepStats, initial_sae
from sae_analysis.trainer.trainer import Trainer

D_MODEL = 768
TARGET_L0 = 75
ROOFLINE_SHARE = 0.6  # of the roofline that a step should reach
GUIDE = {"layers": 12, "tokens": 10_000_000, "epochs": 20}
GUIDE_MINUTES = {"h200": 10.0, "h100": 15.0}


@dataclass(frozen=True)
class Budget:
    """How much is run."""

    d_model: int = D_MODEL
    shapes: tuple[tuple[int, int], ...] = (  # latents, rows a step
        (4096, 256),
        (4096, 4096),
        (24_576, 256),
        (24_576, 4096),
        (131_072, 256),
        (131_072, 4096),
    )
    seconds: float = 1.0  # of timing for each shape
    product_size: int = 8192
    copy_bytes: int = 2**32
    rows: int = 4_000_000  # of the layer that is trained
    d_hidden: int = 4096
    batch: int = 4096
    epochs: int = 3
    tokens: int = 150_000  # that are extracted, of all layers
    windows: int = 32  # of 1,024 tokens in a forward pass


QUICK = Budget(
    d_model=64,
    shapes=((512, 128), (2048, 256)),
    seconds=0.2,
    product_size=512,
    copy_bytes=2**24,
    rows=40_000,
    d_hidden=512,
    batch=256,
    epochs=2,
    tokens=4000,
    windows=2,
)


# What the card can do


def ceilings(budget: Budget, device: str) -> dict[str, float]:
    """Speeds of memory and of copies from main memory in GB/s, and of bf16 products in TFLOP/s."""
    source = torch.empty(budget.copy_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source))
    size = budget.product_size
    a = torch.randn(size, size, device=device).bfloat16()
    b = torch.randn(size, size, device=device).bfloat16()
    product = best_seconds(lambda: a @ b)
    host = torch.empty(budget.copy_bytes // 4, dtype=torch.uint8)
    if device == "cuda":
        host = host.pin_memory()
    part = target[: len(host)]
    upload = best_seconds(lambda: part.copy_(host, non_blocking=True))
    return {
        "memory (GB/s, read and written)": 2 * len(source) / copy / 1e9,
        "bf16 products (TFLOP/s)": 2 * size**3 / product / 1e12,
        "page-locked copy to the device (GB/s)": len(host) / upload / 1e9,
    }


def best_seconds(work: Any, rounds: int = 5) -> float:
    """The shortest of several rounds, after one that does not count."""
    work()
    return min(seconds_of(work) for _ in range(rounds))


def roofline_seconds(
    d_model: int, d_hidden: int, batch: int, speeds: dict[str, float]
) -> tuple[float, float]:
    """The least seconds of a step: of its five products, and of Adam's and the copies' traffic.

    A parameter is read with its gradient and two moments, written with them, and copied to bf16.
    """
    flop = 5 * 2 * batch * d_model * d_hidden
    parameters = 2 * d_model * d_hidden
    traffic = parameters * (7 * 4 + 2)
    products = flop / (speeds["bf16 products (TFLOP/s)"] * 1e12)
    return products, traffic / (speeds["memory (GB/s, read and written)"] * 1e9)


# Rows


def sparse_rows(rows: int, d_model: int, features: int, device: str, seed: int = 0) -> Tensor:
    """Rows that are sums of 40 randomly chosen features, mean square 1, `[rows, d_model]`, bf16."""
    generator = torch.Generator(device).manual_seed(seed)
    directions = torch.randn(features, d_model, generator=generator, device=device)
    directions = torch.nn.functional.normalize(directions, dim=1)
    parts = []
    for start in range(0, rows, 65_536):
        count = min(65_536, rows - start)
        chosen = torch.randint(features, (count, 40), generator=generator, device=device)
        strength = torch.rand(count, 40, generator=generator, device=device) + 0.5
        part = torch.nn.functional.embedding_bag(
            chosen, directions, per_sample_weights=strength, mode="sum"
        )
        parts.append((part / part.pow(2).mean().sqrt()).bfloat16())
    return torch.cat(parts)


def store_of(budget: Budget, device: str) -> ActivationStore:
    """A layer in main memory, in shards as the extractor writes them."""
    rows = sparse_rows(budget.rows, budget.d_model, 2 * budget.d_hidden, device).cpu()
    return ActivationStore(list(rows.split(32_768)), layer=6)


# A step


def new_stepper(rows: Tensor, budget: Budget, d_hidden: int, batch: int) -> Stepper:
    """A stepper at its target L0, on the device of the rows."""
    shape = SAEConfig(d_model=budget.d_model, d_hidden=d_hidden, target_l0=TARGET_L0)
    sae = initial_sae(rows[:4096].float().cpu(), shape, seed=0).to(rows.device)
    return Stepper(sae, TrainConfig(batch_size=batch), steps=100_000)


def time_step(
    rows: Tensor, budget: Budget, d_hidden: int, batch: int, speeds: dict[str, float]
) -> dict[str, float]:
    """Milliseconds of a step by the wall clock and on the GPU, beside its roofline."""
    stepper = new_stepper(rows, budget, d_hidden, batch)
    weight = torch.ones(batch, 1, device=rows.device)
    batches = [batch_of for batch_of in rows.split(batch) if len(batch_of) == batch]

    def run(steps: int) -> Tensor:
        for number in range(steps):
            values = stepper.step(batches[number % len(batches)], weight=weight)
        return values

    run(5)
    probe = seconds_of(lambda: run(5)) / 5
    steps = max(5, int(budget.seconds / probe))
    wall = upper_median([seconds_of(lambda: run(steps)) / steps for _ in range(3)])
    stats = StepStats.read(run(1))
    products, traffic = roofline_seconds(budget.d_model, d_hidden, batch, speeds)
    return {
        "latents": d_hidden,
        "batch": batch,
        "step (ms)": 1000 * wall,
        "on the device (ms)": 1000 * device_seconds(lambda: run(steps)) / steps,
        "products (ms)": 1000 * products,
        "Adam's traffic (ms)": 1000 * traffic,
        "share of roofline": (products + traffic) / wall,
        "million rows/s": batch / wall / 1e6,
        "L0": stats.l0,
        "peak memory (GB)": peak_memory(),
    }


def device_seconds(work: Any) -> float:
    """Seconds between two events on the GPU; by the clock without one."""
    if not torch.cuda.is_available():
        return seconds_of(work)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    synchronize()
    return begin.elapsed_time(end) / 1000


def peak_memory() -> float:
    """GB of GPU memory at the peak since the last call; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


# The feed


def time_feed(store: ActivationStore, budget: Budget, device: str) -> dict[str, float]:
    """Million rows a second of an epoch's batches: from main memory, and from the device's own."""
    config = TrainConfig(batch_size=budget.batch, epochs=2)
    split = split_rows(store, config)
    trainer = Trainer(store, sae_config(budget), config, device)
    speeds = {}
    for name, resident in (("from main memory", False), ("resident", True)):
        feed = DeviceFeed(
            store, split, config, trainer.normalizer, torch.bfloat16, resident=resident
        )
        counts: list[int] = []
        seconds = seconds_of(lambda: counts.extend(len(batch.x) for batch in feed.epoch(0)))
        speeds[f"feed {name} (million rows/s)"] = sum(counts) / seconds / 1e6
    return speeds


def sae_config(budget: Budget) -> SAEConfig:
    """The SAE of the layer that is trained."""
    return SAEConfig(d_model=budget.d_model, d_hidden=budget.d_hidden, target_l0=TARGET_L0)


# Extraction


def gpt2_shape(device: str, quick: bool) -> LanguageModel:
    """A model of GPT-2's shape with random weights, and the pocket model's tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 64, "n_head": 2} if quick else {}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = GPT2LMHeadModel(GPT2Config(n_positions=1024, **size)).to(device, dtype).eval()
    return LanguageModel(model, load_model("pocket", "cpu").tokenizer, "gpt2-shape")


def time_extraction(budget: Budget, device: str, quick: bool) -> dict[str, float]:
    """Thousand tokens a second of all layers: the model alone, rows in memory, rows on disk."""
    model = gpt2_shape(device, quick)
    layers = list(range(model.n_layers))
    windows = pack_windows(DocsCorpus(), model.tokenizer, 1024)
    shard = next(token_shards(windows, model.special_ids(), budget.tokens, 10**6))
    reader = ShardReader(model, budget.windows, torch.bfloat16)
    names = shard.documents

    def run_model() -> None:
        for first in range(0, len(shard.input_ids), budget.windows):
            model.residuals(shard.input_ids[first : first + budget.windows].long(), layers)

    def write(folder: str) -> None:
        extract(model, DocsCorpus(), layers, budget.tokens, folder, batch_size=budget.windows)

    run_model()
    in_memory = best_seconds(lambda: reader.read(shard, layers, names), rounds=2)
    with tempfile.TemporaryDirectory() as folder:
        on_disk = seconds_of(lambda: write(folder))
    speeds = {
        "model alone": best_seconds(run_model, rounds=2),
        "rows in main memory": in_memory,
        "rows on disk": on_disk,
    }
    tokens = shard.rows / 1000
    return {f"extraction, {name} (k tokens/s)": tokens / took for name, took in speeds.items()}


# Exactness


def resumed_like_unbroken(store: ActivationStore, budget: Budget, device: str) -> bool:
    """Whether a run that another trainer continues ends with the same bytes."""
    config = TrainConfig(batch_size=budget.batch, epochs=1)
    small = store.head(min(len(store), 60 * budget.batch))
    through, halfway, resumed = (
        Trainer(small, sae_config(budget), config, device) for _ in range(3)
    )
    list(through.run())
    list(islice(halfway.run(), 20))
    resumed.load_state(*halfway.state())
    list(resumed.run())
    return state_digest(through) == state_digest(resumed)


def state_digest(trainer: Trainer) -> str:
    """SHA-256 of everything that the next step would depend on."""
    digest = hashlib.sha256()
    tensors, _ = trainer.state()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def gradient_cosine(rows: Tensor, budget: Budget) -> float:
    """The least cosine between a gradient as trained with and the same one in float64."""
    stepper = new_stepper(rows, budget, budget.d_hidden, budget.batch)
    x = rows[:1024]
    size = torch.tensor(float(x.numel()), dtype=torch.float64, device=x.device)
    one_pass = fused_pass if stepper.fused else dense_pass
    ours = one_pass(stepper.sae, stepper.low, x, size).gradients
    exact_sae = stepper.sae.double()
    exact = dense_pass(exact_sae, Workspace(exact_sae, torch.float64), x.double(), size).gradients
    cosines = []
    for name, gradient in exact.items():
        pair = (ours[name].double().flatten(), gradient.flatten())
        cosines.append(torch.nn.functional.cosine_similarity(*pair, dim=0).item())
    return min(cosines)


# The guide's job


def train_layer(store: ActivationStore, budget: Budget, device: str) -> dict[str, float]:
    """Trains one layer with `train`, and extrapolates to the guide's job.

    All of a run is taken to grow with its rows, but for the end of an epoch, which measures on at
    most 50,000 validation rows whatever the size of the layer.
    """
    config = TrainConfig(batch_size=budget.batch, epochs=budget.epochs)
    longer = replace(config, epochs=2 * budget.epochs)
    whole = seconds_of(lambda: train(store, sae_config(budget), config, device=device))
    runs: list[Any] = []

    def train_longer() -> None:
        runs.append(train(store, sae_config(budget), longer, device=device))

    epoch = (seconds_of(train_longer) - whole) / budget.epochs
    measuring = epoch_end_seconds(store, budget, device)
    scale = GUIDE["tokens"] / len(store)
    once = scale * (whole - budget.epochs * epoch)
    guide_layer = once + GUIDE["epochs"] * (scale * (epoch - measuring) + measuring)
    return {
        "run of one layer (s)": whole,
        "an epoch of it (s)": epoch,
        "the end of an epoch (s)": measuring,
        "million rows/s of an epoch": len(store) / epoch / 1e6,
        "L0": runs[0].history["l0"][-1],
        "FVU": runs[0].history["fvu"][-1],
        "training of the guide's job, extrapolated (minutes)": GUIDE["layers"] * guide_layer / 60,
    }


def epoch_end_seconds(store: ActivationStore, budget: Budget, device: str) -> float:
    """Seconds that measuring on validation rows takes at the end of an epoch."""
    trainer = Trainer(store, sae_config(budget), TrainConfig(batch_size=budget.batch), device)
    list(islice(trainer.run(), 5))
    trainer.end_epoch()
    return seconds_of(trainer.end_epoch)


def goals_of(table: pd.DataFrame, figures: dict[str, Any], device_name: str) -> list[Goal]:
    """A goal for each shape, for exactness, and for the guide's job."""
    goals = []
    for row in table.to_dict("records"):
        name = f"{row['latents']} latents, batches of {row['batch']}: share of the roofline"
        goals.append(Goal(name, row["share of roofline"], ROOFLINE_SHARE))
    goals.append(Goal("a resumed run ends with the same bytes", figures["resumed equal"], 1))
    goals.append(Goal("cosine with gradients in float64", figures["gradient cosine"], 0.995))
    for card, minutes in GUIDE_MINUTES.items():
        if card in device_name.lower():
            measured = figures["training of the guide's job, extrapolated (minutes)"]
            goals.append(
                Goal("training of the guide's job (minutes)", measured, minutes, at_least=False)
            )
    return goals


def main() -> None:
    args = parse_flags(__doc__)
    device = torch_device()
    args.quick = args.quick or device == "cpu"
    budget = QUICK if args.quick else Budget()
    figures: dict[str, Any] = ceilings(budget, device)
    print(figures, flush=True)
    rows = sparse_rows(65_536, budget.d_model, 8192, device)
    lines = []
    for d_hidden, batch in budget.shapes:
        lines.append(time_step(rows, budget, d_hidden, batch, figures))
        print(lines[-1], flush=True)
    store = store_of(budget, device)
    figures |= time_feed(store, budget, device)
    figures |= time_extraction(budget, device, args.quick)
    figures["resumed equal"] = int(resumed_like_unbroken(store, budget, device))
    figures["gradient cosine"] = gradient_cosine(rows, budget)
    figures |= train_layer(store, budget, device)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}", flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    table = pd.DataFrame(lines)
    goals = [] if args.quick else goals_of(table, figures, name)
    report("gpu", table, vars(budget) | {"target_l0": TARGET_L0}, goals, args, figures)


if __name__ == "__main__":
    main()
