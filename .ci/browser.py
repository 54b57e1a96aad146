"""The project in a real browser: `python .ci/browser.py [NAME...]` drives JupyterLab with Chromium; any failure ends with status 1.

A step is a function of a `Lab` in `STEPS`. It opens notebooks or pages, says with `expect` or `assert` what a reader should see, and takes pictures in
both themes. After each step, whatever no page may do (errors in the console, alerts, requests to other machines) fails it as well.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import types
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import greenlet
import nbformat
from playwright.sync_api import Error, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
HOSTILE = "</script><img src=x onerror=alert(1)>"
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # every cell is in the page, or it could not be found or pictured
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# what has failed, once the kernel is idle and every cell with code in it has run or one has failed;
# nothing before
OUTCOME = """() => {
    const {content, sessionContext} = jupyterapp.shell.currentWidget, cells = [...content.model.cells], written = cells.filter(c => c.type === 'code' && c.sharedModel.source.trim());
    const plain = error => error.traceback.join('\\n').replace(/\\x1b\\[[0-9;]*m/g, '');
    const failures = written.flatMap(c => c.outputs.toJSON().filter(o => o.output_type === 'error').map(o => `cell ${cells.indexOf(c)}: ${plain(o)}`));
    return sessionContext.session?.kernel?.status === 'idle' && (failures.length || written.every(c => c.executionCount)) ? {failures} : null;
}"""
# how high the window must be for the whole notebook, which is scrolled to its top
HEIGHT = """() => {
    const scrolled = document.querySelector('.jp-WindowedPanel-outer'), last = [...document.querySelectorAll('.jp-Notebook .jp-Cell')].at(-1);
    scrolled.scrollTop = 0;
    return Math.ceil(last.getBoundingClientRect().bottom) + 60;
}"""


class Lab:
    """A JupyterLab of its own over a copy of nbs/, in a temporary folder, and the browser that
    looks at it; who starts one stops it.
    """

    def __init__(self, screenshots: Path):
        self.screenshots, self.troubles, self.page, self.server, self.playwright, self.browser = (
            screenshots,
            [],
            None,
            None,
            None,
            None,
        )
        self.folder = Path(tempfile.mkdtemp(prefix="sae_browser_"))
        self.notebooks = self.folder / "nbs"

    def start(self) -> None:
        """Starts the server with a home, settings and a token of its own, waits until it answers,
        and starts the browser.
        """
        shutil.copytree(
            ROOT / "nbs", self.notebooks, ignore=shutil.ignore_patterns(".ipynb_checkpoints")
        )
        for name, values in SETTINGS.items():
            path = (
                self.folder
                / "config"
                / "lab"
                / "user-settings"
                / "@jupyterlab"
                / f"{name}.jupyterlab-settings"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        folders = {
            f"JUPYTER_{kind}_DIR": str(self.folder / kind.lower())
            for kind in ("CONFIG", "DATA", "RUNTIME")
        }
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "IPYTHON", "XDG_")) and name != "MPLBACKEND"
        }
        environment |= {
            **folders,
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        command = [
            BIN / "jupyter-lab",
            "--no-browser",
            "--allow-root",
            "--expose-app-in-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.notebooks}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        with (self.folder / "jupyter.log").open("w") as log:
            self.server = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.time() + 60
        while not self.answers():
            assert self.server.poll() is None and time.time() < until, "JupyterLab does not answer"
            time.sleep(0.1)
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"], env=environment
        )

    def answers(self) -> bool:
        try:
            return bool(self.ask("status"))
        except OSError:
            return False

    def ask(self, path: str, method: str = "GET") -> Any:
        """What the server answers, past any proxy."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=10
        ) as answer:
            return json.loads(answer.read() or "null")

    def stop(self) -> None:
        """Ends the browser and the server."""
        try:
            if self.browser:
                self.browser.close()
            if self.playwright:
                self.playwright.stop()
        finally:
            self.end_server()

    def end_server(self) -> None:
        """Ends the server, which ends its kernels before it goes, and removes the temporary folder."""
        if self.server:
            self.server.terminate()
            try:
                self.server.wait(10)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_page(self, allowed: tuple[str, ...], **options: Any) -> Page:
        """A page that notes as trouble what no page may do.

        `allowed` are the beginnings of addresses that it may ask for.
        """
        page, troubles = (
            self.browser.new_context(viewport={"width": 1280, "height": 900}, **options).new_page(),
            self.troubles,
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(allowed)
                else troubles.append(f"asked for {request.url}")
            ),
        )
        page.on(
            "console",
            lambda message: (
                troubles.append(f"console: {message.text}") if message.type == "error" else None
            ),
        )
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.on(
            "dialog",
            lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        )
        return page

    def open(self, notebook: str) -> Page:
        """Opens a notebook of the copy in JupyterLab; returns when its kernel is ready."""
        self.close()
        self.page = self.new_page((self.url, "data:", "blob:"))
        self.page.goto(f"{self.url}/doc/tree/{notebook}?reset&token={self.token}")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"
            " === 'idle'",
            timeout=60_000,
        )
        return self.page

    def close(self) -> None:
        """Closes every page, ends every kernel, and forgets the troubles."""
        for context in self.browser.contexts:
            context.close()
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")
        self.page, self.troubles = None, []

    def pages(self) -> list[Page]:
        return [page for context in self.browser.contexts for page in context.pages]

    def open_offline(self, page_html: Path, theme: str = "light") -> Page:
        """Opens a file in a browser without a network:

        whatever it asks for beside itself is trouble.
        """
        page = self.new_page(("file:", "data:"), offline=True, color_scheme=theme)
        page.goto(page_html.resolve().as_uri(), wait_until="networkidle")
        self.check()
        return page

    def check(self) -> None:
        """No open page did what none may do, once all have settled."""
        for page in self.pages():
            page.wait_for_function("() => [...document.images].every(image => image.complete)")
            # a busy machine may leave a page without an idle moment for ever
            page.evaluate(
                "() => new Promise(done => requestIdleCallback(() => setTimeout(done), {timeout:"
                " 2000}))"
            )
        assert not self.troubles, "\n".join(self.troubles)

    def run_all(self, seconds: float = 300) -> None:
        """Runs all cells; returns when each has run without an error."""
        self.page.evaluate(
            "async () => { await jupyterapp.commands.execute('notebook:clear-all-cell-outputs');"
            " jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        failures = self.page.wait_for_function(OUTCOME, timeout=1000 * seconds).json_value()[
            "failures"
        ]
        assert not failures, "\n".join(failures)

    def cell(self, number: int) -> Locator:
        """A cell by its place in the notebook, counted from 0, text cells too."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def output(self, number: int) -> Locator:
        return self.cell(number).locator(".jp-OutputArea")

    def screenshot(self, name: str, theme: str, page: Page | None = None) -> None:
        """A picture of the whole notebook in a theme, or of a whole other page."""
        path = self.screenshots / f"{name}-{theme}.png"
        if page:
            page.screenshot(path=path, full_page=True)
            return
        self.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme]
        )
        self.page.wait_for_function(
            "theme => document.body.dataset.jpThemeName === theme &&"
            " !document.getElementById('jupyterlab-splash')",
            arg=THEMES[theme],
        )
        before = self.page.viewport_size
        # Chromium draws no higher
        self.page.set_viewport_size(
            {**before, "height": max(before["height"], min(self.page.evaluate(HEIGHT), 16_000))}
        )
        self.page.wait_for_function(
            "() => document.querySelector('.jp-WindowedPanel-outer').scrollTop === 0 &&"
            " [...document.images].every(i => i.complete)"
        )
        self.page.screenshot(path=path)
        self.page.set_viewport_size(before)

    def evidence(self, name: str) -> str:
        """Keeps pictures of the open pages and the server's log beside the screenshots.

        Where they are, and how the log ends.
        """
        kept, log = [self.screenshots / f"FAILED-{name}.log"], self.folder / "jupyter.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        kept[0].write_text(text, encoding="utf-8")
        for number, page in enumerate(self.pages() if self.browser else []):
            with suppress(Error):
                page.screenshot(path=self.screenshots / f"FAILED-{name}-{number}.png")
                kept.append(self.screenshots / f"FAILED-{name}-{number}.png")
        return "\n".join(
            [
                "the server's log ends with:",
                *text.splitlines()[-8:],
                *(f"see {path}" for path in kept),
            ]
        )


def chromium() -> str:
    """The browser that is driven."""
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    assert found, (
        "no Chromium is here; `make test-browser` installs it as root on Debian, elsewhere install"
        " chromium or google-chrome"
    )
    return found


NOTEBOOK = """import tempfile
from itertools import islice
import torch
from sae_analysis.analysis.sources import LoadedSource
from sae_analysis.analysis.universal import universal_features
from sae_analysis.core.config import SAEConfig, TrainConfig
from sae_analysis.explorer.feature_explorer import FeatureExplorer
from sae_analysis.explorer.label_explorer import LabelExplorer
from sae_analysis.explorer.position_explorer import PositionExplorer
from sae_analysis.explorer.prompt_explorer import PromptExplorer
from sae_analysis.explorer.training_explorer import TrainingExplorer
from sae_analysis.extractor.extraction import extract
from sae_analysis.saes.families import Source
from sae_analysis.interpreter.features import interpret
from sae_analysis.analysis.labels import compare_labels
from sae_analysis.loaders.docs import DocsCorpus
from sae_analysis.loaders.prompts import Prompt
from sae_analysis.models.language_model import load_model
from sae_analysis.trainer.runs import train
HOSTILE = "</script><img src=x onerror=alert(1)>"
model, folder = load_model("pocket"), tempfile.mkdtemp()
texts = [document.text for document in islice(DocsCorpus(["json", "random", "tqdm"]), 120)] + [f"{HOSTILE} and {HOSTILE}"]*20
store = extract(model, texts, [2], 40_000, folder, context_length=128)[2]
%%
curves = TrainingExplorer()
curves
%%
run = train(store, SAEConfig(d_model=model.d_model, d_hidden=256, target_l0=25), TrainConfig(epochs=6, batch_size=512), watch=curves.watch)
features = interpret(run.sae, model, texts, 2)
%%
FeatureExplorer(features)
%%
PromptExplorer(model, run.sae, features)
%%
prompts = [Prompt(f"What does `{name}` do?", "code") for name in ("len", "print", "zip", HOSTILE)] + [Prompt(f"How do you feel about {name}?", "feeling") for name in ("rain", "music", "me", HOSTILE)]
sources = [LoadedSource(Source("pocket", 0, 2), model, run.sae)]
PositionExplorer(model.tokenizer, prompts, universal_features(sources, prompts), features)
%%
LabelExplorer(compare_labels(sources, prompts), features)
%%
FeatureExplorer(features).to_html("explorer_test.html")"""


def explorer_notebook(path: Path) -> None:
    """Writes a notebook with every explorer, over an SAE that it trains.

    Hostile text is among what it is trained on.
    """
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK.split("\n%%\n")]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={
                "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
            },
        ),
        path,
    )


def report_page(path: Path) -> None:
    """Writes the report of an SAE one of whose tokens is hostile."""
    import pandas as pd
    import torch

    from sae_analysis.explorer.report import report_html
    from sae_analysis.interpreter.evaluation import Quality
    from sae_analysis.interpreter.features import Features

    steps = list(range(1, 101))
    history = {
        "curve": {
            "step": steps,
            "l0": [75 + 60 * 0.97**s for s in steps],
            "recon_loss": [0.1 + 0.9 * 0.98**s for s in steps],
        },
        "recon_loss": [0.15],
        "l0": [75],
        "fvu": [0.12],
    }
    quality = Quality(
        {"l0": 75.0, "fvu": 0.1},
        {"l0": 76.0, "fvu": 0.2},
        torch.linspace(0, 1, 100) ** 4,
        torch.linspace(40, 110, 500),
    )
    example = {
        "text": "",
        "position": 3,
        "activation": 2.0,
        "document": HOSTILE,
        "tokens": ["a ", HOSTILE, "\n"],
        "values": [0.0, 2.0, 0.5],
        "firing": 1,
    }
    card = {
        "feature_id": 0,
        "active": True,
        "label": HOSTILE,
        "density": 0.01,
        "score": 3.2,
        "top_activation": 2.0,
        "firing_tokens": [[HOSTILE, 4, 9.0]],
        "top_examples": [example],
    }
    universal = pd.DataFrame(
        [
            {
                "feature_id": 0,
                "activation_mean": 1.0,
                "activation_max": 2.0,
                "activation_min": 0.0,
                "num_prompts": 3,
                "link": "",
                "source": HOSTILE,
                "token": "asst",
            }
        ]
    )
    targets = pd.DataFrame(
        [
            {"target": "dead", "measured": "0%", "met": True},
            {"target": HOSTILE, "measured": "80%", "met": False},
        ]
    )
    path.write_text(
        report_html(
            HOSTILE,
            HOSTILE,
            targets,
            quality,
            history,
            Features([card], lambda i: {}, {"tokens": 10}),
            universal,
            4,
        ),
        encoding="utf-8",
    )


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


def explorers(lab: Lab) -> None:
    """Every explorer in a notebook:

    it is searched, clicked and typed into, and shows what it should.
    """
    explorer_notebook(lab.notebooks / "explorer_test.ipynb")
    lab.open("explorer_test.ipynb")
    lab.run_all()
    training, features, prompt, positions, labels = (
        lab.output(number) for number in (1, 3, 4, 5, 6)
    )
    # drawn while the next cell ran
    expect(training.locator("img[alt^='Training of layer 2: step']")).to_have_count(1)
    _features(lab, features)
    _prompt(prompt)
    positions.get_by_role("slider").press("End")
    expect(positions.locator("mark sub").first).to_have_text("asst")
    expect(positions.locator("code").first).to_contain_text("onerror=")
    expect(positions.locator("table")).to_have_count(1)
    expect(labels.locator("img[alt^='Volcano plot']")).to_have_count(1)
    before = labels.locator("img").get_attribute("src")
    labels.get_by_label("token").select_option("newline")
    expect(labels.locator("img")).not_to_have_attribute("src", before)
    expect(lab.page.locator(".jp-OutputArea img:not([src^='data:'])")).to_have_count(0)
    for theme in THEMES:
        lab.screenshot("explorers", theme)


def _features(lab: Lab, output: Locator) -> None:
    heading, listed = output.locator("article h3"), output.get_by_role("listbox")
    expect(heading).to_have_count(1)
    first = heading.inner_text()
    listed.locator("option").nth(3).wait_for(state="attached")
    listed.select_option(index=3)
    expect(heading).not_to_have_text(first)
    fourth = heading.inner_text()
    # the keyboard goes on, as in every number field: up is one more
    output.get_by_label("row").press("ArrowUp")
    expect(heading).not_to_have_text(fourth)
    output.get_by_role("button", name="previous").click()
    expect(heading).to_have_text(fourth)
    jump = output.get_by_label("feature", exact=True)
    jump.fill("17")
    jump.press("Enter")
    expect(heading).to_contain_text("Feature 17 ")
    neighbour = output.locator(".widget-hbox button[title^='open feature']").first
    number = (
        output.locator("article dt:text-is('writes like') + dd span").first.inner_text().split()[0]
    )
    # the buttons come after the dashboard
    expect(neighbour).to_have_attribute("title", f"open feature {number}")
    neighbour.click()
    expect(heading).to_contain_text(f"Feature {number} ")
    search = output.get_by_placeholder("label, token or number")
    search.fill("json")
    search.press("Enter")
    expect(output.get_by_text("of 256 features")).not_to_contain_text("256 of")
    expect(listed.locator("option").first).to_be_attached()
    search.fill("")
    search.press("Enter")


def _prompt(output: Locator) -> None:
    text, table = output.get_by_role("textbox"), output.locator(".prompt table")
    expect(table).to_have_count(1)
    text.fill(f"A list is {HOSTILE}")
    output.get_by_role("button", name="read").click()
    expect(table.locator("thead")).to_contain_text("onerror")
    output.get_by_role("listbox").select_option(index=0)
    expect(output.locator("article h3")).to_contain_text("Feature")
    expect(output.get_by_label("at", exact=True)).to_have_value("every token")
    output.get_by_label("as a chat message").check()
    expect(table.locator("thead")).to_contain_text("assistant")


def page(lab: Lab) -> None:
    """The page of features that the explorers' notebook has written works from disk, without a
    network: search, order, keys, links.
    """
    assert (lab.notebooks / "explorer_test.html").exists(), (
        "run the step `explorers` first: it writes the page"
    )
    shutil.copy(lab.notebooks / "explorer_test.html", lab.folder / "features.html")
    for theme in THEMES:
        page = lab.open_offline(lab.folder / "features.html", theme)
        heading, rows = (
            page.locator("article:not([hidden]) h3"),
            page.locator("tbody tr:not([hidden])"),
        )
        expect(heading).to_have_count(1)
        page.get_by_label("search").fill("json")
        expect(page.get_by_role("status")).not_to_contain_text("256 of 256")
        rows.nth(1).click()
        expect(heading).to_contain_text(f"Feature {rows.nth(1).get_attribute('data-id')} ")
        page.get_by_label("search").fill("")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="density").click()
        expect(page.locator("th[aria-sort=descending]")).to_have_text("density")
        rows.first.click()
        page.keyboard.press("j")
        expect(heading).to_contain_text(f"Feature {rows.nth(1).get_attribute('data-id')}")
        link = page.locator("article:not([hidden]) dd a").first
        number = link.inner_text()
        link.click()
        expect(heading).to_contain_text(f"Feature {number} ")
        page.locator("article:not([hidden]) summary").click()
        expect(page.locator("article:not([hidden]) .decile").first).to_be_visible()
        # hostile text is on the page, as text
        expect(page.locator("main")).to_contain_text("onerror")
        expect(page.locator("img")).to_have_count(0)
        lab.screenshot("features", theme, page)


def report(lab: Lab) -> None:
    """The report opens from a file, without a network, and hostile tokens in it are text."""
    report_page(lab.folder / "report.html")
    for theme in THEMES:
        page = lab.open_offline(lab.folder / "report.html", theme)
        expect(page).to_have_title(HOSTILE)
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        expect(page.locator(".context .peak")).to_contain_text(HOSTILE)
        expect(page.locator("img:not([src^='data:']), script")).to_have_count(0)
        lab.screenshot("report", theme, page)


# seconds that a step may take; Playwright has no limit of its own for scripts and for closing pages
LONGEST = 600


def stopper(lab: Lab) -> Callable[[int, types.FrameType], None]:
    """A handler of signals that ends the server and this process, at once:

    the browser's driver may be in the middle of anything, and ends by itself. An alarm says where
    it rang.
    """
    ours = greenlet.getcurrent()  # Playwright waits in another

    def stop(number: int, frame: types.FrameType) -> None:
        if number == signal.SIGALRM:
            print(
                f"FAILED: a step took more than {LONGEST} s,"
                f" here:\n{''.join(traceback.format_stack(ours.gr_frame or frame))}",
                flush=True,
            )
        lab.end_server()
        os._exit(128 + number)

    return stop


STEPS = {"quickstart": quickstart, "explorers": explorers, "page": page, "report": report}


def main(names: list[str], screenshots: Path) -> int:
    """Starts a JupyterLab and runs the steps; how many failed."""
    screenshots.mkdir(parents=True, exist_ok=True)
    passed, failed, lab = 0, 0, Lab(screenshots)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stopper(lab))
    try:
        for name, step in {"start": Lab.start, **{name: STEPS[name] for name in names}}.items():
            start = time.time()
            signal.alarm(LONGEST)
            try:
                step(lab)
                lab.check()
                passed += 1
                print(f"ok     {name} ({time.time() - start:.0f} s)", flush=True)
            except Exception as error:
                failed += 1
                line = [
                    frame
                    for frame in traceback.extract_tb(error.__traceback__)
                    if "playwright" not in frame.filename
                ][-1]
                print(
                    f"FAILED {name} ({time.time() - start:.0f} s): {type(error).__name__}:"
                    f" {error}\nat {line.filename}:{line.lineno}:"
                    f" {line.line}\n{lab.evidence(name)}",
                    flush=True,
                )
            if not lab.browser:
                break
            lab.close()
    finally:
        lab.stop()
    print(f"\n{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
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
    if unknown := set(arguments.names) - set(STEPS):
        parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(STEPS)}")
    sys.exit(bool(main(arguments.names or list(STEPS), arguments.screenshots)))
