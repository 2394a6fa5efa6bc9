"""Chapter 10's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from support.tiers import mostly_slow
from test_model_figures import drawing, points  # noqa: F401
from test_monitor_figures import FULL, ONE, OWN, RNG, SMALL, VARIANTS, check_page, check_same, once, row
from test_projection_figures import KEY, key_of, legend_of, ruled

from helpers import results
from helpers.figures import repair
from helpers.figures.drawing import layout
from helpers.figures.repair_tables import KINDS, OUTSIDE
from helpers.monitors import gate, repairs
from helpers.staleness.policies import POLICIES
from helpers.stats.intervals import mean_interval, rate_interval

UPDATED = [(name, family) for name, family in VARIANTS if family not in ("control", "before alignment")]
SHORT = ["none", "centre", "coral", "refit"]
PASSES = {"none": 0, "refit": 0}
LABELS = {"labels-10": 10, "labels-20": 20, "labels-50": 50, "refit": 400}


def table(methods=repairs.LADDER, variants=UPDATED, tasks=FULL.tasks, layers=(1, 2), probes=("logistic-mean", "mlp-last")):
    """Flags, costs and rates of every monitor on every variant after every rung, as `verdicts.described` gives them."""
    rng, rows = RNG(0), []
    for (label, family), task, probe, layer in itertools.product(variants, tasks, probes, layers):
        hard = rng.random()
        for i, name in enumerate(methods):
            keys = {"label": label, "family": family, "task": task, "probe": probe, "layer": layer, "method": name}
            unfit = float(hard < 0.6 - 0.5 * i / len(methods) + (0.3 if name == "mispaired" else 0))
            rows.append(row("stale_any", unfit, 0, 200, **keys))
            rows.append(row("cost_texts", PASSES.get(name, 800 if "unpaired" not in name else 400), 0, 200, (0, 9999), **keys))
            rows.append(row("cost_labels", LABELS.get(name, 0) + (layer if name == "refit" else 0), 0, 200, (0, 9999), **keys))
            rows.append(row("fpr_5", 0.05 + 0.6 * hard * (0.1 if i else 1), 0.04, 120, (0, 1), **keys))
            rows.append(row("tpr_5", 0.9 - 0.4 * hard * (0.2 if i else 1), 0.06, 90, (0, 1), **keys))
    return pd.DataFrame(rows)


def cells(variants=UPDATED, tasks=FULL.tasks, monitors=12, share=0.35):
    rng = RNG(1)
    every = itertools.product(variants, tasks, range(monitors))
    names = [(task, f"{task}/p/{i}", label, family) for (label, family), task, i in every]
    grid, n = pd.DataFrame(names, columns=["task", "monitor", "variant", "family"]), len(names)
    stale, agreement = rng.random(n) < share, 1 - 0.4 * rng.random(n) ** 2
    realigned, blind = (np.where(stale, rng.random(n) < 1.4 - agreement, rng.random(n) < 0.06) for _ in range(2))
    choice = np.select([agreement > 0.97, agreement >= gate.AGREEMENT], ["deploy", "realign"], "refit")
    mended = rng.choice([*(name for name in repairs.LADDER[1:] if name != repairs.NULL), ""], n)
    return grid.assign(stale=stale, stale_blind=blind, stale_refit=rng.random(n) < 0.1, gate=choice, agreement_after=agreement,
                       stale_realigned=realigned, repaired_by=np.where(stale, mended, "none"), seed=0)  # fmt: skip


def gains(updates=("lora-dialogue-harm10@bf16", "lora-dialogue-harm10@nf4"), names=("safelora", "splora", "zero"),
          tasks=("all",), methods=("coral",)):  # fmt: skip
    rng, rows = RNG(2), []
    for update, (i, name), task, method in itertools.product(updates, enumerate(names), tasks, methods):
        keys = key_of(update, restoration=name, strength=0.5) | {"task": task, "probe": "all", "layer": 0, "method": method}
        first, second = 0.3 + 0.1 * rng.standard_normal(), 0.1 * i
        for metric, value in zip(repair.GAINS, (first, second, first + second - 0.05, -0.05), strict=True):
            rows.append(row(metric, value, 0.08, 60, (-1, 1), **keys))
    return pd.DataFrame(rows)


MISSED = {"do nothing": (0.34, 0), "realign everything": (0.17, 0), "gated realignment": (0.13, 16), "triage 10 %": (0.25, 20),
          "triage 20 %": (0.19, 40), "triage 30 %": (0.14, 60), "random 20 %": (0.272, 40), "drift first 20 %": (0.21, 40),
          "revalidate everything": (0.01, 200)}  # fmt: skip


def plane(missed=MISSED, half=0.04):
    keys = {**KEY, "precision": "", "task": "all", "probe": "all", "layer": 0}
    rows = []
    for name, (value, labels) in missed.items():
        spent = 5 if name.startswith("gated") else 0
        rows.append(row("missed", value, half, 4000, (0, 1), method=f"policy: {name}", **keys))
        rows.append(row("labels_per_cell", labels, spent, 4000, (0, 500), method=f"policy: {name}", **keys))
    return pd.DataFrame(rows)


LEVEL = {name: (0.2 + 0.001 * i, labels) for i, (name, (_, labels)) in enumerate(MISSED.items())}
TWO = [VARIANTS[4], VARIANTS[12]]


def survived(kinds=tuple(KINDS), poolings=("last", "mean")):
    rng = RNG(5)
    places = itertools.product(kinds, poolings)
    return pd.DataFrame([row("unfit", 0.1 + 0.5 * rng.random(), 0.12, 240, (0, 1), kind=k, pooling=p) for k, p in places])


DRAWN = {
    "survivors, full": lambda: repair.survivors(survived()),
    "survivors, one pooling": lambda: repair.survivors(survived(poolings=("mean",))),
    "ladder, full": lambda: repair.ladder(table(), repairs.LADDER),
    "ladder, small": lambda: repair.ladder(table(SHORT, TWO, SMALL.tasks), SHORT),
    "ladder, one": lambda: repair.ladder(table(SHORT[:1], TWO[:1], ONE.tasks, (1,)), SHORT),
    "who_is_repaired, full": lambda: repair.who_is_repaired(cells()),
    "who_is_repaired, own": lambda: repair.who_is_repaired(cells(TWO, OWN.tasks, 2)),
    "who_is_repaired, none unfit": lambda: repair.who_is_repaired(cells(TWO, ONE.tasks, share=0)),
    "rates_before_after, full": lambda: repair.rates_before_after(table(SHORT, layers=(1,), probes=("logistic-mean",))),
    "rates_before_after, two": lambda: repair.rates_before_after(table(["none", "coral"], TWO, SMALL.tasks, (1,), ("lda-mean",))),
    "rates_before_after, one": lambda: repair.rates_before_after(table(["none", "centre-scale"], TWO[:1], ONE.tasks, (1,))),
    "gate_accuracy, full": lambda: repair.gate_accuracy(cells()),
    "gate_accuracy, one": lambda: repair.gate_accuracy(cells(TWO[:1], ONE.tasks, 1), 0.95),
    "interplay, full": lambda: repair.interplay(gains()),
    "interplay, tasks": lambda: repair.interplay(gains(tasks=(*FULL.tasks, "all"))),
    "interplay, methods": lambda: repair.interplay(gains(names=("safelora", "salora"), methods=("centre", "coral"))),
    "interplay, one": lambda: repair.interplay(gains(names=("zero",), updates=("lora-dialogue@bf16",))),
    "policy_plane, full": lambda: repair.policy_plane(plane()),
    "policy_plane, level": lambda: repair.policy_plane(plane(LEVEL, 0.01)),
    "policy_plane, all fit": lambda: repair.policy_plane(plane({name: (0.0, labels) for name, (_, labels) in MISSED.items()}, 0)),
    "policy_plane, one": lambda: repair.policy_plane(plane({"do nothing": (0.3, 0)})),
}  # fmt: skip


figure_of = once(DRAWN)


# ---------------------------------------------------------------- of every figure (and test_drawn.py)


def test_the_tables_drawn_here_keep_to_the_schema():
    for drawn in (gains(), plane(), table(SHORT, TWO[:1]).assign(**KEY)):
        results.checked("realignment", drawn)


EMPTY = {
    "survivors": lambda: repair.survivors(survived().query("metric == 'auroc'")),
    "ladder": lambda: repair.ladder(table(SHORT, TWO).query("method == 'refit'"), ["none"]),
    "ladder, on no monitor every rung": lambda: repair.ladder(
        table(SHORT, TWO).query("(method == 'refit') == (layer == 1)"), SHORT
    ),
    "who_is_repaired": lambda: repair.who_is_repaired(cells()[:0]),
    "who_is_repaired, controls only": lambda: repair.who_is_repaired(cells(VARIANTS[:2])),
    "rates_before_after": lambda: repair.rates_before_after(table(SHORT[:1], TWO)),
    "gate_accuracy, controls only": lambda: repair.gate_accuracy(cells(VARIANTS[:2])),
    "gate": lambda: repair.gate_accuracy(cells().assign(agreement_after=np.nan)),
    "interplay": lambda: repair.interplay(plane()),
    "policy_plane": lambda: repair.policy_plane(gains()),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


SAME = {
    "survivors": (repair.survivors, survived),
    "ladder": (lambda t: repair.ladder(t, SHORT), lambda: table(SHORT, VARIANTS[10:14], SMALL.tasks)),
    "who_is_repaired": (repair.who_is_repaired, lambda: cells(TWO, SMALL.tasks, 4)),
    "rates_before_after": (repair.rates_before_after, lambda: table(SHORT, VARIANTS[10:14], SMALL.tasks, (1,))),
    "gate": (repair.gate_accuracy, lambda: cells(TWO)),
    "interplay": (repair.interplay, gains),
    "policy_plane": (repair.policy_plane, plane),
}


@mostly_slow("two drawings of each figure")
@pytest.mark.parametrize("name", SAME)
def test_the_order_of_a_tables_rows_changes_nothing(name):
    draw, make = SAME[name]
    check_same(draw(make()), draw(make()[::-1]))


# ---------------------------------------------------------------- the ladder


def test_every_rung_shows_the_share_of_unfit_monitors_of_a_family_over_its_updates():
    drawn = table()
    flags = drawn[drawn["metric"] == "stale_any"]
    for ax, family in zip(
        figure_of("ladder, full").axes, ("quantization", "LoRA", "QLoRA", "full fine-tune", "QAT"), strict=True
    ):
        own = flags[flags["family"] == family]
        parts = [own[own["method"] == name] for name in repairs.LADDER]
        wanted = [rate_interval(part["value"], part["label"]) for part in parts]
        places = sorted(points(ax), key=lambda point: point[1])
        assert [y for _, y in places] == list(range(len(repairs.LADDER)))
        assert [x for x, _ in places] == pytest.approx([e.value for e in wanted])
        assert bounds(ax) == pytest.approx(sorted([*(e.low for e in wanted), *(e.high for e in wanted)]))
        assert [line.get_xdata()[0] for line in ax.lines if to_hex(line.get_color()) == layout.GREY and len(line.get_xdata()) == 2
                and line.get_linestyle() == "-"] == pytest.approx([wanted[0].value])  # fmt: skip
        assert f"(n = {len(parts[0])})" in ax.get_xlabel()


def bounds(ax, axis=0):
    return sorted(np.concatenate([s[:, axis] for c in ax.containers for bar in c.lines[2] for s in bar.get_segments()]))


def test_rungs_stand_as_ordered_with_what_they_cost():
    texts = [text.get_text() for text in figure_of("ladder, full").axes[0].get_yticklabels()]
    assert texts[0] == "frozen"
    assert texts[1] == "centre, 800 passes"
    assert texts[-2:] == ["head of 50 labels", "refit, 401–402 labels"]
    groups = [text.get_text() for text in figure_of("ladder, full").axes[-1].texts]
    assert groups == ["as it was", "no labels", "labels"]
    back = repair.ladder(table(SHORT, TWO), SHORT[::-1])
    assert back.axes[0].get_yticklabels()[0].get_text().startswith("refit")


def test_rungs_are_compared_on_the_same_monitors():
    drawn = table(SHORT, TWO[:1], SMALL.tasks)
    short = drawn[(drawn["method"] != "coral") | (drawn["probe"] != "mlp-last")]
    whole, part = (repair.ladder(t, SHORT) for t in (drawn[drawn["probe"] != "mlp-last"], short))
    check_same(whole, part)


# ---------------------------------------------------------------- who is repaired


FATES = {  # how many: stale, behind the default map, refit, behind the gate's map, the gate, the cheapest rung
    "mended by a map": (4, True, False, True, True, "deploy", "coral"),
    "mended by labels": (3, True, True, False, True, "refit", "labels-20"),
    "by nothing": (3, True, True, True, True, "realign", ""),
    "harmed by the gate's map": (1, False, False, False, True, "realign", "none"),
    "harmed by the default map": (2, False, True, False, True, "deploy", "none"),
    "harmed by a refit": (1, False, False, True, False, "refit", "none"),
    "fit": (6, False, False, True, True, "deploy", "none"),
}


def fated():
    names = ["stale", "stale_blind", "stale_refit", "stale_realigned", "gate", "repaired_by"]
    rows = pd.DataFrame([fate for count, *fate in FATES.values() for _ in range(count)], columns=names)
    return rows.assign(task="toxicity", family="LoRA", variant=[f"v{i}" for i in range(20)])


def test_the_mended_are_of_the_unfit_the_harmed_of_the_fit_and_controls_are_the_floor():
    more = fated()[:5].assign(family="control", variant="identity")
    figure = repair.who_is_repaired(
        pd.concat([fated(), more.assign(stale=[True, False, False, False, False])], ignore_index=True)
    )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["toxicity", "all tasks"]
    shares = [sorted({round(x, 9) for x, _ in points(ax)}) for ax in figure.axes]
    assert shares[0] == [0.5]
    assert shares[1] == [0.3, 0.4]  # by the gate, which leaves some as they are; by realigning all
    assert shares[2] == [0.2]
    assert bounds(figure.axes[1])[:2] == pytest.approx([rate_interval(np.repeat([1.0, 0], [3, 7])).low] * 2)
    floors = [ruled(ax, 0) for ax in figure.axes]
    assert floors[0] == pytest.approx([0.2])
    assert floors[1] == []
    assert len(floors[2]) == 1
    assert figure._suptitle.get_text().replace("\n", " ") == (
        "Realigning every monitor mends 40 % of the unfit monitors and harms 20 % of the fit ones.")  # fmt: skip
    assert "floor: nothing changed" in legend_of(figure)
    assert "floor: nothing changed" not in legend_of(repair.who_is_repaired(fated()))


def test_where_none_is_unfit_there_is_nothing_to_mend_and_where_all_are_nothing_to_harm():
    drawn = fated()
    titles = [[ax.get_title(loc="left").replace("\n", " ") for ax in repair.who_is_repaired(drawn[flag]).axes]
              for flag in (~drawn["stale"], drawn["stale"])]  # fmt: skip
    assert titles == [["unfit as frozen", "of the fit, harmed"], ["unfit as frozen", "of the unfit, mended"]]


# ---------------------------------------------------------------- rates and gate


def test_a_line_is_the_mean_of_a_family_from_frozen_to_repaired():
    drawn = table(SHORT[::-1], layers=(1,), probes=("logistic-mean",))
    drawn.attrs["floor"] = {"fpr_5": 0.07, "tpr_5": 0.8}
    figure = repair.rates_before_after(drawn)
    for ax, metric in zip(figure.axes, repair.RATES, strict=True):
        rows = drawn[drawn["metric"] == metric]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["frozen", "centre", "CORAL", "refit"]
        means = rows.groupby(["family", "method"])["value"].mean()
        assert sorted(y for _, y in points(ax)) == pytest.approx(sorted(means))
        one = rows[(rows["family"] == "LoRA") & (rows["method"] == "none")]
        e = mean_interval(one["value"], one["label"], bounds=(0.0, 1.0))
        assert np.isclose(bounds(ax, 1), e.low).any()
        assert ruled(ax) == [drawn.attrs["floor"][metric]]
    assert ruled(figure.axes[0], line=":") == [0.05]
    assert ruled(repair.rates_before_after(table(SHORT, TWO)).axes[0]) == []  # without controls there is no floor to draw


def test_the_gate_is_drawn_by_quarters_of_agreement_with_the_floor():
    drawn = cells()
    (ax,) = figure_of("gate_accuracy, full").axes
    ordered = drawn[~drawn["family"].isin(OUTSIDE)].sort_values("agreement_after")
    size = len(ordered) // 4
    quarters = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    assert [y for _, y in points(ax)] == pytest.approx([part["stale_realigned"].mean() for part in quarters])
    wanted = [rate_interval(part["stale_realigned"].astype(float), part["variant"]) for part in quarters]
    assert bounds(ax, 1) == pytest.approx(sorted([*(e.low for e in wanted), *(e.high for e in wanted)]))
    ends_of = [f"{part['agreement_after'].min():.3f} to {part['agreement_after'].max():.3f}" for part in quarters]
    assert [text.get_text() for text in ax.get_xticklabels()] == ends_of
    assert f"ask for a refit {(ordered['gate'] == 'refit').sum()}" in ax.get_xlabel()
    still = cells(VARIANTS[:2])
    (floored,) = repair.gate_accuracy(pd.concat([drawn, still], ignore_index=True)).axes
    assert ruled(floored) == pytest.approx([still["stale"].mean()])


# ---------------------------------------------------------------- interplay and policies


GAINED = {"full": {}, "tasks": {"tasks": (*FULL.tasks, "all")},
          "methods": {"names": ("safelora", "salora"), "methods": ("centre", "coral")}}  # fmt: skip


@pytest.mark.parametrize("name", GAINED)
def test_every_gain_is_drawn_with_its_interval_in_the_panel_of_its_kind(name):
    drawn = gains(**GAINED[name])
    figure = figure_of(f"interplay, {name}")
    for ax, metric in zip(figure.axes, repair.GAINS, strict=True):
        rows = drawn[drawn["metric"] == metric]
        assert ax.get_title(loc="left") == repair.GAINS[metric]
        assert sorted(x for x, _ in points(ax)) == pytest.approx(sorted(rows["value"]))
        assert bounds(ax) == pytest.approx(sorted([*rows["low"], *rows["high"]]))
    assert legend_of(figure)[-1] == "all tasks" if name == "tasks" else not figure.legends


def test_a_row_of_the_page_is_one_restored_update():
    drawn = gains()
    figure = figure_of("interplay, full")
    names = [text.get_text().replace("\n", " ") for text in figure.axes[0].get_yticklabels()]
    assert names == ["SafeLoRA (50 % of modules)", "SPLoRA (50 % of modules)", "same modules removed (50 % of modules)"] * 2
    groups = [text.get_text().replace("\n", "") for text in figure.axes[-1].texts]
    assert groups == ["lora-dialogue-harm10 onbf16", "lora-dialogue-harm10 onnf4"]
    rows = drawn[drawn["metric"] == "realign_gain"].sort_values(["precision", "restoration"])
    assert [x for x, _ in sorted(points(figure.axes[0]), key=lambda point: point[1])] == pytest.approx(list(rows["value"]))


def test_every_policy_stands_named_beside_its_cost_and_what_it_misses():
    drawn = plane()
    (ax,) = figure_of("policy_plane, full").axes
    named = [text for text in ax.texts if text.get_text()]
    assert {text.get_text() for text in named} == set(POLICIES)
    for text in named:
        missed, labels = MISSED[text.get_text()]
        x, y = text.xy
        assert y == missed
        assert x**0.5 == pytest.approx(labels**0.5, abs=0.03 * 200**0.5)  # moved aside a little where costs are equal
    left = drawn[drawn["metric"] == "missed"]
    ups = [c for c in ax.containers if c.lines[0].get_marker().strip() not in ("", "None")]
    heights = np.concatenate([s[:, 1] for c in ups for bar in c.lines[2] for s in bar.get_segments()])
    assert sorted(heights) == pytest.approx(sorted([*left["low"], *left["high"]]))
    curve = next(line for line in ax.lines if line.get_linestyle() == "--").get_xydata()
    assert np.interp(40, *curve.T) == pytest.approx(0.34 - 0.2 * (0.34 - 0.01))  # a fifth of the checks, at random


def test_where_no_place_is_free_a_name_is_written_all_the_same():
    crowd = {f"policy number {i}": (0.2, 40) for i in range(40)}
    (ax,) = repair.policy_plane(plane(crowd, 0.01)).axes
    assert {text.get_text() for text in ax.texts if text.get_text()} == set(crowd)


def test_policies_of_nearly_equal_cost_stand_apart_and_the_others_where_they_are():
    (ax,) = repair.policy_plane(plane({"do nothing": (0.3, 0), "triage 20 %": (0.2, 39.9), "random 20 %": (0.2, 40),
                                   "triage 30 %": (0.1, 60), "revalidate everything": (0, 200)})).axes  # fmt: skip
    places = {text.get_text(): text.xy[0] for text in ax.texts if text.get_text()}
    assert places["random 20 %"] > places["triage 20 %"] + 2
    assert [places[name] for name in ("do nothing", "triage 30 %", "revalidate everything")] == pytest.approx([0, 60, 200])


def test_the_policies_of_the_figure_are_those_that_there_are():
    assert list(repair.POLICIES) == list(POLICIES)
    assert to_hex(repair.POLICIES["random 20 %"][0]) == layout.GREY
