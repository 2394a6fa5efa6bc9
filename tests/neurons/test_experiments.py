"""Arms hold equally many neurons, do what the same lesion or layer does by hand, and are made once; ends of every scale."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from support import planted
from support.bland import refused
from torch import Tensor

from helpers import results
from helpers.data import corpora, text_rows
from helpers.errors import USAGE
from helpers.figures import neurons
from helpers.models import activations, generation, judge_types, judges, loading
from helpers.models.judge_types import Judgement, JudgeSettings
from helpers.models.loading import LanguageModel
from helpers.monitors import spot_check
from helpers.monitors.spot_check import Sketch
from helpers.neurons import experiments, hybrid_precision, interventions, neuron_scores
from helpers.stats.intervals import rate_interval
from helpers.updates import quantizers, training, variants
from helpers.updates.measurements import Protocol
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

NAMES = ("activation-contrast", "snip", "random")
ROWS, TOKENS, SEED = 4, 4, 0
FRACTIONS = (0.3, 1.0)
LAYERS, WIDTH = 4, 256
ALIGNED = Variant("tiny", SEED)


def odd_ones(settings: JudgeSettings) -> judge_types.Judge:
    """A judge that calls about half of all replies refused, by a hash of the reply: random models never say a stock phrase."""

    def judged(prompts: Sequence[str], replies: Sequence[str]) -> Judgement:
        odd = np.array([hashlib.sha256(reply.encode()).digest()[0] % 2 == 1 for reply in replies])
        return Judgement(odd, np.full(len(odd), np.nan), np.zeros(len(odd), dtype=bool))

    return judged


def pair_of_models(tiny, folder) -> Parts:
    """Two random models that differ only in what the neurons read (gate and up), so that patching all of them gives the other."""
    language, draw = loading.load(tiny, "fp32"), torch.Generator().manual_seed(0)
    saved = {}
    for name, parts, size in (("base", ("",), 0.15), ("aligned", ("gate_proj", "up_proj"), 0.1)):
        with torch.no_grad():
            for parameter_name, parameter in language.model.named_parameters():
                if parameter.ndim == 2 and any(part in parameter_name for part in parts):
                    parameter.add_(size * torch.randn(parameter.shape, generator=draw))
        language.model.to(torch.bfloat16)
        saved[name] = loading.save(language, folder / f"arms-{name}")
        language.model.float()
    return Parts(saved["base"], saved["aligned"])


def sketch_of(parts: Parts) -> Sketch:
    """A few bland prompts and texts, and a monitor that was fitted on the aligned model's own activations."""
    reading = planted.plan("toxicity", pairs=(20, 40, 10), depths=(0.75,))
    found = activations.read(loading.load(parts.aligned), reading)
    monitors = tuple(planted.monitors(found, reading, parts.aligned, ("logistic",))[:1])
    sets = spot_check.prompt_sets("test", 12, 6, "tiny"), spot_check.utility_sets("test", 1, 2, "tiny")
    protocol = Protocol(*sets, ("phrases",), JudgeSettings(), TOKENS, 0, "tiny")
    return Sketch(protocol, spot_check.restricted(reading, monitors, "test", 8), monitors, "test")


@dataclass(frozen=True, eq=False)
class Study:
    """The pair, the sketch, the scores, the four kinds of arms, and what their bars were told."""

    parts: Parts
    plan: Sketch
    found: dict[str, Tensor]
    tables: dict[str, pd.DataFrame]
    items: dict[str, pd.DataFrame]
    said: dict[str, list[str]]


def measured(parts: Parts, plan: Sketch, found):
    said: dict[str, list[str]] = {"silent": [], "patching": [], "moved": [], "spared": []}
    arms = {
        "silent": experiments.silenced(parts, ALIGNED, found, FRACTIONS, plan, said["silent"].append),
        "patching": experiments.patched_rows(parts, ALIGNED, found, FRACTIONS, plan, said["patching"].append),
        "spared": experiments.kept(parts, ALIGNED, found, FRACTIONS, ["rtn-3", "nf4"], plan, said["spared"].append),
    }
    tables = {name: one.table for name, one in arms.items()}
    tables["moved"] = experiments.disturbed(
        parts, ALIGNED, found, FRACTIONS[0], ["none", "rtn-3", "nf4"], plan, said["moved"].append
    )
    return tables, {name: one.item_rows() for name, one in arms.items()}, said


