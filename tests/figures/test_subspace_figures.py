"""Chapter 08's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from test_model_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, ends, once, row
from test_projection_figures import KEY, QUICK, drawn, legend_of, ruled, shown

from helpers import results
from helpers.figures import projection
from helpers.figures import subspaces as subspace_figures
from helpers.figures.drawing import layout

SOURCES = ["nf4-mixed", "nf4-both", "rtn-8-both"]
MANY = [f"{quantizer}-{way}" for quantizer in ("nf4", "rtn-8", "rtn-4", "gptq-4") for way in ("mixed", "both")] + ["fp4-both"]
DOSED = ["nf4-mixed", "nf4-both", "rtn-8-both", "nf4-both x4", "rtn-8-both x4", "nf4-both x16", "rtn-8-both x16"]


def spectrum(noise, size=192):
    return torch.tensor(np.hypot(3.0 * np.arange(1, size + 1) ** -0.8, noise * np.linspace(1, 0.2, size)))


def subspaces(sources, ks=(8, 32, 128), modules=21):
    """What `dequantized.rows` gives: every module's overlap and its null, and medians over all."""
    rows, widths = [], (192, 576, 1536)
    for i, (source, k) in enumerate(itertools.product(sources, ks)):
        rng, keys = RNG(i), {**KEY, "source": source, "k": str(k)}
        own = {m: d for m, d in ((m, widths[m % 3]) for m in range(modules)) if k < d}
        values = {m: min(1, k / d + 0.6 * rng.random() / (1 + i % 4)) for m, d in own.items()}
        for m, d in own.items():
            rows.append(row("overlap", values[m], 0.0, 1000, (0, 1), module=f"m.{m}", **keys))
            rows.append(row("overlap_null", k / d, 0.01, 1000, (0, 1), module=f"m.{m}", **keys))
            rows.append(row("overlap_excess", values[m] - k / d, 0.0, 1000, (-1, 1), module=f"m.{m}", **keys))
        rows.append(row("overlap", np.median([*values.values()]), 0.06, len(own), (0, 1), module="all", **keys))
        rows.append(row("overlap_excess", 0.5, 0.06, len(own), (0, 1), module="all", **keys))
    return pd.DataFrame(rows)


def names_of(sources):
    return ["safelora", *(f"safelora:{source}" for source in sources), "zero"]


UPDATES = ["lora-dialogue-harm10@bf16", "lora-dialogue-harm10@nf4"]
DRAWN = {
    "spectra, quick": lambda: subspace_figures.spectra(
        {n: spectrum(x) for n, x in zip(["bf16", *SOURCES], (0, 2, 0.5, 0.02), strict=True)}, "model.layers.0.self_attn.q_proj"
    ),
    "spectra, nine sources": lambda: subspace_figures.spectra(
        {"bf16": spectrum(0)} | {n: spectrum(0.1 * 1.5**i) for i, n in enumerate(MANY)}, "model.layers.29.mlp.gate_proj"
    ),
    "spectra, one without V": lambda: subspace_figures.spectra(
        {"bf16": spectrum(0), "rtn-2-both": torch.zeros(192)}, "model.layers.0.mlp.up"
    ),
    "overlaps, quick": lambda: subspace_figures.overlaps(subspaces([*SOURCES, "nf4-both x4", "rtn-8-both x4"])),
    "overlaps, nine sources": lambda: subspace_figures.overlaps(subspaces(MANY, (8, 32, 64, 128, 256))),
    "overlaps, doses": lambda: subspace_figures.overlaps(subspaces(DOSED, (8, 32, 64, 128, 256))),
    "overlaps, one": lambda: subspace_figures.overlaps(subspaces(["nf4-both"], (8,))),
    "restored, quick": lambda: subspace_figures.restored(drawn(QUICK[0], names_of(SOURCES), [0.9, 1.0])),
    "restored, nine sources": lambda: subspace_figures.restored(drawn(UPDATES, names_of(MANY), [0.25, 0.5, 0.9, 1.0])),
    "restored, without texts": lambda: subspace_figures.restored(
        drawn(QUICK[0], names_of(SOURCES[:1]), [1.0], projection.PAGE[:2])
    ),
}


figure_of = once(DRAWN)


# ---------------------------------------------------------------- of every figure (and test_drawn.py)


def test_the_tables_drawn_here_keep_to_the_schema():
    results.checked("subspaces", subspaces(SOURCES))


