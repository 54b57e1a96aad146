"""Checks of the project as a whole.

`python .ci/checks.py NAME...` runs the named checks. Each prints its result, and any failure
ends with exit status 1.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from structure import check_structure

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PACKAGE = ROOT / "sae_analysis"

# What nearly every notebook imports, at a cost of seconds: done once, before the processes fork.
PRELOADED = [
    "nbdev.test",
    "torch",
    "pandas",
    "matplotlib.pyplot",
    "transformers.models.gpt2.modeling_gpt2",
]
# Seconds after which a notebook counts as hanging.
TIME_LIMIT = 1200
# The notebooks that take longest, as measured; they start first.
LONGEST = [
    "tutorials/training_guide",
    "tutorials/quickstart",
    "extractor/02_extraction",
    "cli/01_extract_and_train",
    "cli/02_run_sae_analysis",
    "interpreter/00_evaluation",
    "index",
    "tutorials/chat_features",
    "trainer/09_runs",
    "loaders/01_corpora",
    "trainer/12_publish",
    "cli/03_demo",
    "extractor/03_live",
    "analysis/05_steering",
]
DEVELOPMENT_TOOLS = ["nbdev", "fastcore", "execnb", "jupyterlab"]


def run(*command: str, **kwargs) -> str:
    """Run a command at the root and return its output; a failure becomes an AssertionError."""
    folder = kwargs.pop("cwd", ROOT)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **kwargs)
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise AssertionError(f"{' '.join(command)} failed:\n{output}")
    return done.stdout


def git_status() -> str:
    return run("git", "status", "--porcelain")


def notebook_paths() -> list[Path]:
    """All notebooks below nbs/, without the copies that Jupyter keeps."""
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def notebook_name(path: Path) -> str:
    """The notebook's path below nbs/, without its suffix."""
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


# Notebooks as tests


def run_notebook_here(path: str, flags: str, log_path: str) -> None:
    """Test one notebook in this process; everything printed goes to the file at `log_path`."""
    with open(log_path, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from nbdev.test import nbdev_test

    os.chdir(ROOT)
    nbdev_test.__wrapped__(path=path, flags=flags, n_workers=0)


def run_notebook(path: Path, flags: str, folder: str, processes) -> tuple[Path, float, str]:
    """Test one notebook in a process of its own: path, seconds, and what went wrong."""
    start = time.time()
    log_path = Path(folder) / f"{notebook_name(path).replace('/', '-')}.txt"
    arguments = (str(path), flags, str(log_path))
    process = processes.Process(target=run_notebook_here, args=arguments)
    process.start()
    process.join(TIME_LIMIT)
    outcome = f"exit status {process.exitcode}"
    if process.is_alive():
        process.kill()
        process.join()
        outcome = f"stopped after {TIME_LIMIT} s"
    seconds = time.time() - start
    if process.exitcode == 0:
        return path, seconds, ""
    printed = ""
    if log_path.exists():
        printed = log_path.read_text(encoding="utf-8", errors="replace")
    return path, seconds, f"{outcome}\n{printed[-6000:]}"


def has_flag(path: Path, flags: list[str]) -> bool:
    """Whether a notebook has cells with one of these flags."""
    text = path.read_text(encoding="utf-8")
    return any(f"#| {flag}" in text for flag in flags)


def notebooks_to_run(flags: str) -> list[Path]:
    """The notebooks to test, longest first; with flags only those that have such cells."""
    paths = notebook_paths()
    if flags:
        paths = [path for path in paths if has_flag(path, flags.split())]
    order = {name: number for number, name in enumerate(LONGEST)}
    return sorted(paths, key=lambda path: order.get(notebook_name(path), len(order)))


def test_notebooks(flags: str = "") -> int:
    """Test every notebook, two at a time; returns how many passed."""
    os.environ.update(
        {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
            "TQDM_MININTERVAL": "60",
            "MPLBACKEND": "agg",
            # Killed processes leave semaphores behind, which Python tidies up with a warning.
            "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
        }
    )
    method = "forkserver" if sys.platform == "linux" else "spawn"
    processes = multiprocessing.get_context(method)
    processes.set_forkserver_preload(PRELOADED)
    paths = notebooks_to_run(flags)
    at_once = max(1, min(2, os.cpu_count() or 1))
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(at_once) as pool,
    ):
        results = pool.map(lambda path: run_notebook(path, flags, folder, processes), paths)
        for path, seconds, trouble in results:
            status = "FAILED" if trouble else "ok"
            print(f"{status:7}{path.relative_to(ROOT)} ({seconds:.0f} s)", flush=True)
            if trouble:
                failed += 1
                print(trouble)
    if failed:
        raise AssertionError(f"{failed} of {len(paths)} notebooks failed")
    return len(paths)


# Notebooks and package


def check_sync() -> None:
    """Notebooks are clean and small, and the package is what they export."""
    before = git_status()
    run(str(BIN / "nbdev_clean"))
    run(str(BIN / "nbdev_export"))
    if git_status() != before:
        changed = run("git", "diff", "--stat")
        raise AssertionError(f"nbdev_clean and nbdev_export changed files; commit them:\n{changed}")
    large = [path.name for path in notebook_paths() if path.stat().st_size > 300_000]
    assert not large, f"notebooks over 300 KB: {large}"


def check_order() -> None:
    """Folders and modules import only what stands above them."""
    problems = check_structure(PACKAGE, ROOT / "nbs")
    assert not problems, "\n".join(problems)


# Lines, names and types

FORMATTED = ["nbs", "sae_analysis", "benchmarks", ".ci"]


