"""Every figure of the monitors is drawn at full and small size, shows every interval, says n, and no text is cut or covered."""

import itertools
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from sklearn.metrics import roc_auc_score
from test_figures import check_texts, points, texts

from helpers import figures
from helpers import monitor_figures as mf

TASKS = ("harmful-request", "refusal-compliance", "privacy-pii", "toxicity", "jailbreak")
MIXES = ("dialogue", "dialogue-harm1", "dialogue-harm10", "identity-shift", "instructions")
VARIANTS = [
    *[("identity", "control"), ("fp32", "control"), ("base", "before alignment")],
    *[(name, "quantization") for name in ("int8", "nf4", "nf4-dq", "fp4", "rtn-8", "rtn-4", "rtn-3", "rtn-2", "gptq-4")],
    *[(f"lora-{mix} · bf16→bf16 attached", "LoRA") for mix in MIXES],
    ("lora-dialogue-harm10 · bf16→bf16 merged", "LoRA"),
    *[(f"lora-{mix} · nf4→nf4 attached", "QLoRA") for mix in MIXES],
    *[(f"lora-dialogue-harm10 · {how}", "QLoRA") for how in ("bf16→nf4 merged-requantized", "bf16→nf4 attached",
                                                             "nf4→bf16 attached", "nf4→nf4 merged-into-nf4")],
    ("full-dialogue-harm10 · bf16→bf16 merged", "full fine-tune"),
    ("qat-dialogue-harm10 · bf16→rtn-4 merged", "QAT"),
]  # fmt: skip
BITS = pd.Series({"bf16": 16, "int8": 8.03, "nf4": 4.5, "rtn-8": 8.13, "rtn-4": 4.13, "rtn-3": 3.13, "rtn-2": 2.13})
RNG = np.random.default_rng


class Size:
    """What a run holds: how many tasks, depths and variants."""

    def __init__(self, tasks, depths, variants, probes):
        self.tasks, self.depths, self.variants, self.probes = tasks, depths, variants, probes
        self.order = [name for name, _ in variants]


POOLED = [
    f"{kind}-{pooling}"
    for kind in ("logistic", "mean-difference", "lda", "mlp", "shuffled-labels")
    for pooling in ("mean", "last")
]
FULL = Size(TASKS, (0.2, 0.4, 0.6, 0.8, 1.0), VARIANTS, POOLED)
SMALL = Size(TASKS[:2], (0.5, 1.0), [VARIANTS[i] for i in (0, 4, 12, 22)], ["logistic-mean", "mean-difference-mean"])
OWN = Size(("my-own-very-long-task-name-of-a-user", "toxicity"), (0.5,), VARIANTS[3:5], ["logistic-last"])
ONE = Size(TASKS[1:2], (0.5,), VARIANTS[21:22], POOLED[:4])
SIZES = {"full": FULL, "small": SMALL, "own": OWN, "one": ONE}


def row(metric, value, half, n=200, bounds=(-9, 9), **keys):
    low, high = np.clip([value - half, value + half], *bounds)
    return {**keys, "metric": metric, "value": float(np.clip(value, *bounds)), "low": low, "high": high, "n": n}


def monitors(size):
    """Monitors of a run, with controls, baselines and, where there are several depths, one attention probe a task."""
    rng, rows = RNG(0), []
    for task, probe in itertools.product(size.tasks, size.probes):
        for i, depth in enumerate(size.depths):
            good = 0.5 if "shuffled" in probe else 0.72 + 0.2 * depth + 0.03 * rng.standard_normal()
            keys = {"task": task, "probe": probe, "layer": i + 1, "depth": depth}
            rows += [row("auroc", good, 0.04, bounds=(0, 1), **keys), row("auroc_validation", good, 0.05, bounds=(0, 1), **keys)]
            rows.append(row("resampled_angle", 30 * rng.random(), 4, **keys))
    for task in size.tasks:
        keys = {"task": task, "layer": 0, "depth": 0.0}
        rows += [row("auroc", 0.70, 0.05, probe="bag-of-words", **keys), row("auroc", 0.68, 0.05, probe="length", **keys)]
        if len(size.depths) > 2:
            rows.append(row("auroc", 0.93, 0.03, probe="attention", task=task, layer=3, depth=0.6))
    return pd.DataFrame(rows)


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


