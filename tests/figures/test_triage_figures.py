"""Chapter 06's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from test_model_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, drawing_functions, ends, row

from helpers.figures import triage as triage_figures
from helpers.figures.drawing import marks, theme

ORDERS = [
    "random",
    "fewest bits first",
    "largest drift first",
    "ridge, free",
    "ridge, free+forward",
    "forest, free+forward+labels",
    "logistic, free",
]


def beyond(bits=(0.1, 0.05), drift=(-0.2, 0.1), predictor=triage_figures.JUDGED, split="family-4bit"):
    """Rows of what the judged predictor finds beyond the two orders: value and half width of each."""
    return [row(f"recall_beyond_{name}", value, half, 60, predictor=predictor, split=split, budget=budget)
            for name, (value, half) in (("bits", bits), ("drift", drift)) for budget in (0.1, 0.2, 0.3)]  # fmt: skip


def triage(splits=("monitor", "family", "seed", "family-4bit"), orders=ORDERS):
    rng = RNG(4)
    rows = [
        row("recall", min(budget * (1 + 0.3 * i), 1), 0.1 if i else 0.0, 120, (0, 1), predictor=name, split=split, budget=budget)
        for split, (i, name), budget in itertools.product(splits, enumerate(orders), (0.1, 0.2, 0.3))
    ]
    rows += [
        row(
            f"importance:signal_{i}",
            0.3 / (i + 1) + 0.01 * rng.random(),
            0.08,
            900,
            predictor=orders[-1],
            split=split,
            budget=1.0,
        )
        for split, i in itertools.product(splits[:1], range(19))
    ]
    return pd.DataFrame([*rows, *beyond()])


def cells(n, tells=False):
    """Cells of both poolings; with `tells`, the drift is what makes them stale."""
    rng = RNG(6)
    drop, drift = rng.exponential(0.05, n), rng.random(n)
    stale = drift > 0.7 if tells else drop > 0.05
    return pd.DataFrame({"drop": drop, "stale": stale, "relative_change": rng.random(n), "score_ks": drift,
                         "pooling": np.where(np.arange(n) % 2, "last", "mean"), "variant": np.arange(n) % 20})  # fmt: skip


WORDS = {f"signal_{i}": f"relative size of the weight change below the monitor's layer, kind {i}" for i in range(19)}
DRAWN = {
    "budget_curves, full": lambda: triage_figures.budget_curves(triage()),
    "budget_curves, small": lambda: triage_figures.budget_curves(triage(("monitor",), ORDERS[:4])),
    "importances, full": lambda: triage_figures.importances(triage(), ORDERS[-1], WORDS),
    "importances, small": lambda: triage_figures.importances(triage(("monitor",), ORDERS[:4]), "ridge, free", {}, top=3),
    "signal_bins, full": lambda: triage_figures.signal_bins(cells(2000), ["relative_change", "score_ks"]),
    "signal_bins, none stale": lambda: triage_figures.signal_bins(cells(3).assign(stale=False), ["relative_change"]),
}
EMPTY = {
    "budget_curves": lambda: triage_figures.budget_curves(triage().query("metric != 'recall'")),
    "importances": lambda: triage_figures.importances(triage(), "ridge, free", {}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(DRAWN[name]())


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


def test_every_public_function_that_draws_is_among_them():
    assert drawing_functions(triage_figures) == {name.split(",")[0] for name in DRAWN}


@pytest.mark.parametrize("name", DRAWN)
def test_a_panel_has_at_most_sixty_marks(name):
    counts = Counter(mark.panel for mark in marks.marks(DRAWN[name]()))
    assert max(counts.values()) <= 60, counts


def test_curves_are_drawn_with_their_intervals():
    table = triage((*triage_figures.SHOWN, "monitor and family"))  # the last is in the table, and in no panel
    rows = table[(table["metric"] == "recall") & table["predictor"].isin(ORDERS[:6]) & table["split"].isin(triage_figures.SHOWN)]
    drawn, values = ends(triage_figures.budget_curves(table), 1)
    assert drawn == pytest.approx(sorted([*rows["low"], *rows["high"]]))
    assert values == pytest.approx(sorted(rows["value"]))


def test_orders_are_taken_as_listed_and_random_is_grey():
    figure = triage_figures.budget_curves(triage())
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ORDERS[:6]
    assert to_hex(figure.axes[0].containers[0].lines[0].get_color()) == theme.PALETTE["base"]
    chosen = triage_figures.budget_curves(triage(), ("logistic, free", "random", "no such order"))
    assert [text.get_text() for text in chosen.legends[0].get_texts()] == ["logistic, free", "random"]


def test_importances_stand_largest_first_in_words():
    table = triage().sample(frac=1, random_state=0)
    (ax,) = triage_figures.importances(table, ORDERS[-1], {"signal_0": "the first signal"}, top=4).axes
    values = [x for x, y in sorted(points(ax), key=lambda point: point[1])]
    rows = table[table["metric"].str.startswith("importance:")].sort_values("value", ascending=False)[:4]
    assert values == pytest.approx(list(rows["value"]))
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["the first signal", "signal_1"]
    assert ends(ax.figure)[0] == pytest.approx(sorted([*rows["low"], *rows["high"]]))


# ---------------------------------------------------------------- sentences above, a branch for each outcome


def test_a_signal_that_tells_rises_and_one_that_does_not_stays_level():
    figure = triage_figures.signal_bins(cells(4000, tells=True), ["score_ks", "relative_change"])
    told, level = figure.axes
    for ax, rises in ((told, True), (level, False)):
        for pooling in ax.containers:
            low, *_, high = pooling.lines[0].get_ydata()
            assert (low == 0 and high == 1) if rises else abs(high - low) < 0.2
        (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert dashed.get_ydata()[0] == pytest.approx(0.3, abs=0.03)
    assert "100 % against 0 % by score KS" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (cells(200).assign(stale=False), "No cell is stale: no signal has anything to tell."),
        (cells(200).assign(score_ks=0.5), "All cells are level."),
    ],
)
def test_the_bins_say_where_there_is_nothing_to_tell(found, words):
    assert triage_figures.bins_title(found, ["score_ks"]) == words


@pytest.mark.parametrize(
    ("bits", "drift", "words"),
    [
        (
            (0.1, 0.05),
            (0.2, 0.1),
            "more than fewest bits first (+10 points) and more than largest drift first (+20 points).",
        ),
        (
            (0.1, 0.15),
            (-0.2, 0.1),
            "not surely more than fewest bits first (+10 points) and less than largest drift first (-20",
        ),
    ],
)
def test_the_curves_say_what_the_judged_predictor_finds_beyond(bits, drift, words):
    said = triage_figures.curves_title(pd.DataFrame(beyond(bits, drift)), ORDERS)
    assert said.startswith("In formats of 4 bits and more, “ridge, free+forward” ")
    assert words in said
    assert "drift" not in triage_figures.curves_title(pd.DataFrame(beyond(bits, drift)), ["fewest bits first"])


def test_the_curves_say_where_nothing_was_compared():
    silent = "Nothing of this run says whether a predictor beats an order that anybody could follow."
    for rows in (beyond(split="family"), beyond(predictor="forest, free")):
        assert triage_figures.curves_title(pd.DataFrame(rows), ORDERS) == silent
    assert triage_figures.curves_title(triage().query("metric == 'recall'"), ORDERS) == silent
