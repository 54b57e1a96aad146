"""What all benchmarks share: their flags, the timing, the goals, and the report.

Each `benchmarks/NAME.py` compares this package with its peers on the same work. It prints a table
and writes `benchmarks/results/NAME-DEVICE.json`, which holds the date, processor, versions,
settings, figures and goals. Every benchmark takes these flags:

    --quick    a smoke run with small sizes; no goal is tested
    --check    exit with 1 when a goal is missed
    --out DIR  folder for the results (default: benchmarks/results)
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

os.environ.setdefault("TQDM_DISABLE", "1")
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PACKAGES = ("torch", "transformers", "dictionary-learning", "sae-lens", "sae_analysis")
# from the widest to the narrowest
INSTRUCTION_SETS = ("amx_tile", "avx512_bf16", "avx512", "avx2")


# Flags


def parse_flags(description: str, **text_flags: str) -> argparse.Namespace:
    """The flags that all benchmarks take.

    `text_flags` are this benchmark's own: the help of each by its name. Their default is "".
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run: small sizes, no goals")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder for the results (default: benchmarks/results)",
    )
    for name, explanation in text_flags.items():
        parser.add_argument(f"--{name}", default="", help=explanation)
    return parser.parse_args()


def text_name(path: str) -> str:
    """What a benchmark with a flag `--text` has read, as its settings name it."""
    return Path(path).name if path else "installed documentation"


def name_with_text(benchmark: str, path: str) -> str:
    """The name of a benchmark's results; those on a text of one's own carry its name too."""
    return f"{benchmark}-{Path(path).stem}" if path else benchmark


# The machine


def torch_device() -> str:
    """`cuda` where torch has a GPU, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The name of the device in file names.

    On a GPU its model; otherwise the number of cores and the widest instructions that torch has for
    matrix products, such as `cpu-2-avx2`.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    widest = platform.machine()
    for name in INSTRUCTION_SETS:
        is_supported = getattr(torch.cpu, f"_is_{name}_supported", None)
        if is_supported is not None and is_supported():
            widest = name
            break
    return f"cpu-{os.cpu_count()}-{widest}"


def processor_name() -> str:
    """The processor's model, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def package_version(package: str) -> str:
    """The version of an installed package, or `absent`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def dtype_name(dtype: Any) -> str:
    """The name of a torch dtype without `torch.`, such as `float32`."""
    return str(dtype).removeprefix("torch.")


# Time and memory


def synchronize() -> None:
    """Waits until the GPU, if there is one, has finished its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds that `work()` takes, until the GPU has finished too."""
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


def upper_median(values: list[float]) -> float:
    """The median; of an even number of values, the upper one of the two in the middle."""
    return sorted(values)[len(values) // 2]


def median_seconds(work: Callable[[], Any], rounds: int = 5, warmup: int = 1) -> float:
    """Median seconds of `work()` alone, after `warmup` rounds that do not count."""
    return time_in_turn({"work": work}, rounds, warmup)["work"]


def time_in_turn(
    contestants: dict[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each contestant, after `warmup` rounds that do not count.

    Every round runs all contestants, one after the other. A slow spell of the machine then hits all
    of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(warmup + rounds):
        for name, work in contestants.items():
            seconds = seconds_of(work)
            if i >= warmup:
                times[name].append(seconds)
    return {name: upper_median(values) for name, values in times.items()}


def process_memory(kind: str) -> float:
    """MB of memory that this process holds (`kind` "VmRSS") or held at its peak ("VmHWM").

    Reads `/proc`, since `ru_maxrss` starts at the parent's peak.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {kind}")


RUN_FUNCTION = """
import importlib, json, sys
folder, module, function, arguments = sys.argv[1:]
sys.path.insert(0, folder)
result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
print(json.dumps(result))
"""


def run_in_own_process(module: str, function: str, *arguments: Any) -> Any:
    """Calls `module.function(*arguments)` in a new process, for the memory of that work alone.

    `module` is one of the benchmarks; arguments and result travel as JSON. When the process fails,
    exits with the end of its errors.
    """
    command = [sys.executable, "-c", RUN_FUNCTION]
    command += [str(FOLDER), module, function, json.dumps(arguments)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr[-3000:])
    return json.loads(process.stdout.splitlines()[-1])


# Goals and the report


@dataclass
class Goal:
    """A figure that should be at least, or at most, a limit."""

    name: str
    measured: float
    limit: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of its limit."""
        if self.at_least:
            return bool(self.measured >= self.limit)
        return bool(self.measured <= self.limit)

    def __str__(self) -> str:
        verdict = "met   " if self.met else "MISSED"
        relation = "at least" if self.at_least else "at most"
        return f"{verdict}  {self.name}: {self.measured:.4g} ({relation} {self.limit:.4g})"

    def record(self) -> dict[str, Any]:
        """The goal as it stands in a results file."""
        return {
            "name": self.name,
            "measured": float(self.measured),
            "limit": float(self.limit),
            "at_least": self.at_least,
            "met": self.met,
        }


def result_record(
    name: str,
    table: "pd.DataFrame",
    settings: dict[str, Any],
    goals: list[Goal],
    figures: dict[str, Any],
) -> dict[str, Any]:
    """What a results file holds: the machine, the versions, the settings and every figure."""
    import torch

    return {
        "benchmark": name,
        "date": date.today().isoformat(),
        "device": device_name(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "versions": {package: package_version(package) for package in PACKAGES},
        "settings": settings,
        "figures": figures,
        "table": json.loads(table.to_json(orient="records")),
        "goals": [goal.record() for goal in goals],
    }


def report(
    name: str,
    table: "pd.DataFrame",
    settings: dict[str, Any],
    goals: list[Goal],
    args: argparse.Namespace,
    figures: dict[str, Any] | None = None,
) -> None:
    """Prints the table and the goals, and writes `NAME-DEVICE.json` to the folder `args.out`.

    With `args.check`, exits with 1 and names the goals that are missed. `figures` are those that
    are not in the table.
    """
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for goal in goals:
        print(goal)
    record = result_record(name, table, settings, goals, figures or {})
    args.out.mkdir(parents=True, exist_ok=True)
    suffix = "-quick" if args.quick else ""
    path = args.out / f"{name}{suffix}-{record['device']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    missed = [goal.name for goal in goals if not goal.met]
    if args.check and missed:
        sys.exit("goals missed: " + "; ".join(missed))