def interaction(size, measures=tuple(mf.MEASURES), adapters=("lora-dialogue", "lora-dialogue-harm10")):
    rng = RNG(3)
    cells = itertools.product(adapters, measures, (*size.tasks, "all"))
    return pd.DataFrame(
        [row(metric, 0.03 * rng.standard_normal() + 0.02, 0.03 if task != "all" else 0.015, 400, task=task, probe="all", layer=0,
             adapter=adapter, precision="nf4") for adapter, metric, task in cells]
    )  # fmt: skip


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


def scores(shift=1.0, n=200):
    rng = RNG(5)
    labels = np.repeat([0, 1], n)
    before = rng.standard_normal(2 * n) + 2.5 * labels
    return before, before * 0.7 + shift + 0.8 * rng.standard_normal(2 * n), labels, 1.64


LONG = "lora-dialogue-harm10 · bf16→nf4 merged-requantized"
WORDS = {f"signal_{i}": f"relative size of the weight change below the monitor's layer, kind {i}" for i in range(19)}
RESAMPLED = {"logistic-mean": 21.0, "mean-difference-mean": 8.0}
SIZED = {
    "auroc_by_depth": lambda s: mf.auroc_by_depth(monitors(s)),
    "heat_map": lambda s: mf.heat_map(staleness(s), s.order),
    "three_definitions": lambda s: mf.three_definitions(staleness(s), s.order),
    "frozen_and_refit": lambda s: mf.frozen_and_refit(staleness(s), s.order),
    "angles": lambda s: mf.angles(staleness(s), s.order, RESAMPLED),
    "dose": lambda s: mf.dose(with_dose(s), BITS),
    "interaction_dots": lambda s: mf.interaction_dots(interaction(s)),
}
DRAWN = {
    f"{name}, {size}": (lambda f=f, s=s: f(s)) for (name, f), (size, s) in itertools.product(SIZED.items(), SIZES.items())
} | {
    "auroc_by_depth, one pooling": lambda: mf.auroc_by_depth(monitors(FULL), "last"),
    "dose, bits only": lambda: mf.dose(staleness(FULL), BITS),
    "dose, rank only": lambda: mf.dose(with_dose(SMALL, ("rank",)), BITS),
    "interaction_dots, one measure": lambda: mf.interaction_dots(interaction(SMALL, ("interaction",), ("lora-dialogue",))),
    "budget_curves, full": lambda: mf.budget_curves(triage()),
    "budget_curves, small": lambda: mf.budget_curves(triage(("monitor",), ORDERS[:4])),
    "importances, full": lambda: mf.importances(triage(), ORDERS[-1], WORDS),
    "importances, small": lambda: mf.importances(triage(("monitor",), ORDERS[:4]), "ridge, free", {}, top=3),
    "signal_scatter, full": lambda: mf.signal_scatter(cells(2000), ["relative_change", "score_ks"]),
    "signal_scatter, none stale": lambda: mf.signal_scatter(cells(3).assign(stale=False), ["relative_change"]),
    "score_histograms, full": lambda: mf.score_histograms(*scores(), ("aligned", LONG)),
    "score_histograms, small": lambda: mf.score_histograms(*scores(n=15), groups=np.tile(np.arange(15), 2)),
    "score_histograms, far off": lambda: mf.score_histograms(*scores(shift=400.0)),
}


