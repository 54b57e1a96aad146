"""The check of import order catches forbidden imports."""

import tempfile
from pathlib import Path

from structure import check_structure


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def problems_of(source: str, module: str = "trainer/step") -> list[str]:
    """What the check says of a small package in which one module has the given source."""
    with tempfile.TemporaryDirectory() as folder:
        package, notebooks = Path(folder) / "sae_analysis", Path(folder) / "nbs"
        modules = ["core/00_errors", "trainer/00_split", "trainer/04_step", "trainer/08_trainer"]
        for name in [*modules, "cli/00_command"]:
            write(notebooks / f"{name}.ipynb")
            room, stem = name.split("/")
            write(package / room / f"{stem[3:]}.py")
        write(package / f"{module}.py", source)
        return check_structure(package, notebooks)


def test_structure() -> None:
    allowed = "from ..core.errors import InputError\nfrom .split import split_rows\nimport torch\n"
    assert problems_of(allowed) == []
    forbidden = {
        "from .trainer import Trainer": "08_trainer does not come before 04_step",
        "from . import trainer": "08_trainer does not come before 04_step",
        "from ..cli.command import Parser": "cli/ stands below trainer/",
        "from sae_analysis.cli.command import Parser": "cli/ stands below trainer/",
        "import sae_analysis.cli.command": "cli/ stands below trainer/",
        "def f():\n    from ..cli import command": "cli/ stands below trainer/",
        "from fastcore.all import L": "development tool",
    }
    for source, expected in forbidden.items():
        found = problems_of(source)
        assert found, f"not caught: {source}"
        assert all(expected in problem for problem in found), (source, found)
    assert "not one of" in problems_of("", "attic/things")[0]
    assert "no notebook" in problems_of("", "trainer/orphan")[0]


if __name__ == "__main__":
    test_structure()
    print("1 passed, 0 failed")
