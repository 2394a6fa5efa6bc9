"""Chapter 05's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.tiers import mostly_slow
from test_model_figures import check_texts, drawing, points  # noqa: F401
from test_monitor_figures import FULL, RNG, SIZES, SMALL, TASKS, check_page, check_same, drawing_functions, ends, row, said

from helpers.figures import staleness as staleness_figures
from helpers.figures.drawing import layout

BITS = pd.Series({"bf16": 16, "int8": 8.03, "nf4": 4.5, "rtn-8": 8.13, "rtn-4": 4.13, "rtn-3": 3.13, "rtn-2": 2.13})
SEVERITY = {
    "control": 0.0,
    "before alignment": 0.05,
    "quantization": 0.015,
    "LoRA": 0.08,
    "QLoRA": 0.12,
    "full fine-tune": 0.15,
    "QAT": 0.1,
}
FLAGS = ("stale_auroc_05", "stale_auroc_10", "stale_tpr_5", "stale_fpr_5")


def staleness(size):
    rng, rows = RNG(1), []
    for (name, family), task in itertools.product(size.variants, size.tasks):
        precision = name if family == "quantization" else "bf16"
        worse = SEVERITY[family] * rng.uniform(0.3, 2.2)
        key = {
            "label": name,
            "family": family,
            "precision": precision,
            "task": task,
            "adapter": "" if precision == name else "lora",
        }
        for probe, (i, depth) in itertools.product(size.probes, enumerate(size.depths)):
            here = {**key, "probe": probe, "layer": i + 1, "depth": depth}
            drop = worse + 0.02 * rng.standard_normal()
            rows += [row("auroc", 0.92 - drop, 0.04, bounds=(0, 1), **here), row("auroc_drop", drop, 0.03, **here)]
            rows += [row("refit_auroc", 0.92 - 0.3 * drop, 0.04, bounds=(0, 1), **here)]
            rows += [row("direction_angle", 12 + 250 * abs(drop) + 3 * rng.random(), 5, 700, bounds=(0, 180), **here)]
        every = {**key, "probe": "all", "layer": 0, "depth": 0.0}
        rows.append(row("mean_auroc_drop", worse - 0.01, 0.03, **every))
        for flag in FLAGS:
            rows.append(row(f"share_{flag}", np.round(min(4 * worse * rng.random(), 1), 1), 0.18, 41, (0, 1), **every))
    return pd.DataFrame(rows)


def with_dose(size, kinds=("rank", "steps")):
    """The table with an update at several doses beside it."""
    rng, rows = RNG(2), []
    for kind, task in itertools.product(kinds, size.tasks):
        for dose in {"rank": (2, 4, 8, 16, 32), "steps": (10, 40, 160)}[kind]:
            keys = {
                "task": task,
                "precision": "bf16",
                "adapter": f"lora-dialogue-{kind}{dose}",
                "dose_kind": kind,
                "dose_value": dose,
            }
            rows.append(row("mean_auroc_drop", 0.02 * np.log2(dose) + 0.03 * rng.random(), 0.03, **keys))
    return pd.concat([staleness(size), pd.DataFrame(rows)], ignore_index=True)


def interaction(size, measures=tuple(staleness_figures.MEASURES), adapters=("lora-dialogue", "lora-dialogue-harm10")):
    rng = RNG(3)
    cells = itertools.product(adapters, measures, (*size.tasks, "all"))
    return pd.DataFrame(
        [row(metric, 0.03 * rng.standard_normal() + 0.02, 0.03 if task != "all" else 0.015, 400, task=task, probe="all", layer=0,
             adapter=adapter, precision="nf4") for adapter, metric, task in cells]
    )  # fmt: skip


def scores(shift=1.0, n=200):
    rng = RNG(5)
    labels = np.repeat([0, 1], n)
    before = rng.standard_normal(2 * n) + 2.5 * labels
    return before, before * 0.7 + shift + 0.8 * rng.standard_normal(2 * n), labels, 1.64


LONG = "lora-dialogue-harm10 · bf16→nf4 merged-requantized"
RESAMPLED = {"logistic-mean": 21.0, "mean-difference-mean": 8.0}
SIZED = {
    "heat_map": lambda s: staleness_figures.heat_map(staleness(s), s.order),
    "three_definitions": lambda s: staleness_figures.three_definitions(staleness(s), s.order),
    "frozen_and_refit": lambda s: staleness_figures.frozen_and_refit(staleness(s), s.order),
    "angles": lambda s: staleness_figures.angles(staleness(s), s.order, RESAMPLED),
    "drop_by_dose": lambda s: staleness_figures.drop_by_dose(with_dose(s), BITS),
    "interaction_dots": lambda s: staleness_figures.interaction_dots(interaction(s)),
}
DRAWN = {
    f"{name}, {size}": (lambda f=f, s=s: f(s)) for (name, f), (size, s) in itertools.product(SIZED.items(), SIZES.items())
} | {
    "drop_by_dose, bits only": lambda: staleness_figures.drop_by_dose(staleness(FULL), BITS),
    "drop_by_dose, rank only": lambda: staleness_figures.drop_by_dose(with_dose(SMALL, ("rank",)), BITS),
    "interaction_dots, one measure": lambda: staleness_figures.interaction_dots(
        interaction(SMALL, ("interaction",), ("lora-dialogue",))
    ),
    "score_histograms, full": lambda: staleness_figures.score_histograms(*scores(), ("aligned", LONG)),
    "score_histograms, small": lambda: staleness_figures.score_histograms(*scores(n=15), groups=np.tile(np.arange(15), 2)),
    "score_histograms, far off": lambda: staleness_figures.score_histograms(*scores(shift=400.0)),
}


@functools.cache
def drawn(name):
    """A figure of a whole run is drawn once, whatever is asked of it."""
    return DRAWN[name]()


# ---------------------------------------------------------------- of every figure

LONGEST = [name for name in DRAWN if name.endswith(", full")]


@mostly_slow("shorter labels of the same figures", *LONGEST)
@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(drawn(name), measured=name != "angles, own")  # that run has no probe whose angle is known


def test_every_public_function_that_draws_is_among_them():
    assert drawing_functions(staleness_figures) == {name.split(",")[0] for name in DRAWN}


# what each figure of a whole run must show: the metric or metrics, and along which axis
WHOLE = {
    "three_definitions": (staleness, [f"share_{flag}" for flag in staleness_figures.DEFINITIONS], 0),
    "angles": (lambda s: staleness(s).query("probe in @staleness_figures.TURNED"), ["direction_angle"], 0),
    "interaction_dots": (interaction, list(staleness_figures.MEASURES), 0),
}


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", WHOLE)
def test_every_value_is_drawn_with_its_interval(name, size):
    table, metrics, axis = WHOLE[name]
    rows = table(SIZES[size])
    rows = rows[rows["metric"].isin(metrics)]
    found, values = ends(drawn(f"{name}, {size}"), axis)
    assert values == pytest.approx(sorted(rows["value"]))
    assert found == pytest.approx(sorted([*rows["low"], *rows["high"]]))


def test_curves_of_doses_are_drawn_with_their_intervals():
    rows = with_dose(FULL)
    rows = rows[
        (rows["metric"] == "mean_auroc_drop")
        & (rows["precision"].isin(staleness_figures.ROUNDED) | rows["adapter"].str.contains("-"))
    ]
    found, _ = ends(drawn("drop_by_dose, full"), 1)
    assert len(rows) == 5 * (4 + 5 + 3)
    assert found == pytest.approx(sorted([*rows["low"], *rows["high"]]))


EMPTY = {
    "heat_map": lambda: staleness_figures.heat_map(staleness(SMALL), ["another"]),
    "three_definitions": lambda: staleness_figures.three_definitions(staleness(SMALL), ["another"]),
    "frozen_and_refit": lambda: staleness_figures.frozen_and_refit(
        staleness(SMALL).query("metric != 'refit_auroc'"), SMALL.order
    ),
    "angles": lambda: staleness_figures.angles(staleness(SMALL).query("metric != 'direction_angle'"), SMALL.order, RESAMPLED),
    "drop_by_dose": lambda: staleness_figures.drop_by_dose(staleness(SMALL), BITS),
    "interaction_dots": lambda: staleness_figures.interaction_dots(interaction(SMALL).query("probe != 'all'")),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


@mostly_slow("two drawings of each figure", "heat_map", "drop_by_dose")
@pytest.mark.parametrize("name", SIZED)
def test_the_order_of_a_tables_rows_changes_nothing(name):
    tables = {"drop_by_dose": with_dose, "interaction_dots": interaction}
    draw = {
        "heat_map": lambda t: staleness_figures.heat_map(t, SMALL.order),
        "three_definitions": lambda t: staleness_figures.three_definitions(t, SMALL.order),
        "frozen_and_refit": lambda t: staleness_figures.frozen_and_refit(t, SMALL.order),
        "angles": lambda t: staleness_figures.angles(t, SMALL.order, RESAMPLED),
        "drop_by_dose": lambda t: staleness_figures.drop_by_dose(t, BITS),
        "interaction_dots": staleness_figures.interaction_dots,
    }[name]
    table = tables.get(name, staleness)(SMALL)
    if name == "interaction_dots":
        table = table[table["adapter"] == "lora-dialogue"]
    check_same(draw(table), draw(table[::-1]))


def test_the_same_table_gives_the_same_picture(tmp_path):
    for name in "ab":
        staleness_figures.heat_map(staleness(SMALL), SMALL.order).savefig(tmp_path / f"{name}.svg", metadata={"Date": None})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# ---------------------------------------------------------------- one monitor


def test_the_histograms_say_what_the_frozen_threshold_does():
    before, after, labels, threshold = scores()
    figure = staleness_figures.score_histograms(before, after, labels, threshold, ("aligned", LONG))
    for ax, values in zip(figure.axes, (before, after), strict=True):
        flagged, (words,) = values > threshold, [text.get_text().split("\n") for text in ax.texts]
        assert words[0].startswith(f"AUROC {roc_auc_score(labels, values):.2f} [")
        assert words[1].startswith(f"TPR {100 * flagged[labels == 1].mean():.0f} % [")
        assert words[2].startswith(f"FPR {100 * flagged[labels == 0].mean():.0f} % [")
        assert [set(line.get_xdata()) for line in ax.lines] == [{threshold}]
        assert ax.get_xlim()[0] < threshold < ax.get_xlim()[1]
    assert "n = 200" in said(figure)


def test_groups_widen_the_intervals_beside_the_histograms():
    before, after, labels, threshold = scores()
    groups = np.tile(np.arange(200) // 20, 2)
    alone = staleness_figures.score_histograms(before, after, labels, threshold).axes[1].texts[0].get_text()
    grouped = staleness_figures.score_histograms(before, after, labels, threshold, groups=groups).axes[1].texts[0].get_text()
    assert alone.split("[")[0] == grouped.split("[")[0]
    assert alone != grouped


# ---------------------------------------------------------------- all monitors on all variants


def test_variants_stand_in_the_order_given_with_their_families_together():
    table = staleness(SMALL)
    mixed = [SMALL.order[i] for i in (3, 0, 2, 1)]
    table.loc[table["label"] == mixed[1], "family"] = "LoRA"
    figure = staleness_figures.three_definitions(table, mixed)
    rows = [text.get_text().replace(" ·\n", " · ") for text in figure.axes[0].get_yticklabels()]
    assert rows == [mixed[0], mixed[1], mixed[2], mixed[3]]
    figure = staleness_figures.three_definitions(table, [mixed[1], mixed[0], mixed[2], mixed[3]])
    rows = [text.get_text().replace(" ·\n", " · ") for text in figure.axes[0].get_yticklabels()]
    assert rows == [mixed[1], mixed[2], mixed[0], mixed[3]]
    assert [text.get_text() for text in figure.axes[-1].texts] == ["LoRA", "QLoRA", "quantization"]


def test_a_variant_stands_in_its_own_row():
    table = staleness(SMALL)
    (left, *_) = staleness_figures.three_definitions(table, SMALL.order).axes
    for x, y in points(left):
        near = table[(table["label"] == SMALL.order[round(y)]) & (table["metric"] == "share_stale_auroc_05")]
        assert np.isclose(near["value"], x).any()


def test_the_heat_map_writes_each_drop_and_frames_what_surely_lies_above_the_margin():
    table = staleness(FULL)
    rows = table[table["metric"] == "mean_auroc_drop"]
    figure = drawn("heat_map, full")
    ax = figure.axes[0]
    frames = {(round(p.get_x() + 0.47), round(p.get_y() + 0.43)) for p in ax.patches if p.get_width() < 1}
    sure = {(TASKS.index(r.task), FULL.order.index(r.label)) for r in rows[rows["low"] > 0.05].itertuples()}
    assert 0 < len(sure) < len(rows)
    assert frames == sure
    wide = rows.pivot_table(index="label", columns="task", values="value").loc[FULL.order, list(TASKS)]
    assert np.allclose(np.asarray(ax.images[0].get_array()), wide)
    written = [text.get_text() for text in ax.texts]
    assert sum(f"{low:.2f} to {high:.2f}".replace("-", "−").replace("−0.00", "0.00") in written
               for low, high in zip(rows["low"], rows["high"], strict=True)) == len(rows)  # fmt: skip
    low, high = ax.images[0].get_clim()
    assert low == -high
    bold = {text.get_text() for text in ax.texts if text.get_weight() == "bold"}
    assert {f"{value:.2f}" for value in rows[rows["low"] > 0.05]["value"]} <= bold


def test_a_cell_not_measured_is_said_and_a_collapse_does_not_bleach_the_rest():
    table = staleness(SMALL)
    gone = (table["label"] == "nf4") & (table["task"] == "harmful-request")
    table.loc[(table["label"] == "identity") & (table["metric"] == "mean_auroc_drop"), ["value", "low", "high"]] = 0.45, 0.4, 0.5
    figure = staleness_figures.heat_map(table[~gone], SMALL.order)
    check_texts(figure)
    assert [text.get_text() for text in figure.axes[0].texts].count("not measured") == 1
    assert figure.axes[0].images[0].get_clim() == (-0.3, 0.3)


def test_frozen_and_refit_probes_are_means_over_the_same_layers():
    table = staleness(FULL).query("task == 'toxicity'")
    one = (table["task"] == "toxicity") & (table["label"] == "nf4")
    dropped = table[~(one & (table["metric"] == "refit_auroc") & (table["layer"] > 2))]
    figure = staleness_figures.frozen_and_refit(dropped, FULL.order)
    assert [len(points(ax)) for ax in figure.axes] == [2 * 29]
    (ax,), row = figure.axes, FULL.order.index("nf4")
    here = one & table["probe"].isin(["logistic-mean", "logistic-last"]) & (table["layer"] <= 2)
    for container, metric in zip(ax.containers, ("auroc", "refit_auroc"), strict=True):
        part = table[here & (table["metric"] == metric)]
        assert container.lines[0].get_xdata()[row] == pytest.approx(part["value"].mean())
        assert container.lines[2][0].get_segments()[row][:, 0] == pytest.approx([part["low"].mean(), part["high"].mean()])
    assert "monitors: 10" in said(figure)


def test_the_auroc_before_the_update_is_the_frozen_one_plus_its_drop():
    for ax in staleness_figures.frozen_and_refit(staleness(SMALL), SMALL.order).axes:
        (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert line.get_xdata() == pytest.approx([0.92, 0.92])  # planted


def test_angles_are_compared_with_other_training_texts():
    figure = staleness_figures.angles(staleness(SMALL), SMALL.order, pd.Series(RESAMPLED))
    for ax, angle in zip(figure.axes, RESAMPLED.values(), strict=True):
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [angle]
        assert "dashed" in ax.get_xlabel()
    far = staleness_figures.angles(staleness(SMALL), SMALL.order, {"logistic-mean": 150.0})
    assert min(ax.get_xlim()[1] for ax in far.axes) > 150
    assert "dashed" not in far.axes[1].get_xlabel()


# ---------------------------------------------------------------- doses and parts


def test_each_dose_has_a_panel_and_the_unquantized_model_stands_at_zero():
    figure = drawn("drop_by_dose, full")
    left, rank, steps = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["16", "8.1", "4.1", "3.1", "2.1"]
    assert left.get_xlim()[0] > left.get_xlim()[1]  # the dose grows to the right everywhere
    assert [list(line.get_xydata()[0]) for line in left.lines if line.get_marker() == "s" and len(line.get_xdata()) == 1] == [
        [16, 0]
    ]
    assert [text.get_text() for text in rank.get_xticklabels()] == ["2", "4", "8", "16", "32"]
    assert [text.get_text() for text in steps.get_xticklabels()] == ["10", "40", "160"]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert len(staleness_figures.drop_by_dose(with_dose(SMALL, ("steps",)), BITS).axes) == 1
    assert len(staleness_figures.drop_by_dose(with_dose(FULL, ("rank",)), BITS).axes) == 2


def test_interactions_name_their_sides_and_leave_out_what_was_not_built():
    figure = staleness_figures.interaction_dots(interaction(FULL, ("interaction", "training_effect")))
    assert [ax.texts[-2].get_text() for ax in figure.axes] == ["worse than\nthe sum", "worse"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == 2 * [layout.TASK_WORDS[t] for t in (*TASKS, "all")]
    low, high = figure.axes[0].get_xlim()
    assert low == -high
    blocks = {text.get_text().replace("\n", " ").replace("- ", "-") for text in figure.axes[-1].texts}
    assert {"lora-dialogue on nf4", "lora-dialogue-harm10 on nf4"} <= blocks