@pytest.fixture(autouse=True)
def drawing():
    """No window, the style of the book, no warning, and nothing left open."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        matplotlib.use("Agg")
        figures.style()
        yield
        plt.close("all")


def ends(figure, axis=0):
    """The ends of all intervals of a figure, sorted, and the values between them."""
    containers = [container for ax in figure.axes for container in ax.containers if hasattr(container, "lines")]
    segments = [segment for container in containers for bars in container.lines[2] for segment in bars.get_segments()]
    values = [xy[axis] for container in containers for xy in container.lines[0].get_xydata()]
    return sorted(np.concatenate([segment[:, axis] for segment in segments])), sorted(values)


def said(figure):
    figure.canvas.draw()
    return " | ".join(text.get_text().replace("\n", " ") for text, _ in texts(figure))


# ---------------------------------------------------------------- of every figure


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    figure = DRAWN[name]()
    check_texts(figure)
    assert figure.get_size_inches()[0] <= 10.5
    unmeasured = "did not measure" in said(figure)
    assert unmeasured == (name == "angles, own")  # that run has no probe whose angle is known
    assert unmeasured or "n = " in said(figure)


def test_every_public_function_that_draws_is_among_them():
    public = {name for name, f in vars(mf).items() if getattr(f, "__module__", "") == mf.__name__ and name[0] != "_"}
    assert public == {name.split(",")[0] for name in DRAWN}


# what each figure of a whole run must show: the metric or metrics, and along which axis
WHOLE = {
    "three_definitions": (staleness, [f"share_{flag}" for flag in mf.DEFINITIONS], 0),
    "angles": (lambda s: staleness(s).query("probe in @mf.TURNED"), ["direction_angle"], 0),
    "interaction_dots": (interaction, list(mf.MEASURES), 0),
}


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", WHOLE)
def test_every_value_is_drawn_with_its_interval(name, size):
    table, metrics, axis = WHOLE[name]
    rows = table(SIZES[size])
    rows = rows[rows["metric"].isin(metrics)]
    drawn, values = ends(SIZED[name](SIZES[size]), axis)
    assert values == pytest.approx(sorted(rows["value"]))
    assert drawn == pytest.approx(sorted([*rows["low"], *rows["high"]]))


def test_curves_of_doses_and_budgets_are_drawn_with_their_intervals():
    rows = with_dose(FULL)
    rows = rows[(rows["metric"] == "mean_auroc_drop") & (rows["precision"].isin(mf.ROUNDED) | rows["adapter"].str.contains("-"))]
    drawn, _ = ends(mf.dose(with_dose(FULL), BITS), 1)
    assert len(rows) == 5 * (4 + 5 + 3)
    assert drawn == pytest.approx(sorted([*rows["low"], *rows["high"]]))
    table = triage()
    rows = table[(table["metric"] == "recall") & table["predictor"].isin(ORDERS[:6])]
    drawn, values = ends(mf.budget_curves(table), 1)
    assert drawn == pytest.approx(sorted([*rows["low"], *rows["high"]]))
    assert values == pytest.approx(sorted(rows["value"]))


EMPTY = {
    "heat_map": lambda: mf.heat_map(staleness(SMALL), ["another"]),
    "three_definitions": lambda: mf.three_definitions(staleness(SMALL), ["another"]),
    "frozen_and_refit": lambda: mf.frozen_and_refit(staleness(SMALL).query("metric != 'refit_auroc'"), SMALL.order),
    "angles": lambda: mf.angles(staleness(SMALL).query("metric != 'direction_angle'"), SMALL.order, RESAMPLED),
    "dose": lambda: mf.dose(staleness(SMALL), BITS),
    "interaction_dots": lambda: mf.interaction_dots(interaction(SMALL).query("probe != 'all'")),
    "budget_curves": lambda: mf.budget_curves(triage().query("metric != 'recall'")),
    "importances": lambda: mf.importances(triage(), "ridge, free", {}),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    figure = EMPTY[name]()
    check_texts(figure)
    assert said(figure).startswith("This run did not measure")


# ---------------------------------------------------------------- chapter 04


def test_the_pooling_is_chosen_on_validation_and_never_on_the_test():
    table = monitors(SMALL)
    last = table[table["probe"] == "logistic-mean"].assign(probe="logistic-last")
    table, last = table[table["probe"] != "mean-difference-mean"], last.copy()
    last.loc[last["metric"] == "auroc_validation", "value"] += 0.05
    last.loc[last["metric"] == "auroc", ["value", "low", "high"]] -= 0.2
    both = pd.concat([table, last])
    tests = {probe: sorted(both[(both["probe"] == probe) & (both["metric"] == "auroc")]["value"]) for probe in set(both["probe"])}
    assert ends(mf.auroc_by_depth(both), 1)[1] == pytest.approx(tests["logistic-last"])
    assert ends(mf.auroc_by_depth(both, "mean"), 1)[1] == pytest.approx(tests["logistic-mean"])
    colours = {c.lines[0].get_markerfacecolor() for ax in mf.auroc_by_depth(both).axes for c in ax.containers}
    assert colours == {"white"}


def test_each_kind_is_drawn_once_with_all_its_intervals_and_baselines_are_lines():
    table = monitors(FULL)
    figure = mf.auroc_by_depth(table)
    drawn, values = ends(figure, 1)
    assert len(values) == 5 * (5 * 5 + 1)  # tasks x (kinds x depths + one attention probe)
    assert len(drawn) == 2 * len(values)
    assert set(np.round(drawn, 9)) <= set(np.round([*table["low"], *table["high"]], 9))
    for ax in figure.axes[:5]:
        flat = [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2 and len(set(line.get_ydata())) == 1]
        assert {0.70, 0.68} <= set(flat)
        assert {text.get_text() for text in ax.texts} == {"bag of words", "length"}
        assert ax.get_ylim()[0] <= 0.4


def test_the_histograms_say_what_the_frozen_threshold_does():
    before, after, labels, threshold = scores()
    figure = mf.score_histograms(before, after, labels, threshold, ("aligned", LONG))
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
    alone = mf.score_histograms(before, after, labels, threshold).axes[1].texts[0].get_text()
    grouped = mf.score_histograms(before, after, labels, threshold, groups=groups).axes[1].texts[0].get_text()
    assert alone.split("[")[0] == grouped.split("[")[0]
    assert alone != grouped


# ---------------------------------------------------------------- chapter 05


def test_variants_stand_in_the_order_given_with_their_families_together():
    table = staleness(SMALL)
    mixed = [SMALL.order[i] for i in (3, 0, 2, 1)]
    table.loc[table["label"] == mixed[1], "family"] = "LoRA"
    figure = mf.three_definitions(table, mixed)
    rows = [text.get_text().replace(" ·\n", " · ") for text in figure.axes[0].get_yticklabels()]
    assert rows == [mixed[0], mixed[1], mixed[2], mixed[3]]
    figure = mf.three_definitions(table, [mixed[1], mixed[0], mixed[2], mixed[3]])
    rows = [text.get_text().replace(" ·\n", " · ") for text in figure.axes[0].get_yticklabels()]
    assert rows == [mixed[1], mixed[2], mixed[0], mixed[3]]
    assert [text.get_text() for text in figure.axes[-1].texts] == ["LoRA", "QLoRA", "quantization"]


def test_a_variant_stands_in_its_own_row():
    table = staleness(SMALL)
    (left, *_) = mf.three_definitions(table, SMALL.order).axes
    for x, y in points(left):
        near = table[(table["label"] == SMALL.order[round(y)]) & (table["metric"] == "share_stale_auroc_05")]
        assert np.isclose(near["value"], x).any()


def test_the_heat_map_writes_each_drop_and_frames_what_surely_lies_above_the_margin():
    table = staleness(FULL)
    rows = table[table["metric"] == "mean_auroc_drop"]
    figure = mf.heat_map(table, FULL.order)
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
    figure = mf.heat_map(table[~gone], SMALL.order)
    check_texts(figure)
    assert [text.get_text() for text in figure.axes[0].texts].count("not measured") == 1
    assert figure.axes[0].images[0].get_clim() == (-0.3, 0.3)


def test_frozen_and_refit_probes_are_means_over_the_same_layers():
    table = staleness(FULL)
    one = (table["task"] == "toxicity") & (table["label"] == "nf4")
    dropped = table[~(one & (table["metric"] == "refit_auroc") & (table["layer"] > 2))]
    figure = mf.frozen_and_refit(dropped, FULL.order)
    assert [len(points(ax)) for ax in figure.axes] == [2 * 29] * 5
    ax, row = figure.axes[3], FULL.order.index("nf4")
    here = one & table["probe"].isin(["logistic-mean", "logistic-last"]) & (table["layer"] <= 2)
    for container, metric in zip(ax.containers, ("auroc", "refit_auroc"), strict=True):
        part = table[here & (table["metric"] == metric)]
        assert container.lines[0].get_xdata()[row] == pytest.approx(part["value"].mean())
        assert container.lines[2][0].get_segments()[row][:, 0] == pytest.approx([part["low"].mean(), part["high"].mean()])
    assert "monitors: 10" in said(figure)


def test_the_auroc_before_the_update_is_the_frozen_one_plus_its_drop():
    for ax in mf.frozen_and_refit(staleness(SMALL), SMALL.order).axes:
        (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert line.get_xdata() == pytest.approx([0.92, 0.92])  # planted


def test_angles_are_compared_with_other_training_texts():
    figure = mf.angles(staleness(SMALL), SMALL.order, pd.Series(RESAMPLED))
    for ax, angle in zip(figure.axes, RESAMPLED.values(), strict=True):
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [angle]
        assert "dashed" in ax.get_xlabel()
    far = mf.angles(staleness(SMALL), SMALL.order, {"logistic-mean": 150.0})
    assert min(ax.get_xlim()[1] for ax in far.axes) > 150
    assert "dashed" not in far.axes[1].get_xlabel()


def test_each_dose_has_a_panel_and_the_unquantized_model_stands_at_zero():
    figure = mf.dose(with_dose(FULL), BITS)
    left, rank, steps = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["16", "8.1", "4.1", "3.1", "2.1"]
    assert left.get_xlim()[0] > left.get_xlim()[1]  # the dose grows to the right everywhere
    assert [list(line.get_xydata()[0]) for line in left.lines if line.get_marker() == "s" and len(line.get_xdata()) == 1] == [
        [16, 0]
    ]
    assert [text.get_text() for text in rank.get_xticklabels()] == ["2", "4", "8", "16", "32"]
    assert [text.get_text() for text in steps.get_xticklabels()] == ["10", "40", "160"]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert len(mf.dose(with_dose(SMALL, ("steps",)), BITS).axes) == 1
    assert len(mf.dose(with_dose(FULL, ("rank",)), BITS).axes) == 2


def test_interactions_name_their_sides_and_leave_out_what_was_not_built():
    figure = mf.interaction_dots(interaction(FULL, ("interaction", "training_effect")))
    assert [ax.texts[-2].get_text() for ax in figure.axes] == ["worse than\nthe sum", "worse"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == 2 * [mf.TASK_WORDS[t] for t in (*TASKS, "all")]
    low, high = figure.axes[0].get_xlim()
    assert low == -high
    blocks = {text.get_text().replace("\n", " ").replace("- ", "-") for text in figure.axes[-1].texts}
    assert {"lora-dialogue on nf4", "lora-dialogue-harm10 on nf4"} <= blocks


def test_one_task_has_one_colour_in_every_figure_and_a_users_own_takes_another():
    styles = mf._styles(("toxicity", "mine", "harmful-request"))
    assert styles["toxicity"] == mf._styles(TASKS)["toxicity"]
    assert styles["mine"] not in mf._styles(TASKS).values()


# ---------------------------------------------------------------- chapter 06


def test_orders_are_taken_as_listed_and_random_is_grey():
    figure = mf.budget_curves(triage())
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ORDERS[:6]
    assert to_hex(figure.axes[0].containers[0].lines[0].get_color()) == figures.PALETTE["base"]
    chosen = mf.budget_curves(triage(), ("logistic, free", "random", "no such order"))
    assert [text.get_text() for text in chosen.legends[0].get_texts()] == ["logistic, free", "random"]


def test_importances_stand_largest_first_in_words():
    table = triage().sample(frac=1, random_state=0)
    (ax,) = mf.importances(table, ORDERS[-1], {"signal_0": "the first signal"}, top=4).axes
    values = [x for x, y in sorted(points(ax), key=lambda point: point[1])]
    rows = table[table["metric"].str.startswith("importance:")].sort_values("value", ascending=False)[:4]
    assert values == pytest.approx(list(rows["value"]))
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["the first signal", "signal_1"]
    assert ends(ax.figure)[0] == pytest.approx(sorted([*rows["low"], *rows["high"]]))


def test_the_same_table_gives_the_same_picture(tmp_path):
    for name in "ab":
        mf.heat_map(staleness(SMALL), SMALL.order).savefig(tmp_path / f"{name}.svg", metadata={"Date": None})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# ---------------------------------------------------------------- tables as they lie on the disk


@pytest.mark.parametrize("name", SIZED)
def test_the_order_of_a_tables_rows_changes_nothing(name):
    tables = {"auroc_by_depth": monitors, "dose": with_dose, "interaction_dots": interaction}
    draw = {
        "auroc_by_depth": mf.auroc_by_depth,
        "heat_map": lambda t: mf.heat_map(t, SMALL.order),
        "three_definitions": lambda t: mf.three_definitions(t, SMALL.order),
        "frozen_and_refit": lambda t: mf.frozen_and_refit(t, SMALL.order),
        "angles": lambda t: mf.angles(t, SMALL.order, RESAMPLED),
        "dose": lambda t: mf.dose(t, BITS),
        "interaction_dots": mf.interaction_dots,
    }[name]
    table = tables.get(name, staleness)(SMALL)
    if name == "interaction_dots":
        table = table[table["adapter"] == "lora-dialogue"]
    straight, turned = draw(table), draw(table[::-1])
    assert sorted(said(straight).split(" | ")) == sorted(said(turned).split(" | "))
    for first, second in zip(straight.axes, turned.axes, strict=True):
        places = [sorted(xy for c in ax.containers for xy in map(tuple, c.lines[0].get_xydata())) for ax in (first, second)]
        assert np.allclose(*places)


def test_a_kind_without_a_test_auroc_is_left_out():
    table = monitors(SMALL)
    gone = (table["probe"] == "logistic-mean") & (table["metric"] == "auroc") & (table["task"] == SMALL.tasks[0])
    first, second = mf.auroc_by_depth(table[~gone]).axes
    assert (len(points(first)), len(points(second))) == (2, 4)
    assert len(mf.auroc_by_depth(table[(table["metric"] != "auroc") | (table["task"] == SMALL.tasks[1])]).axes) == 1
