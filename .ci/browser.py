"""The project in a real browser: `python .ci/browser.py [NAME...]` drives JupyterLab with Chromium; any failure ends with status 1.

A step is a function of a `Lab` in `STEPS`. It opens notebooks or pages, says with `expect` or `assert` what a reader should see, and takes pictures in
both themes. After each step, whatever no page may do (errors in the console, alerts, requests to other machines) fails it as well."""
import argparse, json, os, secrets, shutil, signal, socket, subprocess, sys, tempfile, time, traceback, urllib.request
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
HOSTILE = "</script><img src=x onerror=alert(1)>"
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "notebook-extension/tracker": {"windowingMode": "none"}}   # every cell is in the page, or it could not be found or pictured
# what has failed, once the kernel is idle and every cell with code in it has run or one has failed; nothing before
OUTCOME = """() => {
    const {content, sessionContext} = jupyterapp.shell.currentWidget, cells = [...content.model.cells].filter(c => c.type === 'code' && c.sharedModel.source.trim());
    const failures = cells.flatMap(c => c.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`);
    return sessionContext.session?.kernel?.status === 'idle' && (failures.length || cells.every(c => c.executionCount)) ? {failures} : null;
}"""
# how high the window must be for the whole notebook, which is scrolled to its top
HEIGHT = """() => {
    const scrolled = document.querySelector('.jp-WindowedPanel-outer'), last = [...document.querySelectorAll('.jp-Notebook .jp-Cell')].at(-1);
    scrolled.scrollTop = 0;
    return Math.ceil(last.getBoundingClientRect().bottom) + 60;
}"""


