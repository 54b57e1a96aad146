"""The project in a real browser: drives JupyterLab with Chromium.

    python .ci/browser.py           every step
    python .ci/browser.py NAME...   these steps

A step is a function of a `Lab` in `STEPS`. It opens notebooks or pages, says with `expect` or
`assert` what a reader should see, and takes pictures in both themes. It also fails if a page did
what no page may do: errors in the console, alerts, requests to other machines. Any failure ends
with exit status 1.
"""

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import greenlet
import nbformat
from lab import ROOT, THEMES, Lab
from playwright.sync_api import Locator, Page, expect

if TYPE_CHECKING:
    import pandas as pd

    from sae_analysis.interpreter.evaluation import Quality
    from sae_analysis.interpreter.features import Features

HOSTILE = "</script><img src=x onerror=alert(1)>"
FEATURES = 256  # of the SAE that the explorers show
# Seconds that a step may take; Playwright has no limit for scripts and for closing pages.
LONGEST = 600


# The quickstart


def quickstart(lab: Lab) -> None:
    """The quickstart, as a reader opens it and after all cells have run."""
    lab.open("tutorials/quickstart.ipynb")
    for theme in THEMES:
        lab.screenshot("quickstart-opened", theme)
    lab.run_all()
    expect(lab.page.locator(".jp-OutputArea .sae article").first).to_be_visible()
    expect(lab.page.locator(".jp-OutputArea .prompt table")).to_have_count(1)
    for theme in THEMES:
        lab.screenshot("quickstart", theme)


# The explorers

# A notebook with every explorer over an SAE that it trains; hostile text is in what it reads.
CELLS = {
    "setup": f'''import tempfile
from itertools import islice

from sae_analysis.analysis.labels import compare_labels
from sae_analysis.analysis.sources import LoadedSource
from sae_analysis.analysis.universal import universal_features
from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.explorer.feature_explorer import FeatureExplorer
from sae_analysis.explorer.label_explorer import LabelExplorer
from sae_analysis.explorer.position_explorer import PositionExplorer
from sae_analysis.explorer.prompt_explorer import PromptExplorer
from sae_analysis.explorer.training_explorer import TrainingExplorer
from sae_analysis.extractor.extraction import extract
from sae_analysis.interpreter.features import interpret
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.loaders.prompts import Prompt
from sae_analysis.models.language_model import load_model
from sae_analysis.saes.families import Source
from sae_analysis.trainer.runs import train

HOSTILE = "{HOSTILE}"
model = load_model("pocket")
documents = islice(DocsCorpus(["json", "random", "tqdm"]), 120)
texts = [document.text for document in documents] + [f"{{HOSTILE}} and {{HOSTILE}}"] * 20
store = extract(model, texts, [2], 40_000, tempfile.mkdtemp(), context_length=128)[2]''',
    "training": """curves = TrainingExplorer()
curves""",
    "train": f"""config = SAEConfig(d_model=model.d_model, d_hidden={FEATURES}, target_l0=25)
run = train(store, config, TrainConfig(epochs=6, batch_size=512), watch=curves.watch)
features = interpret(run.sae, model, texts, 2)""",
    "features": "FeatureExplorer(features)",
    "prompt": "PromptExplorer(model, run.sae, features)",
    "positions": """prompts = []
for name in ("len", "print", "zip", HOSTILE):
    prompts.append(Prompt(f"What does `{name}` do?", "code"))
for name in ("rain", "music", "me", HOSTILE):
    prompts.append(Prompt(f"How do you feel about {name}?", "feeling"))
sources = [LoadedSource(Source("pocket", 0, 2), model, run.sae)]
PositionExplorer(model.tokenizer, prompts, universal_features(sources, prompts), features)""",
    "labels": "LabelExplorer(compare_labels(sources, prompts), features)",
    "page": 'FeatureExplorer(features).to_html("explorer_test.html")',
}


def write_explorer_notebook(path: Path) -> None:
    """Writes the notebook of `CELLS`."""
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, path)


