"""The helpers' files and imports, and the drawing of the wings in ARCHITECTURE.md (`make architecture`)."""

import ast
from functools import cache
from pathlib import Path

from helpers import WINGS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "helpers"
PAGE = ROOT / "ARCHITECTURE.md"
OPENING, CLOSING = "```mermaid\n", "```\n"
HELPERS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__init__"
}


@cache
def tree(name: str) -> ast.Module:
    """The syntax tree of a helper module."""
    return ast.parse(HELPERS[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """The helpers that a module imports, at its top or in a function."""
    words: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "helpers":
            words |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            words |= {alias.name for alias in node.names}
    return frozenset({word.removeprefix("helpers.") for word in words} & set(HELPERS))


def wing(name: str) -> str:
    """The wing of a module; empty for the files at the root."""
    return name.partition(".")[0] if "." in name else ""


def arrows() -> list[tuple[str, str]]:
    """Every import of one helper by another, but for the command line, which opens every door."""
    return [(name, other) for name in HELPERS if name != "__main__" for other in sorted(imports(name))]


def between_wings() -> set[tuple[str, str]]:
    """Which wing imports which, the root files left out."""
    return {(wing(a), wing(b)) for a, b in arrows() if wing(a) != wing(b) and wing(b)} - {("", "")}


def drawing() -> str:
    """The wings as a Mermaid graph: an arrow points to what is imported; what follows through another wing is not drawn."""
    pairs = between_wings()
    below: dict[str, set[str]] = {name: set() for name in WINGS}
    for name in WINGS:
        for other in {b for a, b in pairs if a == name}:
            below[name] |= {other, *below[other]}
    kept = [(a, b) for a, b in sorted(pairs) if not any(b in below[c] for a2, c in pairs if a2 == a and c != b)]
    order = {name: place for place, name in enumerate(WINGS)}
    lines = [f"  {a} --> {b}" for a, b in sorted(kept, key=lambda pair: (-order[pair[0]], -order[pair[1]]))]
    return "graph TD\n" + "\n".join(lines) + "\n"


def drawn() -> str:
    """The graph that stands on the page."""
    return PAGE.read_text(encoding="utf-8").partition(OPENING)[2].partition(CLOSING)[0]


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text(encoding="utf-8").replace(drawn(), drawing(), 1), encoding="utf-8")
