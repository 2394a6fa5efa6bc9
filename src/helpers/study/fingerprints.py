"""Fingerprints: what code and which definitions a chapter reaches, and a hash of all that decides what it writes.

The text of helpers decides nothing, the definitions that they carry out do. Only of code that draws a hash is kept, so that
figures which are older than it can be told.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from helpers.definitions import DEFINITIONS, DRAWING, Definition, lineage
from helpers.study.chapters import READS_ALL_RUNS, READS_EARLIER_SEEDS, needs
from helpers.study.parameters import read_notebook, source

PACKAGE = Path(__file__).parents[1]
SESSION = "study.session"  # it imports what a chapter asks it for, and what a chapter asks for its own cells name
# The packages whose versions numbers depend on; the lock pins them.
NUMERIC = (
    *("torch", "transformers", "tokenizers", "peft", "bitsandbytes"),
    *("numpy", "scipy", "scikit-learn", "pandas", "rouge-score"),
)


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """The bare code of a helper module (no docstrings, no comments) and the helpers it imports."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, ast.ImportFrom)], []) if name == SESSION else tree
    imports = tuple(sorted(_imports(top) - {name}))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[:1] = []
    return ast.dump(tree), imports


def _file(module: str) -> Path:
    """The file of a helper module by its dotted name in the package."""
    return PACKAGE / f"{module.replace('.', '/')}.py"


def _imports(tree: ast.AST) -> set[str]:
    """The helper modules that the code imports, at its top or inside a function, by dotted name in the package."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:  # what is imported from it may be a module or a name in one
            words |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            words |= {alias.name for alias in node.names}
    inside = {word.removeprefix("helpers.") for word in words if word.startswith("helpers.")}
    found = {word for word in inside if _file(word).is_file()}
    return found | _through_wings(tree, {word for word in inside if (PACKAGE / word).is_dir()})


def _through_wings(tree: ast.AST, wings: set[str]) -> set[str]:
    """The modules that code names through a wing which it imports whole, such as `figures.tables.show`, and its style."""
    named = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in wings
    }
    styled = {"figures.drawing.theme"} if "figures.style" in named else set()
    opened = {SESSION} if "study.open" in named else set()
    return {name for name in named | styled | opened if _file(name).is_file()}


def code_cells(notebook: Path) -> list[str]:
    """The code cells of a notebook in order; a line magic counts as text."""
    return [source(cell) for cell in read_notebook(notebook)["cells"] if cell["cell_type"] == "code"]


def asking(notebook: Path) -> list[str]:
    """The code cells but for the parameters' own, whose values are what counts, wherever they come from."""
    cells = [cell for cell in read_notebook(notebook)["cells"] if cell["cell_type"] == "code"]
    return [source(cell) for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]


def imported_helpers(cells: Iterable[str]) -> list[str]:
    """The helper modules that the cells import, with all that these import in turn."""
    text = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "", cell) for cell in cells)
    try:
        todo = _imports(ast.parse(text))
    except SyntaxError:  # the run will say so; until then every module counts
        todo = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    done: set[str] = set()
    while todo:
        name = todo.pop()
        done.add(name)
        todo |= set(_module(name)[1]) - done
    return sorted(done)


def definitions(cells: Iterable[str]) -> list[Definition]:
    """The definitions that the cells' numbers rest on: those whose code is among the modules that they reach."""
    reached = set(imported_helpers(cells))
    return [one for one in DEFINITIONS.values() if reached & set(one.code)]


def code_hash(modules: Iterable[str]) -> str:
    """A hash of the bare code of helper modules: no part of any key, it tells a reader that code moved."""
    return hashlib.sha256("\0".join(_module(name)[0] for name in sorted(modules)).encode()).hexdigest()[:16]


def marks(notebook: Path) -> dict[str, Any]:
    """What the status of a chapter bears beside its fingerprint: its definitions, and a hash of the code that draws it."""
    cells = code_cells(notebook)
    drawing = {name for name in imported_helpers(cells) if name.startswith(f"{DRAWING}.")}
    return {"definitions": list(lineage(definitions(cells))), "drawn": code_hash(drawing)}


def pinned(lock: Path) -> dict[str, list[str]]:
    """The versions at which the lock pins the numeric packages (one, or one for each kind of machine)."""
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    return {name: re.findall(rf"(?im)^{name.replace('-', '[-_.]')}==([^\s;]+)", text) for name in NUMERIC}


def fingerprint(notebook: Path, parameters: Mapping[str, Any], before: Iterable[str] = ()) -> str:
    """A hash of all that decides what a chapter writes; `before` are the fingerprints of the chapters it needs."""
    cells = code_cells(notebook)
    packages = pinned(notebook.parent.parent / "requirements.lock")
    parts = [asking(notebook), dict(parameters), lineage(definitions(cells)), packages, list(before)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- of a whole run


def of_run(
    notebooks: Mapping[str, Path], parameters: Mapping[str, Mapping[str, Any]], others: Mapping[str, str] | None = None,
    lower: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, str]:  # fmt: skip
    """The fingerprint of every chapter of a run, in order; `others`, what other runs hold, counts where a chapter reads them.

    lower: by chapter, its fingerprints in the runs of the same model with lower seeds, for chapters that read those.
    """
    found: dict[str, str] = {}
    for name, path in notebooks.items():
        before = [found[need] for need in needs(name, notebooks)]
        if name[:2] in READS_EARLIER_SEEDS:
            before += sorted((lower or {}).get(name, ()))
        if name[:2] in READS_ALL_RUNS:
            before += [f"{run} {holds}" for run, holds in sorted((others or {}).items())]
        found[name] = fingerprint(path, parameters[name], before)
    return found


def holds(prints: Mapping[str, str]) -> str:
    """A hash of what a run holds, from the fingerprints of those of its chapters that other runs may read."""
    return hashlib.sha256(json.dumps({n: p for n, p in prints.items() if n[:2] not in READS_ALL_RUNS}).encode()).hexdigest()
