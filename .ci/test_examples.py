"""Every public name has a docstring with an example that runs, and importing the package is light.

The examples are doctests in the docstrings of the names in `sae_analysis._HOME`. Each runs in its
own copy of a folder with a trained SAE and a few files, and finds the names that the docstring of
the package lists: `model`, `texts`, `store`, `run`, `sae`, `quality`, `features`, `prompts` and
`sources`. What is sent to the Hub goes to one on this machine.
"""

import ast
import contextlib
import doctest
import inspect
import json
import os
import pydoc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from local_hub import LocalHub

import sae_analysis as sa

MOST_NAMES = 60  # public names that a user can still look over
HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib", "datasets", "huggingface_hub")
# `...` in a result stands for any text.
RULES = doctest.ELLIPSIS | doctest.REPORT_ONLY_FIRST_FAILURE
NOUNS = ["list", "array", "string", "file", "table", "number", "module", "class", "row", "key"]
VERBS = ["returns", "reads", "writes", "sorts", "raises", "opens", "counts", "copies"]
QUESTIONS = {
    "emotional": ["How do you feel?", "Are you happy?", "Do you fear the end?", "Who loves you?"],
    "factual": ["What is a list?", "Where is Rome?", "How long is a mile?", "Who wrote Faust?"],
}


# What the examples find


