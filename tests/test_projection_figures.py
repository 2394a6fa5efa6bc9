"""Chapter 07's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from test_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, check_same, drawing_functions, ends, row, said

from helpers import projection_figures as pf
from helpers import records
from helpers.sketches import EVERY

KEY = {"model": "embedded", "seed": 0, "precision": "bf16", "adapter": "", "trained_on": "", "serving": "", "restoration": "",
       "strength": np.nan}  # fmt: skip
QUICK = (["lora-dialogue-harm10@bf16"], ["safelora", "splora", "zero", "orthogonal-keep", "random-spectrum"], [0.5, 0.9, 1.0])
PUBLISHED = (
    ["lora-dialogue-harm10@bf16", "lora-dialogue-harm10@nf4", "lora-instructions-harm10@gptq-4"],
    ["safelora", "safelora-threshold", "splora", "orthogonal-keep", "orthogonal-remove", "zero", "norm-matched",
     "random-spectrum", "random-subspace"],
    [0.1, 0.25, 0.5, 0.75, 0.9, 1.0],
)  # fmt: skip
OUTCOMES = {"non_refusal": ("advbench", 0.9, 0.0), "over_refusal": ("edgy", 0.05, 0.35), "rouge1": ("dialogue", 0.38, 0.2),
            "perplexity": ("c4", 34.0, 31.0), "alarms_changed": (EVERY, 0.12, 0.0), "mean_auroc_drop": (EVERY, 0.06, 0.0)}  # fmt: skip
HALF = {"perplexity": 8.0, "rouge1": 0.04, "mean_auroc_drop": 0.03, "alarms_changed": 0.04}


def key_of(update, **more):
    adapter, _, precision = update.partition("@")
    return {**KEY, "adapter": adapter, "precision": precision, "trained_on": precision, "serving": "attached", **more}


def told(way, split="", metrics=OUTCOMES, n=40, luck=0, **keys):
    """One row an outcome, `way` from an update (0) to the aligned model (1), with noise."""
    rng, rows = RNG([luck, int(1000 * way)]), []
    for metric in metrics:
        home, new, old = OUTCOMES[metric]
        value, half = new + way * (old - new) + 0.02 * rng.standard_normal() * max(old, new), HALF.get(metric, 0.12)
        on = f"{home}/{split}" if split and home in ("advbench", "edgy") else home
        bounds = (-1, 1) if metric == "mean_auroc_drop" else (0, 1) if metric != "perplexity" else (1, 1e9)
        rows.append(row(metric, value, half, n, bounds, measured_on=on, **keys))
    return rows


def drawn(updates, names, strengths, metrics=OUTCOMES, modules=20):
    """What `projection.curves` gives."""
    rows = told(1.0, "validation", metrics, module="", layers_changed=0, **KEY)
    for i, update in enumerate(updates):
        rows += told(0.0, "validation", metrics, luck=i, module="", layers_changed=0, **key_of(update))
        for j, (name, strength) in enumerate(itertools.product(names, strengths)):
            keys = key_of(update, restoration=name, strength=strength)
            rows += told(strength ** (1 + j // len(strengths)), "validation", metrics, luck=10 * i + j, module="",
                         layers_changed=round(strength * modules), **keys)  # fmt: skip
        rows += [row("kept", 0.01, 0, 1, module=f"m.{m}", layers_changed=modules, measured_on="", **key_of(update, restoration=name))
                 for name, m in itertools.product(names, range(modules))]  # fmt: skip
    return pd.DataFrame(rows)


def whole(updates, names, metrics=OUTCOMES, strength=0.9):
    """What the chapter measures in full beside its curves, the curves included."""
    rows = told(1.0, "", metrics, 140, module="", layers_changed=0, **KEY)
    for precision in dict.fromkeys(update.partition("@")[2] for update in updates):
        if precision != "bf16":
            rows += told(0.95, "", metrics, 140, module="", layers_changed=0, **{**KEY, "precision": precision})
    for i, update in enumerate(updates):
        rows += told(0.0, "", metrics, 140, i, module="", layers_changed=0, **key_of(update))
        for j, name in enumerate(names):
            dose = np.nan if name == "salora" else strength
            rows += told(0.4 + 0.05 * j, "", metrics, 140, i, module="", layers_changed=18,
                         **key_of(update, restoration=name, strength=dose))  # fmt: skip
    curve = drawn(updates, names[:1], [0.25, 1.0])
    return pd.concat([pd.DataFrame(rows), curve[curve["strength"].isin([0.25, 1.0])]], ignore_index=True)


def by_module(
    blocks=30, kinds=("q", "k", "v", "o", "gate", "up", "down"), pattern="model.layers.{}.self_attn.{}_proj", left=0.004
):
    rng = RNG(7)
    rows = [
        (pattern.format(block, kind), 0.3 + 0.05 * i + 0.04 * rng.standard_normal(), 0.3 + 0.03 * i)
        for block, (i, kind) in itertools.product(range(blocks), enumerate(kinds))
    ]
    table = pd.DataFrame(rows, columns=["module", "score", "null"]).assign(z=np.nan, z_robust=np.nan, p=np.nan, changed=True)
    before = 0.2 + rng.random(len(rows))
    return table.assign(before=before, after=before * left * np.exp(0.3 * rng.standard_normal(len(rows)) + 4 * table["null"]))


FEW = [name for name in OUTCOMES if name not in ("rouge1", "perplexity")]
DRAWN = {
    "scores, full": lambda: pf.scores(by_module()),
    "scores, one block": lambda: pf.scores(by_module(1)),
    "scores, nothing left": lambda: pf.scores(by_module(4, left=0.0)),
    "scores, other names": lambda: pf.scores(by_module(6, ("c_attn", "c_fc", "router.w1"), "transformer.h.{}.{}")),
    "curves, quick": lambda: pf.curves(drawn(*QUICK)),
    "curves, published": lambda: pf.curves(drawn(*PUBLISHED)),
    "curves, two updates without texts": lambda: pf.curves(drawn(PUBLISHED[0][:2], *QUICK[1:], metrics=FEW)),
    "curves, one point": lambda: pf.curves(drawn(QUICK[0], ["zero"], [1.0], FEW[:1])),
    "before_and_after, quick": lambda: pf.before_and_after(whole(QUICK[0], ["safelora", "zero"])),
    "before_and_after, cpu": lambda: pf.before_and_after(whole(PUBLISHED[0][:2], ["safelora", "splora", "salora", "zero"])),
    "before_and_after, published": lambda: pf.before_and_after(
        whole(PUBLISHED[0], ["safelora", "splora", "salora", "zero", "orthogonal-keep-k64", "safelora:nf4-both"])
    ),
    "before_and_after, two updates of one precision": lambda: pf.before_and_after(
        whole(["lora-dialogue-harm10@bf16", "lora-instructions-harm10@bf16"], ["safelora"], FEW)
    ),
}


@functools.cache
def figure_of(name):
    """A figure of a whole run is drawn once, whatever is asked of it."""
    return DRAWN[name]()


# ---------------------------------------------------------------- of every figure


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(figure_of(name))
