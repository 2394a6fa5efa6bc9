"""Doses of V: each source is compared with the V of its own dose, a harder tuning is that tuning, readers see them all."""

import json

import pandas as pd
import pytest
import torch
from support.angles import principal_angles
from support.bland import refused

from helpers import results
from helpers.data import corpora
from helpers.errors import USAGE
from helpers.figures import subspaces as subspace_figures
from helpers.models import checkpoints, loading
from helpers.projection import alignment_matrix, quantized_subspaces, restored_updates, stronger_alignment, subspaces
from helpers.updates import names, quantizers, safety_tuning, training
from helpers.updates.names import Variant
from helpers.updates.variants import Parts

NAMES = ["nf4-mixed", "nf4-both", "rtn-4-both"]
SCALES, FACTORS, KS = [4.0], [2.0, 8.0], [2, 4]
TUNING = {"refusals": 8, "benign": 16, "steps": 4, "lr": 1e-3}
TEXTS = tuple(f"The {noun} stands by the door and somebody will paint it. " * 4 for noun in ("lamp", "river", "garden", "boat"))
ALIGNED = Variant("tiny")


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory) -> Parts:
    """A base model and one whose weights moved by a few directions and a little noise, much less than a step of 4 bits."""
    language, draw = loading.load(tiny, "fp32"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in quantizers.linear_names(language.model):
            weight = language.model.get_submodule(name).weight
            left, right = torch.randn(weight.shape[0], 4, generator=draw), torch.randn(4, weight.shape[1], generator=draw)
            weight.add_(2e-4 * left @ right + 2e-4 * torch.randn(weight.shape, generator=draw))
    language.model.to(torch.bfloat16)
    return Parts(tiny, loading.save(language, tmp_path_factory.mktemp("doses") / "doses-aligned"), TEXTS)


@pytest.fixture(scope="module")
def modules(parts) -> list[str]:
    return subspaces.at_depths(loading.load(parts.aligned).model, 1)[:3]


@pytest.fixture(scope="module")
def harder(parts):
    """The folders of two harder tunings, and every step that their bars were told."""
    steps = {factor: [] for factor in FACTORS}
    found = {x: stronger_alignment.harder(parts, x, TUNING, 0, "tiny", lambda *step, x=x: steps[x].append(step)) for x in FACTORS}
    return found, steps


@pytest.fixture(scope="module")
def study(parts, modules, harder):
    """Sources, truths, rows, and what the bar was told."""
    found, references, said = (
        stronger_alignment.sources(parts, NAMES, SCALES, harder[0], modules),
        stronger_alignment.truths(parts, SCALES, harder[0], modules),
        [],
    )
    return found, references, stronger_alignment.stronger_rows(found, references, modules, KS, 0, said.append), said


# ---------------------------------------------------------------- tuned harder


def test_a_harder_tuning_is_the_alignment_at_a_multiple_of_the_rate(parts, harder):
    folders, steps = harder
    batches = TUNING["steps"]
    for factor, folder in folders.items():
        note = json.loads((folder / "alignment.json").read_text(encoding="utf-8"))
        assert (len(note["losses"]), note["checks"]) == (batches, [])
        assert [step[:2] for step in steps[factor]] == [(i + 1, batches) for i in range(batches)]
    for factor, folder in list(folders.items())[:1]:
        rows = corpora.alignment_rows(TUNING["refusals"], TUNING["benign"], "tiny", 0)
        language = loading.load(parts.base, "fp32")
        tuned = training.tune(language, rows, safety_tuning.safety_recipe(batches, len(rows), factor * TUNING["lr"], 0))
        saved = loading.load(folder).model
        for name, tensor in tuned.tensors.items():
            assert torch.equal(saved.get_parameter(name).bfloat16(), tensor.bfloat16())


def test_a_tuning_is_kept_by_its_content(parts, harder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("tuned again")

    monkeypatch.setattr(training, "tune", refuse)
    folders, _ = harder
    assert len(set(folders.values())) == len(FACTORS)
    assert {x: stronger_alignment.harder(parts, x, TUNING, 0, "tiny") for x in FACTORS} == folders
    assert stronger_alignment.harder(parts, 1.0, {**TUNING, "lr": FACTORS[0] * TUNING["lr"]}, 0, "tiny") == folders[FACTORS[0]]
    for factor, tuning, seed in ((3.0, TUNING, 0), (2.0, {**TUNING, "steps": 5}, 0), (2.0, TUNING, 1)):
        with pytest.raises(AssertionError, match="again"):
            stronger_alignment.harder(parts, factor, tuning, seed, "tiny")


def test_a_higher_rate_makes_v_larger(parts, harder, modules):
    sizes = [stronger_alignment.truths(parts, [], harder[0], modules)[f"lr x{x:g}"].change(modules[0]).norm() for x in FACTORS]
    assert 0 < sizes[0] < sizes[1]


def test_a_model_that_was_not_tuned_here_cannot_be_tuned_harder(parts):
    with refused(USAGE, "not tuned here", "leave `harder` empty"):
        stronger_alignment.harder(parts, 2.0, {**TUNING, "lr": 0.0}, 0, "tiny")


# ---------------------------------------------------------------- sources and their truths


def test_the_sources_are_those_named_and_each_of_both_sides_in_every_dose(study):
    found, references, *_ = study
    both = [name for name in NAMES if name.endswith("-both")]
    dosed = [f"{name}{dose}" for name in both for dose in (" x4", ", lr x2", ", lr x8")]
    assert list(found) == ["bf16", *NAMES, *dosed]
    assert list(references) == ["bf16", "x4", "lr x2", "lr x8"]


def test_gptq_is_left_out_of_other_doses(parts, modules, harder):
    found = stronger_alignment.sources(parts, ["gptq-4-mixed", "gptq-4-both", "nf4-both"], SCALES, {2.0: harder[0][2.0]}, modules)
    assert list(found) == ["bf16", "gptq-4-mixed", "gptq-4-both", "nf4-both", "nf4-both x4", "nf4-both, lr x2"]
    none = stronger_alignment.sources(parts, ["nf4-mixed"], SCALES, harder[0], modules)
    assert list(none) == ["bf16", "nf4-mixed"]


@pytest.mark.parametrize(
    ("source", "dose"),
    [("bf16", "bf16"), ("nf4-both", "bf16"), ("nf4-both x4", "x4"), ("nf4-both, lr x4", "lr x4"), ("rtn-4-both x0.5", "x0.5")],
)
def test_the_dose_of_a_source_is_read_from_its_name(source, dose):
    assert stronger_alignment.dose(source) == dose


def test_a_dose_scales_v_before_both_models_are_quantized(study, parts, modules):
    found, references, *_ = study
    low = alignment_matrix.quantized(checkpoints.checkpoint(parts.base), "nf4")
    for module in modules:
        v, scaled = found["bf16"].change(module).dense(), references["x4"].change(module)
        torch.testing.assert_close(scaled.dense(), 4 * v, rtol=0, atol=1e-3)  # but for the rounding of bf16 weights
        assert scaled.norm() == pytest.approx(4 * float(v.norm()), rel=0.05)
        assert torch.equal(found["nf4-both x4"].base(module), low(module))
        by_hand = quantizers.QUANTIZERS["nf4"](scaled.aligned.bfloat16(), None).dequantize()
        assert torch.equal(found["nf4-both x4"].aligned(module), by_hand)


# ---------------------------------------------------------------- rows


def value(table, source, metric, module, k=""):
    row = table[(table[["source", "metric", "module", "k"]] == [source, metric, module, k]).all(axis=1)]
    assert len(row) == 1, (source, metric, module, k)
    return float(row["value"].iloc[0])


def test_every_source_is_compared_with_the_truth_of_its_own_dose(study, modules):
    found, references, table, _ = study
    for source in [name for name in found if name != "bf16"]:
        truth = references[stronger_alignment.dose(source)]
        for module in modules:
            exact = truth.change(module)
            errors = subspaces.noise(found[source].change(module), exact)
            assert value(table, source, "noise_to_signal", module) == pytest.approx(errors.norm() / exact.norm(), rel=1e-6)
            ours, theirs = (subspaces.leading(one.change(module), 4).vectors for one in (found[source], truth))
            shared = float(principal_angles(ours, theirs).square().mean())
            assert value(table, source, "overlap", module, "4") == pytest.approx(shared, abs=1e-5)
    with_wrong_truth = quantized_subspaces.source_rows(
        {"bf16": found["bf16"], "other": found["nf4-both x4"]}, "bf16", modules, KS, 0
    )
    wrong = value(with_wrong_truth, "other", "noise_to_signal", modules[0])  # control: 3 V would be taken for noise
    assert wrong > 1.2 * value(table, "nf4-both x4", "noise_to_signal", modules[0])


def test_a_larger_v_stands_further_above_the_noise(study, modules):
    table = study[2]
    for name in ("nf4-both", "rtn-4-both"):
        assert value(table, name, "noise_to_signal", "all") > 1.5 * value(table, f"{name} x4", "noise_to_signal", "all")
        assert value(table, name, "overlap", "all", "4") < value(table, f"{name} x4", "overlap", "all", "4")


def test_the_bar_is_told_of_every_module_of_every_truth(study, modules):
    _, references, _, said = study
    assert said == modules * len(references)


def test_the_rows_keep_to_the_schema_and_stand_beside_those_of_chapter_01(study, parts, modules, tmp_path):
    table = names.keyed(ALIGNED, results.joined("subspaces", study[2], alike(study[2])))
    spectra = subspaces.spectra(parts.base, parts.aligned, modules)
    first = subspaces.subspace_rows(spectra, ALIGNED, KS)
    assert set(first["source"]) == {"bf16"} <= set(table["source"])
    run = results.Run("smoke", "tiny", 0, tmp_path)
    for chapter, part in (("01_models", first), ("08_subspaces", table)):
        assert len(results.write_table(run, chapter, "subspaces", part)) == len(part)  # each address once
    merged = results.read_table(run, "subspaces")
    assert len(merged) == len(first) + len(table)
    address = [*results.KEY, *results.OWN["subspaces"], "metric"]
    both = pd.concat([first, table]).merge(merged, on=address, suffixes=("", "_merged"))
    assert len(both) == len(merged)
    assert (both["value"] == both["value_merged"]).all()


def alike(table) -> pd.DataFrame:
    """Rows as `choices.choice_rows` gives them, for the sources that are no dose."""
    found = [
        (name, "all", k, metric, 0.5, 0.25, 0.75, 28)
        for name in dict.fromkeys(table["source"])
        if name != "bf16" and name in NAMES
        if stronger_alignment.dose(name) == "bf16"
        for k, metric in (("", "score_spearman"), ("0.25", "jaccard"), ("0.25", "jaccard_null"), ("0.25", "jaccard_null_by_kind"))
    ]
    return pd.DataFrame(found, columns=quantized_subspaces.COLUMNS)


# ---------------------------------------------------------------- as a reader sees it


def test_the_summary_has_every_source_once_and_no_truth(study):
    found, _, table, _ = study
    shown = subspace_figures.summary(table)
    assert sorted(shown["source"]) == sorted(name for name in found if name != "bf16")
    columns = ["source", *subspace_figures.SHOWN.values(), "overlap, k = 2", "overlap, k = 4"]
    assert sorted(shown.columns) == sorted(columns)
    assert not shown.isna().any(axis=None)
    medians = table[(table["module"] == "all") & (table["source"] == "nf4-both x4")].set_index(["metric", "k"])
    low, middle, high = (f"{medians.loc[('overlap', '2'), end]:.3g}" for end in ("low", "value", "high"))
    assert shown.set_index("source").loc["nf4-both x4", "overlap, k = 2"] == f"{middle} [{low}, {high}]"


def test_the_choices_of_each_source_stand_in_one_row(study):
    shown = subspace_figures.choices(results.joined("subspaces", study[2], alike(study[2])))
    assert shown["source"].tolist() == NAMES
    assert list(shown.columns) == ["source", "rank correlation of s", "in common, 25 % chosen", "by chance, 25 % chosen"]
    assert set(shown["in common, 25 % chosen"]) == {"0.5 [0.25, 0.75]"}


def test_sentences_tell_of_one_source_and_of_what_is_missing(study):
    table = study[2]
    told = subspace_figures.subspace_sentences(table, "nf4-both")
    cells = subspace_figures.summary(table).set_index("source").loc["nf4-both"]
    assert told["source-noise"] == cells["noise over signal"]
    assert (told["overlap-k"], told["source-overlap"]) == ("2", cells["overlap, k = 2"])
    null = table[(table["source"] == "nf4-both") & (table["metric"] == "overlap_null") & (table["k"] == "2")]["value"]
    assert told["null-overlap"] == f"{null.median():.2g}"
    absent = subspace_figures.subspace_sentences(table, "fp4-both")
    assert absent["source"] == "fp4-both"
    assert {absent[name] for name in ("source-noise", "source-overlap", "null-overlap")} == {"(not measured)"}


def test_the_same_pair_comes_again_so_that_what_is_kept_of_it_is_found(parts, modules):
    first, second = (stronger_alignment.sources(parts, ["nf4-both"], [], {}, modules)["nf4-both"] for _ in range(2))
    assert first is second is restored_updates.alignment_pair(parts, "nf4-both", modules)
