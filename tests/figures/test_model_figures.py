"""Every figure is drawn from small tables, at the edges too, shows what the table says, and loses no text at its border."""

import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from helpers.figures import models
from helpers.figures.drawing import theme
from helpers.projection.subspaces import spectrum

SETS = [("advbench", "non_refusal"), ("strongreject", "non_refusal"), ("edgy", "over_refusal")]
LONG = ["base", "aligned", "dialogue-10 · bf16→nf4 merged-requantized", "identity-shift · gptq-4→gptq-4 attached"]
FORMATS = ["bf16", "int8", "nf4", "nf4-dq", "fp4", "rtn-8", "rtn-4", "rtn-3", "rtn-2", "gptq-4"]
BITS = pd.Series([16, 8.03, 4.5, 4.13, 4.5, 8.13, 4.13, 3.13, 2.13, 4.13], FORMATS)


@pytest.fixture(autouse=True)
def drawing():
    """No window, the style of the book, no warning, and nothing left open."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        matplotlib.use("Agg")
        theme.style()
        yield
        plt.close("all")


def row(value, half=0.1, **keys):
    return {
        **keys,
        "value": value,
        "low": value - half,
        "high": value + half,
        "n": 50,
        "judge": "phrases",
        "strength": np.nan,
        "adapter": "",
    }


def behaviour(keys, half=0.1, sets=SETS):
    """One row a set for each of the dicts, with rates 0.10, 0.11, ..."""
    cells = [(key, name, metric) for key in keys for name, metric in sets]
    return pd.DataFrame(
        [row(0.1 + 0.01 * i, half, prompt_set=name, metric=metric, **key) for i, (key, name, metric) in enumerate(cells)]
    )


def utility(keys, half=3.0, value=40.0):
    metrics = (("perplexity", "c4"), ("nll", "dialogue"), ("nll", "c4"), ("accuracy", "piqa"))
    return pd.DataFrame([row(value, half, metric=metric, corpus=corpus, **key) for key in keys for metric, corpus in metrics])


def arms(percents=(0, 1, 5, 10), names=("LoRA", "QLoRA", "LoRA on GPTQ")):
    return [{"percent": -1, "arm": "aligned"}, *[{"percent": p, "arm": arm} for p in percents for arm in names]]


def modules(sizes=(1.0, 0.5), layers=2):
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    return [
        spectrum(name, torch.eye(12), sizes[i % len(sizes)] * torch.randn(12, 12, generator=generator))
        for i, name in enumerate(names)
    ]


def labels(names):
    return [{"label": name} for name in names]


def formats(names):
    return [{"precision": name} for name in names]


DOSES = [f"lora-dialogue{mix}{dose}" for mix in ("", "-harm10") for dose in ("", "-x2", "-x0.5", "-steps6", "-rank2")]


def served(adapter):
    return {"model": "m", "seed": 0, "precision": "bf16", "adapter": adapter, "trained_on": "bf16" * bool(adapter),
            "serving": "attached" * bool(adapter), "restoration": ""}  # fmt: skip


def dose_curves(names):
    """The figure of doses with planted sizes 0.001, 0.002, ... and twelve harmful rows seen by each harmful mix."""
    keys = [served(name) for name in names]
    weights = pd.DataFrame(
        [{**row(0.001 * (i + 1), 0, metric="relative_size", module="all"), **key} for i, key in enumerate(keys)],
        columns=[*row(0), *served(""), "metric", "module"],
    ).loc[:, lambda t: ~t.columns.duplicated()]
    recipes = {f"{name}@bf16": {"harmful_seen": 12.0 if "harm" in name else 0.0} for name in names}
    whole = [served(""), *keys]
    rates, nats = behaviour(whole), utility(whole, half=0.2, value=3.0)
    told = [table.assign(adapter=np.repeat(["", *names], len(table) // len(whole))) for table in (rates, nats)]
    return models.dose_curves(*told, weights, recipes)


CURVES = {"dialogue-0 · bf16": np.geomspace(3, 1, 30), "identity-shift · gptq-4": np.geomspace(4, 1, 30)}
DRAWN = {
    "dots": lambda: models.behaviour_dots(behaviour(labels(LONG)), LONG),
    "dots, four sets": lambda: models.behaviour_dots(
        behaviour(labels(LONG), sets=[*SETS, ("advbench-identity", "non_refusal")]), LONG
    ),
    "dots, an unknown set": lambda: models.behaviour_dots(behaviour(labels(LONG), sets=[("new-set", "non_refusal")]), LONG),
    "dots, one point": lambda: models.behaviour_dots(behaviour(labels(["base"]), sets=SETS[:1]), ["base"]),
    "dots, twenty rows": lambda: models.behaviour_dots(behaviour(labels(map(str, range(20)))), list(map(str, range(20)))),
    "dots, no width": lambda: models.behaviour_dots(behaviour(labels(LONG), half=0.0), LONG),
    "dots, a row not measured": lambda: models.behaviour_dots(behaviour(labels(LONG[:2])), LONG),
    "dots, nothing measured": lambda: models.behaviour_dots(behaviour(labels(LONG)), ["another"]),
    "dots, no share": lambda: models.dots(
        utility(labels(LONG)).rename(columns={"corpus": "name"}).query("metric == 'nll' and name == 'dialogue'"),
        LONG,
        models.SET_COLOURS,
        "nats a token",
        share=False,
    ),
    "bits": lambda: models.against_bits(behaviour(formats(FORMATS)), utility(formats(FORMATS)), BITS),
    "bits, one format": lambda: models.against_bits(behaviour(formats(["nf4"])), utility(formats(["nf4"])), BITS),
    "bits, no width": lambda: models.against_bits(behaviour(formats(FORMATS), half=0), utility(formats(FORMATS), half=0), BITS),
    "bits, one set": lambda: models.against_bits(behaviour(formats(FORMATS), sets=SETS[:1]), utility(formats(FORMATS)), BITS),
    "bits, broken": lambda: models.against_bits(
        behaviour(formats(FORMATS)), utility(formats(FORMATS), value=5e6, half=4e6), BITS
    ),
    "spectrum": lambda: models.spectrum_lines(modules()),
    "spectrum, one module": lambda: models.spectrum_lines(modules(layers=1)[:1]),
    "spectrum, V = 0": lambda: models.spectrum_lines(modules(sizes=(0.0, 1.0))),
    "spectrum, all V = 0": lambda: models.spectrum_lines(modules(sizes=(0.0,))),
    "dose": lambda: models.refusals_by_harm(behaviour(arms()), utility(arms())),
    "dose, one share": lambda: models.refusals_by_harm(behaviour(arms([10], ["LoRA"])), utility(arms([10], ["LoRA"]))),
    "dose, aligned only": lambda: models.refusals_by_harm(behaviour(arms([])), utility(arms([]))),
    "dose, one set": lambda: models.refusals_by_harm(behaviour(arms(), sets=SETS[:1]), utility(arms())),
    "dose, no width": lambda: models.refusals_by_harm(behaviour(arms(), half=0.0), utility(arms(), half=0.0)),
    "doses": lambda: dose_curves(DOSES),
    "doses, one": lambda: dose_curves(DOSES[:1]),
    "doses, none": lambda: dose_curves([]),
    "losses": lambda: models.losses(CURVES),
    "losses, one step": lambda: models.losses({"dialogue-0": [2.0]}),
}


def texts(figure):
    """Every visible text of a figure with its place on the canvas; tick labels outside of the axes' limits are not drawn."""
    renderer = figure.canvas.get_renderer()
    found = [t for ax in figure.axes for t in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [text for tick in ticks for text in (tick.label1, tick.label2)]
    for legend in [*figure.legends, *[ax.get_legend() for ax in figure.axes if ax.get_legend()]]:
        found += legend.get_texts()
    return [(t, t.get_window_extent(renderer)) for t in found if t.get_visible() and t.get_text().strip()]


def check_texts(figure):
    """Fails where a text of a figure is cut by its border or covered by another."""
    FigureCanvasAgg(figure).draw()  # an earlier test may have closed the figure, and its canvas draws nothing then
    placed = texts(figure)
    for text, box in placed:
        assert min(box.x0, box.y0) >= -1, text.get_text()
        assert max(box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) <= 1, text.get_text()
    for i, (first, a) in enumerate(placed):
        for second, b in placed[i + 1 :]:
            covered = min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
            assert not covered, (first.get_text(), second.get_text())


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_drawn_and_no_text_is_cut_or_covered(name):
    figure = DRAWN[name]()
    assert isinstance(figure, Figure)
    check_texts(figure)


def test_every_public_function_that_draws_is_among_them():
    assert {name.split(",")[0] for name in DRAWN} == {"dots", "bits", "spectrum", "dose", "doses", "losses"}
    public = {
        name
        for module in (theme, models)
        for name, f in vars(module).items()
        if callable(f) and getattr(f, "__module__", "") == module.__name__ and name[0] != "_"
    }
    helping = {"style", "label", "panels", "bars", "share_axis", "perplexity_axis"}
    tables = {"block_by_hand", "format_table", "check_rows", "labels", "with_arms", "attack_table", "left_table"}
    tables |= {"attack_lines", "dose_points"}
    drawn = {"dots", "behaviour_dots", "spectrum_lines", "against_bits", "refusals_by_harm", "dose_curves", "losses"}
    assert public == helping | tables | drawn


def points(ax):
    """The middle of every interval in the axes, in the order drawn."""
    return [tuple(xy) for container in ax.containers for xy in container.lines[0].get_xydata()]


def test_dots_stand_at_their_values_with_their_intervals():
    table = behaviour(labels(LONG))
    figure = models.behaviour_dots(table.sample(frac=1, random_state=0), LONG)
    (ax,) = figure.axes
    assert sorted(x for x, _ in points(ax)) == pytest.approx(sorted(table["value"]))
    assert [t.get_text() for t in ax.get_yticklabels()] == LONG
    ends = np.concatenate(
        [segment[:, 0] for container in ax.containers for bars in container.lines[2] for segment in bars.get_segments()]
    )
    assert sorted(ends) == pytest.approx(sorted([*table["low"], *table["high"]]))
    assert {t.get_text() for legend in figure.legends for t in legend.get_texts()} == {
        "AdvBench (held out), not refused (n = 50)",
        "StrongREJECT, not refused (n = 50)",
        "edgy but safe, refused (n = 50)",
    }


def test_another_judge_and_another_metric_are_left_out():
    table = behaviour(labels(LONG))
    more = pd.concat([table, table.assign(judge="fitted", value=0.9), table.assign(metric="coherent", value=0.8)])
    (ax,) = models.behaviour_dots(more, LONG).axes
    assert max(x for x, _ in points(ax)) < 0.5


def test_formats_stand_in_the_order_of_their_bits_each_with_its_name():
    figure = models.against_bits(behaviour(formats(FORMATS)), utility(formats(FORMATS)), BITS)
    names = [t.get_text().split() for t in figure.axes[2].get_xticklabels()]
    assert [name for name, _ in names] == ["rtn-2", "rtn-3", "gptq-4", "nf4-dq", "rtn-4", "fp4", "nf4", "int8", "rtn-8", "bf16"]
    assert [float(bits) for _, bits in names] == sorted(BITS)
    assert sorted(x for x, _ in points(figure.axes[2])) == list(range(len(FORMATS)))
    assert len(points(figure.axes[0])) == 2 * len(FORMATS)


def test_controls_and_updates_are_no_formats():
    more = pd.concat(
        [behaviour(formats(["nf4"])).assign(adapter="identity"), behaviour(formats(["fp32"])), behaviour(formats(["nf4"]))]
    )
    figure = models.against_bits(more, utility(formats(["nf4"])), BITS)
    assert [t.get_text().split()[0] for t in figure.axes[0].get_xticklabels()] == ["nf4"]
    assert len(points(figure.axes[0])) == 2


def test_the_model_before_any_update_stands_at_none():
    figure = models.refusals_by_harm(behaviour(arms([0, 10])), utility(arms([0, 10])))
    for ax in figure.axes:
        assert [t.get_text() for t in ax.get_xticklabels()] == ["none", "0 %", "10 %"]
        assert min(x for x, _ in points(ax)) == 0
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["aligned", "LoRA", "QLoRA", "LoRA on GPTQ"]


def test_the_spectrum_says_where_nothing_changed():
    figure = models.spectrum_lines(modules(sizes=(0.0, 1.0)))
    assert [t.get_text() for t in figure.axes[0].texts] == ["V = 0 in 3 of 6 modules"]
    assert len(figure.axes[0].lines) == 3
    assert not models.spectrum_lines(modules()).axes[0].texts


def test_points_of_doses_stand_at_their_planted_sizes_and_multiples_saw_no_further_rows():
    axes = dose_curves(DOSES).axes
    sizes = [line.get_xdata() for line in axes[0].lines if len(line.get_xdata()) == 5]
    assert sorted(np.concatenate(sizes)) == pytest.approx(sorted([0.001 * (i + 1) for i in range(10)] * (len(sizes) // 2)))
    seen = {len(line.get_xdata()) for line in axes[3].lines}
    assert 3 in seen  # of five doses of the harmful mix two are multiples; the benign mix saw none
    assert 5 not in seen
    dashed = [line.get_xdata()[0] for line in axes[3].lines if line.get_linestyle() == "--"]
    assert dashed == [models.PUBLISHED["harmful rows seen"].min()]


def test_what_an_attack_took_is_told_in_rows_seen_and_its_share_with_interval():
    one = {
        "steps": 12,
        "batch": 4,
        "rows": 24,
        "harmful_rows": 2,
        "lr": 4e-3,
        "target": 0.8,
        "non_refusal": 0.75,
        "reached": False,
        "n": 32,
    }
    weights = pd.DataFrame([{**row(0.02, 0, metric="relative_size", module="all"), **served("lora-dialogue-harm10")}])
    table = models.attack_table({"lora-dialogue-harm10@bf16": one}, weights).iloc[0]
    assert (table["rows seen"], table["of them harmful"], table["|BA| / |W|"], table["target reached"]) == (48, 4, 0.02, "no")
    assert table["validation: not refused"].startswith("75 % [")
    assert models.attack_lines({}) == [
        "no harmful mix on bf16 is among the updates: nothing was trained until it broke the refusals"
    ]


def test_losses_are_smoothed_over_their_window():
    (ax,) = models.losses({"one": [4.0, 2.0, 0.0, 2.0]}, window=2).axes
    assert ax.lines[0].get_ydata().tolist() == [4, 3, 1, 1]
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3, 4]


def test_many_trainings_leave_the_lines_their_room():
    """The fault: fifteen names beside the panel took all of it, and the lines lay in a strip without height."""
    curves = {f"lora-dialogue-harm10-rows{n}-lr0.3@bf16": np.geomspace(3, 1, n) for n in range(12, 26)}
    curves |= {"lora-dialogue-harm10-rows12-lr0.3-x2@bf16": curves["lora-dialogue-harm10-rows12-lr0.3@bf16"]}
    figure = models.losses(curves | {"lora-dialogue-harm10-rows950@bf16": np.geomspace(3, 1, 240)})
    figure.canvas.draw()
    (ax,) = figure.axes
    assert ax.get_window_extent().height > 0.4 * figure.bbox.height
    assert ax.get_window_extent().width > 0.8 * figure.bbox.width
    assert (len(ax.lines), ax.get_xscale()) == (15, "log"), "a multiple of an update was not trained"
    assert models.losses(curves).axes[0].get_xscale() == "linear"


def test_the_same_table_gives_the_same_picture(tmp_path):
    for name in "ab":
        models.behaviour_dots(behaviour(labels(LONG)), LONG).savefig(tmp_path / f"{name}.svg", metadata={"Date": None})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
