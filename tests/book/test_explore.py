"""Explore: its numbers are those of the tables, its page escapes what could end it, and its script says what Python says."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.tiers import mostly_slow

from helpers import results
from helpers.book import claim_pages, explore, explore_data, pages
from helpers.book.explore_data import _bands, _finite
from helpers.cache import plain
from helpers.errors import StudyError
from helpers.figures import tables as tables_for_people
from helpers.monitors import frozen
from helpers.stats.intervals import Estimate, rate_interval, wilson
from helpers.study import findings
from helpers.study.claims import CLAIMS, SEEDS
from helpers.updates import names
from helpers.updates.names import Variant

ROOT = Path(__file__).parents[2]
SCRIPT, STYLE = (ROOT / "book" / "_static" / f"explore.{kind}" for kind in ("js", "css"))
NODE = shutil.which("node")
NEEDS_NODE = pytest.mark.skipif(NODE is None, reason="node is not installed: the script of the page Explore is not run")
ALIGNED = Variant("tiny", 0)
NF4 = replace(ALIGNED, precision="nf4")
EVIL = '</script><img src=x onerror="alert(1)">```<!--'
LORA = replace(ALIGNED, adapter="lora-dialogue-harm10", trained_on="bf16", serving="attached")
WILD = replace(LORA, serving=f"attached{EVIL}")
MONITOR = ("toxicity", "logistic-mean", 2, 0.5)
EDGES = 10 * (np.arange(6) - 2.0) / 3 + 0.123456  # the third is the frozen threshold
COUNTS = {  # harmless and flagged texts by bin
    ALIGNED: ([9, 6, 4, 1, 0, 0], [0, 2, 3, 5, 6, 4]),
    NF4: ([0, 9, 6, 4, 1, 0], [0, 0, 2, 3, 5, 10]),
    WILD: ([0, 0, 2, 9, 5, 4], [0, 0, 0, 2, 3, 15]),
}
DROPS = {NF4: 0.01, WILD: 0.2}  # of AUROC: the second is no case of a broken threshold
SINGULAR = np.array([2.0, 1.5, 1.0, 0.5, 0.25, 0.2, 0.1, 0.05])  # of the planted V, 8 x 12


def rows(variant: Variant, name: str, found: list[tuple]) -> pd.DataFrame:
    return names.keyed(variant, pd.DataFrame(found, columns=[*results.OWN[name], *results.VALUES]))


def histograms() -> pd.DataFrame:
    tables = []
    for variant, sides in COUNTS.items():
        found = []
        for side, counts in zip(("harmless", "flagged"), sides, strict=True):
            for i, edge in enumerate(EDGES):
                for metric, k in (("share", counts[i]), ("above", sum(counts[i:]))):
                    e = wilson(k, 20)
                    found.append((*MONITOR, side, edge, metric, e.value, e.low, e.high, e.n))
        tables.append(rows(variant, "histograms", found))
    return pd.concat(tables)


def projection() -> pd.DataFrame:
    def at(share: float, few: bool) -> list[tuple]:
        sets = ("advbench/validation", "dialogue/validation") if few else ("advbench", "dialogue")
        n = (16, 4) if few else (32, 16)
        changed = int(10 * share)
        return [("", changed, sets[0], "non_refusal", 0.5 - share / 2, 0.0, 0.9, n[0]),
                ("", changed, sets[1], "nll", 3 - share, 1.0, 6.0, n[1])]  # fmt: skip

    tables = [rows(ALIGNED, "projection", at(0, True) + at(0, False)), rows(LORA, "projection", at(0, True) + at(0, False))]
    for name in ("zero", "safelora"):
        tables += [rows(replace(LORA, restoration=name, strength=s), "projection", at(s, True) + (at(s, False) if s == 1 else []))
                   for s in (0.5, 1.0)]  # fmt: skip
        tables.append(rows(replace(LORA, restoration=name), "projection", [("m.q_proj", 1, "", "score", 0.2, 0.2, 0.2, 1)]))
    return pd.concat(tables)


def subspaces() -> pd.DataFrame:
    energy, norm, found = np.cumsum(SINGULAR**2) / (SINGULAR**2).sum(), math.sqrt((SINGULAR**2).sum()), []
    for module in ("model.layers.0.q_proj", "model.layers.1.q_proj"):
        values = [
            ("bf16", "", "norm", norm),
            ("bf16", "", "top_value", SINGULAR[0]),
            *(("bf16", k, "energy", energy[int(k) - 1]) for k in "24"),
        ]
        for source, edge in (("nf4-mixed", 0.9), ("nf4-both", 0.3), ("nf4-both x16", 0.4)):
            values += [(source, "", "noise_edge", edge), (source, "", "above_edge", 4.0)]
            values += [(source, k, metric, 0.7) for k in "24" for metric in ("overlap", "excess_predicted")]
        found += [(source, module, k, metric, v, v, v, 96) for source, k, metric, v in values]
        found += [("nf4-both", module, k, "overlap_null", int(k) / 8, int(k) / 8 - 0.1, int(k) / 8 + 0.1, 96) for k in "24"]
    found += [("nf4-both", "all", k, "overlap", 0.7, 0.5, 0.8, 2) for k in "24"]
    return rows(ALIGNED, "subspaces", found)


def triage() -> pd.DataFrame:
    found = [(name, split, budget, "recall", value * budget, value * budget / 2, min(1, 2 * value * budget), 40)
             for split in ("family", "monitor and family") for budget in (0.1, 0.2, 0.3)
             for name, value in (("ridge, free", 2.5), ("random", 1.0))]  # fmt: skip
    return rows(ALIGNED, "triage", found)


def judged() -> pd.DataFrame:
    numbers = {"M1": (0.01, 0.005, 0.012), "M4": (0.01, -0.02, 0.04), "N2": (0.0, -0.02, 0.03), "S2": (-0.2, -0.5, -0.1)}
    found = [(name, CLAIMS[name].source, CLAIMS[name].statement, *e, 90, 3, CLAIMS[name].literature, "inconclusive", "05", "")
             for name, e in numbers.items()]  # fmt: skip
    open_ = ("M2", "", "", np.nan, np.nan, np.nan, 0, 0, "", "not run", "05", "not run")
    return pd.DataFrame([*found, open_], columns=findings.COLUMNS)


def write(root: Path, without: tuple[str, ...] = ()) -> Path:
    """A run with planted tables under `root`; its folder, relative to that."""
    run = results.Run("cpu", "tiny", 0, root / "results" / "cpu" / "tiny" / "seed-0")
    drops = [rows(v, "staleness", [(*MONITOR, "auroc_drop", d, d, d, 40)]) for v, d in DROPS.items()]
    cuts = rows(ALIGNED, "monitors", [(*MONITOR, "threshold_5", EDGES[2], EDGES[2], EDGES[2], 20)])
    tables = {"histograms": histograms(), "projection": projection(), "subspaces": subspaces(), "triage": triage(),
              "staleness": pd.concat(drops), "monitors": cuts}  # fmt: skip
    for name, table in tables.items():
        if name not in without:
            results.write_table(run, "99_planted", name, table)
    if "findings" not in without:
        judged().to_parquet(root / "results" / "cpu" / "findings.parquet")
    return run.folder.relative_to(root)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("explore")
    return root, write(root)


@pytest.fixture(scope="module")
def found(place) -> dict:
    return json.loads(json.dumps(explore_data.data(*place), allow_nan=False))


@pytest.fixture(scope="module")
def page(place) -> str:
    return explore.explore_page(*place)


def numbers_in(value: object) -> list:
    if isinstance(value, dict):
        return [x for part in value.values() for x in numbers_in(part)]
    if isinstance(value, list):
        return [x for part in value for x in numbers_in(part)]
    return [value] if isinstance(value, int | float) else []


# ---------------------------------------------------------------- the numbers


def test_every_figure_has_its_numbers_and_all_are_finite(found):
    assert list(found) == list(explore.EXPLORABLES)
    for name, figure in found.items():
        assert "missing" not in figure, name
        assert all(math.isfinite(x) for x in numbers_in(figure)), name
        assert figure["default"], name


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float64("nan")])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(StudyError, match="leave out what could not be measured"):
        plain({"a": [1.0, bad]}, number=_finite)


def test_bars_and_rates_are_the_planted_ones(found):
    figure = found["threshold"]
    (monitor,) = figure["monitors"]
    assert [v["family"] for v in figure["variants"]] == ["quantization", "LoRA"]
    assert (monitor["frozen"], monitor["cut"]) == (2, EDGES[2])  # as it stands in the table
    assert monitor["before"]["harmless"]["count"] == COUNTS[ALIGNED][0]
    assert monitor["after"][1]["flagged"]["count"] == COUNTS[WILD][1]
    for variant, bars in ((ALIGNED, monitor["before"]), (NF4, monitor["after"][0])):
        for side, counts in zip(("harmless", "flagged"), COUNTS[variant], strict=True):
            for edge in range(1, 6):
                e = wilson(sum(counts[edge:]), 20)
                assert explore.percent(*explore.flagged(bars, side, edge)) == tables_for_people.percent(e.value, e.low, e.high)


def test_the_first_view_of_thresholds_is_the_case_whose_ranking_held(found):
    figure = found["threshold"]  # the other variant moved more, and lost its AUROC as well
    assert figure["variants"][figure["default"]["variant"]]["name"] == "nf4"


def test_curves_begin_at_the_update_as_it_was_trained(found):
    figure = found["projection"]
    (update,) = figure["updates"]
    assert update["name"] == "lora-dialogue-harm10 on bf16"
    assert [curve["name"] for curve in update["restorations"]] == ["SafeLoRA", "same modules removed"]
    points = update["restorations"][0]["points"]
    assert [point["changed"] for point in points] == [0, 5, 10]
    assert [point["non_refusal"][0] for point in points] == [0.5, 0.25, 0]
    assert [bool(point["full"]) for point in points] == [True, False, True]
    assert points[2]["full"]["nll"][3] == 16
    assert figure["aligned"]["non_refusal"][3] == 32


def test_bands_of_singular_values_keep_the_energy_of_v(found):
    module = found["subspace"]["modules"][0]
    assert module["size"] == 8
    assert module["bands"][0] == [1, 1, 2]
    assert [band[:2] for band in module["bands"]] == [[1, 1], [2, 2], [3, 4], [5, 8]]
    for first, last, value in module["bands"]:
        assert value == pytest.approx(math.sqrt((SINGULAR[first - 1 : last] ** 2).mean()), rel=1e-3)
    assert [source["dose"] for source in module["sources"]] == [1, 16, 1]
    assert found["subspace"]["sources"] == ["nf4-both", "nf4-both x16", "nf4-mixed"]
    assert found["subspace"]["medians"] == [[[0.7, 0.5, 0.8, 2]] * 2, [None, None], [None, None]]
    assert found["subspace"]["default"] == {"module": 1, "source": 0, "k": 0}


def test_a_band_holds_nothing_less_than_nothing():
    assert _bands(1.0, 1.0, {2: 1.0 - 1e-12}, 4)[1][2] == 0.0


def test_budgets_begin_with_chance_and_ask_the_hardest_first(found):
    figure = found["budget"]
    assert [split["budgets"] for split in figure["splits"]] == [[0.1, 0.2, 0.3]] * 2
    assert [order["name"] for order in figure["splits"][1]["orders"]] == ["random", "ridge, free"]
    assert figure["splits"][1]["orders"][1]["recall"][1] == [0.5, 0.25, 1]
    assert figure["default"] == {"split": 1, "budget": 1}


def test_claims_that_were_not_run_have_no_slider_and_the_set_bound_is_on_it(found):
    claims = {claim["claim"]: claim for claim in found["bound"]["claims"]}
    assert set(claims) == {"M1", "M4", "N2", "S2"}
    for claim in claims.values():
        assert claim["least"] <= 0 <= claim["most"]
        assert claim["n"] == 90
        assert claim["low"] <= claim["estimate"] <= claim["high"]
    reach = {name: [c["own"] + c[end] * c["step"] for end in ("least", "most")] for name, c in claims.items()}
    assert reach["M4"][0] < -0.02
    assert reach["M4"][1] > 0.04
    assert reach["N2"][0] >= 0  # a margin is no less than nothing
    assert reach["S2"][0] >= -1  # and points no more than all


# ---------------------------------------------------------------- what is missing


@mostly_slow("the whole page for each table", "threshold-histograms", "bound-findings")
@pytest.mark.parametrize(("name", "table"), [("threshold", "histograms"), ("projection", "projection"), ("subspace", "subspaces"),
                                             ("budget", "triage"), ("bound", "findings")])  # fmt: skip
def test_a_run_without_a_table_says_so_and_shows_the_rest(tmp_path, name, table):
    folder = write(tmp_path, without=(table,))
    figures = explore_data.data(tmp_path, folder)
    assert [other for other, figure in figures.items() if "missing" in figure] == [name]
    assert f"`{table}`" in figures[name]["missing"]
    assert "make study PROFILE=cpu" in figures[name]["missing"]
    text = explore.explore_page(tmp_path, folder)
    assert figures[name]["missing"] in text
    assert f'id="explore-{name}"' not in text
    assert text.count("<section ") == len(figures) - 1


# ---------------------------------------------------------------- the page


class Reader(HTMLParser):
    """The tags of a page, the content of its scripts, and the text of its cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.cells, self.inside = [], {}, [], ("", "")
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = (tag, dict(attrs).get("id", ""))

    def handle_data(self, data):
        if self.inside[0] == "script":
            self.scripts[self.inside[1]] = self.scripts.get(self.inside[1], "") + data
        elif self.inside[0] in ("td", "th", "caption"):
            self.cells.append(data)

    def handle_endtag(self, tag):
        self.inside = ("", "")