class Lab:
    "A JupyterLab of its own over a copy of nbs/, in a temporary folder, and the browser that looks at it; who starts one stops it."
    def __init__(self, screenshots: Path):
        self.screenshots, self.troubles, self.page, self.server, self.playwright, self.browser = screenshots, [], None, None, None, None
        self.folder = Path(tempfile.mkdtemp(prefix="sae_browser_"))
        self.notebooks = self.folder/"nbs"

    def start(self) -> None:
        "Starts the server with a home, settings and a token of its own, waits until it answers, and starts the browser."
        shutil.copytree(ROOT/"nbs", self.notebooks, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for name, values in SETTINGS.items():
            path = self.folder/"config"/"lab"/"user-settings"/"@jupyterlab"/f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        folders = {f"JUPYTER_{kind}_DIR": str(self.folder/kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "XDG_")) and name != "MPLBACKEND"}
        environment |= {**folders, "HOME": str(self.folder), "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
        self.url, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        command = [BIN/"jupyter-lab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
                   f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.notebooks}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                   "--MappingKernelManager.cull_idle_timeout=5", "--MappingKernelManager.cull_interval=5"]
        with (self.folder/"jupyter.log").open("w") as log: self.server = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        until = time.time() + 60
        while not self.answers():
            assert self.server.poll() is None and time.time() < until, "JupyterLab does not answer"
            time.sleep(0.1)
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"], env=environment)

    def answers(self) -> bool:
        request = urllib.request.Request(f"{self.url}/api/status", headers={"Authorization": f"token {self.token}"})
        try: return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).status == 200
        except OSError: return False

    def stop(self) -> None:
        "Ends the browser and the server, and removes the temporary folder."
        try:
            if self.browser: self.browser.close()
            if self.playwright: self.playwright.stop()
        finally:
            if self.server:
                self.server.terminate()   # it ends its kernels before it goes
                try: self.server.wait(10)
                except subprocess.TimeoutExpired: self.server.kill(); self.server.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def new_page(self, allowed: tuple[str, ...], **options: Any) -> Page:
        "A page that notes as trouble what no page may do; `allowed` are the beginnings of addresses that it may ask for."
        page = self.browser.new_context(viewport={"width": 1280, "height": 900}, **options).new_page()
        page.on("request", lambda request: None if request.url.startswith(allowed) else self.troubles.append(f"asked for {request.url}"))
        page.on("console", lambda message: self.troubles.append(f"console: {message.text}") if message.type == "error" else None)
        page.on("pageerror", lambda error: self.troubles.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (self.troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    def open(self, notebook: str) -> Page:
        "Opens a notebook of the copy in JupyterLab; returns when its kernel is ready."
        self.close()
        self.page = self.new_page((self.url, "data:", "blob:"))
        self.page.goto(f"{self.url}/doc/tree/{notebook}?reset&token={self.token}")
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)
        return self.page

    def close(self) -> None:
        "Closes every page; the server ends a kernel that nobody looks at any more."
        for context in self.browser.contexts: context.close()
        self.page = None

    def open_offline(self, page_html: Path, theme: str = "light") -> Page:
        "Opens a file in a browser without a network: whatever it asks for beside itself is trouble."
        page = self.new_page(("file:", "data:"), offline=True, color_scheme=theme)
        page.goto(page_html.resolve().as_uri())
        self.check()
        return page

    def check(self) -> None:
        "No page did what none may do."
        troubles, self.troubles = self.troubles, []
        assert not troubles, "\n".join(troubles)

    def run_all(self, seconds: float = 300) -> None:
        "Runs all cells; returns when each has run without an error."
        self.page.evaluate("async () => { await jupyterapp.commands.execute('notebook:clear-all-cell-outputs'); jupyterapp.commands.execute('notebook:run-all-cells'); }")
        failures = self.page.wait_for_function(OUTCOME, timeout=1000*seconds).json_value()["failures"]
        assert not failures, "\n".join(failures)

    def cell(self, number: int) -> Locator:
        "A cell by its place in the notebook, counted from 0, text cells too."
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def output(self, number: int) -> Locator: return self.cell(number).locator(".jp-OutputArea")

    def screenshot(self, name: str, theme: str, page: Page | None = None) -> None:
        "A picture of the whole notebook in a theme, or of a whole other page."
        path = self.screenshots/f"{name}-{theme}.png"
        if page: page.screenshot(path=path, full_page=True); return
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme])
        self.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=THEMES[theme])
        before = self.page.viewport_size
        self.page.set_viewport_size({**before, "height": max(before["height"], min(self.page.evaluate(HEIGHT), 16_000))})   # Chromium draws no higher
        self.page.wait_for_function("() => document.querySelector('.jp-WindowedPanel-outer').scrollTop === 0 && [...document.images].every(i => i.complete)")
        self.page.screenshot(path=path)
        self.page.set_viewport_size(before)

    def evidence(self, name: str) -> str:
        "Keeps pictures of the open pages and the server's log beside the screenshots; where they are, and how the log ends."
        kept, log = [], self.folder/"jupyter.log"
        for number, page in enumerate(page for context in (self.browser.contexts if self.browser else []) for page in context.pages):
            kept.append(self.screenshots/f"FAILED-{name}-{number}.png")
            page.screenshot(path=kept[-1])
        text = log.read_text(errors="replace") if log.exists() else ""
        kept.append(self.screenshots/f"FAILED-{name}.log")
        kept[-1].write_text(text, encoding="utf-8")
        return "\n".join(["the log ends with:", text[-2000:], *(f"see {path}" for path in kept)])


def chromium() -> str:
    "The browser that is driven."
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium is here; `make test-browser` installs it as root on Debian, elsewhere install chromium or google-chrome"
    return found


def explorer_notebook(path: Path) -> None:
    "Writes a notebook with widgets: what is typed goes to the kernel, and what the kernel makes of it comes back."
    widgets = """import html
from ipywidgets import HTML, Button, Text, VBox

typed, button, shown = Text(description="token"), Button(description="show"), HTML()
button.on_click(lambda _: setattr(shown, "value", f"the kernel read <code>{html.escape(typed.value)}</code>"))
VBox([typed, button, shown])"""
    cells = [nbformat.v4.new_markdown_cell("# Widgets"), nbformat.v4.new_code_cell(widgets)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), path)


