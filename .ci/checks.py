"""Checks of the project as a whole: `python .ci/checks.py NAME...`; each prints what it found, and any failure ends with status 1."""
import argparse, ast, os, re, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(*command: str, **kwargs) -> str:
    "Runs a command at the root; its output, or an error that holds it."
    done = subprocess.run(command, cwd=kwargs.pop("cwd", ROOT), capture_output=True, text=True, **kwargs)
    if done.returncode: raise AssertionError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


IMPORTED = ["nbdev.test", "torch", "pandas", "matplotlib.pyplot", "transformers.models.gpt2.modeling_gpt2"]   # what nearly every notebook imports, seconds each time
PATIENCE = 1200   # seconds after which a notebook hangs
LONGEST = "training_guide quickstart 05_extractor 13_cli 09_evaluation index chat_features 01_loaders 08_trainer 12_publish 05_live 11_steering".split()   # as measured; they go first


def test_here(path: str, flags: str, said: str) -> None:
    "nbdev_test of one notebook in this process; what is printed goes to the file `said`."
    with open(said, "wb") as file: os.dup2(file.fileno(), 1); os.dup2(file.fileno(), 2)
    from nbdev.test import nbdev_test
    os.chdir(ROOT)
    nbdev_test.__wrapped__(path=path, flags=flags, n_workers=0)


def notebooks(flags: str = "") -> int:
    "Every notebook under nbs/, two at a time, each in a process of its own; how many passed."
    import concurrent.futures as futures, multiprocessing
    found = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if flags: found = [p for p in found if any(f"#| {flag}" in p.read_text(encoding="utf-8") for flag in flags.split())]
    os.environ.update({"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2)//2)), "TQDM_MININTERVAL": "60", "MPLBACKEND": "agg",
                       "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"})   # what killed processes leave is tidied up without words
    processes = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")   # each is forked from one that has done the imports
    processes.set_forkserver_preload(IMPORTED)
    folder = tempfile.TemporaryDirectory()

    def test(path: Path) -> tuple[Path, float, str]:
        start, said = time.time(), Path(folder.name)/f"{path.stem}.txt"
        process = processes.Process(target=test_here, args=(str(path), flags, str(said)))
        process.start(); process.join(PATIENCE)
        late = process.is_alive()
        if late: process.kill(); process.join()
        printed = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
        return path, time.time() - start, f"{f'ended after {PATIENCE} s' if late else f'exit status {process.exitcode}'}\n{printed[-6000:]}" if process.exitcode else ""

    longest_first = sorted(found, key=lambda p: LONGEST.index(p.stem) if p.stem in LONGEST else len(LONGEST))
    failed = 0
    with folder, futures.ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        for path, seconds, trouble in pool.map(test, longest_first):
            print(f"{'FAILED' if trouble else 'ok':7}{path.relative_to(ROOT)} ({seconds:.0f} s)", flush=True)
            if trouble: failed += 1; print(trouble)
    if failed: raise AssertionError(f"{failed} of {len(found)} notebooks failed")
    return len(found)


def status() -> str: return run("git", "status", "--porcelain")


def sync() -> None:
    "Notebooks are clean, and the package is what they export."
    before = status()
    run(str(BIN/"nbdev_clean")); run(str(BIN/"nbdev_export"))
    assert status() == before, f"nbdev_clean and nbdev_export changed files; run them and commit:\n{run('git', 'diff', '--stat')}"
    large = [p.name for p in (ROOT/"nbs").rglob("*.ipynb") if p.stat().st_size > 300_000]
    assert not large, f"notebooks over 300 KB: {large}"