def blocks(page: str) -> dict[str, str]:
    """The raw HTML of each figure."""
    return {
        re.search(r'data-explorable="(\w+)"', block)[1]: block for block in re.findall(r"(?ms)^```\{raw\} html\n(.*?)^```$", page)
    }


def test_the_page_holds_each_figure_once_under_its_heading(page):
    assert re.findall(r"(?m)^## (.*)$", page) == [figure.title for figure in explore.EXPLORABLES.values()]
    assert list(blocks(page)) == list(explore.EXPLORABLES)
    assert len(page.encode()) < 300_000


def test_planted_markup_stays_text(page, found):
    raw = Reader("".join(blocks(page).values()))
    assert {tag for tag, _ in raw.tags} <= {"section", "script", "div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert all(attrs.get("type") == "application/json" for tag, attrs in raw.tags if tag == "script")
    assert not [name for _, attrs in raw.tags for name in attrs if name.startswith(("on", "style"))]
    assert {name: json.loads(raw.scripts[f"explore-{name}-data"]) for name in found} == found
    assert not re.search(
        "[<>&`]", "".join(raw.scripts.values())
    )  # nothing that ends a script, opens a comment or closes the fence
    assert EVIL in found["threshold"]["variants"][1]["name"]  # it is there, as text
    assert EVIL not in page


@pytest.mark.parametrize("name", list(explore.EXPLORABLES))
def test_the_table_of_the_first_view_is_escaped(name, found):
    figure = json.loads(json.dumps(found[name]).replace("nf4", "<b>").replace("SafeLoRA", "<b>").replace("random", "<b>"))
    assert "<b>" not in explore._table(*explore.EXPLORABLES[name].view(figure))


@pytest.mark.parametrize("page", ["README.md", "book/explore.md"])
def test_prose_counts_the_figures_as_they_are(page):
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    found = re.findall(r"(\w+) (?:small )?figures (?:to move|can be moved) by hand", (ROOT / page).read_text(encoding="utf-8"))
    assert {word.lower() for word in found} == {words[len(explore.EXPLORABLES)]}


def test_the_source_of_the_page_has_its_placeholder_once():
    text = (ROOT / "book" / "explore.md").read_text(encoding="utf-8")
    assert text.splitlines().count(explore.PLACEHOLDER) == 1
    listed = re.findall(r"(?m)^\| ([^|]+?) \| `", text)
    assert listed == [figure.title for figure in explore.EXPLORABLES.values()]


@mostly_slow("the same of another seed")
@pytest.mark.parametrize("folder", sorted(ROOT.glob("results/cpu/*/seed-*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_committed_runs_fill_the_page(folder):
    found = explore_data.data(ROOT, folder.relative_to(ROOT))
    tables = findings.run_tables(folder)
    metrics = set(tables["projection"]["metric"])
    lacking = {"threshold": "histograms" not in tables, "projection": not {"non_refusal", "nll"} <= metrics,
               "bound": bool(claim_pages.older_rules(folder.parents[1]))}  # fmt: skip
    assert [name for name, figure in found.items() if "missing" in figure] == [name for name in lacking if lacking[name]]
    assert len(json.dumps(found)) < 300_000


# ---------------------------------------------------------------- the script


def node(code: str, given: object) -> object:
    """What the code prints as JSON; `explore` is the script, `given` what is passed."""
    head = f"const explore = require({json.dumps(str(SCRIPT))}); const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
    done = subprocess.run([NODE, "-e", f"{head}console.log(JSON.stringify((() => {{ {code} }})()))"], input=json.dumps(given),
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@NEEDS_NODE
def test_the_script_parses_and_does_nothing_without_a_page():
    done = subprocess.run([NODE, "--check", str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(node("return Object.keys(explore.FIGURES)", 0)) == sorted(explore.EXPLORABLES)


def test_the_script_is_small_and_neither_fetches_nor_writes_markup():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.encode()) < 45_000
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|fetch\(|XMLHttp|import\(|\.style\b", text)
    assert re.findall(r"https?://[^\"'`\s]+", text) == ["http://www.w3.org/2000/svg"]  # a name, not an address


@NEEDS_NODE
def test_rates_at_a_threshold_are_pythons(found):
    code = "const sides = (b, e) => ['harmless', 'flagged'].map((s) => explore.flagged(b, s, e));"
    said = node(f"{code} return given.monitors[0].after.map((b) => [1, 2, 3, 4, 5].map((e) => sides(b, e)))", found["threshold"])
    for bars, own in zip(found["threshold"]["monitors"][0]["after"], said, strict=True):
        for edge, sides in enumerate(own, 1):
            for side, e in zip(("harmless", "flagged"), sides, strict=True):
                assert e == pytest.approx(explore.flagged(bars, side, edge))


@NEEDS_NODE
def test_verdicts_under_any_bound_are_those_of_the_rule():
    rng, cases, expected = np.random.default_rng(5), [], []
    for name, claim in CLAIMS.items():
        part = claim.components[0]
        for seeds in (1, SEEDS):
            for own in rng.normal(scale=0.1, size=20).round(2):
                own = abs(float(own)) if part.side == "within" else float(own)
                low, value, high = np.sort(rng.normal(scale=0.1, size=3)).round(2)
                moved = replace(part, margin=own) if part.side == "within" else replace(part, bound=own)
                expected.append(findings.answer(Estimate(value, low, high, 9), seeds, moved))
                row = {"low": low, "high": high, "side": part.side, "bound": part.bound, "seeds": seeds, "name": name}
                cases.append([row, own, SEEDS])
    assert node("return given.map(([claim, own, least]) => explore.answer(claim, own, least))", cases) == expected
    assert set(expected) == {"supported", "contradicted", "inconclusive"}


@NEEDS_NODE
def test_numbers_are_rounded_as_python_rounds_them():
    values = [0.125, 0.135, 0.625, 0.005, 0.015, 0.025, -0.004, 0.9999, 0, 1, 0.29, 2.675]
    values += [k / n for n in range(1, 210) for k in range(n + 1)] + list(np.random.default_rng(2).normal(size=500))
    said = node("return given.map((x) => [explore.round(100 * x), explore.round(x, 1), explore.round(x, 3)])", values)
    assert [pair[0] for pair in said] == [re.sub(r"^-0$", "0", f"{100 * x:.0f}") for x in values]
    assert [float(pair[1]) for pair in said] == [round(x, 1) for x in values]
    assert [pair[2] for pair in said] == [re.sub(r"^-(0\.0+)$", r"\1", f"{x:.3f}") for x in values]


@NEEDS_NODE
def test_ticks_are_round_numbers_within_the_axis():
    for low, high in ((0, 1), (-3.2, 17.9), (0, 0.034), (-0.02, 0.02), (-400, 900)):
        ticks = node("return explore.ticks(given[0], given[1], 5)", [low, high])
        assert 2 <= len(ticks) <= 12
        assert low <= ticks[0] < ticks[-1] <= high
        assert np.ptp(np.diff(ticks)) < 1e-9 * (high - low)


STATES = """const out = {};
for (const [name, figure] of Object.entries(explore.FIGURES)) {
  const data = figure.pasted ? figure.pasted(given[name].example) : given[name];
  const state = figure.pasted ? figure.opening(data) : { ...data.default };
  out[name] = { controls: figure.controls(data, state), said: figure.read(data, state), state: { ...state } };
}
return out;"""


@NEEDS_NODE
def test_every_control_opens_on_a_choice_that_exists(found):
    for name, figure in node(STATES, found).items():
        assert {control["name"] for control in figure["controls"]} == set(figure["state"]), name
        for control in figure["controls"]:
            chosen, ends = figure["state"][control["name"]], (control.get("min", 0), control.get("max"))
            assert ends[0] <= chosen <= (len(control["options"]) - 1 if ends[1] is None else ends[1]), control["name"]
            assert control["label"]
            assert ends[1] is None or control["words"]


@NEEDS_NODE
def test_the_table_without_a_script_shows_what_the_script_says(found, page):
    said = {name: figure["said"] for name, figure in node(STATES, found).items()}
    cells = {name: " ".join(Reader(block).cells) for name, block in blocks(page).items()}
    for name in [name for name in explore.EXPLORABLES if name != "scores"]:
        numbers = re.findall(r"[-+]?[\d.]+ ?(?:%|AUROC)? \[[^\]]+\]", said[name])
        assert numbers, name
        assert re.search(r"n = \d+|\d+ modules|\d+ stale cells", said[name]), name
        for number in numbers if name != "projection" else numbers[:2]:  # the table shows the quick look alone
            assert number in cells[name], (name, number)


@NEEDS_NODE
def test_a_choice_keeps_the_others_within_reach(found):
    moved = """const { threshold, projection, budget, bound } = explore.FIGURES, s = { monitor: 0, variant: 0, edge: 5 };
      threshold.changed(given.threshold, s, 'monitor');
      const p = { update: 0, restoration: 1, point: 9 }; projection.changed(given.projection, p, 'update');
      const b = { split: 0, budget: 7 }; budget.changed(given.budget, b, 'split');
      const c = { claim: 1, at: 3 }; bound.changed(given.bound, c, 'claim');
      return [s.edge, p.restoration, p.point, b.budget, c.at];"""
    assert node(moved, found) == [2, 0, 2, 2, 0]


@NEEDS_NODE
def test_another_bound_is_said_to_prove_nothing_where_it_changes_the_answer(found):
    read = "return given[1].map((at) => explore.FIGURES.bound.read(given[0], { claim: 1, at }))"  # M4: 0.01 [-0.02, 0.04]
    set_, moved, little = node(read, [found["bound"], [0, -12, 1]])
    assert "the headline is inconclusive." in set_
    assert "would be supported; with the bound that was set, above +0.01 AUROC, it is inconclusive" in moved
    assert "proves nothing" in moved
    assert "proves nothing" not in little


# ---------------------------------------------------------------- every view, its address and its file


VIEWS = """const { threshold } = explore.FIGURES, out = [];
given.monitors.forEach((_, monitor) => given.variants.forEach((_, variant) => {
  const state = { monitor, variant, edge: given.monitors[monitor].frozen };
  out.push(threshold.read(given, state).match(/\\d+ % \\[\\d+, \\d+\\]/g));
}));
return out;"""


def printed(folder: Path) -> list[list[str]]:
    """What the tables print at each frozen threshold: caught before and after, false alarms before and after."""
    found = findings.run_tables(folder)
    cuts = found["monitors"][found["monitors"]["metric"] == "threshold_5"].set_index(explore_data.PLACE)["value"]
    table = explore_data.described(found["histograms"].rename(columns={"label": "side"}))
    order, rows = explore_data.in_order(table), []
    for place, own in table[table["metric"] == "above"].groupby(explore_data.PLACE, sort=False):
        at = own[own["edge"] == cuts[place]].set_index(["side", "label"])
        said = {
            key: tables_for_people.percent(*row)
            for key, row in zip(at.index, at[["value", "low", "high"]].to_numpy(), strict=True)
        }
        rows += [[said[side, name] for side in ("flagged", "harmless") for name in ("aligned", label)] for label in order]
    return rows


@NEEDS_NODE
def test_every_view_of_the_thresholds_says_what_the_table_prints(place, found):
    assert node(VIEWS, found["threshold"]) == printed(place[0] / place[1])


@NEEDS_NODE
@mostly_slow("the same of another seed", "embedded-seed-0")
@pytest.mark.parametrize("folder", sorted(ROOT.glob("results/cpu/*/seed-*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_view_of_the_committed_runs_says_what_their_tables_print(folder):
    figure = explore_data.data(ROOT, folder.relative_to(ROOT), only="threshold")["threshold"]
    if "missing" not in figure:
        assert node(VIEWS, json.loads(json.dumps(figure))) == printed(folder)


@NEEDS_NODE
def test_a_link_reproduces_its_view_and_a_stranger_one_does_no_harm(found):
    code = """const out = {};
    for (const [name, figure] of Object.entries(explore.FIGURES)) {
      if (figure.pasted) continue;
      const data = given[name], state = { ...data.default };
      for (const control of figure.controls(data, state)) {
        const now = figure.controls(data, state).find((one) => one.name === control.name);
        state[control.name] = now.options ? now.options.length - 1 : now.max;
        if (figure.changed) figure.changed(data, state, control.name);
        if (!now.options) state[control.name] = now.max;
      }
      const there = { ...data.default }, text = explore.addressOf(figure, data, state);
      explore.fromAddress(figure, data, there, text);
      const odd = { ...data.default };
      explore.fromAddress(figure, data, odd, "monitor=%3Cimg%3E&edge=1e9&at=-1e9&point=x&k=NaN&variant=&claim=none&budget=99");
      out[name] = [figure.read(data, state), figure.read(data, there), figure.read(data, odd), text];
    }
    return out;"""
    for name, (wanted, reached, odd, text) in node(code, found).items():
        assert wanted == reached, name
        assert "undefined" not in odd
        assert "NaN" not in odd
        assert text
        assert "<" not in text


@NEEDS_NODE
def test_the_file_of_a_view_holds_its_numbers_and_no_formula(found):
    code = """const out = {};
    for (const [name, figure] of Object.entries(explore.FIGURES)) {
      const data = figure.pasted ? figure.pasted(given[name].example) : given[name];
      out[name] = explore.csv(figure.table(data, figure.pasted ? figure.opening(data) : { ...data.default }));
    }
    out.evil = explore.csv([["=1+1", "-0.5", -0.5, '@x,"y"', "a\\nb"]]);
    return out;"""
    said = node(code, found)
    for name in explore.EXPLORABLES:
        head, *rows = list(csv.reader(io.StringIO(said[name])))
        assert rows, name
        assert all(len(row) == len(head) for row in rows), name
    (row,) = csv.reader(io.StringIO(said["evil"]))
    assert row == ["'=1+1", "-0.5", "-0.5", '\'@x,"y"', "a\nb"]
    assert [float(x) for x in next(csv.reader(io.StringIO(said["budget"].splitlines()[1])))[2:5]] == [0.1, 0.05, 0.2]


def test_the_first_view_is_what_all_seeds_saw_and_other_seeds_stand_beside_it(tmp_path):
    folder = write(tmp_path)
    other = results.Run("cpu", "tiny", 1, (tmp_path / folder).parent / "seed-1")
    rows_of = histograms().assign(seed=1)
    cuts = rows(ALIGNED, "monitors", [(*MONITOR, "threshold_5", EDGES[2], EDGES[2], EDGES[2], 20)]).assign(seed=1)
    results.write_table(other, "99_planted", "histograms", rows_of)
    results.write_table(other, "99_planted", "monitors", cuts)
    figure = explore_data.data(tmp_path, folder, only="threshold")["threshold"]
    alarms = [100 * sum(COUNTS[variant][0][2:]) // 20 for variant in (NF4, WILD)]
    assert figure["monitors"][0]["others"] == [[share] for share in alarms]
    assert figure["variants"][figure["default"]["variant"]]["name"] == "nf4"
    still = rows_of[rows_of["precision"] != "nf4"]  # the other seed saw no move under nf4
    calm = rows_of[rows_of["precision"].eq("bf16") & rows_of["adapter"].eq("")].assign(precision="nf4")
    results.write_table(other, "99_planted", "histograms", pd.concat([still, calm]))
    again = explore_data.data(tmp_path, folder, only="threshold")["threshold"]
    assert again["monitors"][0]["others"][0] == [100 * sum(COUNTS[ALIGNED][0][2:]) // 20]


def test_a_chapter_gets_its_figure_without_a_heading_or_nothing(place, tmp_path):
    text = explore.explore_part(*place, "threshold")
    assert text.count("<section ") == 1
    assert "\n## " not in text
    assert explore.explore_part(tmp_path, write(tmp_path, without=("triage",)), "budget") == ""


def test_each_chapter_with_a_figure_to_move_holds_its_mark_once():
    held = {path.name[:2]: re.findall(r"<!-- generated: explore-(\w+) -->", path.read_text(encoding="utf-8"))
            for path in sorted((ROOT / "notebooks").glob("[01]*.ipynb"))}  # fmt: skip
    wanted = {chapter: name for name, (_, chapter, _) in explore_data.MAKERS.items() if name != "scores"}
    assert {chapter: names for chapter, names in held.items() if names} == {chapter: [name] for chapter, name in wanted.items()}
    assert {f"explore-{name}" for name in wanted.values()} <= set(pages.GENERATED)


# ---------------------------------------------------------------- a visitor's own scores


def pasted(rows_: list[dict], form: str = "csv") -> str:
    """Rows as a table that a visitor pastes."""
    if form == "jsonl":
        return "\n".join(json.dumps(row) for row in rows_)
    return pd.DataFrame(rows_).to_csv(index=False)


def own_scores(groups: bool, n: int = 60, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"monitor": "mine, the \"first\"", "id": f"t{i}", "before": round(rng.normal(2 * (i % 2)), 3),
             "after": round(rng.normal(0.8 + 2 * (i % 2)), 3), "label": i % 2, **({"group": f"g{i % 14 // 2}"} if groups else {}),
             "threshold": 1.25} for i in range(n)]  # fmt: skip


@NEEDS_NODE
@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("groups", [False, True])
def test_rates_of_pasted_scores_are_those_of_the_library(groups, form):
    given = own_scores(groups)
    code = """const f = explore.FIGURES.scores, data = f.pasted(given), state = f.opening(data);
    return [f.table(data, state), f.read(data, state), data.monitors.length];"""
    (_, *lines), said, count = node(code, pasted(given, form))
    assert count == 1
    table = pd.DataFrame(given)
    for name, threshold, side, model, *numbers in lines:
        own = table[table["label"] == (side == "to be flagged")]
        e = rate_interval((own[model] > 1.25).astype(float), own["group"] if groups else None)
        assert (name, threshold) == ('mine, the "first"', 1.25)
        assert numbers == pytest.approx([e.value, e.low, e.high, e.n], abs=1e-9)
        assert tables_for_people.percent(e.value, e.low, e.high) in said


@NEEDS_NODE
def test_without_a_threshold_the_first_one_is_what_a_monitor_would_be_frozen_with():
    given = [{k: v for k, v in row.items() if k != "threshold"} for row in own_scores(False, 120)]
    state, places = node("const f = explore.FIGURES.scores, d = f.pasted(given); return [f.opening(d), d.monitors[0].places]",
                         pasted(given))  # fmt: skip
    harmless = np.array([row["before"] for row in given if row["label"] == 0])
    assert places[state["at"]] == frozen.threshold(harmless, 0.05)
    assert len(places) > 200  # as fine as the scores themselves


@NEEDS_NODE
@pytest.mark.parametrize("df", [1, 2, 3, 7, 30, 200])
def test_the_t_quantile_is_scipys(df):
    assert node("return explore.tQuantile(given)", df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-8)


BAD = {
    "": "No column monitor, id, before, after.",
    "score,label\n1,0": "No column monitor, id, before, after. Needed are monitor, id, before, after; found score, label.",
    "monitor,id,before,after": "There is no row",
    "monitor,id,before,after\nm,1,0.5": "Row 1 has 3 cells, the first line names 4",
    'monitor,id,before,after\nm,1,"0,5",1': "Row 1: its before is not a finite number; write 0.5, not 0,5.",
    "monitor,id,before,after\nm,1,nan,1": "Row 1: its before is not a finite number.",
    "monitor,id,before,after\nm,1,0x10,Infinity": "not a finite number",
    "monitor,id,before,after,label\nm,1,0,1,2": "Row 1: its label is neither 0 nor 1.",
    "monitor,id,before,after,label\nm,1,0,1,\nm,2,0,1,1": "has rows with and without a label",
    "monitor,id,before,after,threshold\nm,1,0,1,0.5\nm,2,0,1,0.6": "The thresholds of monitor m differ",
    "monitor,id,before,after\nm,1,0,1\nm,1,0,1": "Row 2: its id stands twice",
    "monitor,id,before,after\n,1,0,1": "Row 1 has an empty monitor or id.",
    '"monitor,id': "A quoted cell does not end",
    '{"monitor": "m"': "Row 1 is no JSON object on one line.",
    '{"__proto__": {"monitor": 1}, "id": 1}': "No column monitor, before, after.",
}  # fmt: skip


@NEEDS_NODE
def test_what_is_wrong_with_a_pasted_table_is_said():
    code = "return given.map((text) => { try { explore.scoresOf(text); return ''; } catch (error) { return error.message; } })"
    for (text, wanted), found in zip(BAD.items(), node(code, list(BAD)), strict=True):
        assert wanted in found, text
        assert len(found) < 300


# ---------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_keep_their_contrast_and_text_its_size(mode):
    css = STYLE.read_text(encoding="utf-8")
    themes = re.findall(r"(?s)\.explorable \{(.*?--ex-a-pale.*?)\}", css)
    assert len(themes) == 2
    colours = dict(re.findall(r"--ex-([\w-]+): (#[0-9a-f]{6})", themes[mode]))
    for ground in ("ground", "band"):
        for text in ("ink", "muted", "a", "b"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["line"], colours[ground]) >= 3
    for side in ("a", "b"):  # what raises an alarm, beside what does not
        assert contrast(colours[side], colours[f"{side}-pale"]) >= 2
    assert [size for size in re.findall(r"font-size: ([\d.]+)px", css) if float(size) < 12] == []
    assert [size for size in re.findall(r"font-size: ([\d.]+)r?em", css) if float(size) < 0.75] == []
