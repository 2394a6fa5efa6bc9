"""Chapter 05's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import functools
import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.tiers import mostly_slow
from test_model_figures import check_texts, drawing, points  # noqa: F401
from test_monitor_figures import FULL, RNG, SIZES, SMALL, TASKS, check_page, check_same, drawing_functions, ends, row, said

from helpers.figures import staleness as staleness_figures
from helpers.figures import staleness_tables
from helpers.figures.drawing import layout, marks
from helpers.staleness import cohorts, verdicts

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
POOLS = ("last", "mean")
KINDS = {"control": verdicts.FLOOR, "quantization": verdicts.FINE}


def group(name, family):
    """The group of a variant of `VARIANTS`; the aligned model is none of them."""
    return verdicts.COARSE if name in {"rtn-3", "rtn-2"} else KINDS.get(family, family)


def staleness(size):
    """Single logistic monitors of both poolings on every variant, with refits and angles, and on the aligned model."""
    rng, rows = RNG(1), []
    for (name, family), task in itertools.product((*size.variants, ("aligned", "control")), size.tasks):
        precision = name if family == "quantization" else "bf16"
        worse = SEVERITY[family] * rng.uniform(0.3, 2.2)
        bare = family in {"quantization", "control"} and name != "identity"
        key = {"label": name, "family": family, "group": "" if name == "aligned" else group(name, family), "task": task,
               "precision": precision, "adapter": "" if bare else name}  # fmt: skip
        for (i, depth), pool in itertools.product(enumerate(size.depths), POOLS):
            here = {**key, "probe": f"logistic-{pool}", "layer": i + 1, "depth": depth}
            drop = worse + 0.02 * rng.standard_normal()
            rows += [row("auroc", 0.92 - drop, 0.04, bounds=(0, 1), **here), row("auroc_drop", drop, 0.03, **here)]
            rows += [
                row("refit_auroc", 0.92 - 0.3 * drop, 0.04, bounds=(0, 1), **here),
                row("refit_drop", 0.3 * drop, 0.03, **here),
            ]
            rows += [row("direction_angle", 12 + 250 * abs(drop) + 3 * rng.random(), 5, 700, bounds=(0, 180), **here)]
            rows += [row(flag, float(rng.random() < 4 * worse), 0, 100, **here) for flag in cohorts.FLAGS]
            rows.append(row("tpr_5", 0.8, 0.05, 100, **here))
        for pool in POOLS:
            every = {**key, "probe": f"all-{pool}", "layer": 0, "depth": 0.0}
            rows.append(row("mean_auroc_drop", worse - 0.01, 0.03, **every))
    return pd.DataFrame(rows)


def means(size, key="group"):
    return cohorts.by_group(staleness(size), "mean_auroc_drop", key)


def shares(size):
    return cohorts.shares(staleness(size))


def arms(*doses, name="lora-dialogue"):
    """So many doses of one update with their sizes."""
    return pd.DataFrame([(f"{name}-x{dose}", f"dose {dose}", 0.004 * dose, name) for dose in doses],
                        columns=["adapter", "label", "size", "series"])  # fmt: skip


def dosed(size, value, metric, *doses, half=0.1):
    """A row a dose, task and pooling, and of the controls; `value` of dose and pooling."""
    cells = itertools.product([("identity", verdicts.FLOOR, 0), *((f"dose {d}", "", d) for d in doses)], size.tasks, POOLS)
    return pd.DataFrame([row(metric, value(d, pool), half, 41, (-1, 1), label=label, group=name, task=task, pooling=pool)
                         for (label, name, d), task, pool in cells])  # fmt: skip


def curves(size, doses=(0.5, 1, 2, 4)):
    unfit = dosed(size, lambda d, pool: min(0.2 * d, 1) if pool == "last" else 0.05, "unfit", *doses)
    return arms(*doses), unfit, dosed(size, lambda d, pool: 0.01 * d, "mean_auroc_drop", *doses, half=0.02)


def interaction(size, measures=tuple(staleness_figures.MEASURES), adapters=("lora-dialogue", "lora-dialogue-harm10")):
    rng = RNG(3)
    cells = itertools.product(adapters, measures, (*size.tasks, "all"), POOLS, ("", "_90"))
    return pd.DataFrame(
        [row(f"{metric}{end}", 0.03 * rng.standard_normal() + 0.02, 0.03 if task != "all" else 0.015, 400, task=task,
             probe=f"all-{pool}", layer=0, adapter=adapter, precision="nf4") for adapter, metric, task, pool, end in cells]
    )  # fmt: skip


def replies(size):
    """The same of one task, as if its texts were the model's own replies, with the share of answers that are called refusals."""
    own = staleness(size)
    own = own[own["task"] == size.tasks[0]]
    called = own[own["metric"] == "auroc"].assign(metric="fpr_5", value=lambda t: (0.95 - t["value"]).clip(0, 1))
    return pd.concat([own, called.assign(low=(called["value"] - 0.02).clip(0, 1), high=(called["value"] + 0.02).clip(0, 1))])