def explorers(lab: Lab) -> None:
    """Every explorer in a notebook, searched, clicked and typed into, shows what it should."""
    write_explorer_notebook(lab.notebooks / "explorer_test.ipynb")
    lab.open("explorer_test.ipynb")
    lab.run_all()
    outputs = {name: lab.output(number) for number, name in enumerate(CELLS)}
    # drawn while the next cell ran
    curves = outputs["training"].locator("img[alt^='Training of layer 2: step']")
    expect(curves).to_have_count(1)
    browse_features(outputs["features"])
    search_features(outputs["features"])
    read_prompt(outputs["prompt"])
    move_along_positions(outputs["positions"])
    choose_token(outputs["labels"])
    expect(lab.page.locator(".jp-OutputArea img:not([src^='data:'])")).to_have_count(0)
    for theme in THEMES:
        lab.screenshot("explorers", theme)


def browse_features(output: Locator) -> None:
    """A feature is chosen in the list, by key, by its number, and among the neighbours."""
    heading = output.locator("article h3")
    options = output.get_by_role("listbox")
    expect(heading).to_have_count(1)
    first = heading.inner_text()
    options.locator("option").nth(3).wait_for(state="attached")
    options.select_option(index=3)
    expect(heading).not_to_have_text(first)
    fourth = heading.inner_text()
    # the keyboard goes on, as in every number field: up is one more
    output.get_by_label("row").press("ArrowUp")
    expect(heading).not_to_have_text(fourth)
    output.get_by_role("button", name="previous").click()
    expect(heading).to_have_text(fourth)
    feature = output.get_by_label("feature", exact=True)
    feature.fill("17")
    feature.press("Enter")
    expect(heading).to_contain_text("Feature 17 ")
    open_neighbour(output)


def open_neighbour(output: Locator) -> None:
    """The first neighbour's button opens the feature that the dashboard names first."""
    nearest = output.locator("article dt:text-is('writes like') + dd span").first
    number = nearest.inner_text().split()[0]
    button = output.locator(".widget-hbox button[title^='open feature']").first
    # the buttons come after the dashboard
    expect(button).to_have_attribute("title", f"open feature {number}")
    button.click()
    expect(output.locator("article h3")).to_contain_text(f"Feature {number} ")


def search_features(output: Locator) -> None:
    """A search leaves fewer features in the list."""
    search = output.get_by_placeholder("label, token or number")
    search.fill("json")
    search.press("Enter")
    expect(output.get_by_text(f"of {FEATURES} features")).not_to_contain_text(f"{FEATURES} of")
    expect(output.get_by_role("listbox").locator("option").first).to_be_attached()
    search.fill("")
    search.press("Enter")


def read_prompt(output: Locator) -> None:
    """A prompt that is typed is read, as text and as a chat message."""
    table = output.locator(".prompt table")
    expect(table).to_have_count(1)
    output.get_by_role("textbox").fill(f"A list is {HOSTILE}")
    output.get_by_role("button", name="read").click()
    expect(table.locator("thead")).to_contain_text("onerror")
    output.get_by_role("listbox").select_option(index=0)
    expect(output.locator("article h3")).to_contain_text("Feature")
    expect(output.get_by_label("at", exact=True)).to_have_value("every token")
    output.get_by_label("as a chat message").check()
    expect(table.locator("thead")).to_contain_text("assistant")


def move_along_positions(output: Locator) -> None:
    """The last prompt shows its token types, its hostile text and its features."""
    output.get_by_role("slider").press("End")
    expect(output.locator("mark sub").first).to_have_text("asst")
    expect(output.locator("code").first).to_contain_text("onerror=")
    expect(output.locator("table")).to_have_count(1)


def choose_token(output: Locator) -> None:
    """Another token type gives another plot."""
    plot = output.locator("img")
    expect(output.locator("img[alt^='Volcano plot']")).to_have_count(1)
    before = plot.get_attribute("src")
    output.get_by_label("token").select_option("newline")
    expect(plot).not_to_have_attribute("src", before)


# The page of features