def report_page(path: Path) -> None:
    "Writes the report of an SAE one of whose tokens is hostile."
    import pandas as pd, torch
    from sae_analysis.evaluation import Quality
    from sae_analysis.explorer import report_html
    from sae_analysis.interpreter import Features
    steps = list(range(1, 101))
    history = {"curve": {"step": steps, "l0": [75 + 60*0.97**s for s in steps], "recon_loss": [0.1 + 0.9*0.98**s for s in steps]}, "recon_loss": [0.15], "l0": [75], "fvu": [0.12]}
    quality = Quality({"l0": 75.0, "fvu": 0.1}, {"l0": 76.0, "fvu": 0.2}, torch.linspace(0, 1, 100)**4, torch.linspace(40, 110, 500))
    example = {"text": "", "position": 3, "activation": 2.0, "document": HOSTILE, "tokens": ["a ", HOSTILE, "\n"], "values": [0.0, 2.0, 0.5], "firing": 1}
    card = {"feature_id": 0, "active": True, "label": HOSTILE, "density": 0.01, "score": 3.2, "top_activation": 2.0, "firing_tokens": [[HOSTILE, 4, 9.0]], "top_examples": [example]}
    rows = pd.DataFrame([{"feature_id": 0, "label": HOSTILE, "score": 3.2, "density": 0.01, "num_activations": 40, "dead": False}])
    universal = pd.DataFrame([{"feature_id": 0, "activation_mean": 1.0, "activation_max": 2.0, "activation_min": 0.0, "num_prompts": 3, "link": "", "source": HOSTILE, "token": "asst"}])
    targets = pd.DataFrame([{"target": "dead", "measured": "0%", "met": True}, {"target": HOSTILE, "measured": "80%", "met": False}])
    path.write_text(report_html(HOSTILE, HOSTILE, targets, quality, history, Features(rows, [card], {"tokens": 10}), universal, 4), encoding="utf-8")


def quickstart(lab: Lab) -> None:
    "The quickstart, as a reader opens it and after all cells have run."
    lab.open("tutorials/quickstart.ipynb")
    for theme in THEMES: lab.screenshot("quickstart-opened", theme)
    lab.run_all()
    expect(lab.page.locator(".jp-OutputArea .sae article")).to_have_count(3)
    for theme in THEMES: lab.screenshot("quickstart", theme)


def explorer(lab: Lab) -> None:
    "Widgets answer, and what is typed into them stays text."
    explorer_notebook(lab.notebooks/"explorer_test.ipynb")
    lab.open("explorer_test.ipynb")
    lab.run_all()
    lab.output(1).get_by_role("textbox").fill(HOSTILE)
    lab.output(1).get_by_role("button", name="show").click()
    expect(lab.output(1).locator("code")).to_have_text(HOSTILE)
    expect(lab.output(1).locator("img")).to_have_count(0)
    for theme in THEMES: lab.screenshot("explorer", theme)


def report(lab: Lab) -> None:
    "The report opens from a file, without a network, and hostile tokens in it are text."
    report_page(lab.folder/"report.html")
    for theme in THEMES:
        page = lab.open_offline(lab.folder/"report.html", theme)
        expect(page).to_have_title(HOSTILE)
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        expect(page.locator(".context .peak")).to_have_text(HOSTILE)
        expect(page.locator("img:not([src^='data:']), script")).to_have_count(0)
        lab.screenshot("report", theme, page)


STEPS = {"quickstart": quickstart, "explorer": explorer, "report": report}


def main(names: list[str], screenshots: Path) -> int:
    "Starts a JupyterLab and runs the steps; how many failed."
    screenshots.mkdir(parents=True, exist_ok=True)
    passed, failed, lab = 0, 0, Lab(screenshots)
    try:
        for name, step in {"start": Lab.start, **{name: STEPS[name] for name in names}}.items():
            start = time.time()
            try: step(lab); lab.check(); passed += 1; print(f"ok     {name} ({time.time() - start:.0f} s)", flush=True)
            except Exception: failed += 1; print(f"FAILED {name} ({time.time() - start:.0f} s)\n{traceback.format_exc()}\n{lab.evidence(name)}", flush=True)
            if not lab.browser: break
            lab.close()
    finally: lab.stop()
    print(f"\n{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"steps to run, of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--screenshots", type=Path, default=ROOT/"browser_screenshots", help="the folder for pictures (default: browser_screenshots)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(STEPS): parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(STEPS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # so that the server ends as well
    sys.exit(bool(main(arguments.names or list(STEPS), arguments.screenshots)))
