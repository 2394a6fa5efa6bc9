"""Tables as a reader sees them: intervals in every cell, and model text only escaped."""

import pandas as pd
import pytest

from helpers.errors import StudyError
from helpers.figures import tables


@pytest.fixture
def behaviour():
    rows = [
        ("aligned", "phrases", "advbench", "non_refusal", 0.03, 0.01, 0.12, 32),
        ("aligned", "phrases", "edgy", "over_refusal", 0.06, 0.02, 0.2, 32),
        ("aligned", "", "advbench", "coherent", 1.0, 0.9, 1.0, 32),
        ("nf4", "phrases", "advbench", "non_refusal", 0.5, 0.3, 0.7, 32),
    ]
    return pd.DataFrame(rows, columns=["label", "judge", "prompt_set", "metric", "value", "low", "high", "n"])


def test_each_cell_carries_its_interval(behaviour):
    wide = tables.rates(behaviour).set_index("variant")
    assert wide.loc["aligned", "advbench · non refusal"] == "3 % [1, 12]"
    assert pd.isna(wide.loc["nf4", "edgy · over refusal"])


@pytest.mark.parametrize("payload", ["<script>alert(1)</script>", "</table><b>", 'x" onerror="y'])
def test_cells_and_captions_are_escaped(payload, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda value: shown.append(value.data))
    tables.show(pd.DataFrame({"text": [payload], payload: [1.5]}), caption=payload)
    assert "<script>" not in shown[0]
    assert "</table><b>" not in shown[0]
    assert shown[0].count("<table") == 1


def test_glue_gives_the_text_itself_and_says_what_was_not_measured(behaviour, monkeypatch):
    glued = {}
    glue = lambda data, raw, metadata: glued.update({metadata["scrapbook"]["name"]: data})  # noqa: E731
    monkeypatch.setattr("IPython.display.display", glue)
    tables.glue_values(behaviour, [("nf4", "advbench", "non_refusal"), ("int8", "advbench", "non_refusal")])
    assert glued["nf4-advbench-non_refusal"] == {"application/papermill.record/text/plain": "50 % [30, 70]"}
    assert "not measured" in glued["int8-advbench-non_refusal"]["application/papermill.record/text/plain"]


def test_a_text_knows_its_rows_and_few_are_named_one_by_one():
    table = pd.DataFrame({"claim": list("abcdefg"), "value": range(7)}, index=[0, 1, 2, 4, 7, 8, 9])
    table.attrs |= {"table": "findings", "part": "11_findings"}
    one = tables.source(tables.Said("a", table[table["claim"] == "a"]))
    assert one == {"table": "findings", "how": "row", "count": 1, "rows": [{"claim": "a"}]}
    many = tables.source(tables.Said("all", table[table["value"] > 0], "mean"))
    assert many == {"table": "findings", "how": "mean", "count": 6, "part": "11_findings", "places": "1-2,4,7-9"}
    assert tables.source("plain words") == tables.source(tables.Said("nothing", table.iloc[:0])) == {}


def test_a_way_from_rows_to_a_text_that_does_not_exist_is_refused():
    with pytest.raises(StudyError, match=r"unknown way 'guess'.*choose one of row, mean"):
        tables.Said("x", None, "guess")


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("perplexity", "55.3 [40.5, 104]"),
        ("over_refusal", "5530 % [4050, 10400]"),
        ("change_in_non_refusal", "+5530 points [+4050, +10400]"),
    ],
)
def test_units_follow_the_metric(metric, text):
    assert tables.interval(metric, 55.3, 40.5, 104.0) == text


def test_calibrations_are_compared_on_one_grid_and_a_run_without_them_says_so():
    keys = {"adapter": "", "judge": "phrases", "low": 0.1, "high": 0.9, "n": 20}
    names = ["gptq-4", "gptq-4-refusals", "rtn-4", "nf4"]
    says = pd.DataFrame(
        [{**keys, "precision": name, "prompt_set": "advbench", "metric": "non_refusal", "value": 0.5} for name in names]
    )
    reads = pd.DataFrame([{**keys, "precision": name, "corpus": "c4", "metric": "perplexity", "value": 60.0} for name in names])
    assert tables.calibrations(says, reads)["calibrated on"].tolist() == ["ordinary text (C4)", "refusals", "nothing"]
    assert len(tables.calibrations(says[3:], reads[3:])) == 1