def page(lab: Lab) -> None:
    """The page of features works from disk, without a network.

    The notebook of the step `explorers` writes it.
    """
    written = lab.notebooks / "explorer_test.html"
    assert written.exists(), "run the step `explorers` first: it writes the page"
    file = lab.folder / "features.html"
    shutil.copy(written, file)
    for theme in THEMES:
        check_features_page(lab, file, theme)


def check_features_page(lab: Lab, file: Path, theme: str) -> None:
    """The page of features in one theme."""
    opened = lab.open_offline(file, theme)
    search_page(opened)
    sort_page(opened)
    follow_link(opened)
    # hostile text is on the page, as text
    expect(opened.locator("main")).to_contain_text("onerror")
    expect(opened.locator("img")).to_have_count(0)
    lab.screenshot("features", theme, opened)


def search_page(opened: Page) -> None:
    """A search leaves fewer rows; a click on one shows its feature."""
    heading = opened.locator("article:not([hidden]) h3")
    second_row = opened.locator("tbody tr:not([hidden])").nth(1)
    expect(heading).to_have_count(1)
    opened.get_by_label("search").fill("json")
    status = opened.get_by_role("status")
    expect(status).not_to_contain_text(f"{FEATURES} of {FEATURES}")
    second_row.click()
    expect(heading).to_contain_text(f"Feature {second_row.get_attribute('data-id')} ")
    opened.get_by_label("search").fill("")
    opened.keyboard.press("Escape")


def sort_page(opened: Page) -> None:
    """Rows are sorted by a click on a column's name; the key j goes to the next row."""
    rows = opened.locator("tbody tr:not([hidden])")
    opened.get_by_role("button", name="density").click()
    expect(opened.locator("th[aria-sort=descending]")).to_have_text("density")
    rows.first.click()
    opened.keyboard.press("j")
    heading = opened.locator("article:not([hidden]) h3")
    expect(heading).to_contain_text(f"Feature {rows.nth(1).get_attribute('data-id')}")


def follow_link(opened: Page) -> None:
    """A link leads to another feature, whose further examples can be unfolded."""
    article = opened.locator("article:not([hidden])")
    link = article.locator("dd a").first
    number = link.inner_text()
    link.click()
    expect(article.locator("h3")).to_contain_text(f"Feature {number} ")
    article.locator("summary").click()
    expect(article.locator(".decile").first).to_be_visible()


# The report


