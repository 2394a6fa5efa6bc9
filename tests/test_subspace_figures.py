"""Chapter 08's figures are drawn at full and small size, show every interval, say n, and no text is cut or covered."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from test_figures import drawing, points  # noqa: F401
from test_monitor_figures import RNG, check_page, check_same, drawing_functions, ends, row, said
from test_projection_figures import KEY, OUTCOMES, QUICK, drawn

from helpers import subspace_figures as sf

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
    "spectra, quick": lambda: sf.spectra({n: spectrum(x) for n, x in zip(["bf16", *SOURCES], (0, 2, 0.5, 0.02), strict=True)},
                                         "model.layers.0.self_attn.q_proj"),
    "spectra, nine sources": lambda: sf.spectra({"bf16": spectrum(0)} | {n: spectrum(0.1 * 1.5**i) for i, n in enumerate(MANY)},
                                                "model.layers.29.mlp.gate_proj"),
    "spectra, one without V": lambda: sf.spectra({"bf16": spectrum(0), "rtn-2-both": torch.zeros(192)}, "model.layers.0.mlp.up"),
    "overlaps, quick": lambda: sf.overlaps(subspaces([*SOURCES, "nf4-both x4", "rtn-8-both x4"])),
    "overlaps, nine sources": lambda: sf.overlaps(subspaces(MANY, (8, 32, 64, 128, 256))),
    "overlaps, doses": lambda: sf.overlaps(subspaces(DOSED, (8, 32, 64, 128, 256))),
    "overlaps, one": lambda: sf.overlaps(subspaces(["nf4-both"], (8,))),
    "restored, quick": lambda: sf.restored(drawn(QUICK[0], names_of(SOURCES), [0.9, 1.0])),
    "restored, nine sources": lambda: sf.restored(drawn(UPDATES, names_of(MANY), [0.25, 0.5, 0.9, 1.0])),
    "restored, without texts": lambda: sf.restored(drawn(QUICK[0], names_of(SOURCES[:1]), [1.0], ["non_refusal", "over_refusal"])),
}  # fmt: skip


@functools.cache
def figure_of(name):
    """A figure of a whole run is drawn once, whatever is asked of it."""
    return DRAWN[name]()


# ---------------------------------------------------------------- of every figure


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_or_covered_and_n_is_said(name):
    check_page(figure_of(name))
