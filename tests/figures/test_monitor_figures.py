"""Chapter 04's figure and the parts that monitors' figures share: every interval is shown, n said, no text cut or covered."""

import functools
import itertools
from inspect import signature

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from support import figure_rules
from test_model_figures import check_texts, drawing, points, texts  # noqa: F401

from helpers.figures import monitors as monitor_figures
from helpers.figures.drawing import layout

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
            rows.append(row("auroc_elsewhere", good - 0.1 * rng.random(), 0.06, bounds=(0, 1), **keys))
            rows += [row("threshold_5", 1.0, 0.2, n=60 if task == size.tasks[0] else 30, **keys),
                     row("promised_5", 0.04, 0.03, n=20, bounds=(0, 1), **keys)]  # fmt: skip
    for task in size.tasks:
        keys = {"task": task, "layer": 0, "depth": 0.0}
        rows += [row("auroc", 0.70, 0.05, probe="bag-of-words", **keys), row("auroc", 0.68, 0.05, probe="length", **keys)]
        rows += [row("auroc_elsewhere", 0.58, 0.06, probe=name, **keys) for name in ("bag-of-words", "length")]
        if len(size.depths) > 2:
            rows.append(row("auroc", 0.93, 0.03, probe="attention", task=task, layer=3, depth=0.6))
    return pd.DataFrame(rows)


DRAWN = {
    f"auroc_by_depth, {name}": (lambda size=size: monitor_figures.auroc_by_depth(monitors(size))) for name, size in SIZES.items()
} | {
    **{f"carried_over, {name}": (lambda size=size: monitor_figures.carried_over(monitors(size))) for name, size in SIZES.items()},
    "auroc_by_depth, one pooling": lambda: monitor_figures.auroc_by_depth(monitors(FULL), "last"),
    "message": lambda: layout.message(monitor_figures.auroc_by_depth(monitors(SMALL)), 12 * "What is seen here takes lines. "),
    "unmeasured": lambda: layout.unmeasured("anything at all, although it was asked for in so many words"),
}


# ---------------------------------------------------------------- what the tests of the other figures use too


def ends(figure, axis=0):
    """The ends of all intervals of a figure, sorted, and the values between them."""
    containers = [container for ax in figure.axes for container in ax.containers if hasattr(container, "lines")]
    segments = [segment for container in containers for bars in container.lines[2] for segment in bars.get_segments()]
    values = [xy[axis] for container in containers for xy in container.lines[0].get_xydata()]
    return sorted(np.concatenate([segment[:, axis] for segment in segments])), sorted(values)


def words(figure):
    """All texts of a figure that was drawn."""
    return " | ".join(text.get_text().replace("\n", " ") for text, _ in texts(figure))


def said(figure):
    figure.canvas.draw()
    return words(figure)


def check_page(figure, measured=True):
    """Fails where a text is cut or covered, the page too wide, or n not said; or where it does not say what was not measured."""
    check_texts(figure)
    assert figure.get_size_inches()[0] <= 10.5
    assert words(figure).startswith("This run did not measure") != measured
    assert "n = " in words(figure) or not measured
    assert not measured or figure_rules.broken(figure) == []


def check_same(first, second):
    """Fails where two figures differ in a text or a place."""
    assert sorted(said(first).split(" | ")) == sorted(said(second).split(" | "))
    for one, other in zip(first.axes, second.axes, strict=True):
        places = [sorted(xy for c in ax.containers for xy in map(tuple, c.lines[0].get_xydata())) for ax in (one, other)]
        assert np.allclose(*places)


def once(drawn):
    """The figure of each name of a dict, drawn once, whatever is asked of it."""
    return functools.cache(lambda name: drawn[name]())


def drawing_functions(module):
    """The public functions of a module that return a figure."""
    public = {name: f for name, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__ and name[0] != "_"}
    return {name for name, f in public.items() if callable(f) and signature(f).return_annotation is Figure}


# ---------------------------------------------------------------- the figures


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(DRAWN[name](), measured=name != "unmeasured")


def test_every_public_function_that_draws_is_among_them():
    drawn = drawing_functions(layout) | drawing_functions(monitor_figures)
    assert drawn == {name.split(",")[0] for name in DRAWN}


def test_the_pooling_is_chosen_on_validation_and_never_on_the_test():
    table = monitors(SMALL)
    last = table[table["probe"] == "logistic-mean"].assign(probe="logistic-last")
    table, last = table[table["probe"] != "mean-difference-mean"], last.copy()
    last.loc[last["metric"] == "auroc_validation", "value"] += 0.05
    last.loc[last["metric"] == "auroc", ["value", "low", "high"]] -= 0.2
    both = pd.concat([table, last])
    tests = {probe: sorted(both[(both["probe"] == probe) & (both["metric"] == "auroc")]["value"]) for probe in set(both["probe"])}
    assert ends(monitor_figures.auroc_by_depth(both), 1)[1] == pytest.approx(tests["logistic-last"])
    assert ends(monitor_figures.auroc_by_depth(both, "mean"), 1)[1] == pytest.approx(tests["logistic-mean"])
    colours = {c.lines[0].get_markerfacecolor() for ax in monitor_figures.auroc_by_depth(both).axes for c in ax.containers}
    assert colours == {"white"}