def scores(shift=1.0, n=200):
    rng = RNG(5)
    labels = np.repeat([0, 1], n)
    before = rng.standard_normal(2 * n) + 2.5 * labels
    return before, before * 0.7 + shift + 0.8 * rng.standard_normal(2 * n), labels, 1.64


LONG = "lora-dialogue-harm10 · bf16→nf4 merged-requantized"
RESAMPLED = {"logistic-last": 21.0, "logistic-mean": 8.0}
SIZED = {
    "heat_map": lambda s: staleness_figures.heat_map(means(s)),
    "three_definitions": lambda s: staleness_figures.three_definitions(staleness(s), shares(s), "last"),
    "frozen_and_refit": lambda s: staleness_figures.frozen_and_refit(staleness(s), "mean"),
    "angles": lambda s: staleness_figures.angles(staleness(s), RESAMPLED),
    "drop_by_bits": lambda s: staleness_figures.drop_by_bits(staleness(s), BITS),
    "monitors_by_dose": lambda s: staleness_figures.monitors_by_dose(*curves(s)),
    "interaction_dots": lambda s: staleness_figures.interaction_dots(interaction(s)),
    "own_replies": lambda s: staleness_figures.own_replies(replies(s)),
}
DRAWN = {
    f"{name}, {size}": (lambda f=f, s=s: f(s)) for (name, f), (size, s) in itertools.product(SIZED.items(), SIZES.items())
} | {
    "interaction_dots, one measure": lambda: staleness_figures.interaction_dots(
        interaction(SMALL, ("interaction",), ("lora-dialogue",)), ["interaction"]
    ),
    "interaction_dots, all measures": lambda: staleness_figures.interaction_dots(
        interaction(FULL), list(staleness_figures.MEASURES)[2:]
    ),
    "monitors_by_dose, many doses": lambda: staleness_figures.monitors_by_dose(
        *curves(FULL, (0.4, 0.5, 0.6, 0.9, 1, 1.1, 2, 3.9, 4, 9))
    ),
    "score_histograms, full": lambda: staleness_figures.score_histograms(*scores(), ("aligned", LONG)),
    "score_histograms, small": lambda: staleness_figures.score_histograms(*scores(n=15), groups=np.tile(np.arange(15), 2)),
    "score_histograms, far off": lambda: staleness_figures.score_histograms(*scores(shift=400.0)),
}
MEASURED = {name for name in DRAWN if not name.startswith("drop_by_bits") or name.split(", ")[1] in {"full", "own"}}


@functools.cache
def drawn(name):
    """A figure of a whole run is drawn once, whatever is asked of it."""
    return DRAWN[name]()


# ---------------------------------------------------------------- of every figure

LONGEST = [name for name in DRAWN if name.endswith((", full", "many doses"))]


@mostly_slow("shorter labels of the same figures", *LONGEST)
@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(drawn(name), measured=name in MEASURED)


@pytest.mark.parametrize("name", LONGEST)
def test_a_panel_has_at_most_sixty_marks_and_a_sentence_stands_above(name):
    figure = drawn(name)
    counts = Counter(mark.panel for mark in marks.marks(figure))
    assert max(counts.values()) <= 60, counts
    if not name.startswith("score_histograms"):
        assert figure.get_suptitle().endswith(".")
        assert figure.get_suptitle() != staleness_tables.NOBODY


def test_every_public_function_that_draws_is_among_them():
    assert drawing_functions(staleness_figures) == {name.split(",")[0] for name in DRAWN}


