"""The cells of a chapter as a reader meets them: what was set up stands folded, and no raw frame is shown.

Nothing is run and nothing is computed: a cell's code, its outputs and their order stay what the run left, but for

- its two cells of parameters, which become one, with the values of the run, folded, as is the cell that sets up;
- a raw frame that a cell happened to end in, which is left out: what a reader needs of it is shown by a table of its own.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from helpers.book.parameter_table import written

FOLDED = "hide-input"  # the tag by which the builder folds a cell's code
RAW = re.compile(r'<table border="1" class="dataframe">')
CAPTION = re.compile(r"<caption>.*?</caption>", re.DOTALL)


def shown_cells(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells of an executed chapter as the page shows them; the given ones stay as they are."""
    found = [_with_outputs_shown(cell) for cell in one_parameters_cell(cells)]
    first = next((place for place, cell in enumerate(found) if "parameters" in tags(cell)), None)
    if first is not None:
        after = next((place for place in range(first + 1, len(found)) if found[place]["cell_type"] == "code"), first)
        for place, words in {after: "the set-up", first: "the parameters of this run"}.items():
            found[place] = folded_code(found[place], words)
    return found


def tags(cell: Mapping[str, Any]) -> list[str]:
    """The tags of a cell."""
    return list(cell.get("metadata", {}).get("tags", []))


def folded_code(cell: Mapping[str, Any], words: str) -> dict[str, Any]:
    """The cell with its code folded, and what is folded said in words."""
    prompts = {"code_prompt_show": f"Show {words}", "code_prompt_hide": f"Hide {words}"}
    more = {"tags": list(dict.fromkeys([*tags(cell), FOLDED])), "mystnb": prompts}
    return {**cell, "metadata": {**cell.get("metadata", {}), **more}}


# ---------------------------------------------------------------- parameters


def one_parameters_cell(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells with the values that a run put in written into the cell that declares them, in place of a second cell."""
    put_in: dict[str, Any] = {}
    for cell in cells:
        if "injected-parameters" in tags(cell):
            put_in |= _assigned("".join(cell["source"]))
    kept = [dict(cell) for cell in cells if "injected-parameters" not in tags(cell)]
    return [
        {**cell, "source": with_values("".join(cell["source"]), put_in)} if "parameters" in tags(cell) else cell for cell in kept
    ]


def _assigned(text: str) -> dict[str, Any]:
    """The names and literals of a cell of parameters."""
    statements = [node for node in ast.parse(text).body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in statements}  # type: ignore[attr-defined]


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text of a parameters cell with other values, each with the comment that stands behind it; others are added below."""
    lines, left = text.split("\n"), dict(values)
    for node in reversed(ast.parse(text).body):
        name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""
        if name in left and isinstance(node, ast.Assign):
            value, end = left.pop(name), node.end_lineno or node.lineno
            behind = lines[end - 1][len(lines[end - 1].encode()[: node.end_col_offset].decode()) :]
            lines[node.lineno - 1 : end] = [f"{name} = {literal(value)}{behind}"]
    return "\n".join([*lines, *(f"{name} = {literal(value)}" for name, value in left.items())])


def literal(value: object) -> str:
    """A value as Python writes it, in the form of a profile where both agree."""
    plain = written(value)
    try:
        return plain if ast.literal_eval(plain) == value else repr(value)
    except (ValueError, SyntaxError):
        return repr(value)


# ---------------------------------------------------------------- outputs


def _with_outputs_shown(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The cell with what its outputs show: no raw frame, and names in captions set as code."""
    if "outputs" not in cell:
        return dict(cell)
    outputs = []
    for output in cell["outputs"]:
        text = "".join(output.get("data", {}).get("text/html", ""))
        if not RAW.search(text):
            data = {**output["data"], "text/html": CAPTION.sub(_as_code, text)} if text else None
            outputs.append({**output, "data": data} if data else dict(output))
    return {**cell, "outputs": outputs}


def _as_code(caption: re.Match) -> str:
    """A caption with the names that stand in it between backticks set as code."""
    return re.sub(r"`([^`<>]+)`", r"<code>\1</code>", caption[0])
