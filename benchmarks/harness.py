"""What every benchmark shares: its flags, its table, its file in results/, and the goals it is held against."""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
RESULTS = Path(__file__).parent / "results"
PEERS = ("torch", "transformers", "dictionary-learning", "sae-lens", "sae_analysis")


@dataclass
class Goal:
    """Something measured that is to be at least, or at most, a limit."""

    name: str
    measured: float
    limit: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return bool(self.measured >= self.limit if self.at_least else self.measured <= self.limit)

    def __str__(self) -> str:
        return (
            f"{'met   ' if self.met else 'MISSED'}  {self.name}: {self.measured:.4g}"
            f" ({'at least' if self.at_least else 'at most'} {self.limit:.4g})"
        )


def flags(description: str, **more: str) -> argparse.Namespace:
    """The flags that all benchmarks take, and `more` of them, each with its help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smoke run: small sizes, no goals")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder for the results (default: benchmarks/results)",
    )
    for name, explanation in more.items():
        parser.add_argument(f"--{name}", default="", help=explanation)
    return parser.parse_args()


def device_name() -> str:
    """The GPU's name, or the number of processor cores and the widest instructions that torch's
    products can use on them.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    kinds = ("amx_tile", "avx512_bf16", "avx512", "avx2")
    widest = next(
        (kind for kind in kinds if getattr(torch.cpu, f"_is_{kind}_supported", lambda: False)()),
        platform.machine(),
    )
    return f"cpu-{os.cpu_count()}-{widest}"


def processor() -> str:
    try:
        return next(
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def median_seconds(work, rounds: int = 5, warmup: int = 1) -> float:
    """The median time of `work()` alone."""
    return alternate({"work": work}, rounds, warmup)["work"]


def alternate(contestants: dict, rounds: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each contestant, one after the other in every round, so that all meet the
    same weather; on a GPU until it is done.
    """
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = {name: [] for name in contestants}
    for i in range(warmup + rounds):
        for name, work in contestants.items():
            wait()
            begin = time.perf_counter()
            work()
            wait()
            if i >= warmup:
                times[name].append(time.perf_counter() - begin)
    return {name: sorted(each)[len(each) // 2] for name, each in times.items()}


def report(
    name: str,
    table,
    settings: dict,
    goals: list[Goal],
    a: argparse.Namespace,
    figures: dict | None = None,
) -> None:
    """Prints the table and the goals, writes results/NAME-DEVICE.json, exits with 1 when asked to
    and a goal is missed.
    """
    import torch

    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for goal in goals:
        print(goal)
    result = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "device": device_name(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {package: _version(package) for package in PEERS},
        "settings": settings,
        "figures": figures or {},
        "table": json.loads(table.to_json(orient="records")),
        "goals": [
            {
                "name": goal.name,
                "measured": float(goal.measured),
                "limit": float(goal.limit),
                "at_least": goal.at_least,
                "met": goal.met,
            }
            for goal in goals
        ],
    }
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"{name}{'-quick' if a.quick else ''}-{result['device']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    missed = [goal.name for goal in goals if not goal.met]
    if a.check and missed:
        sys.exit("goals missed: " + "; ".join(missed))