def check_format() -> None:
    """Notebooks and scripts are formatted; nbdev writes the modules from the notebooks."""
    sources = [name for name in FORMATTED if name != "sae_analysis"]
    run(str(BIN / "ruff"), "format", "--check", *sources)


def check_lint() -> None:
    """Nothing that the linter's rules in pyproject.toml forbid."""
    run(str(BIN / "ruff"), "check", "--output-format", "concise", *FORMATTED)


def check_types() -> None:
    """The package has no type errors."""
    run(str(BIN / "mypy"))


def check_style() -> None:
    """Lines, functions and prose stay within the limits of .ci/style.py."""
    run(sys.executable, str(ROOT / ".ci" / "style.py"), "--check")


# The README


def readme_text() -> str:
    """README.md as nbs/index.ipynb gives it: its cells, without outputs."""
    import nbformat
    import pypandoc

    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("#| hide")]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    source = nbformat.writes(notebook)
    options = ["--wrap=none"]
    text = pypandoc.convert_text(source, "gfm-raw_html", format="ipynb", extra_args=options)
    text = re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n")).strip()
    text = re.sub(r"\]\((images/|\w+(?:/\w+)*\.ipynb)", r"](nbs/\1", text)
    return f"<!-- Written from nbs/index.ipynb by `make readme`; edit that. -->\n\n{text}\n"


def check_readme() -> None:
    """README.md is what index.ipynb gives."""
    current = (ROOT / "README.md").read_text(encoding="utf-8")
    assert current == readme_text(), "README.md is stale; run `make readme` and commit it"


def write_readme() -> None:
    (ROOT / "README.md").write_text(readme_text(), encoding="utf-8")


# The documentation

PROCESS_DOCS = """
from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar
from nbdev.doclinks import _build_modidx
from nbdev.serve import proc_nbs

if __name__ == "__main__":
    refresh_quarto_yml()
    _build_modidx()
    nbdev_sidebar.__wrapped__()
    proc_nbs(n_workers=0, force=True)
"""


def validate_page(path: Path) -> None:
    """A processed page is a valid notebook, apart from what nbdev adds on purpose."""
    import nbformat

    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell.pop("has_sd", None)
        for output in cell.get("outputs", []):
            is_result = output.get("output_type") == "execute_result"
            if is_result and output.get("execution_count") is None:
                output["execution_count"] = 0
    nbformat.validate(nbformat.from_dict(notebook))


def sidebar_pages() -> set[str]:
    """The pages that the sidebar names."""
    import yaml

    text = (ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8")
    pages = set()
    for entry in yaml.safe_load(text)["website"]["sidebar"]["contents"]:
        pages.update([entry] if isinstance(entry, str) else entry["contents"])
    return pages


def check_docs() -> None:
    """The docs can be processed, pages are valid, and the sidebar names exactly the pages."""
    before = git_status()
    run(sys.executable, "-c", PROCESS_DOCS)
    pages = sorted((ROOT / "_proc").rglob("*.ipynb"))
    paths = notebook_paths()
    assert len(pages) == len(paths), f"{len(pages)} of {len(paths)} pages were processed"
    for page in pages:
        validate_page(page)
    existing = {f"{notebook_name(path)}.ipynb" for path in paths}
    different = sorted(sidebar_pages() ^ existing)
    assert not different, f"the sidebar and the notebooks differ: {different}"
    assert git_status() == before, "processing the docs changed tracked files"


# The wheel

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys
import sae_analysis

assert "torch" not in sys.modules, "importing sae_analysis must not import torch"
modules = [m.name for m in pkgutil.walk_packages(sae_analysis.__path__, "sae_analysis.")]
modules = [name for name in modules if "._" not in name]
for name in modules:
    importlib.import_module(name)
tools = [name for name in {DEVELOPMENT_TOOLS} if name in sys.modules]
assert not tools, f"imported development tools: {{tools}}"
from sae_analysis.models.language_model import load_model

print(sae_analysis.__file__, load_model("pocket", "cpu"))
print(len(modules))
"""


def check_wheel() -> None:
    """The wheel has every module, imports without development tools, and loads its model."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        run("git", "clone", "-q", str(ROOT), str(source))
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(source))
        built = next(Path(folder).glob("*.whl"))
        site = f"{folder}/site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        run(*pip, "--target", site, str(built))
        environment = {**os.environ, "PYTHONPATH": site}
        printed = run(sys.executable, "-c", IMPORT_EVERYTHING, cwd=folder, env=environment)
        assert site in printed and "LanguageModel('pocket'" in printed, printed
        imported = int(printed.split()[-1])
        sources = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("_")]
        folders = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
        expected = len(sources) + len(folders)
        assert imported == expected, f"the wheel has {imported} modules, the source {expected}"


CHECKS = {
    "format": check_format,
    "lint": check_lint,
    "types": check_types,
    "style": check_style,
    "sync": check_sync,
    "order": check_order,
    "readme": check_readme,
    "docs": check_docs,
    "wheel": check_wheel,
}


def run_named(name: str, flags: str) -> int:
    """Run one check, or all notebooks; returns how many things passed."""
    if name == "notebooks":
        return test_notebooks(flags)
    if name == "write-readme":
        write_readme()
        return 0
    CHECKS[name]()
    print(f"ok     {name}", flush=True)
    return 1


def main() -> int:
    """Runs the named checks; 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*CHECKS, "notebooks", "write-readme"]
    parser.add_argument("names", nargs="+", choices=names)
    parser.add_argument("--flags", default="", help="test flags of cells to run as well")
    arguments = parser.parse_args()
    passed = 0
    failed = 0
    for name in arguments.names:
        try:
            passed += run_named(name, arguments.flags)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {name}: {error}")
    print(f"\n{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