def test_every_value_of_a_pooling_is_drawn_with_its_interval():
    for size in ("full", "small"):
        rows = shares(SIZES[size])
        rows = rows[rows["metric"].isin(staleness_figures.DEFINITIONS) & (rows["pooling"] == "last")]
        found, values = ends(drawn(f"three_definitions, {size}"), 0)
        assert values == pytest.approx(sorted(rows["value"]))
        assert found == pytest.approx(sorted([*rows["low"], *rows["high"]]))
        table = interaction(SIZES[size])
        rows = table[table["metric"].isin(staleness_figures.PARTS)]
        found, values = ends(drawn(f"interaction_dots, {size}"), 0)
        assert values == pytest.approx(sorted(rows["value"]))
        assert found == pytest.approx(sorted([*rows["low"], *rows["high"]]))


EMPTY = {
    "heat_map": lambda: staleness_figures.heat_map(means(SMALL)[:0]),
    "three_definitions": lambda: staleness_figures.three_definitions(staleness(SMALL), shares(SMALL)[:0], "mean"),
    "frozen_and_refit": lambda: staleness_figures.frozen_and_refit(staleness(SMALL).query("metric != 'refit_auroc'"), "last"),
    "angles": lambda: staleness_figures.angles(staleness(SMALL).query("metric != 'direction_angle'"), RESAMPLED),
    "drop_by_bits": lambda: staleness_figures.drop_by_bits(staleness(SMALL), BITS),
    "monitors_by_dose": lambda: staleness_figures.monitors_by_dose(arms(1), *curves(SMALL)[1:]),
    "interaction_dots": lambda: staleness_figures.interaction_dots(interaction(SMALL).query("layer > 0")),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


@mostly_slow("two drawings of each figure", "heat_map", "monitors_by_dose")
@pytest.mark.parametrize("name", [name for name in SIZED if name != "drop_by_bits"])
def test_the_order_of_a_tables_rows_changes_nothing(name):
    tables = {"monitors_by_dose": curves, "interaction_dots": lambda s: (interaction(s, adapters=("lora-dialogue",)),),
              "heat_map": lambda s: (means(s),), "three_definitions": lambda s: (staleness(s), shares(s))}  # fmt: skip
    further = {"three_definitions": ["last"], "frozen_and_refit": ["last"], "angles": [RESAMPLED]}.get(name, [])
    told = tables.get(name, lambda s: (staleness(s),))(SMALL)
    draw = getattr(staleness_figures, name)
    turned = [table if i == 0 and name == "monitors_by_dose" else table[::-1] for i, table in enumerate(told)]
    check_same(draw(*told, *further), draw(*turned, *further))


def test_the_same_table_gives_the_same_picture(tmp_path):
    for name in "ab":
        staleness_figures.heat_map(means(SMALL)).savefig(tmp_path / f"{name}.svg", metadata={"Date": None})
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


# ---------------------------------------------------------------- groups of updates


def test_the_heat_map_writes_each_drop_under_its_pooling_and_frames_what_surely_lies_above_the_margin():
    rows = means(FULL)
    figure = drawn("heat_map, full")
    groups = [name for name in verdicts.GROUPS if name in set(rows["group"])]
    for ax, pooling in zip(figure.axes, POOLS, strict=False):
        own = rows[rows["pooling"] == pooling]
        assert ax.get_title(loc="left") == staleness_tables.READS[pooling]
        frames = {(round(p.get_x() + 0.47), round(p.get_y() + 0.43)) for p in ax.patches if p.get_width() < 1}
        sure = {(TASKS.index(r.task), groups.index(r.group)) for r in own[own["low"] > 0.03].itertuples()}
        assert 0 < len(sure) < len(own)
        assert frames == sure
        wide = own.pivot_table(index="group", columns="task", values="value").loc[groups, list(TASKS)]
        assert np.allclose(np.asarray(ax.images[0].get_array()), wide)
        low, high = ax.images[0].get_clim()
        assert low == -high


def test_a_cell_without_a_monitor_is_said_and_a_collapse_does_not_bleach_the_rest():
    rows = means(SMALL)
    gone = (rows["group"] == verdicts.FINE) & (rows["task"] == "harmful-request") & (rows["pooling"] == "mean")
    rows.loc[rows["group"] == "LoRA", ["value", "low", "high"]] = 0.45, 0.4, 0.5
    figure = staleness_figures.heat_map(rows[~gone])
    check_texts(figure)
    assert [[text.get_text() for text in ax.texts].count("none") for ax in figure.axes[:2]] == [0, 1]
    assert figure.axes[0].images[0].get_clim() == (-0.3, 0.3)


def test_the_floor_is_the_largest_share_where_nothing_changed():
    table = shares(SMALL)
    floor = (table["group"] == verdicts.FLOOR) & (table["metric"] == "stale_fpr_5") & (table["pooling"] == "last")
    table.loc[floor, ["value", "low", "high"]] = [[0.1, 0, 0.3], [0.4, 0.2, 0.6]]
    axes = staleness_figures.three_definitions(staleness(SMALL), table, "last").axes
    assert [line.get_xdata()[0] for line in axes[2].lines if line.get_linestyle() == "--"] == [0.4]


def test_frozen_and_refit_probes_are_means_over_layers_and_variants_of_one_pooling():
    table = staleness(FULL).query("task == 'toxicity'")
    figure = staleness_figures.frozen_and_refit(table, "last")
    (ax,) = figure.axes
    groups = [name for name in verdicts.GROUPS if name in set(table["group"])]
    for container, metric in zip(ax.containers, ("auroc", "refit_auroc"), strict=True):
        for place, name in enumerate(groups):
            own = (table["group"] == name) & (table["probe"] == "logistic-last") & (table["metric"] == metric)
            assert container.lines[0].get_xdata()[place] == pytest.approx(table.loc[own, "value"].mean())
    for ax in figure.axes:
        (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert line.get_xdata() == pytest.approx([0.92, 0.92], abs=1e-9)  # planted: before the update


def test_angles_are_compared_with_other_training_texts():
    figure = staleness_figures.angles(staleness(SMALL), pd.Series(RESAMPLED))
    for ax, angle in zip(figure.axes, RESAMPLED.values(), strict=True):
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [angle]
        assert "dashed" in ax.get_xlabel()
    far = staleness_figures.angles(staleness(SMALL), {"logistic-last": 150.0})
    assert min(ax.get_xlim()[1] for ax in far.axes) > 150
    assert "dashed" not in far.axes[1].get_xlabel()


# ---------------------------------------------------------------- doses and parts


def test_bits_fall_to_the_right_and_the_unquantized_model_stands_at_zero():
    figure = drawn("drop_by_bits, full")
    for ax in figure.axes:
        assert [text.get_text() for text in ax.get_xticklabels()] == ["16", "8.1", "4.1", "3.1", "2.1"]
        assert ax.get_xlim()[0] > ax.get_xlim()[1]  # the dose grows to the right
        assert [16, 0] in [list(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "s"]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_doses_stand_at_their_size_with_the_floor_of_their_pooling():
    told = curves(FULL)
    figure = staleness_figures.monitors_by_dose(*told)
    top, other, low, last = figure.axes
    places = np.array(sorted(x for x, _ in points(other))).reshape(4, -1)  # the tasks of a dose a little apart
    assert np.exp(np.log(places).mean(axis=1)) == pytest.approx([0.2, 0.4, 0.8, 1.6], rel=1e-6)
    assert [line.get_ydata()[0] for line in top.lines if line.get_linestyle() == "--"] == [0.0]
    values = [pooled["value"].to_numpy() for table in told[1:] for _, pooled in table[table["group"] == ""].groupby("pooling")]
    for ax, own in zip((top, other, low, last), values, strict=True):
        assert sorted(y for _, y in points(ax)) == pytest.approx(sorted(own))
    assert [ax.get_title(loc="left") for ax in (top, other)] == [staleness_tables.READS[pool] for pool in POOLS]


def test_interactions_name_their_sides_and_show_both_poolings():
    figure = staleness_figures.interaction_dots(
        interaction(FULL, ("interaction", "training_effect")), ["interaction", "training_effect"]
    )
    assert [ax.texts[-2].get_text() for ax in figure.axes] == ["worse than\nthe sum", "worse"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == 2 * [layout.TASK_WORDS[t] for t in (*TASKS, "all")]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [staleness_tables.READS[pool] for pool in POOLS]
    blocks = {text.get_text().replace("\n", " ").replace("- ", "-") for text in figure.axes[-1].texts}
    assert {"lora-dialogue on nf4", "lora-dialogue-harm10 on nf4"} <= blocks


def test_where_many_updates_were_measured_only_all_tasks_are_drawn():
    many = tuple(f"lora-dialogue-x{i}" for i in range(2, 9))
    figure = staleness_figures.interaction_dots(interaction(FULL, ("interaction",), many), ["interaction"])
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == {layout.TASK_WORDS["all"]}
    assert len(points(figure.axes[0])) == 2 * len(many)