def test_each_kind_is_drawn_once_with_all_its_intervals_and_baselines_are_lines():
    table = monitors(FULL)
    figure = monitor_figures.auroc_by_depth(table)
    drawn, values = ends(figure, 1)
    assert len(values) == 5 * (4 * 5 + 1)  # tasks x (kinds x depths + one attention probe); shuffled labels are a band
    assert len(drawn) == 2 * len(values)
    assert set(np.round(drawn, 9)) <= set(np.round([*table["low"], *table["high"]], 9))
    for ax in figure.axes[:5]:
        flat = [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2 and len(set(line.get_ydata())) == 1]
        assert {0.70, 0.68} <= set(flat)
        assert {text.get_text() for text in ax.texts} == {"bag of words", "length", "shuffled labels: below 0.54"}
        low = min(y for _, y in points(ax))
        assert low - 0.2 < ax.get_ylim()[0] < low  # what luck can do does not squeeze the probes


def test_shuffled_labels_are_a_band_where_they_reach_what_is_shown():
    table = monitors(SMALL)
    more = table[table["probe"] == "logistic-mean"].assign(probe="shuffled-labels-mean", low=0.7, high=0.9)
    for ax in monitor_figures.auroc_by_depth(pd.concat([table, more])).axes[:2]:
        assert not [text for text in ax.texts if "shuffled" in text.get_text()]
        bands = [patch for patch in ax.patches if patch.get_label() == "shuffled labels (control)"]
        assert [(round(band.get_y(), 9), round(band.get_y() + band.get_height(), 9)) for band in bands] == [(0.7, 0.9)]


def test_a_kind_without_a_test_auroc_is_left_out():
    table = monitors(SMALL)
    gone = (table["probe"] == "logistic-mean") & (table["metric"] == "auroc") & (table["task"] == SMALL.tasks[0])
    first, second = monitor_figures.auroc_by_depth(table[~gone]).axes
    assert (len(points(first)), len(points(second))) == (2, 4)
    assert len(monitor_figures.auroc_by_depth(table[(table["metric"] != "auroc") | (table["task"] == SMALL.tasks[1])]).axes) == 1


def test_the_order_of_a_tables_rows_changes_nothing():
    table = monitors(SMALL)
    check_same(monitor_figures.auroc_by_depth(table), monitor_figures.auroc_by_depth(table[::-1]))


def test_one_task_has_one_colour_in_every_figure_and_a_users_own_takes_another():
    styles = layout.task_styles(("toxicity", "mine", "harmful-request"))
    assert styles["toxicity"] == layout.task_styles(TASKS)["toxicity"]
    assert styles["mine"] not in layout.task_styles(TASKS).values()


# ---------------------------------------------------------------- two test sets, and what thresholds promise


def test_both_tests_stand_side_by_side_for_the_monitor_in_use_and_the_bag_of_words():
    table = monitors(SMALL)
    names = {task: {"monitor": f"{task}/logistic-mean/2", "of": 4} for task in SMALL.tasks}
    found = monitor_figures.two_tests(table, names)
    assert list(found["monitor"]) == ["logistic-mean", "bag-of-words"] * 2
    assert found.loc[1, "AUROC, test"].startswith("0.70")
    assert found.loc[1, "AUROC, elsewhere"].startswith("0.58")
    assert set(found["caught, elsewhere"]) == {"–"}


def test_a_promise_that_rests_on_few_texts_is_told_in_words():
    found = monitor_figures.promises(monitors(SMALL)).set_index("task")
    first, second = SMALL.tasks
    assert found.loc[first, ["harmless texts", "of its own", "expected", "with so few"]].tolist() == [60, 20, "4.0%", ""]
    assert found.loc[second, "with so few"] == "at most 7% is guaranteed"
    assert found.loc[second, "in 95 % of draws"] == "1.0% to 7.0%"


def test_a_run_without_a_second_test_says_so():
    table = monitors(SMALL)
    figure = monitor_figures.carried_over(table[table["metric"] != "auroc_elsewhere"])
    assert "did not measure" in said(figure)


def test_probes_fitted_with_simulated_updates_are_not_among_the_curves():
    table = monitors(SMALL)
    more = table[table["probe"] == "logistic-mean"].assign(probe="simulated-updates-mean", value=1.0, low=1.0, high=1.0)
    before, after = (said(monitor_figures.auroc_by_depth(rows)) for rows in (table, pd.concat([table, more])))
    assert before == after