def order() -> None:
    "Each module imports only modules whose notebooks come before its own, and none of the development tools."
    numbers = {p.stem[3:]: p.stem for p in (ROOT/"nbs").glob("[0-9][0-9]_*.ipynb")}
    for name, number in numbers.items():
        for node in ast.walk(ast.parse((ROOT/"sae_analysis"/f"{name}.py").read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                first, _, rest = module.partition(".")
                assert first not in ("nbdev", "fastcore", "execnb", "ghapi", "jupyterlab"), f"{name} imports {module}, a development tool"
                if first == "sae_analysis" and rest: assert numbers[rest] < number, f"{number} imports {numbers[rest]}: data flows one way"


def readme_text() -> str:
    "README.md as nbs/index.ipynb gives it: its cells, without outputs."
    import nbformat, pypandoc
    notebook = nbformat.read(ROOT/"nbs"/"index.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    text = pypandoc.convert_text(nbformat.writes(notebook), "gfm-raw_html", format="ipynb", extra_args=["--wrap=none"])
    return "<!-- Written from nbs/index.ipynb by `make readme`; edit that. -->\n\n" + re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n")).strip() + "\n"


def readme() -> None:
    "README.md is what index.ipynb gives."
    assert (ROOT/"README.md").read_text(encoding="utf-8") == readme_text(), "README.md is stale; run `make readme` and commit it"


def write_readme() -> None:
    "Writes README.md."
    (ROOT/"README.md").write_text(readme_text(), encoding="utf-8")


DOCS = """
import json
from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar
from nbdev.doclinks import _build_modidx
from nbdev.serve import proc_nbs
if __name__ == "__main__":
    refresh_quarto_yml(); _build_modidx(); nbdev_sidebar.__wrapped__()
    proc_nbs(n_workers=0, force=True)
"""


def docs() -> None:
    "The docs can be processed, every page is a valid notebook, and the sidebar names pages that exist."
    import json, nbformat, yaml
    before = status()
    run(sys.executable, "-c", DOCS)
    pages = sorted((ROOT/"_proc").rglob("*.ipynb"))
    assert len(pages) == len([p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]), f"only {len(pages)} pages were processed"
    for page in pages:
        notebook = json.loads(page.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell.pop("has_sd", None)
            for output in cell.get("outputs", []):
                if output.get("output_type") == "execute_result" and output.get("execution_count") is None: output["execution_count"] = 0
        nbformat.validate(nbformat.from_dict(notebook))
    sidebar = yaml.safe_load((ROOT/"nbs"/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    named = {name for part in sidebar for name in ([part] if isinstance(part, str) else part["contents"])}
    have = {str(p.relative_to(ROOT/"nbs")) for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert named == have, f"the sidebar and the notebooks differ: {sorted(named ^ have)}"
    assert status() == before, "processing the docs changed tracked files"


def wheel() -> None:
    "`python -m build` makes a wheel that imports from elsewhere, without development tools, and whose pocket model loads."
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)/"source"
        run("git", "clone", "-q", str(ROOT), str(source))
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(source))
        built = next(Path(folder).glob("*.whl"))
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", f"{folder}/site", str(built))
        script = ("import sys, importlib, pathlib; import sae_analysis; assert 'torch' not in sys.modules; "
                  "[importlib.import_module('sae_analysis.' + p.stem) for p in pathlib.Path(sae_analysis.__file__).parent.glob('[a-z]*.py')]; "
                  "bad = [m for m in ('nbdev', 'fastcore', 'execnb', 'jupyterlab') if m in sys.modules]; assert not bad, bad; "
                  "from sae_analysis.models import load_model; print(sae_analysis.__file__, load_model('pocket', 'cpu'))")
        said = run(sys.executable, "-c", script, cwd=folder, env={**os.environ, "PYTHONPATH": f"{folder}/site"})
        assert f"{folder}/site" in said and "LanguageModel('pocket'" in said, said


CHECKS = {"sync": sync, "order": order, "readme": readme, "docs": docs, "wheel": wheel}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*CHECKS, "notebooks", "write-readme"])
    parser.add_argument("--flags", default="", help="test flags of cells to run as well")
    arguments = parser.parse_args()
    passed, failed = 0, 0
    for name in arguments.names:
        try:
            if name == "write-readme": write_readme()
            elif name == "notebooks": passed += notebooks(arguments.flags)
            else: CHECKS[name](); passed += 1; print(f"ok     {name}", flush=True)
        except AssertionError as error: failed += 1; print(f"FAILED {name}: {error}")
    print(f"\n{passed} passed, {failed} failed")
    sys.exit(bool(failed))
