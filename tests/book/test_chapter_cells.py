"""A chapter's cells as a reader meets them: one folded cell of parameters with the values of the run, and no raw frame."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest

from helpers.book import chapter_cells
from helpers.study import chapters

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "results" / "cpu" / "embedded" / "seed-0" / "executed"
DECLARED = 'profile = "quick"  # which folder\nnames = [\n    "a",\n]  # some names, ä\nshare = 0.5  # a share'


def cell(source: str, *tags: str, kind: str = "code", html: str = "") -> dict:
    outputs = [{"output_type": "execute_result", "data": {"text/html": html, "text/plain": "x"}, "metadata": {}}] if html else []
    return {"id": "x", "cell_type": kind, "source": source, "metadata": {"tags": list(tags)}, "outputs": outputs}


def chapter(*more: dict) -> list[dict]:
    put_in = 'profile = "cpu"\nnames = ["b", "c"]\nshare = 1e-05\nlean = [{"from_seed": 1}]'
    return [cell("# 1. A title", kind="markdown"), cell(DECLARED, "parameters"), cell(put_in, "injected-parameters"),
            cell("run = 1"), cell("print(run)"), *more]  # fmt: skip


def test_two_cells_of_parameters_become_one_with_the_values_of_the_run_and_the_comments():
    given = chapter()
    before = json.dumps(given)
    found = chapter_cells.shown_cells(given)
    assert len(found) == len(given) - 1
    assert found[1]["source"].splitlines() == [
        'profile = "cpu"  # which folder',
        'names = ["b", "c"]  # some names, ä',
        "share = 0.00001  # a share",
        'lean = [{"from_seed": 1}]',
    ]
    assert json.dumps(given) == before


def test_parameters_and_set_up_are_folded_and_nothing_else():
    found = chapter_cells.shown_cells(chapter())
    assert ["hide-input" in chapter_cells.tags(one) for one in found] == [False, True, True, False]
    assert [one["metadata"].get("mystnb", {}).get("code_prompt_show") for one in found[1:3]] == [
        "Show the parameters of this run",
        "Show the set-up",
    ]


def test_a_raw_frame_is_left_out_and_a_table_stays_with_its_names_as_code():
    frame = pd.DataFrame({"a": [1]})
    table = frame.to_html(border=0, classes="results").replace("<thead>", "<caption>The table `findings`: a</caption><thead>")
    raw, kept = cell("t", html=frame.to_html(border=1)), cell("t", html=table)
    found = chapter_cells.shown_cells(chapter(raw, kept))
    assert found[-2]["outputs"] == []
    assert "<caption>The table <code>findings</code>: a</caption>" in found[-1]["outputs"][0]["data"]["text/html"]


@pytest.mark.parametrize("name", chapters.discover(ROOT))
def test_every_committed_chapter_keeps_its_values_and_its_other_cells(name):
    executed = json.loads((RUN / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = chapter_cells.shown_cells(executed)
    assert sum("parameters" in chapter_cells.tags(one) for one in found) == 1
    assert not [one for one in found if "injected-parameters" in chapter_cells.tags(one)]
    rest = [one for one in executed if not {"parameters", "injected-parameters"} & set(chapter_cells.tags(one))]
    assert ["".join(one["source"]) for one in found if "parameters" not in chapter_cells.tags(one)] == [
        "".join(one["source"]) for one in rest
    ]
    (shown,) = (one for one in found if "parameters" in chapter_cells.tags(one))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(shown["source"]).body}
    (put_in,) = (one for one in executed if "injected-parameters" in chapter_cells.tags(one))
    assert values.items() >= chapter_cells._assigned("".join(put_in["source"])).items()
