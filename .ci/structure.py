"""The order of folders and modules: each imports only what stands above it.

Folders are ordered by `ROOMS`; modules within a folder by the number of their notebook.
"""

import ast
from pathlib import Path

ROOMS = [
    "core",
    "loaders",
    "models",
    "extractor",
    "saes",
    "trainer",
    "interpreter",
    "analysis",
    "explorer",
    "cli",
]
DEVELOPMENT_TOOLS = ["nbdev", "fastcore", "execnb", "ghapi", "jupyterlab"]


def module_numbers(notebooks: Path) -> dict[str, str]:
    """The name of each module's notebook, such as `03_step` for `trainer.step`."""
    numbers = {}
    for path in sorted(notebooks.glob("*/[0-9][0-9]_*.ipynb")):
        numbers[f"{path.parent.name}.{path.stem[3:]}"] = path.stem
    return numbers


def absolute_module(node: ast.ImportFrom, package: str) -> str:
    """What `from ... import` imports from, with relative imports resolved.

    `package` is the package that the importing module lies in, such as `sae_analysis.trainer`.
    """
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported_modules(source: str, package: str) -> list[tuple[int, str]]:
    """(line, module) of every import in a source text, at whatever depth it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute_module(node, package)
            found.append((node.lineno, module))
            # `from ..trainer import step` imports a module too.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def import_problem(importer: str, imported: str, numbers: dict[str, str]) -> str:
    """Why `importer` (such as `trainer.step`) may not import `imported`; empty where it may."""
    first, _, rest = imported.partition(".")
    if first in DEVELOPMENT_TOOLS:
        return f"{imported} is a development tool"
    if first != "sae_analysis" or rest not in numbers:
        return ""
    room, imported_room = importer.split(".")[0], rest.split(".")[0]
    if room != imported_room:
        if ROOMS.index(imported_room) > ROOMS.index(room):
            return f"{imported_room}/ stands below {room}/"
        return ""
    if importer in numbers and numbers[rest] >= numbers[importer]:
        return f"{numbers[rest]} does not come before {numbers[importer]}"
    return ""


def check_structure(package: Path, notebooks: Path) -> list[str]:
    """One line for every forbidden import in the package."""
    numbers = module_numbers(notebooks)
    problems = []
    for path in sorted(package.glob("*/*.py")):
        if path.name.startswith("_"):
            continue
        room = path.parent.name
        if room not in ROOMS:
            problems.append(f"{path}: {room}/ is not one of {', '.join(ROOMS)}")
            continue
        importer = f"{room}.{path.stem}"
        if importer not in numbers:
            problems.append(f"{path}: no notebook exports it")
        source = path.read_text(encoding="utf-8")
        for line, imported in imported_modules(source, f"{package.name}.{room}"):
            problem = import_problem(importer, imported, numbers)
            if problem:
                problems.append(f"{path}:{line}: imports {imported}, but {problem}")
    return sorted(set(problems))
