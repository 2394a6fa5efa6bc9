"""Chapter 07's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from test_model_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, check_same, ends, once, row

from helpers import results
from helpers.figures import projection
from helpers.figures.drawing import layout
from helpers.updates.names import EVERY

KEY = {"model": "embedded", "seed": 0, "precision": "bf16", "adapter": "", "trained_on": "", "serving": "", "restoration": "",
       "strength": np.nan}  # fmt: skip
QUICK = (["lora-dialogue-harm10@bf16"], ["safelora", "splora", "zero", "orthogonal-keep", "random-spectrum"], [0.5, 0.9, 1.0])
PUBLISHED = (
    ["lora-dialogue-harm10@bf16", "lora-dialogue-harm10@nf4", "lora-instructions-harm10@gptq-4"],
    ["safelora", "safelora-threshold", "splora", "orthogonal-keep", "orthogonal-remove", "zero", "norm-matched",
     "random-spectrum", "random-subspace"],
    [0.1, 0.25, 0.5, 0.75, 0.9, 1.0],
)  # fmt: skip
OUTCOMES = {"non_refusal": ("advbench", 0.9, 0.0), "over_refusal": ("edgy", 0.05, 0.35), "nll": ("dialogue", 2.4, 3.1),
            "perplexity": ("c4", 34.0, 31.0), "alarms_changed": (EVERY, 0.12, 0.0),
            "mean_auroc_drop": (EVERY, 0.06, 0.0)}  # fmt: skip
HALF = {"perplexity": 8.0, "nll": 0.2, "mean_auroc_drop": 0.03, "alarms_changed": 0.04}


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
        bounds = (-1, 1) if metric == "mean_auroc_drop" else (0, 1) if metric not in ("perplexity", "nll") else (1, 1e9)
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
        for name, m in itertools.product(names, range(modules)):
            keys = key_of(update, restoration=name)
            rows.append(row("kept", 0.01, 0, 1, module=f"m.{m}", layers_changed=modules, measured_on="", **keys))
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


FEW = [name for name in OUTCOMES if name not in ("nll", "perplexity")]
DRAWN = {
    "scores, full": lambda: projection.scores(by_module()),
    "scores, one block": lambda: projection.scores(by_module(1)),
    "scores, nothing left": lambda: projection.scores(by_module(4, left=0.0)),
    "scores, other names": lambda: projection.scores(by_module(6, ("c_attn", "c_fc", "router.w1"), "transformer.h.{}.{}")),
    "curves, quick": lambda: projection.curves(drawn(*QUICK)),
    "curves, published": lambda: projection.curves(drawn(*PUBLISHED)),
    "curves, two updates without texts": lambda: projection.curves(drawn(PUBLISHED[0][:2], *QUICK[1:], metrics=FEW)),
    "curves, one point": lambda: projection.curves(drawn(QUICK[0], ["zero"], [1.0], FEW[:1])),
    "before_and_after, quick": lambda: projection.before_and_after(whole(QUICK[0], ["safelora", "zero"])),
    "before_and_after, cpu": lambda: projection.before_and_after(
        whole(PUBLISHED[0][:2], ["safelora", "splora", "salora", "zero"])
    ),
    "before_and_after, published": lambda: projection.before_and_after(
        whole(PUBLISHED[0], ["safelora", "splora", "salora", "zero", "orthogonal-keep-k64", "safelora:nf4-both"])
    ),
    "before_and_after, two updates of one precision": lambda: projection.before_and_after(
        whole(["lora-dialogue-harm10@bf16", "lora-instructions-harm10@bf16"], ["safelora"], FEW)
    ),
}


figure_of = once(DRAWN)


# ---------------------------------------------------------------- of every figure (and test_drawn.py)


def shown(rows, metrics=OUTCOMES):
    """The ends and values of the rows of some metrics, as `ends` finds them in a figure."""
    rows = rows[rows["metric"].isin(metrics)]
    return pytest.approx(sorted([*rows["low"], *rows["high"]])), pytest.approx(sorted(rows["value"]))


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ruled(ax, along=1, line="--"):
    """Where a dashed line goes across the panel."""
    lines = [one for one in ax.lines if one.get_linestyle() == line and one.get_color() == layout.INK]
    return [one.get_xydata()[0][along] for one in lines]


def test_the_tables_drawn_here_keep_to_the_schema():
    for table in (drawn(*QUICK), whole(PUBLISHED[0], ["safelora", "zero"])):
        results.checked("projection", table)


EMPTY = {
    "scores": lambda: projection.scores(by_module(0)),
    "scores, no number in a name": lambda: projection.scores(by_module(1).assign(module="lm_head")),
    "curves": lambda: projection.curves(drawn(QUICK[0], [], [])),
    "curves, none of the outcomes": lambda: projection.curves(drawn(*QUICK).query("module != ''")),
    "before_and_after": lambda: projection.before_and_after(drawn(*QUICK)),  # validation prompts only
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


@pytest.mark.parametrize("draw", [projection.curves, projection.before_and_after])
def test_the_order_of_a_tables_rows_changes_nothing(draw):
    table = whole(QUICK[0], ["zero", "safelora", "salora"]) if draw is projection.before_and_after else drawn(*QUICK)
    check_same(draw(table), draw(table[::-1]))


# ---------------------------------------------------------------- module by module


def solid(ax):
    return [line for line in ax.lines if line.get_linestyle() == "-"]


def dotted(ax):
    return [line for line in ax.lines if line.get_linestyle() == ":"]


def test_scores_and_their_nulls_are_drawn_for_every_module():
    table = by_module(5)
    left, right = projection.scores(table).axes
    for kind, score, null, kept in zip(projection.KINDS, solid(left), dotted(left), solid(right), strict=True):
        own = table[table["module"].str.endswith(f".{kind}_proj")]
        assert score.get_ydata() == pytest.approx(own["score"].to_numpy())
        assert null.get_ydata() == pytest.approx(own["null"].to_numpy())
        assert kept.get_ydata() == pytest.approx((own["after"] / own["before"]).to_numpy())
        assert all(line.get_xdata().tolist() == [0, 1, 2, 3, 4] for line in (score, null, kept))
        assert len({line.get_color() for line in (score, null, kept)}) == 1
    assert right.get_yscale() == "log"


def test_kinds_of_modules_have_colours_of_their_own_in_one_order():
    figure = projection.scores(by_module(3)[::-1])
    assert legend_of(figure) == ["q", "k", "v", "o", "gate", "up", "down", "an unrelated update"]
    assert len({line.get_color() for line in solid(figure.axes[0])}) == 7
    assert legend_of(figure_of("scores, other names")) == ["c_attn", "c_fc", "w1", "an unrelated update"]


def test_the_block_is_the_first_number_of_a_name_and_a_module_without_one_is_left_out():
    table = pd.concat([by_module(3, ("w1",), "h.{}.experts.7.{}"), by_module(1, ("head",), "lm_{1}")], ignore_index=True)
    (line,) = solid(projection.scores(table).axes[0])
    assert line.get_xdata().tolist() == [0, 1, 2]


def test_modules_of_which_nothing_is_left_are_counted():
    table = by_module(2)
    table.loc[table["module"].str.contains("q_proj"), "after"] = 0.0
    right = projection.scores(table).axes[1]
    assert [text.get_text() for text in right.texts] == ["nothing left in 2 of 14 modules"]
    assert sum(len(line.get_ydata()) for line in right.lines) == 12
    assert not projection.scores(by_module(2)).axes[1].texts
    assert len(figure_of("scores, nothing left").axes) == 1  # a panel of what is left of nothing would be empty


# ---------------------------------------------------------------- curves


@pytest.mark.parametrize(("name", "shape"), [("quick", QUICK), ("published", PUBLISHED)])
def test_every_point_of_the_compared_curves_is_drawn_with_its_interval(name, shape):
    table = drawn(*shape)
    assert ends(figure_of(f"curves, {name}"), 1) == shown(
        table[table["adapter"].ne("") & table["restoration"].isin(["", *projection.COMPARED])], projection.CURVED)  # fmt: skip


def test_columns_are_updates_and_rows_are_safety_and_utility():
    figure, table = figure_of("curves, published"), drawn(*PUBLISHED)
    assert len(figure.axes) == 2 * 3
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes[:3]]
    assert [title.replace(" ", "") for title in titles] == [name.replace("@", "on") for name in PUBLISHED[0]]
    wanted = [f"{projection.OUTCOMES[metric][1]}\n(n = 40)" for metric in projection.CURVED]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == wanted
    for i, ax in enumerate(figure.axes):
        metric, update = projection.CURVED[i // 3], PUBLISHED[0][i % 3].split("@")
        own = table[(table["metric"] == metric) & (table["adapter"] == update[0]) & (table["precision"] == update[1])]
        own = own[own["restoration"].isin(["", *projection.COMPARED])]
        assert sorted(y for _, y in points(ax)) == pytest.approx(sorted(own["value"]))


def test_outcomes_that_were_not_measured_have_no_row():
    axes = figure_of("curves, two updates without texts").axes
    assert [ax.get_ylabel() for ax in axes[::2]] == [f"{projection.OUTCOMES['non_refusal'][1]}\n(n = 40)"]
    assert len(axes) == 2


def test_where_nothing_compared_was_drawn_the_first_restorations_are():
    figure = projection.curves(drawn(QUICK[0], ["splora", "orthogonal-keep"], [1.0]))
    assert legend_of(figure) == ["as trained", "aligned model", "SPLoRA", "orthogonal-keep"]


def test_a_restoration_keeps_its_look_and_has_its_name_for_readers():
    assert legend_of(figure_of("curves, quick")) == ["as trained", "aligned model", "SafeLoRA", "same modules removed"]
    looks = [
        {
            name: (to_hex(key.get_color()), key.get_marker())
            for name, key in zip(legend_of(f), f.legends[0].legend_handles, strict=True)
        }
        for f in (figure_of("curves, quick"), figure_of("curves, published"))
    ]
    assert looks[0] == looks[1]
    assert len(set(looks[1].values())) == 4


def test_curves_set_out_from_the_update_and_dashed_is_the_aligned_model():
    table = drawn(*QUICK)
    for ax, metric in zip(figure_of("curves, quick").axes, projection.CURVED, strict=True):
        rows = table[table["metric"] == metric]
        start = rows[(rows["adapter"] != "") & (rows["restoration"] == "")]["value"].item()
        lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 1 + len(QUICK[2])]
        assert len(lines) == 2
        assert all(tuple(line.get_xydata()[0]) == (0.0, start) for line in lines)
        assert all((np.diff(line.get_xdata()) > 0).all() for line in lines)
        assert ruled(ax) == [rows[rows["adapter"] == ""]["value"].item()]


def test_a_point_stands_at_the_share_of_modules_that_was_changed():
    for ax in figure_of("curves, quick").axes:
        shares = sorted(x for x, _ in points(ax))
        assert shares == pytest.approx([0] + [0.5] * 2 + [0.9] * 2 + [1.0] * 2, abs=0.031)
        assert len(set(shares)) == 7  # none hides another
    table = drawn(QUICK[0], ["safelora-threshold"], [0.35])
    table.loc[table["strength"] == 0.35, "layers_changed"] = 12  # of 20: a threshold is no share
    assert max(x for x, _ in points(projection.curves(table).axes[0])) == pytest.approx(0.6)


def test_none_is_the_point_at_zero_and_drawn_once():
    rows = drawn(QUICK[0], ["zero"], [1.0])
    none = rows[(rows["restoration"] == "") & (rows["adapter"] != "")].assign(restoration="none", strength=1.0)
    assert ends(projection.curves(pd.concat([rows, none], ignore_index=True))) == ends(projection.curves(rows))


def test_curves_show_validation_prompts_and_no_test_prompts_beside_them():
    table = drawn(QUICK[0], ["zero"], [1.0])
    other = table[table["metric"] == "non_refusal"].assign(measured_on="advbench", value=0.5, low=0.5, high=0.5)
    assert 0.5 not in [y for _, y in points(projection.curves(pd.concat([other, table], ignore_index=True)).axes[0])]
    assert {y for _, y in points(projection.curves(other).axes[0])} == {0.5}  # where there is nothing else, it is what is there


# ---------------------------------------------------------------- in full


def on_test(updates, names):
    """The rows that the chapter measured in full: what its curves brought along is left out."""
    table = whole(updates, names)
    return table[~(table["strength"].isin([0.25, 1.0]) | table["measured_on"].str.contains("/"))]


MANY = ["safelora", "splora", "salora", "zero", "orthogonal-keep-k64", "safelora:nf4-both"]


@pytest.mark.parametrize(
    ("name", "updates", "names"), [("quick", QUICK[0], ["safelora", "zero"]), ("published", PUBLISHED[0], MANY)]
)
def test_variants_are_shown_on_test_prompts_only(name, updates, names):
    assert ends(figure_of(f"before_and_after, {name}")) == shown(on_test(updates, names), projection.PAGE)


def test_rows_are_grouped_by_weights_and_named_by_their_method():
    figure = figure_of("before_and_after, cpu")
    dose = "\n(90 % of modules)"
    methods = ["aligned, no update", "LoRA", f"SafeLoRA{dose}", f"SPLoRA{dose}", "SaLoRA", f"same modules removed{dose}"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == 2 * methods
    assert [text.get_text() for text in figure.axes[-1].texts] == ["bf16", "nf4"]
    several = figure_of("before_and_after, two updates of one precision").axes[0].get_yticklabels()
    both = [name for update in ("dialogue", "instructions") for name in (f"lora-{update}-harm10", f"SafeLoRA{dose}")]
    assert [text.get_text() for text in several] == ["aligned, no update", *both]


def test_a_variant_stands_in_its_own_row_and_dashed_is_the_aligned_model_in_bf16():
    table = on_test(PUBLISHED[0][:2], MANY[:4])
    order = ["", *MANY[:4]]
    for ax, metric in zip(figure_of("before_and_after, cpu").axes, projection.PAGE, strict=True):
        rows = table[table["metric"] == metric]
        place = rows["restoration"].map(order.index).where(rows["adapter"] == "", rows["restoration"].map(order.index) + 1)
        expected = sorted(zip(place + 6 * (rows["precision"] == "nf4"), rows["value"], strict=True))
        assert sorted((y, x) for x, y in points(ax)) == pytest.approx(np.array(expected))
        plain = rows[(rows["adapter"] == "") & (rows["precision"] == "bf16")]
        assert ruled(ax, 0) == [plain["value"].item()]