def report(lab: Lab) -> None:
    """The report opens from a file, without a network, and hostile tokens in it are text."""
    file = lab.folder / "report.html"
    write_report(file)
    for theme in THEMES:
        opened = lab.open_offline(file, theme)
        expect(opened).to_have_title(HOSTILE)
        expect(opened.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        expect(opened.locator(".context .peak")).to_contain_text(HOSTILE)
        expect(opened.locator("img:not([src^='data:']), script")).to_have_count(0)
        lab.screenshot("report", theme, opened)


def write_report(path: Path) -> None:
    """Writes the report of an SAE whose labels, tokens and sources are hostile."""
    import pandas as pd

    from sae_analysis.explorer.report import report_html

    checklist = [
        {"target": "dead", "measured": "0%", "met": True},
        {"target": HOSTILE, "measured": "80%", "met": False},
    ]
    page_html = report_html(
        title=HOSTILE,
        lead=HOSTILE,
        checklist=pd.DataFrame(checklist),
        quality=report_quality(),
        history=report_history(),
        features=report_features(),
        universal=report_universal(),
        prompts=4,
    )
    path.write_text(page_html, encoding="utf-8")


def report_quality() -> "Quality":
    """Figures as of an SAE with 100 latents, measured on 500 tokens."""
    import torch

    from sae_analysis.interpreter.evaluation import Quality

    return Quality(
        figures={"l0": 75.0, "fvu": 0.1},
        everywhere={"l0": 76.0, "fvu": 0.2},
        density=torch.linspace(0, 1, 100) ** 4,
        l0_per_token=torch.linspace(40, 110, 500),
    )


def report_history() -> dict[str, Any]:
    """The history of a training run of 100 steps."""
    steps = list(range(1, 101))
    curve = {
        "step": steps,
        "l0": [75 + 60 * 0.97**step for step in steps],
        "recon_loss": [0.1 + 0.9 * 0.98**step for step in steps],
    }
    return {"curve": curve, "recon_loss": [0.15], "l0": [75], "fvu": [0.12]}


def report_features() -> "Features":
    """One feature, with one example."""
    from sae_analysis.interpreter.features import Features

    example = {
        "text": "",
        "position": 3,
        "activation": 2.0,
        "document": HOSTILE,
        "tokens": ["a ", HOSTILE, "\n"],
        "values": [0.0, 2.0, 0.5],
        "firing": 1,
    }
    entry = {
        "feature_id": 0,
        "active": True,
        "label": HOSTILE,
        "density": 0.01,
        "score": 3.2,
        "top_activation": 2.0,
        "firing_tokens": [[HOSTILE, 4, 9.0]],
        "top_examples": [example],
    }
    return Features([entry], lambda feature: {}, {"tokens": 10})


def report_universal() -> "pd.DataFrame":
    """A table of universal features with one row."""
    import pandas as pd

    row = {
        "feature_id": 0,
        "activation_mean": 1.0,
        "activation_max": 2.0,
        "activation_min": 0.0,
        "num_prompts": 3,
        "link": "",
        "source": HOSTILE,
        "token": "asst",
    }
    return pd.DataFrame([row])


# Running the steps

STEPS = {"quickstart": quickstart, "explorers": explorers, "page": page, "report": report}


def stopper(lab: Lab) -> Callable[[int, types.FrameType], None]:
    """A handler of signals that ends the server and this process, at once.

    The browser's driver may be in the middle of anything, and ends by itself. An alarm says where
    it rang.
    """
    ours = greenlet.getcurrent()  # Playwright waits in another

    def stop(number: int, frame: types.FrameType) -> None:
        if number == signal.SIGALRM:
            stack = "".join(traceback.format_stack(ours.gr_frame or frame))
            print(f"FAILED: a step took more than {LONGEST} s, here:\n{stack}", flush=True)
        lab.end_server()
        os._exit(128 + number)

    return stop


def last_own_line(error: Exception) -> str:
    """The place in this project, not in Playwright, where an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "playwright" not in frame.filename]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}"


def run_step(name: str, step: Callable[[Lab], None], lab: Lab) -> bool:
    """Whether a step passes; prints its outcome."""
    begin = time.time()
    signal.alarm(LONGEST)
    try:
        step(lab)
        lab.check()
    except Exception as error:
        print(
            f"FAILED {name} ({time.time() - begin:.0f} s): {type(error).__name__}: {error}\n"
            f"at {last_own_line(error)}\n{lab.evidence(name)}",
            flush=True,
        )
        return False
    print(f"ok     {name} ({time.time() - begin:.0f} s)", flush=True)
    return True


def run_steps(names: list[str], screenshots: Path) -> int:
    """Starts a JupyterLab and runs the steps; how many failed."""
    screenshots.mkdir(parents=True, exist_ok=True)
    lab = Lab(screenshots)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stopper(lab))
    outcomes = []
    try:
        for name, step in {"start": Lab.start, **{name: STEPS[name] for name in names}}.items():
            outcomes.append(run_step(name, step, lab))
            if not lab.browser:
                break
            lab.close()
    finally:
        lab.stop()
    failed = outcomes.count(False)
    print(f"\n{outcomes.count(True)} passed, {failed} failed")
    return failed


def main() -> int:
    """Runs the steps that are named, or all; 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"steps to run, of {', '.join(STEPS)} (default: all)",
    )
    parser.add_argument(
        "--screenshots",
        type=Path,
        default=ROOT / "browser_screenshots",
        help="the folder for pictures (default: browser_screenshots)",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(STEPS)
    if unknown:
        parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(STEPS)}")
    return int(run_steps(arguments.names or list(STEPS), arguments.screenshots) > 0)


if __name__ == "__main__":
    sys.exit(main())