def make_texts(count: int = 260) -> list[str]:
    """Short texts that no installed package can change."""
    texts = []
    for number in range(count):
        verb = VERBS[number % len(VERBS)]
        noun = NOUNS[number % len(NOUNS)]
        other = NOUNS[number // 3 % len(NOUNS)]
        texts.append(f"The method {verb} the {noun} of a {other}, or a {noun} with {number} parts.")
    return texts


def write_files(folder: Path, texts: list[str]) -> None:
    """The files that examples read."""
    import pandas as pd

    articles = {"id": range(len(texts)), "url": "", "title": "", "text": texts}
    pd.DataFrame(articles).to_parquet(folder / "articles.parquet")
    question = {
        "question": "What is a list?",
        "best_answer": "A sequence.",
        "correct_answers": ["A sequence."],
        "incorrect_answers": ["A number."],
        "category": "Code",
    }
    pd.DataFrame([question] * 10).to_parquet(folder / "truthfulqa.parquet")
    (folder / "config.yaml").write_text("sae: {d_hidden: 1024}\nsae_training: {epochs: 4}")
    (folder / "prompts").mkdir()
    lines = []
    for label, questions in QUESTIONS.items():
        for content in questions:
            lines.append(json.dumps({"content": content, "label": label}))
    (folder / "prompts" / "questions.jsonl").write_text("\n".join(lines))


def make_namespace(folder: Path) -> dict[str, Any]:
    """The objects that examples use; files they come from are written to the folder."""
    import torch

    torch.manual_seed(0)
    texts = make_texts()
    write_files(folder, texts)
    model = sa.load_model("pocket", device="cpu")
    store = sa.extract(model, texts, [2], 4_000, folder / "hidden_states", context_length=64)[2]
    sae_config = sa.SAEConfig(d_model=store.d_model, d_hidden=64, target_l0=8)
    train_config = sa.TrainConfig(epochs=2)
    run = sa.train(store, sae_config, train_config, folder / "checkpoints", device="cpu")
    return {
        "model": model,
        "texts": texts,
        "store": store,
        "run": run,
        "sae": run.sae,
        "quality": sa.evaluate(run.sae, model, texts, 2, num_tokens=1_000, loss_tokens=500),
        "features": sa.interpret(run.sae, model, texts, layer=2),
        "prompts": sa.load_prompts(folder / "prompts"),
        "sources": [sa.LoadedSource(sa.Source("pocket", 0, 2), model, run.sae)],
    }


@contextlib.contextmanager
def copy_of(folder: Path) -> Iterator[None]:
    """A copy of the folder as working directory while the context lasts."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / "work"
        shutil.copytree(folder, copy)
        os.chdir(copy)
        try:
            yield
        finally:
            os.chdir(before)


# Examples


def problems_of_example(name: str, docstring: str, namespace: dict[str, Any]) -> list[str]:
    """What is wrong with the example of a public name; empty if it is there and runs."""
    test = doctest.DocTestParser().get_doctest(docstring, dict(namespace), name, None, 0)
    code = "".join(example.source for example in test.examples)
    if "\nExample:\n\n    >>> import sae_analysis as sa\n" not in docstring:
        return [f"{name}: no section `Example:` that begins with `import sae_analysis as sa`"]
    if f"sa.{name}" not in code:
        return [f"{name}: the example does not use sa.{name}"]
    if any(doctest.SKIP in example.options for example in test.examples):
        return [f"{name}: a part of the example is skipped"]
    said: list[str] = []
    doctest.DocTestRunner(optionflags=RULES).run(test, out=said.append)
    return ["".join(said).strip()] if said else []


def docstring_of(name: str) -> str:
    """The docstring of a public name without its indentation; empty if it has none of its own."""
    value = getattr(sa, name)
    return inspect.cleandoc(value.__doc__ or "")


def check_name(name: str, folder: Path, namespace: dict[str, Any]) -> None:
    """One public name: docstring, help and example."""
    docstring = docstring_of(name)
    assert docstring and not docstring.startswith(f"{name}("), f"{name} has no docstring"
    first_line = docstring.splitlines()[0]
    assert first_line in pydoc.plain(pydoc.render_doc(getattr(sa, name))), f"{name}: help is empty"
    with copy_of(folder):
        problems = problems_of_example(name, docstring, namespace)
    assert not problems, "\n".join(problems)


def test_bad_examples_are_noticed() -> None:
    head = "Adds.\n\nExample:\n\n    >>> import sae_analysis as sa\n"
    bad = {
        "Adds.": "no section",
        "Adds.\n\nExample: `add(1, 2)`.": "no section",
        head + "    >>> 1 + 2\n    3": "does not use sa.add",
        head + "    >>> sa.add  # doctest: +SKIP": "is skipped",
        head + "    >>> sa.add": "has no attribute 'add'",
        head + "    >>> 'sa.add'\n    'sa.sub'": "Expected:",
    }
    for docstring, expected in bad.items():
        (problem,) = problems_of_example("add", docstring, {})
        assert expected in problem, (docstring, problem)
    assert problems_of_example("add", head + "    >>> 'sa.add'\n    'sa...'", {}) == []


# The package


def test_names() -> None:
    """Few enough to look over, each named once, and all of them offered by tab completion."""
    assert len(sa.__all__) == len(set(sa.__all__)) <= MOST_NAMES
    missing = set(sa.__all__) - set(dir(sa))
    assert not missing, f"dir(sae_analysis) lacks {missing}"


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(sa.__file__).read_text(encoding="utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "_TYPE_CHECKING"
    ]
    imported = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.level == 1, ast.unparse(node)
        assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)
        imported[node.module] = [alias.name for alias in node.names]
    assert imported == sa._HOME


def test_import_is_light() -> None:
    """Importing the package, and looking at its names, loads nothing heavy.

    Its time is not measured: that would be a test of the machine.
    """
    script = (
        "import sys; import sae_analysis; dir(sae_analysis);"
        f" print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    root = str(Path(sa.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "loaded: []", done.stdout + done.stderr[-2000:]


TESTS = [
    test_bad_examples_are_noticed,
    test_names,
    test_type_checkers_see_the_same_names,
    test_import_is_light,
]


def run(name: str, test: Callable[[], None]) -> bool:
    """Whether a test passes; what is wrong is printed."""
    try:
        test()
    except Exception as error:
        print(f"FAILED {name}: {type(error).__name__}: {error}")
        return False
    return True


def main() -> int:
    parts = [run(test.__name__, test) for test in TESTS]
    hub = LocalHub({}, token="hf_examples")
    os.environ.update(
        HF_ENDPOINT=hub.url,
        HF_TOKEN="hf_examples",
        HF_HUB_DISABLE_XET="1",
        MPLBACKEND="Agg",
        NO_PROXY="127.0.0.1",
        TQDM_DISABLE="1",
    )
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = f"{folder}/hub"
        files = Path(folder) / "files"
        files.mkdir()
        namespace = make_namespace(files)
        for name in sa.__all__:
            start = time.process_time()
            parts.append(run(name, lambda name=name: check_name(name, files, namespace)))
            slowest = max(slowest, (time.process_time() - start, name))
    hub.close()
    print(f"slowest example: {slowest[1]}, {slowest[0]:.1f} s")
    print(f"{sum(parts)} passed, {len(parts) - sum(parts)} failed")
    return int(not all(parts))


if __name__ == "__main__":
    sys.exit(main())
