"""A JupyterLab of its own with a browser that looks at it, for `browser.py`."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Error,
    Locator,
    Page,
    Playwright,
    Request,
    sync_playwright,
)

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # every cell is in the page, or it could not be found or pictured
    "notebook-extension/tracker": {"windowingMode": "none"},
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = {"width": 1280, "height": 900}
MAX_HEIGHT = 16_000  # Chromium draws no higher
START_SECONDS = 60  # that the server, and a notebook's kernel, may take to start

# Scripts that pages run

KERNEL_IS_IDLE = """() => {
    const session = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session;
    return session?.kernel?.status === 'idle';
}"""
RUN_ALL = """async () => {
    await jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
    jupyterapp.commands.execute('notebook:run-all-cells');
}"""
# What has failed, once the kernel is idle and every cell with code in it has run or one has failed;
# null before.
OUTCOME = """() => {
    const {content, sessionContext} = jupyterapp.shell.currentWidget;
    const cells = [...content.model.cells];
    const hasCode = cell => cell.type === 'code' && cell.sharedModel.source.trim();
    const plain = error => error.traceback.join('\\n').replace(/\\x1b\\[[0-9;]*m/g, '');
    const errorsOf = cell => cell.outputs.toJSON().filter(o => o.output_type === 'error');
    const failures = [];
    for (const cell of cells.filter(hasCode))
        for (const error of errorsOf(cell))
            failures.push(`cell ${cells.indexOf(cell)}: ${plain(error)}`);
    const isIdle = sessionContext.session?.kernel?.status === 'idle';
    const isDone = failures.length || cells.filter(hasCode).every(cell => cell.executionCount);
    return isIdle && isDone ? {failures} : null;
}"""
CHANGE_THEME = "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})"
THEME_IS_SHOWN = """theme =>
    document.body.dataset.jpThemeName === theme
    && !document.getElementById('jupyterlab-splash')
"""
# How high the window must be for the whole notebook, which is scrolled to its top.
HEIGHT = """() => {
    const last = [...document.querySelectorAll('.jp-Notebook .jp-Cell')].at(-1);
    document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0;
    return Math.ceil(last.getBoundingClientRect().bottom) + 60;
}"""
NOTEBOOK_IS_DRAWN = """() =>
    document.querySelector('.jp-WindowedPanel-outer').scrollTop === 0
    && [...document.images].every(image => image.complete)
"""
IMAGES_ARE_COMPLETE = "() => [...document.images].every(image => image.complete)"
# A busy machine may leave a page without an idle moment for ever.
WAIT_UNTIL_IDLE = """() => new Promise(
    done => requestIdleCallback(() => setTimeout(done), {timeout: 2000})
)"""


class Lab:
    """A JupyterLab over a copy of nbs/, in a temporary folder, and a browser.

    Whoever starts one stops it. What no page may do is noted in `troubles`: errors in the console,
    alerts, and requests to other machines.
    """

    def __init__(self, screenshots: Path):
        self.screenshots = screenshots
        self.folder = Path(tempfile.mkdtemp(prefix="sae_browser_"))
        self.notebooks = self.folder / "nbs"
        self.log = self.folder / "jupyter.log"
        self.token = secrets.token_hex(16)
        self.url = ""
        self.troubles: list[str] = []
        self.page: Page | None = None  # the notebook that is open
        self.server: subprocess.Popen[bytes] | None = None
        self.playwright: Playwright | None = None
        self.browser: Browser | None = None

    # Starting and stopping

    def start(self) -> None:
        """Starts the server, waits until it answers, and starts the browser."""
        ignored = shutil.ignore_patterns(".ipynb_checkpoints")
        shutil.copytree(ROOT / "nbs", self.notebooks, ignore=ignored)
        self._write_settings()
        environment = self._environment()
        self._start_server(environment)
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox"], env=environment
        )

    def _write_settings(self) -> None:
        """The settings of a JupyterLab that is only looked at."""
        folder = self.folder / "config" / "lab" / "user-settings" / "@jupyterlab"
        for name, values in SETTINGS.items():
            path = folder / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        """The environment, with a home of its own and without anybody's settings of Jupyter."""
        environment = {}
        for name, value in os.environ.items():
            if not name.startswith(("JUPYTER", "IPYTHON", "XDG_")) and name != "MPLBACKEND":
                environment[name] = value
        for kind in ("CONFIG", "DATA", "RUNTIME"):
            environment[f"JUPYTER_{kind}_DIR"] = str(self.folder / kind.lower())
        environment["HOME"] = str(self.folder)
        search_path = [str(ROOT)]
        if os.environ.get("PYTHONPATH"):
            search_path.append(os.environ["PYTHONPATH"])
        environment["PYTHONPATH"] = os.pathsep.join(search_path)
        return environment

    def _start_server(self, environment: dict[str, str]) -> None:
        """Starts the server on a free port and waits until it answers."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
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
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.time() + START_SECONDS
        while not self.answers():
            is_running = self.server.poll() is None
            assert is_running and time.time() < deadline, "JupyterLab does not answer"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self.ask("status"))
        except OSError:
            return False

    def ask(self, path: str, method: str = "GET") -> Any:
        """What the server's API answers, past any proxy."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
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
        """Ends the server, which ends its kernels first, and removes the temporary folder."""
        if self.server:
            self.server.terminate()
            try:
                self.server.wait(10)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Pages

    def new_page(self, allowed: tuple[str, ...], **options: Any) -> Page:
        """A page that notes troubles; `allowed` are the beginnings of addresses it may ask for."""
        page = self.browser.new_context(viewport=WINDOW, **options).new_page()
        # `close` starts a new list, so that what a closed page still does is not noted
        troubles = self.troubles

        def on_request(request: Request) -> None:
            if not request.url.startswith(allowed):
                troubles.append(f"asked for {request.url}")

        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                troubles.append(f"console: {message.text}")

        def on_dialog(dialog: Dialog) -> None:
            troubles.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", on_request)
        page.on("console", on_console)
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.on("dialog", on_dialog)
        return page

    def open(self, notebook: str) -> Page:
        """Opens a notebook of the copy in JupyterLab; returns when its kernel is ready."""
        self.close()
        self.page = self.new_page((self.url, "data:", "blob:"))
        self.page.goto(f"{self.url}/doc/tree/{notebook}?reset&token={self.token}")
        self.page.wait_for_function(KERNEL_IS_IDLE, timeout=1000 * START_SECONDS)
        return self.page

    def open_offline(self, file: Path, theme: str = "light") -> Page:
        """Opens a file in a browser without a network.

        Whatever it asks for beside itself is trouble.
        """
        page = self.new_page(("file:", "data:"), offline=True, color_scheme=theme)
        page.goto(file.resolve().as_uri(), wait_until="networkidle")
        self.check()
        return page

    def close(self) -> None:
        """Closes every page, ends every kernel, and forgets the troubles."""
        for context in self.browser.contexts:
            context.close()
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")
        self.page = None
        self.troubles = []

    def pages(self) -> list[Page]:
        """All open pages."""
        if not self.browser:
            return []
        return [page for context in self.browser.contexts for page in context.pages]

    def check(self) -> None:
        """No open page did what none may do, once all have settled."""
        for page in self.pages():
            page.wait_for_function(IMAGES_ARE_COMPLETE)
            page.evaluate(WAIT_UNTIL_IDLE)
        assert not self.troubles, "\n".join(self.troubles)

    # The notebook that is open

    def run_all(self, seconds: float = 300) -> None:
        """Runs all cells; returns when each has run without an error."""
        self.page.evaluate(RUN_ALL)
        outcome = self.page.wait_for_function(OUTCOME, timeout=1000 * seconds).json_value()
        assert not outcome["failures"], "\n".join(outcome["failures"])

    def cell(self, number: int) -> Locator:
        """A cell by its place in the notebook, counted from 0, text cells too."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def output(self, number: int) -> Locator:
        """The output of a cell."""
        return self.cell(number).locator(".jp-OutputArea")

    # Pictures

    def screenshot(self, name: str, theme: str, page: Page | None = None) -> None:
        """A picture of the whole notebook in a theme, or of a whole other page."""
        path = self.screenshots / f"{name}-{theme}.png"
        if page:
            page.screenshot(path=path, full_page=True)
            return
        self.page.evaluate(CHANGE_THEME, THEMES[theme])
        self.page.wait_for_function(THEME_IS_SHOWN, arg=THEMES[theme])
        before = self.page.viewport_size
        height = min(self.page.evaluate(HEIGHT), MAX_HEIGHT)
        self.page.set_viewport_size({**before, "height": max(before["height"], height)})
        self.page.wait_for_function(NOTEBOOK_IS_DRAWN)
        self.page.screenshot(path=path)
        self.page.set_viewport_size(before)

    def evidence(self, name: str) -> str:
        """Keeps pictures of the open pages and the server's log beside the screenshots.

        Returns where they are, and how the log ends.
        """
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        kept = [self.screenshots / f"FAILED-{name}.log"]
        kept[0].write_text(log, encoding="utf-8")
        for number, page in enumerate(self.pages()):
            path = self.screenshots / f"FAILED-{name}-{number}.png"
            with suppress(Error):
                page.screenshot(path=path)
                kept.append(path)
        lines = ["the server's log ends with:", *log.splitlines()[-8:]]
        return "\n".join([*lines, *(f"see {path}" for path in kept)])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def find_browser() -> str:
    """The path of the browser that is driven."""
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    raise AssertionError(
        "no Chromium is here; `make test-browser` installs it as root on Debian, elsewhere install"
        " chromium or google-chrome"
    )
