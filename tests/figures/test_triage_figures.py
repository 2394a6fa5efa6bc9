"""Chapter 06's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import itertools

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from test_model_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, drawing_functions, ends, row

from helpers.figures import triage as triage_figures
from helpers.figures.drawing import theme

ORDERS = [
    "random",
    "fine-tunes first",
    "largest drift first",
    "ridge, free",
    "ridge, free+forward",
    "forest, free+forward+labels",
    "logistic, free",
]


def triage(splits=("monitor", "family", "seed"), orders=ORDERS):
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
    return pd.DataFrame(rows)


def cells(n):
    rng = RNG(6)
    drop = rng.exponential(0.05, n)
    return pd.DataFrame({"drop": drop, "stale": drop > 0.05, "relative_change": rng.random(n), "score_ks": rng.random(n)})


WORDS = {f"signal_{i}": f"relative size of the weight change below the monitor's layer, kind {i}" for i in range(19)}
DRAWN = {
    "budget_curves, full": lambda: triage_figures.budget_curves(triage()),
    "budget_curves, small": lambda: triage_figures.budget_curves(triage(("monitor",), ORDERS[:4])),
    "importances, full": lambda: triage_figures.importances(triage(), ORDERS[-1], WORDS),
    "importances, small": lambda: triage_figures.importances(triage(("monitor",), ORDERS[:4]), "ridge, free", {}, top=3),
    "signal_scatter, full": lambda: triage_figures.signal_scatter(cells(2000), ["relative_change", "score_ks"]),
    "signal_scatter, none stale": lambda: triage_figures.signal_scatter(cells(3).assign(stale=False), ["relative_change"]),
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


def test_curves_are_drawn_with_their_intervals():
    table = triage()
    rows = table[(table["metric"] == "recall") & table["predictor"].isin(ORDERS[:6])]
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