EMPTY = {
    "spectra": lambda: subspace_figures.spectra({"nf4-both": torch.zeros(4)}, "model.layers.0.mlp.up_proj"),
    "spectra, no source": lambda: subspace_figures.spectra({}, "model.layers.0.mlp.up_proj"),
    "overlaps": lambda: subspace_figures.overlaps(subspaces(SOURCES).query("module != 'all'")),
    "restored": lambda: subspace_figures.restored(drawn(QUICK[0], [], [])),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_was_not_measured_is_said(name):
    check_page(EMPTY[name](), measured=False)


# ---------------------------------------------------------------- singular values and directions


def test_spectra_are_drawn_as_they_are():
    values = {"bf16": spectrum(0), "nf4-both": spectrum(2.0), "rtn-2-both": torch.zeros(192)}
    (ax,) = subspace_figures.spectra(values, "model.layers.3.mlp.up_proj").axes
    for line, (name, of) in zip(ax.lines, values.items(), strict=True):
        kept = of[of > 0].numpy()
        at = [int(x) for x in line.get_xdata()]
        assert line.get_ydata() == pytest.approx([kept[i - 1] for i in at])
        assert at[:12] == list(range(1, len(kept) + 1))[:12]  # ever fewer of the later ones: the axis is logarithmic
        assert at[-1:] == ([len(kept)] if len(kept) else [])
        assert line.get_label() == (name if len(kept) else f"{name}: V = 0")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "layers.3.mlp.up_proj" in ax.get_title(loc="left")


def test_what_is_left_of_rounding_is_no_singular_value():
    values = torch.tensor([2.0, 1.0, 1e-9, 0.0])
    (ax,) = subspace_figures.spectra({"bf16": values}, "model.layers.0.mlp.up_proj").axes
    assert ax.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert "n = 4" in ax.get_xlabel()
    assert values.tolist() == pytest.approx([2.0, 1.0, 1e-9, 0.0])  # not changed


@pytest.mark.parametrize(("name", "sources", "ks"), [
    ("quick", [*SOURCES, "nf4-both x4", "rtn-8-both x4"], (8, 32, 128)), ("nine sources", MANY, (8, 32, 64, 128, 256)),
])  # fmt: skip
def test_overlaps_at_the_smallest_k_are_medians_over_modules_with_their_intervals(name, sources, ks):
    table = subspaces(sources, ks)
    rows = table[(table["module"] == "all") & (table["metric"] == "overlap") & (table["k"] == "8")].set_index("source")
    found, values = ends(figure_of(f"overlaps, {name}"))
    assert values == pytest.approx(sorted(rows["value"]))
    assert found == pytest.approx(sorted([*rows["low"], *rows["high"]]))
    (ax,) = figure_of(f"overlaps, {name}").axes
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == list(sources)
    assert [x for x, _ in points(ax)] == pytest.approx([rows.loc[source, "value"] for source in names])
    assert legend_of(figure_of(f"overlaps, {name}")) == ["random subspaces"]


def test_the_grey_line_is_what_chance_gives_the_modules_compared():
    (ax,) = subspace_figures.overlaps(subspaces(SOURCES, (8, 256), modules=21)).axes
    (line,) = [line for line in ax.lines if to_hex(line.get_color()) == layout.GREY and line.get_label() == "random subspaces"]
    assert line.get_xdata()[0] == pytest.approx(8 / 576)  # 7 modules each of width 192, 576 and 1536


def test_a_dose_has_the_colour_of_its_source_and_an_open_marker():
    (ax,) = subspace_figures.overlaps(subspaces(DOSED)).axes
    keys = {container.get_label(): container.lines[0] for container in ax.containers}
    for source in ("nf4-both", "rtn-8-both"):
        own = [keys[name] for name in (source, f"{source} x4", f"{source} x16")]
        assert len({key.get_color() for key in own}) == 1
        assert [key.get_markerfacecolor() == "white" for key in own] == [False, True, True]
    assert len({keys[name].get_color() for name in SOURCES}) == 3


# ---------------------------------------------------------------- whether a restoration notices


@pytest.mark.parametrize(("name", "updates", "sources", "strengths"), [
    ("quick", QUICK[0], SOURCES, [0.9, 1.0]), ("nine sources", UPDATES, MANY, [0.25, 0.5, 0.9, 1.0]),
])  # fmt: skip
def test_every_source_has_its_row_and_the_smallest_and_largest_share_a_marker(name, updates, sources, strengths):
    table, figure = drawn(updates, names_of(sources), strengths), figure_of(f"restored, {name}")
    restored = table[(table["restoration"] != "") & (table["metric"] == "non_refusal")]
    restored = restored[restored["strength"].isin([strengths[0], strengths[-1]])]
    assert ends(figure) == shown(restored, ["non_refusal"])
    places = list(itertools.product(updates, names_of(sources)))
    (ax,) = figure.axes
    assert len({container.lines[0].get_marker() for container in ax.containers}) == 2
    for container, strength in zip(ax.containers, (strengths[0], strengths[-1]), strict=True):
        own = restored[restored["strength"] == strength]
        at = [places.index((f"{r.adapter}@{r.precision}", r.restoration)) for r in own.itertuples()]
        found = [(round(y), x) for x, y in container.lines[0].get_xydata()]
        assert sorted(found) == sorted(zip(at, own["value"], strict=True))


def test_sources_are_named_and_so_are_shares():
    figure = figure_of("restored, quick")
    rows = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert rows == [*(f"SafeLoRA, V from {source}" for source in ["bf16", *SOURCES]), "same modules removed"]
    assert legend_of(figure) == ["90 % of modules", "100 % of modules", "aligned model", "update as trained"]
    alone = subspace_figures.restored(drawn(QUICK[0], ["splora", "zero"], [1.0])).axes[0].get_yticklabels()
    assert [text.get_text() for text in alone] == ["SPLoRA", "same modules removed"]


def test_dashed_is_the_aligned_model_and_dotted_each_update_over_its_own_rows():
    table = drawn(UPDATES, names_of(MANY), [0.25, 0.5, 0.9, 1.0])
    for ax, metric in zip(figure_of("restored, nine sources").axes, ["non_refusal"], strict=True):
        rows = table[(table["metric"] == metric) & (table["restoration"] == "")]
        assert ruled(ax, 0) == [rows[rows["adapter"] == ""]["value"].item()]
        dotted = [c for c in ax.collections if isinstance(c, LineCollection) and c.get_linestyle()[0][1] is not None]
        ends_of = [segment for c in dotted for segment in c.get_segments()]
        assert [segment[0][0] for segment in ends_of] == rows[rows["adapter"] != ""]["value"].tolist()
        assert [sorted(segment[:, 1]) for segment in ends_of] == [[-0.5, 10.5], [10.5, 21.5]]


# ---------------------------------------------------------------- by the size of V


def by_dose():
    """SafeLoRA with V once and 16 times as large, from full precision and from NF4: what `projection.curves` gives of it."""
    rows = []
    for name, kept, values in (
        ("safelora", 0.005, {"damage_left": 0.02, "against_removed": 0.0, "gain_kept": 0.6}),
        ("safelora:nf4-both", 0.004, {"damage_left": 0.03, "against_exact": 0.01}),
        ("safelora-x16", 0.08, {"damage_left": 0.3, "against_removed": 0.28}),
        ("safelora-x16:nf4-both", 0.07, {"damage_left": 0.5, "against_exact": 0.2}),
        ("zero", 0.0, {"damage_left": 0.02}),
    ):
        keys = {**KEY, "adapter": "lora-dialogue-harm10", "trained_on": "bf16", "serving": "attached", "restoration": name}
        for m in range(3):
            rows.append(row("kept", kept * (1 + m), 0, 1, module=f"m.{m}", layers_changed=1, measured_on="", **keys))
        at = {"module": "", "layers_changed": 2, **keys, "strength": 0.5}
        rows += [row("non_refusal", 0.4, 0.1, 12, measured_on=on, **at) for on in ("advbench/test", "equal utility/test")]
        rows += [row(metric, value, 0.1, 12, (-1, 1), measured_on="harmful/test", **at) for metric, value in values.items()]
    return pd.DataFrame(rows)


def test_what_a_restoration_makes_of_a_larger_v_stands_by_its_size():
    found = subspace_figures.dose_table(by_dose(), subspaces(["nf4-both", "nf4-both x16"]), "safelora")
    assert list(zip(found["V"], found["from"], strict=True)) == [
        ("x1", "bf16"), ("x1", "nf4-both"), ("x16", "bf16"), ("x16", "nf4-both"),
    ]  # fmt: skip
    assert found["norm kept"].tolist() == ["1 %", "0.8 %", "16 %", "14 %"]  # medians over modules
    assert found["minus removed"].fillna("").str.partition(" ")[0].tolist() == ["+0", "", "+28", ""]
    assert found["minus exact V"].fillna("").str.partition(" ")[0].tolist() == ["", "+1", "", "+20"]
    assert found["overlap"].notna().tolist() == [False, True, False, True]
    assert (found["strength"] == "50 % of modules").all()
    assert "update" not in found
    assert found["gain kept"].tolist()[0].startswith("60 %")


def test_a_restoration_that_was_not_drawn_has_no_doses():
    found = subspace_figures.dose_table(by_dose(), subspaces(["nf4-both"]), "orthogonal-keep")
    assert found.to_numpy().tolist() == [["the restoration was not drawn"]]


def test_a_larger_v_is_named_where_sources_are_told_apart():
    words = subspace_figures._source_words(["safelora", "safelora:nf4-both", "safelora-x16", "safelora-x16:nf4-both", "zero"])
    assert list(words.values()) == [
        "SafeLoRA, V from bf16", "SafeLoRA, V from nf4-both", "SafeLoRA, 16 V from bf16", "SafeLoRA, 16 V from nf4-both",
        "same modules removed",
    ]  # fmt: skip
