"""Chapter 09's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from support.tiers import mostly_slow
from test_model_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, check_same, ends, once, row
from test_projection_figures import KEY, OUTCOMES, legend_of, ruled, shown, told

from helpers import results
from helpers.figures import neurons
from helpers.figures.drawing import layout
from helpers.stats.intervals import wilson

QUICK = ["activation-contrast", "set-difference", "random"]
ALL = ["activation-contrast", "snip", "wanda", "set-difference", "random", "magnitude", "outlier"]
PLAIN = {"rtn-2": 2.13, "rtn-3": 3.13, "nf4": 4.5}


def layers(scores, count=30, width=1536, fraction=0.05):
    rng, rows = RNG(1), []
    for name, layer in itertools.product(scores, range(1, count + 1)):
        share = fraction if name == "random" else fraction * 2 * rng.random() * layer / count * (1 + ALL.index(name) / 3)
        rows.append(row("picked", share, 0.01, width, (0, 1), score=name, fraction=fraction, layer=layer, measured_on="", **KEY))
    return pd.DataFrame(rows)


def arm(way, metrics, score, fraction, **keys):
    return told(way, "", metrics, score=score, fraction=fraction, layer=0, **{**KEY, **keys})


def silent(scores, fractions, metrics=OUTCOMES):
    rows = arm(1.0, metrics, "none", 0.0)
    for i, (name, fraction) in enumerate(itertools.product(scores, fractions)):
        rows += arm(1 - fraction * 3 * (0.1 + i / len(scores)) / len(fractions), metrics, name, fraction, serving="ablated")
    return pd.DataFrame(rows)


def patching(scores, fractions):
    rows, keys = [], {"adapter": "base", "serving": "patched"}
    rows += arm(0.0, ["non_refusal"], "none", 0.0, **keys)
    for i, (name, fraction) in enumerate(itertools.product(scores, fractions)):
        rows += arm(min(0.9, fraction * (0.3 + i / len(scores))), ["non_refusal"], name, fraction, **keys)
    return pd.DataFrame(rows)


def moved(scores, formats):
    sizes = {"int8": 0.008, "rtn-8": 0.006, "nf4": 0.09, "rtn-4": 0.12, "rtn-3": 0.25, "rtn-2": 0.9}
    rng = RNG(3)
    return pd.DataFrame(
        [row("activation_change", sizes[name] * (0.7 + 0.6 * rng.random()), 0.1 * sizes[name], 16, score=score, fraction=0.05,
             layer=0, measured_on="advbench", **{**KEY, "precision": name}) for name, score in itertools.product(formats, scores)]
    )  # fmt: skip


def spared(scores, formats, fractions, metrics=OUTCOMES):
    rows = []
    for i, name in enumerate(formats):
        for j, (score, fraction) in enumerate([("none", 0.0), *itertools.product(scores, fractions)]):
            way = 0.3 + 0.2 * i + (fraction * (3 + j / len(scores)) if fraction else 0)
            keys = {"precision": name, "serving": "hybrid"}
            bits = PLAIN[name] + fraction * 0.63 * (16 - PLAIN[name])
            rows += arm(min(way, 1.0), metrics, score, fraction, **keys)
            rows.append(row("bits_per_weight", bits, 0, 10**8, (0, 99), score=score, fraction=fraction, layer=0,
                            measured_on="weights", **{**KEY, **keys}))  # fmt: skip
    return pd.DataFrame(rows)


FEW = ["non_refusal", "over_refusal", "alarms_changed"]
DRAWN = {
    "by_layer, quick": lambda: neurons.by_layer(layers(QUICK)),
    "by_layer, all scores": lambda: neurons.by_layer(layers(ALL)),
    "by_layer, one layer": lambda: neurons.by_layer(layers(QUICK[1:], 1)),
    "causal, quick": lambda: neurons.causal(silent(QUICK, [0.05]), patching(QUICK, [0.2])),
    "causal, all scores": lambda: neurons.causal(silent(ALL, [0.01, 0.05, 0.1]), patching(ALL, [0.05, 0.1, 0.2, 0.5])),
    "causal, without texts": lambda: neurons.causal(silent(QUICK, [0.01, 0.05], FEW), patching(QUICK, [0.2])),
    "causal, patched only": lambda: neurons.causal(silent([], []), patching(QUICK, [0.2])),
    "disturbance, quick": lambda: neurons.disturbance(moved(QUICK, ["nf4", "rtn-3"])),
    "disturbance, all scores": lambda: neurons.disturbance(moved(ALL, ["int8", "nf4", "rtn-8", "rtn-4", "rtn-3", "rtn-2"])),
    "disturbance, one": lambda: neurons.disturbance(moved(["random"], ["nf4"])),
    "hybrid, quick": lambda: neurons.hybrid(spared(QUICK, ["rtn-3"], [0.05]), silent(QUICK, [0.05])),
    "hybrid, all scores": lambda: neurons.hybrid(spared(ALL, list(PLAIN), [0.01, 0.05, 0.1]), silent(QUICK, [0.05])),
    "hybrid, two formats without texts": lambda: neurons.hybrid(spared(QUICK, ["rtn-2", "rtn-3"], [0.05, 0.1], FEW)),
    "hybrid, one outcome": lambda: neurons.hybrid(spared(QUICK, ["rtn-3"], [0.05], FEW[:1])),
}


figure_of = once(DRAWN)


# ---------------------------------------------------------------- of every figure (and test_drawn.py)


def test_the_tables_drawn_here_keep_to_the_schema():
    tables = (
        layers(QUICK),
        silent(QUICK, [0.05]),
        patching(QUICK, [0.2]),
        moved(QUICK, ["nf4"]),
        spared(QUICK, ["rtn-3"], [0.05]),
    )
    results.checked("neurons", pd.concat(tables, ignore_index=True))


EMPTY = {
    "by_layer": lambda: neurons.by_layer(moved(QUICK, ["nf4"])),
    "causal": lambda: neurons.causal(silent([], []), patching([], [])),
    "disturbance": lambda: neurons.disturbance(layers(QUICK)),
    "hybrid": lambda: neurons.hybrid(spared([], ["rtn-3"], [])),
    "hybrid, bits unknown": lambda: neurons.hybrid(spared(QUICK, ["rtn-3"], [0.05]).query("metric != 'bits_per_weight'")),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


SAME = {
    "by_layer": (neurons.by_layer, lambda: layers(ALL, 4)),
    "silenced": (lambda table: neurons.causal(table, patching(QUICK, [0.2])), lambda: silent(ALL, [0.01, 0.05])),
    "patched": (lambda table: neurons.causal(silent(QUICK, [0.05]), table), lambda: patching(ALL, [0.1, 0.2])),
    "disturbance": (neurons.disturbance, lambda: moved(ALL, ["nf4"])),
    "hybrid": (neurons.hybrid, lambda: spared(ALL, ["rtn-3"], [0.01, 0.05])),
}


@mostly_slow("two drawings of each figure")
@pytest.mark.parametrize("name", SAME)
def test_the_order_of_a_tables_rows_changes_nothing(name):
    draw, table = SAME[name]
    check_same(draw(table()), draw(table()[::-1]))


def test_a_score_keeps_its_look_in_every_figure_and_random_is_grey():
    looks = {}
    for name in ("by_layer", "causal", "disturbance"):
        figure = figure_of(f"{name}, all scores")
        keys = dict(zip(legend_of(figure), figure.legends[0].legend_handles, strict=True))
        assert list(keys)[:7] == list(neurons.SCORES)
        looks[name] = {score: (to_hex(keys[score].get_color()), keys[score].get_marker()) for score in ALL}
    assert all(look == looks["by_layer"] for look in looks.values())
    assert looks["by_layer"]["random"][0] == layout.GREY
    assert len(set(looks["by_layer"].values())) == 7
    marks = {c.get_label(): (to_hex(c.lines[0].get_color()), c.lines[0].get_marker())
             for c in figure_of("hybrid, all scores").axes[0].containers}  # fmt: skip
    assert marks == looks["by_layer"]


# ---------------------------------------------------------------- where they are, what they cause


def test_the_share_of_each_eighth_of_the_layers_is_drawn_with_its_interval():
    table = layers(ALL)
    (ax,) = figure_of("by_layer, all scores").axes
    assert ruled(ax) == [0.05]
    assert len(points(ax)) == len(ALL) * neurons.PARTS
    first = table[(table["score"] == "snip") & (table["layer"] <= 4)]  # 30 layers: the first eighth has four
    e = wilson(round((first["value"] * first["n"]).sum()), int(first["n"].sum()))
    found, values = ends(figure_of("by_layer, all scores"), 1)
    assert np.isclose(values, e.value).any()
    assert np.isclose(found, e.low).any()
    assert np.isclose(found, e.high).any()
    assert ax.get_xticklabels()[0].get_text() == "1 to 4"
    few = neurons.by_layer(layers(QUICK, 3)).axes[0]
    assert [text.get_text() for text in few.get_xticklabels()] == ["1", "2", "3"]


def test_silenced_stands_beside_patched_each_beside_its_own_model():
    left, right = silent(ALL, [0.01, 0.05, 0.1]), patching(ALL, [0.05, 0.1, 0.2, 0.5])
    asked = [(left, "non_refusal"), (left, "perplexity"), (right, "non_refusal")]
    for ax, (table, metric) in zip(figure_of("causal, all scores").axes, asked, strict=True):
        rows = table[table["metric"] == metric]
        picked, whole = rows[rows["score"] != "none"], rows[rows["score"] == "none"]
        fractions = sorted(picked["fraction"].unique())
        assert [text.get_text() for text in ax.get_xticklabels()] == [f"{100 * fraction:g} %" for fraction in fractions]
        assert sorted((fractions[round(x)], y) for x, y in points(ax)) == sorted(
            zip(picked["fraction"], picked["value"], strict=True)
        )
        assert ruled(ax) == [whole["value"].item()]
        solid = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert len(solid) == len(ALL)
        assert all((np.diff(line.get_xdata()) > 0).all() for line in solid)
    drawn_ends = ends(figure_of("causal, all scores"), 1)
    both = pd.concat([left[left["metric"].isin(["non_refusal", "perplexity"])], right])
    assert drawn_ends == shown(both[both["score"] != "none"])


@pytest.mark.parametrize(("name", "titles"), [
    ("quick", ["Aligned model,\nneurons silenced"] * 2 + ["Base model,\nneurons patched in"]),
    ("without texts", ["Aligned model,\nneurons silenced", "Base model,\nneurons patched in"]),
    ("patched only", ["Base model,\nneurons patched in"]),
])  # fmt: skip
def test_what_was_not_measured_has_no_panel(name, titles):
    assert [ax.get_title(loc="left") for ax in figure_of(f"causal, {name}").axes] == titles


def test_a_format_is_a_row_and_formats_far_apart_have_a_logarithmic_axis():
    formats = ["int8", "nf4", "rtn-8", "rtn-4", "rtn-3", "rtn-2"]
    table = moved(ALL, formats)
    (ax,) = figure_of("disturbance, all scores").axes
    assert ends(figure_of("disturbance, all scores")) == shown(table, ["activation_change"])
    places = sorted((formats[round(y)], x) for x, y in points(ax))
    assert places == sorted(zip(table["precision"], table["value"], strict=True))
    assert [text.get_text() for text in ax.get_yticklabels()] == formats
    assert ax.get_xscale() == "log"
    (near,) = figure_of("disturbance, quick").axes
    assert (near.get_xscale(), near.get_xlim()[0]) == ("linear", 0)


# ---------------------------------------------------------------- what sparing them buys


@pytest.mark.parametrize(("name", "args"), [
    ("quick", (QUICK, ["rtn-3"], [0.05])), ("all scores", (ALL, list(PLAIN), [0.01, 0.05, 0.1])),
])  # fmt: skip
def test_every_score_stands_in_its_row_at_the_largest_budget(name, args):
    scores, formats, fractions = args
    table = spared(*args)
    table = table[(table["fraction"] == fractions[-1]) & (table["score"] != "none")]
    assert ends(figure_of(f"hybrid, {name}")) == shown(table, neurons.BOUGHT)
    rows = list(itertools.product(formats, [score for score in neurons.SCORES if score in scores]))
    figure = figure_of(f"hybrid, {name}")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [score for _, score in rows]
    for ax, metric in zip(figure.axes, neurons.BOUGHT, strict=True):
        own = table[table["metric"] == metric].set_index(["precision", "score"])["value"]
        assert sorted((round(y), x) for x, y in points(ax)) == sorted((rows.index(key), value) for key, value in own.items())
    bits = table[table["metric"] == "bits_per_weight"].groupby("precision")["value"].first()
    assert {" ".join(text.get_text().split()) for text in figure.axes[-1].texts} == {
        f"{name}, {bits[name]:.3g} bits" for name in formats}  # fmt: skip


def test_the_plain_format_is_dotted_over_its_own_rows():
    table = spared(QUICK, ["rtn-2", "rtn-3"], [0.05, 0.1], FEW)
    figure = figure_of("hybrid, two formats without texts")
    assert legend_of(figure) == ["plain format"]
    for ax, metric in zip(figure.axes, FEW, strict=True):
        plain = table[(table["metric"] == metric) & (table["score"] == "none")]["value"].tolist()
        lines = [segment for c in ax.collections if isinstance(c, LineCollection) and c.get_label() == "plain format"
                 for segment in c.get_segments()]  # fmt: skip
        assert [segment[0][0] for segment in lines] == plain
        assert [sorted(segment[:, 1]) for segment in lines] == [[-0.5, 2.5], [2.5, 5.5]]


def test_the_aligned_model_is_dashed_where_it_is_given():
    whole = silent(QUICK, [0.05]).query("score == 'none'").set_index("metric")["value"]
    for ax, metric in zip(figure_of("hybrid, quick").axes, neurons.BOUGHT, strict=True):
        assert ruled(ax, 0) == [whole[metric]]
    assert "aligned model" in legend_of(figure_of("hybrid, quick"))
    assert "aligned model" not in legend_of(figure_of("hybrid, one outcome"))
    assert ruled(figure_of("hybrid, one outcome").axes[0]) == []