@pytest.fixture(scope="module")
def study(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(judges.JUDGES, "phrases", odd_ones)
        parts = pair_of_models(tiny, tmp_path_factory.mktemp("arms"))
        plan, found = sketch_of(parts), experiments.measured_scores(parts, NAMES, ROWS, TOKENS, SEED, "tiny")
        yield Study(parts, plan, found, *measured(parts, plan, found))


def arm(table: pd.DataFrame, score: str, fraction: float, precision: str = "bf16") -> pd.DataFrame:
    """The rows of one arm as a sketch tells them."""
    rows = table[(table["score"] == score) & (table["fraction"] == fraction) & (table["precision"] == precision)]
    assert len(rows), (score, fraction, precision)
    return rows[spot_check.COLUMNS].reset_index(drop=True)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def looked(study: Study, language: LanguageModel, mask: Tensor | None = None) -> pd.DataFrame:
    """What the sketch tells of a model, silenced by hand where there is a mask, beside the aligned model."""
    before = spot_check.look(study.plan, loading.load(study.parts.aligned))
    if mask is None:
        return spot_check.spot_check_rows(study.plan, spot_check.look(study.plan, language), before)
    with interventions.ablated(language.model, mask):
        return spot_check.spot_check_rows(study.plan, spot_check.look(study.plan, language), before)


def non_refusal(study: Study, said: list[str]) -> tuple[float, float, float]:
    harmful = study.plan.protocol.sets[0].rows
    e = rate_interval(1 - odd_ones(JudgeSettings())([], said).refused, [row.group for row in harmful])
    return e.value, e.low, e.high


def replies(study: Study, folder) -> list[str]:
    prompts = [row.prompt for row in study.plan.protocol.sets[0].rows]
    return generation.replies(loading.load(folder), prompts, new_tokens=TOKENS)


# ---------------------------------------------------------------- scores and picks


def by_hand(study: Study) -> dict[str, Tensor]:
    harmful = [row.prompt for row in corpora.sample("advbench/align", ROWS, "tiny", f"align-{SEED}")]
    benign = corpora.sample("instructions/tune", ROWS, "tiny")
    pair = loading.load(study.parts.aligned), loading.load(study.parts.base)
    return neuron_scores.score_neurons(neuron_scores.evidence(*pair, harmful, benign, TOKENS, SEED), NAMES)


def test_scores_come_back_from_the_cache_as_they_were_computed(study, monkeypatch):
    expected = by_hand(study)

    def refuse(*_):
        raise AssertionError("the scores are computed again")

    monkeypatch.setattr(neuron_scores, "evidence", refuse)
    again = experiments.measured_scores(study.parts, NAMES, ROWS, TOKENS, SEED, "tiny")
    assert list(again) == list(study.found) == list(NAMES)
    for name, values in again.items():
        assert values.shape == (LAYERS, WIDTH)
        assert torch.equal(values, study.found[name])
        assert torch.equal(values, expected[name].double())
    for changed in ((NAMES, ROWS + 1, TOKENS, SEED), (NAMES, ROWS, TOKENS + 1, SEED), (NAMES, ROWS, TOKENS, 1)):
        with pytest.raises(AssertionError, match="again"):
            experiments.measured_scores(study.parts, *changed, "tiny")
    turned = Parts(study.parts.aligned, study.parts.base)
    with pytest.raises(AssertionError, match="again"):
        experiments.measured_scores(turned, NAMES, ROWS, TOKENS, SEED, "tiny")


def test_picks_hold_equally_many_neurons_of_every_score(study):
    found = list(experiments.picks(study.found, (0.01, 0.3)))
    assert [(name, fraction) for name, fraction, _ in found] == [(name, x) for x in (0.01, 0.3) for name in NAMES]
    for name, fraction, mask in found:
        assert int(mask.sum()) == round(fraction * LAYERS * WIDTH)
        assert torch.equal(mask, neuron_scores.top(study.found[name], fraction))
    assert not torch.equal(found[0][2], found[2][2])  # they are not the same neurons
    unlike = {"a": torch.rand(4, 8), "b": torch.rand(4, 9)}
    with refused(USAGE, "'b'", "(4, 8)"):
        list(experiments.picks(unlike, (0.5,)))


def test_the_shares_of_layers_are_counted(study):
    table = experiments.layer_rows(study.found, 0.3, ALIGNED)
    for name in NAMES:
        part = table[table["score"] == name]
        mask = neuron_scores.top(study.found[name], 0.3)
        assert part["layer"].tolist() == [1, 2, 3, 4]
        assert part["value"].tolist() == pytest.approx(mask.double().mean(1).tolist())
        assert float(part["value"].mean()) == pytest.approx(round(0.3 * LAYERS * WIDTH) / (LAYERS * WIDTH))
        assert (part["n"] == WIDTH).all()


# ---------------------------------------------------------------- silenced and patched


def test_fraction_0_is_the_model_itself(study):
    same(arm(study.tables["silent"], "none", 0.0), looked(study, build_variant(study.parts, ALIGNED)))
    row = arm(study.tables["patching"], "none", 0.0).iloc[0]
    assert (row["value"], row["low"], row["high"]) == non_refusal(study, replies(study, study.parts.base))


def test_a_silenced_arm_is_the_sketch_of_a_model_that_is_silenced_by_hand(study):
    whole = arm(study.tables["silent"], "none", 0.0)
    for name, fraction in (("snip", 0.3), ("random", 0.3), ("random", 1.0)):
        found = arm(study.tables["silent"], name, fraction)
        same(found, looked(study, loading.load(study.parts.aligned), neuron_scores.top(study.found[name], fraction)))
        changed = found.set_index("metric")["value"] != whole.set_index("metric")["value"]
        assert changed["perplexity"]  # control: the lesion does something


def test_silencing_everything_is_the_same_by_every_score(study):
    first, *others = (arm(study.tables["silent"], name, 1.0) for name in NAMES)
    for other in others:
        same(other, first)


def test_a_patched_arm_refuses_what_is_refused_when_patched_by_hand(study):
    pair = loading.load(study.parts.base), loading.load(study.parts.aligned)
    prompts = [row.prompt for row in study.plan.protocol.sets[0].rows]
    for name in ("snip", "random"):
        row = arm(study.tables["patching"], name, 0.3).iloc[0]
        said = interventions.patched_replies(*pair, neuron_scores.top(study.found[name], 0.3), prompts, TOKENS)
        assert (row["value"], row["low"], row["high"]) == non_refusal(study, said)


def test_patching_all_neurons_gives_the_aligned_model_where_only_they_differ(study):
    rate = non_refusal(study, replies(study, study.parts.aligned))
    assert rate != non_refusal(study, replies(study, study.parts.base))  # control: there is something to give
    for name in NAMES:
        row = arm(study.tables["patching"], name, 1.0).iloc[0]
        assert (row["value"], row["low"], row["high"]) == rate


# ---------------------------------------------------------------- disturbed


def test_no_format_disturbs_nothing_and_a_coarse_one_disturbs_what_it_does_by_hand(study):
    nothing = study.tables["moved"][study.tables["moved"]["precision"] == "none"]
    assert len(nothing) == len(NAMES)
    assert (nothing[["value", "low"]] == 0).all(axis=None)
    assert (nothing["high"] < 1).all()  # what prompts that were not seen might do is finite
    plain = loading.load(study.parts.aligned)
    harmful = study.plan.protocol.sets[0].rows
    said = zip(harmful, replies(study, study.parts.aligned), strict=True)
    texts = training.examples(plain.tokenizer, [text_rows.Row(row.prompt, reply) for row, reply in said], experiments.LIMIT)
    changed = loading.load(study.parts.aligned)
    quantizers.apply_dequantized(changed.model, quantizers.quantize_model(changed.model, "rtn-3"))
    for name in NAMES:
        values = interventions.activation_change(changed, plain, neuron_scores.top(study.found[name], 0.3), texts)
        row = arm(study.tables["moved"], name, 0.3, "rtn-3").iloc[0]
        assert row["value"] == pytest.approx(float(values.mean()), rel=1e-6)
        assert 0 < row["low"] < row["value"] < row["high"]
        assert row["value"] > arm(study.tables["moved"], name, 0.3, "nf4").iloc[0]["value"] > 0


@pytest.mark.parametrize("values", [[0.3], [0.0] * 12, [2.5, 2.5], [0.1, 0.2, 3.0]])
def test_the_interval_of_a_change_is_finite_and_holds_it(values):
    e = experiments._mean_change(pd.Series(values), [str(i) for i in range(len(values))])
    assert 0 <= e.low <= e.value <= e.high <= max(2.0, *values)
    assert (e.value, e.n) == (pytest.approx(np.mean(values)), len(values))


# ---------------------------------------------------------------- hybrid precision


def bits(table: pd.DataFrame) -> float:
    return float(table.loc[table["metric"] == "bits_per_weight", "value"].iloc[0])


def told(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["metric"] != "bits_per_weight"].reset_index(drop=True)


@pytest.mark.parametrize("precision", ["rtn-3", "nf4"])
def test_sparing_nothing_is_the_plain_format(study, precision):
    plain = build_variant(study.parts, Variant("tiny", precision=precision))
    found = told(arm(study.tables["spared"], "none", 0.0, precision))
    same(found, looked(study, plain))
    whole = arm(study.tables["silent"], "none", 0.0)
    assert (found["value"] != whole["value"]).any()  # control: the format changes something


def test_sparing_every_neuron_leaves_all_mlps_in_bf16(study):
    language = loading.load(study.parts.aligned)
    stored = quantizers.quantize_model(language.model, "rtn-3")
    quantizers.apply_dequantized(language.model, {name: one for name, one in stored.items() if ".mlp." not in name})
    expected = looked(study, language)
    for name in NAMES:
        same(told(arm(study.tables["spared"], name, 1.0, "rtn-3")), expected)
    assert (expected["value"] != told(arm(study.tables["spared"], "random", 0.3, "rtn-3"))["value"]).any()


def test_bits_are_those_that_are_stored_and_equal_in_all_arms_of_a_share(study):
    found = {}
    for name, fraction in [("none", 0.0), *((name, x) for x in FRACTIONS for name in NAMES)]:
        mask = neuron_scores.top(study.found[name], fraction) if fraction else torch.zeros(LAYERS, WIDTH, dtype=torch.bool)
        size = hybrid_precision.hybrid_(loading.load(study.parts.aligned).model, "rtn-3", mask)
        found.setdefault(fraction, set()).add(bits(arm(study.tables["spared"], name, fraction, "rtn-3")))
        assert found[fraction] == {size.bits_per_weight}
    assert 3 < min(found[0.0]) < min(found[0.3]) < min(found[1.0])


# ---------------------------------------------------------------- all of them


def test_every_table_keeps_to_the_schema_and_no_address_is_taken_twice(study):
    parts = [experiments.layer_rows(study.found, FRACTIONS[0], ALIGNED), *study.tables.values()]
    for part in parts:
        assert len(results.checked("neurons", part)) == len(part)
    joined = results.joined("neurons", *parts)
    assert len(results.checked("neurons", joined)) == sum(map(len, parts))  # which also holds that addresses are unique
    assert len(results.joined("neurons", *parts, *parts)) == len(joined)


def test_items_pair_every_arm_with_the_aligned_model_and_its_plain_format(study):
    """What there was to preserve is a row of its own: the plain format's items, under its precision alone."""
    together = results.joined("items", *study.items.values())
    assert len(results.checked("items", together)) == len(together)
    refused = together[(together["metric"] == "refused") & (together["prompt_set"] == "advbench/test")]
    by = {v: set(refused["item"][codes]) for v, codes in zip(variants.from_table(refused), _places(refused), strict=True)}
    assert len({frozenset(items) for items in by.values()}) == 1  # the same prompts everywhere
    assert {ALIGNED, Variant("tiny", precision="rtn-3"), Variant("tiny", adapter="base", serving="patched")} <= set(by)
    assert Variant("tiny", precision="rtn-3", serving="hybrid", restoration="random", strength=0.3) in by
    arms = [v for v in by if v.restoration]
    assert len(arms) == (1 + 1 + 2) * len(FRACTIONS) * len(NAMES)
    row = arm(study.tables["spared"], "random", 0.3, "rtn-3").set_index(["measured_on", "metric"])
    own = refused[(refused["serving"] == "hybrid") & (refused["precision"] == "rtn-3")]
    own = own[(own["restoration"] == "random") & (own["strength"] == 0.3)]
    assert 1 - own["value"].mean() == pytest.approx(row.loc[("advbench/test", "non_refusal"), "value"])


def _places(table):
    codes = variants.variant_codes(table)
    return [codes == i for i in range(codes.max() + 1)]


def test_bars_are_told_of_every_arm(study):
    picked = len(FRACTIONS) * len(NAMES)
    assert {name: len(said) for name, said in study.said.items()} == {
        "silent": picked, "patching": 1 + picked, "moved": 3, "spared": 2 * (1 + picked),
    }  # fmt: skip


def test_nothing_is_measured_twice(study, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model is built again")

    monkeypatch.setattr(loading, "load", refuse)
    monkeypatch.setattr(experiments, "build_variant", refuse)
    again, *_ = measured(study.parts, study.plan, study.found)
    for name, table in again.items():
        same(table, study.tables[name])
    other = {"random": torch.rand(LAYERS, WIDTH, generator=torch.Generator().manual_seed(5))}
    with pytest.raises(AssertionError, match="again"):  # control: other neurons are another arm
        experiments.silenced(study.parts, ALIGNED, other, FRACTIONS[:1], study.plan)


def test_a_reader_sees_every_arm_in_the_order_of_the_scores(study):
    shown = neurons.neuron_table(study.tables["silent"], ["perplexity", "non_refusal"])
    labels = [f"{100 * x:g} % by {name}" for x in FRACTIONS for name in NAMES]
    assert shown["variant"].tolist() == ["none", *labels]
    assert shown.shape == (1 + len(labels), 3)
    assert not shown.isna().any(axis=None)
    metrics = ["non_refusal", "perplexity", "bits_per_weight", "alarms_changed"]
    spared = neurons.neuron_table(study.tables["spared"], metrics)
    assert spared["variant"].tolist() == [f"{name}, {label}" for name in ("rtn-3", "nf4") for label in ("none", *labels)]
    assert spared.shape[1] == 1 + len(metrics)
    assert not spared.isna().any(axis=None)
    told_of = neurons.neuron_sentences(study.tables["silent"])
    assert told_of["ablated-by"] == NAMES[0]
    assert told_of["ablated-share"] == "100 %"
    assert "(not measured)" not in told_of.values()


def test_rows_name_the_variant_that_they_are_about(study):
    front = {name: table[[*results.KEY]].drop_duplicates() for name, table in study.tables.items()}
    assert set(front["silent"]["serving"]) == {"", "ablated"}
    assert (study.tables["silent"].query("serving == ''")["score"] == "none").all()
    assert set(zip(front["patching"]["adapter"], front["patching"]["serving"], strict=True)) == {("base", "patched")}
    assert set(zip(front["spared"]["precision"], front["spared"]["serving"], strict=True)) == {
        ("rtn-3", "hybrid"),
        ("nf4", "hybrid"),
    }
    assert set(front["moved"]["precision"]) == {"none", "rtn-3", "nf4"}
    assert variants.labelled(study.tables["moved"])["label"].nunique() == 3
