"""Chapter 09's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from test_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, check_same, drawing_functions, ends, row, said
from test_projection_figures import KEY, OUTCOMES, told

from helpers import neuron_figures as nf

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
    "by_layer, quick": lambda: nf.by_layer(layers(QUICK)),
    "by_layer, all scores": lambda: nf.by_layer(layers(ALL)),
    "by_layer, one layer": lambda: nf.by_layer(layers(QUICK[1:], 1)),
    "causal, quick": lambda: nf.causal(silent(QUICK, [0.05]), patching(QUICK, [0.2])),
    "causal, all scores": lambda: nf.causal(silent(ALL, [0.01, 0.05, 0.1]), patching(ALL, [0.05, 0.1, 0.2, 0.5])),
    "causal, without texts": lambda: nf.causal(silent(QUICK, [0.01, 0.05], FEW), patching(QUICK, [0.2])),
    "causal, patched only": lambda: nf.causal(silent([], []), patching(QUICK, [0.2])),
    "disturbance, quick": lambda: nf.disturbance(moved(QUICK, ["nf4", "rtn-3"])),
    "disturbance, all scores": lambda: nf.disturbance(moved(ALL, ["int8", "nf4", "rtn-8", "rtn-4", "rtn-3", "rtn-2"])),
    "disturbance, one": lambda: nf.disturbance(moved(["random"], ["nf4"])),
    "hybrid, quick": lambda: nf.hybrid(spared(QUICK, ["rtn-3"], [0.05]), silent(QUICK, [0.05])),
    "hybrid, all scores": lambda: nf.hybrid(spared(ALL, list(PLAIN), [0.01, 0.05, 0.1]), silent(QUICK, [0.05])),
    "hybrid, two formats without texts": lambda: nf.hybrid(spared(QUICK, ["rtn-2", "rtn-3"], [0.05, 0.1], FEW)),
    "hybrid, one outcome": lambda: nf.hybrid(spared(QUICK, ["rtn-3"], [0.05], FEW[:1])),
}


@functools.cache
def figure_of(name):
    """A figure of a whole run is drawn once, whatever is asked of it."""
    return DRAWN[name]()


# ---------------------------------------------------------------- of every figure


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(figure_of(name))
