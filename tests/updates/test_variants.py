"""Variants: every precision and serving builds what its formula says, and building one never changes what it is made of."""

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.tiers import mostly_slow

from helpers.data.text_rows import Row
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, USAGE, StudyError
from helpers.models import checkpoints, generation, loading
from helpers.projection import alignment_matrix, restorations, restored_updates
from helpers.updates import lora, quantized_models, quantizers, salora, training, variants
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, build_variant

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

NOUNS = ("lamp", "river", "garden", "engine", "violin", "ladder", "window", "basket")
ROWS = [Row(f"Polish the {noun}", f"The {noun} shines.") for noun in NOUNS]
RECIPE = training.Recipe(epochs=1, batch=4, lr=5e-3)
TEXTS = tuple(f"The {noun} stands by the door and somebody will paint it. " * 4 for noun in NOUNS)
UPDATES = {("shine", "bf16"): RECIPE, ("shine", "nf4"): RECIPE, ("full", "bf16"): replace(RECIPE, kind="full", lr=1e-3)}


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory) -> Parts:
    """Two checkpoints that differ, calibration texts, and three updates trained on the second one."""
    language = loading.load(tiny)
    with torch.no_grad():
        for p in language.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p.dtype))
    parts = Parts(tiny, loading.save(language, tmp_path_factory.mktemp("parts") / "aligned"), TEXTS)
    for (name, trained_on), recipe in UPDATES.items():
        parts = parts.with_update(name, trained_on, variants.train_update(parts, ROWS, recipe, trained_on))
    return restored_updates.with_restorations(parts)


@pytest.fixture(autouse=True)
def nothing_changes(parts):
    """Whatever a test builds, the files that variants are made of stay as they are."""
    before = _hashes(parts)
    yield
    assert _hashes(parts) == before


def _hashes(parts: Parts) -> dict[str, str]:
    folders = [parts.base, parts.aligned, *parts.updates.values()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for f in folders for path in sorted(f.iterdir())}


def weights(language) -> dict[str, torch.Tensor]:
    model = language.model
    return {name: model.get_submodule(name).weight.detach() for name in quantizers.linear_names(model)}


def build(parts: Parts, **fields):
    return build_variant(parts, Variant("tiny", **fields))


def adapter(parts: Parts, trained_on: str = "bf16") -> lora.Adapter:
    return variants.load_update(parts.updates["shine", trained_on]).adapter


def states_equal(one, other) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def logits(language) -> torch.Tensor:
    return language.model(input_ids=torch.arange(3, 90)[None]).logits.float()


# ---------------------------------------------------------------- without an update


def test_the_controls(parts):
    aligned = build(parts)
    assert states_equal(build(parts, adapter="identity"), aligned)
    assert states_equal(build(parts, precision="none"), aligned)
    assert states_equal(build(parts, adapter="base"), loading.load(parts.base))
    assert not states_equal(build(parts, adapter="base"), aligned)
    wide = build(parts, precision="fp32")
    assert {p.dtype for p in wide.model.parameters()} == {torch.float32}
    assert all(torch.equal(w.bfloat16(), aligned.model.get_parameter(n)) for n, w in wide.model.named_parameters())


@mostly_slow("a model for each format, twice", "-int8", "-gptq-4", "attached-nf4", "attached-rtn-3")
@pytest.mark.parametrize("precision", quantizers.QUANTIZERS)
@pytest.mark.parametrize("serving", ["", "attached"])
def test_every_precision_builds_generates_and_keeps_its_name(parts, precision, serving):
    update = {"adapter": "shine", "trained_on": "bf16", "serving": serving} if serving else {}
    language = build(parts, precision=precision, **update)
    replies = generation.replies(language, ["Polish the lamp", "Hi"], new_tokens=3)
    assert len(replies) == 2
    assert torch.isfinite(logits(language)).all()
    if precision not in {"none"}:
        assert not torch.equal(logits(language), logits(build(parts, **update)))


@pytest.mark.parametrize("precision", ["nf4", "rtn-3"])
@pytest.mark.parametrize("adapter", ["", "base", "identity"])
def test_a_precision_is_never_left_out(parts, precision, adapter):
    whole, served = weights(build(parts, adapter=adapter)), weights(build(parts, adapter=adapter, precision=precision))
    for name, weight in whole.items():
        assert torch.equal(served[name], quantizers.QUANTIZERS[precision](weight, None).dequantize())


def test_int8_runs_in_its_own_modules(parts):
    model = build(parts, precision="int8").model
    assert {type(model.get_submodule(n)).__name__ for n in quantizers.linear_names(model)} == {"Linear8bitLt"}


def test_gptq_is_computed_once_and_needs_texts(parts, monkeypatch):
    first = build(parts, precision="gptq-4")
    monkeypatch.setattr(quantized_models, "gptq_model", None)  # would fail if it were called
    assert states_equal(build(parts, precision="gptq-4"), first)
    with pytest.raises(StudyError, match=r"'gptq-4' needs calibration texts; set calibration_rows"):
        build(replace(parts, calibration=()), precision="gptq-4")


def test_a_full_disk_leaves_no_half_gptq(parts, monkeypatch, isolated_cache):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized_models, "save_file", full)
    before = sorted((isolated_cache / "quantized").iterdir())
    with pytest.raises(StudyError, match="No space left") as caught:
        build(replace(parts, calibration=TEXTS[:4]), precision="gptq-4")
    assert caught.value.code == ENVIRONMENT
    assert sorted((isolated_cache / "quantized").iterdir()) == before


# ---------------------------------------------------------------- with an update


def test_merged_is_the_sum_rounded_once_and_close_to_attached(parts):
    aligned, merged = weights(build(parts)), build(parts, adapter="shine", trained_on="bf16", serving="merged")
    for name, weight in weights(merged).items():
        assert torch.equal(weight, (aligned[name].float() + adapter(parts)[name].dense()).bfloat16())
    attached = build(parts, adapter="shine", trained_on="bf16", serving="attached")
    assert not torch.equal(logits(merged), logits(build(parts)))  # control: the update does something
    moved = (logits(merged) - logits(build(parts))).norm()
    assert (logits(attached) - logits(merged)).norm() < 0.2 * moved


@pytest.mark.parametrize("precision", ["nf4", "fp4", "rtn-4"])
def test_merged_requantized_is_the_quantized_sum(parts, precision):
    aligned = weights(build(parts))
    built = build(parts, precision=precision, adapter="shine", trained_on="bf16", serving="merged-requantized")
    for name, weight in weights(built).items():
        whole = (aligned[name].float() + adapter(parts)[name].dense()).bfloat16()
        assert torch.equal(weight, quantizers.QUANTIZERS[precision](whole, None).dequantize())


def test_merged_into_nf4_adds_to_the_quantized_weights_and_quantizes_again(parts):
    aligned = weights(build(parts))
    built = build(parts, precision="nf4", adapter="shine", trained_on="nf4", serving="merged-into-nf4")
    for name, weight in weights(built).items():
        kept = quantizers.four_bit(aligned[name]).dequantize()
        whole = (kept.float() + adapter(parts, "nf4")[name].dense()).bfloat16()
        assert torch.equal(weight, quantizers.four_bit(whole).dequantize())


def test_cross_serving_uses_the_update_that_was_trained_elsewhere(parts):
    assert any(
        not torch.equal(a.left, b.left) for a, b in zip(adapter(parts).values(), adapter(parts, "nf4").values(), strict=True)
    )
    built = build(parts, precision="nf4", adapter="shine", trained_on="bf16", serving="attached")
    base = {name.replace(".base_layer", ""): w for name, w in weights(built).items() if ".lora_" not in name}
    for name, weight in weights(build(parts, precision="nf4")).items():
        assert torch.equal(base[f"base_model.model.{name}"], weight)
        factors = built.model.get_submodule(f"base_model.model.{name}")
        assert torch.equal(factors.lora_B.default.weight, adapter(parts)[name].left.bfloat16())


def test_a_full_update_replaces_the_weights(parts):
    tuned = variants.load_update(parts.updates["full", "bf16"]).weights
    built = weights(build(parts, adapter="full", trained_on="bf16", serving="merged"))
    assert tuned.keys() == {f"{name}.weight" for name in built}
    assert all(torch.equal(weight, tuned[f"{name}.weight"].bfloat16()) for name, weight in built.items())
    quantized = weights(build(parts, precision="nf4", adapter="full", trained_on="bf16", serving="merged-requantized"))
    assert all(torch.equal(w, quantizers.four_bit(built[name]).dequantize()) for name, w in quantized.items())


FULL = {"adapter": "full", "trained_on": "bf16"}
SHINE = {"adapter": "shine", "trained_on": "bf16"}
REFUSED = {
    "attached needs an adapter": ({**FULL, "serving": "attached"}, USAGE, "'attached' needs an adapter.*serving=merged"),
    "into nf4 needs an adapter": ({**FULL, "serving": "merged-into-nf4", "precision": "nf4"}, USAGE, "needs an adapter"),
    "into int8": ({**SHINE, "serving": "merged-into-nf4", "precision": "int8"}, USAGE, "weight-only"),
    "merged is bf16": ({**SHINE, "serving": "merged", "precision": "nf4"}, USAGE, "'nf4'; use merged-requantized"),
    "unknown serving": ({**SHINE, "serving": "glued"}, USAGE, "unknown serving 'glued'.*attached, merged"),
    "unknown update": (
        {"adapter": "x", "trained_on": "bf16", "serving": "merged"},
        NOT_COMPARABLE,
        "no update 'x' trained on 'bf16'",
    ),
    "unknown precision": ({"precision": "nf5"}, USAGE, "'nf5' is unknown: use one of none, int8"),
    "restored, no update": (
        {"restoration": "zero", "strength": 1.0},
        USAGE,
        "'zero' needs an update to restore; name its adapter and trained_on",
    ),
    "restored base": ({"adapter": "base", "restoration": "zero", "strength": 1.0}, USAGE, "'zero' needs an update"),
    "restored control": ({"adapter": "identity", "restoration": "salora"}, USAGE, "'salora' needs an update"),
    "no strength": ({**SHINE, "serving": "merged", "restoration": "zero"}, USAGE, "'zero' has no strength; give the share"),
    "strength beyond": (
        {**SHINE, "serving": "merged", "restoration": "zero", "strength": 1.5},
        USAGE,
        "strength 1.5 of restoration 'zero' is out of range",
    ),
    "unknown restoration": (
        {**SHINE, "serving": "attached", "restoration": "safelor", "strength": 1.0},
        USAGE,
        "unknown restoration 'safelor'; did you mean 'safelora'",
    ),
    "no such update to restore": (
        {"adapter": "x", "trained_on": "bf16", "serving": "merged", "restoration": "zero", "strength": 1.0},
        NOT_COMPARABLE,
        "no update 'x' trained on 'bf16'",
    ),
    "SaLoRA that was not trained": (
        {**SHINE, "serving": "attached", "restoration": "salora"},
        NOT_COMPARABLE,
        r"no update 'shine\+salora' trained on 'bf16'",
    ),
    "SaLoRA as an edit": (
        {**SHINE, "serving": "attached", "restoration": "salora:nf4-both", "strength": 1.0},
        USAGE,
        "'salora' is made by training",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_by_name(parts, case):
    fields, code, words = REFUSED[case]
    with pytest.raises(StudyError, match=f"^(?=.*{words})[^\n]*$", check=lambda error: error.code == code):
        build(parts, **fields)


def test_labels_are_short_and_different():
    assert Variant("m").label == "aligned"
    assert Variant("m", precision="nf4").label == "nf4"
    assert Variant("m", adapter="base").label == "base"
    mixed = Variant("m", precision="nf4", adapter="mix", trained_on="bf16", serving="attached")
    assert mixed.label == "mix · bf16→nf4 attached"
    assert replace(mixed, restoration="zero", strength=0.5).label == "mix · bf16→nf4 attached · zero 0.5"
    assert replace(mixed, restoration="salora").label == "mix · bf16→nf4 attached · salora"


# ---------------------------------------------------------------- restored

MADE = [f"{name}-k4" if rule.k else name for name, rule in restorations.RESTORATIONS.items() if rule.restore]
RANDOM = {"random-spectrum", "random-subspace-k4"}
ATTACHED = Variant("tiny", adapter="shine", trained_on="bf16", serving="attached")
FULLY = Variant("tiny", **FULL, serving="merged")


def modules(parts: Parts) -> tuple[str, ...]:
    return tuple(adapter(parts))


def plain_pair(parts: Parts) -> alignment_matrix.Pair:
    """The pair of checkpoints, read anew."""
    return alignment_matrix.Pair(checkpoints.checkpoint(parts.base), checkpoints.checkpoint(parts.aligned), modules(parts))


def by_hand(parts: Parts, update, name: str, strength: float, seed: int = 0):
    return restorations.prepare(update, plain_pair(parts), name, seed).at(strength).update


def whole_change(parts: Parts) -> dict[str, torch.Tensor]:
    """What the full fine-tune moved, in float32."""
    tuned, aligned = variants.load_update(parts.updates["full", "bf16"]).weights, weights(build(parts))
    return {name: tuned[f"{name}.weight"] - aligned[name].float() for name in aligned}


@mostly_slow("the same of each restoration, in test_restorations too", "safelora", "safelora-threshold", "random-spectrum")
@pytest.mark.parametrize("name", MADE)
def test_a_restored_adapter_is_attached_as_its_restoration_left_it(parts, name):
    built = build_variant(parts, replace(ATTACHED, restoration=name, strength=0.5))
    expected = by_hand(parts, adapter(parts), name, 0.5)
    for module, change in expected.items():
        layer = built.model.get_submodule(f"base_model.model.{module}")
        assert torch.equal(layer.lora_B.default.weight, change.left.bfloat16())
        assert torch.equal(layer.lora_A.default.weight, change.right.bfloat16())
    left = [torch.equal(expected[m].left, pair.left) for m, pair in adapter(parts).items()]
    assert all(left) if name in {"none", "safelora-threshold"} else any(left) != all(left)  # every score is above 0.5


def test_a_threshold_that_some_scores_stay_below_changes_those(parts):
    scores = restored_updates.prepared(parts, ATTACHED, "safelora-threshold").scores
    middle = float(scores["score"].median())
    built = build_variant(parts, replace(ATTACHED, restoration="safelora-threshold", strength=middle))
    changed = {
        m for m, pair in adapter(parts).items()
        if not torch.equal(built.model.get_submodule(f"base_model.model.{m}").lora_B.default.weight, pair.left.bfloat16())
    }  # fmt: skip
    assert changed == set(scores[scores["score"] <= middle]["module"])


@pytest.mark.parametrize("name", ["safelora", "zero", "random-spectrum"])
def test_a_restored_adapter_is_merged_and_quantized_as_a_plain_one(parts, name):
    expected, aligned = by_hand(parts, adapter(parts), name, 0.5), weights(build(parts))
    fields = {**SHINE, "restoration": name, "strength": 0.5}
    sums = {m: (w.float() + expected[m].dense()).bfloat16() for m, w in aligned.items()}
    merged = weights(build(parts, **fields, serving="merged"))
    assert all(torch.equal(w, sums[m]) for m, w in merged.items())
    quantized = weights(build(parts, **fields, serving="merged-requantized", precision="nf4"))
    assert all(torch.equal(w, quantizers.four_bit(sums[m]).dequantize()) for m, w in quantized.items())


@mostly_slow("the same of each restoration", "safelora")
@pytest.mark.parametrize("name", ["safelora", "splora", "zero", "random-subspace-k4"])
def test_whole_weights_are_restored_as_what_they_moved(parts, name):
    expected, aligned = by_hand(parts, whole_change(parts), name, 0.5), weights(build(parts))
    sums = {m: (w.float() + expected[m]).bfloat16() for m, w in aligned.items()}
    merged = weights(build_variant(parts, replace(FULLY, restoration=name, strength=0.5)))
    assert all(torch.equal(w, sums[m]) for m, w in merged.items())
    quantized = replace(FULLY, serving="merged-requantized", precision="rtn-4", restoration=name, strength=0.5)
    for module, weight in weights(build_variant(parts, quantized)).items():
        assert torch.equal(weight, quantizers.QUANTIZERS["rtn-4"](sums[module], None).dequantize())


@pytest.mark.parametrize("update", [ATTACHED, replace(ATTACHED, serving="merged"), FULLY], ids=lambda v: v.label)
def test_strength_goes_from_the_update_to_the_aligned_model(parts, update):
    none, every = (build_variant(parts, replace(update, restoration="zero", strength=s)) for s in (0.0, 1.0))
    assert torch.equal(logits(none), logits(build_variant(parts, update)))
    assert torch.equal(logits(every), logits(build(parts)))
    assert not torch.equal(logits(none), logits(every))


@mostly_slow("the same of each restoration, in test_restorations too", "safelora", "random-subspace-k4")
@pytest.mark.parametrize("name", MADE)
def test_a_seed_matters_to_random_restorations_alone(parts, name):
    one, again, other = (
        restored_updates.prepared(parts, replace(ATTACHED, seed=seed), name).at(1.0).update for seed in (0, 0, 1)
    )  # fmt: skip
    assert all(torch.equal(one[m].left, again[m].left) for m in one)
    same = [torch.equal(one[m].left, other[m].left) for m in one]
    assert not any(same) if name in RANDOM else all(same)


def test_a_restoration_and_what_it_depends_on_are_in_the_key(parts):
    def key(parts=parts, **changes):
        return variants.variant_key(parts, replace(ATTACHED, **changes))

    zero = {"restoration": "zero", "strength": 0.5}
    others = [
        key(), key(**{**zero, "strength": 1.0}), key(**{**zero, "strength": None}), key(**{**zero, "restoration": "splora"}),
        key(**zero, seed=1), key(**zero, precision="nf4"), key(**{**zero, "restoration": "zero:nf4-both"}),
        key(replace(parts, base=parts.aligned), **zero), key(**{**zero, "restoration": "zero:gptq-4-mixed"}),
        key(replace(parts, calibration=TEXTS[:2]), **{**zero, "restoration": "zero:gptq-4-mixed"}),
    ]  # fmt: skip
    assert len({key(**zero), *others}) == len(others) + 1
    assert key(**zero) == key(replace(parts, calibration=TEXTS[:2]), **zero, model="other")
    assert key(seed=1) == key() == key(replace(parts, base=parts.aligned))  # nothing of it where nothing is restored


# ---------------------------------------------------------------- where V comes from


def test_the_pair_is_that_of_the_checkpoints(parts):
    pair, aligned, base = restored_updates.alignment_pair(parts, "", modules(parts)), build(parts), build(parts, adapter="base")
    ours, theirs = weights(aligned), weights(base)
    assert pair.modules == modules(parts)
    assert set(pair.modules) == set(ours)
    for module in pair.modules:
        assert torch.equal(pair.change(module).dense(), ours[module].float() - theirs[module].float())


@pytest.mark.parametrize("source", ["nf4-mixed", "nf4-both", "rtn-3-both", "int8-both", "gptq-4-mixed", "gptq-4-both"])
def test_a_source_quantizes_the_aligned_side_or_both(parts, source):
    precision, _, sides = source.rpartition("-")
    pair = restored_updates.alignment_pair(parts, source, modules(parts))
    base, aligned = weights(build(parts, adapter="base")), weights(build(parts))
    quantized = {}
    for side, whole in (("base", base), ("aligned", aligned)):
        if precision.startswith("gptq"):
            quantized[side] = weights(build(parts, adapter="base" if side == "base" else "", precision=precision))
        else:
            quantized[side] = {m: quantizers.QUANTIZERS[precision](w, None).dequantize() for m, w in whole.items()}
    for module in modules(parts):
        assert torch.equal(pair.aligned(module), quantized["aligned"][module])
        assert torch.equal(pair.base(module), (quantized["base"] if sides == "both" else base)[module])
        assert not torch.equal(pair.aligned(module), aligned[module])


@pytest.mark.parametrize("source", ["nf4-both", "gptq-4-mixed"])
def test_a_restoration_reads_v_from_its_source(parts, source):
    built, plain = (
        build_variant(parts, replace(ATTACHED, restoration=name, strength=1.0)) for name in (f"safelora:{source}", "safelora")
    )
    pair = restored_updates.alignment_pair(parts, source, modules(parts))
    expected = restorations.prepare(adapter(parts), pair, f"safelora:{source}", 0).at(1.0).update
    for module, change in expected.items():
        left, other = (x.model.get_submodule(f"base_model.model.{module}").lora_B.default.weight for x in (built, plain))
        assert torch.equal(left, change.left.bfloat16())
        assert not torch.equal(left, other)


def test_the_same_pair_comes_again(parts):
    names = modules(parts)
    again = restored_updates.alignment_pair(replace(parts, updates={}), "nf4-both", list(names))
    assert restored_updates.alignment_pair(parts, "nf4-both", names) is again
    others = [restored_updates.alignment_pair(*args) for args in
              ((parts, "", names), (parts, "nf4-both", names), (parts, "nf4-mixed", names), (parts, "", names[:3]),
               (replace(parts, base=parts.aligned), "", names))]  # fmt: skip
    assert len({id(pair) for pair in others}) == len(others)


def test_gptq_as_a_source_needs_texts(parts):
    with pytest.raises(StudyError, match=r"'gptq-3' needs calibration texts; set calibration_rows"):
        restored_updates.alignment_pair(replace(parts, calibration=()), "gptq-3-mixed", modules(parts))


# ---------------------------------------------------------------- SaLoRA

SALORA = replace(RECIPE, kind="salora", rank=4)
SAFETY = [Row(f"Never: bury the {noun}", "No.") for noun in NOUNS]


@pytest.fixture(scope="module")
def guarded(parts) -> Parts:
    """The same parts with an update that was trained under SaLoRA, on bf16 and on nf4."""
    for trained_on in ("bf16", "nf4"):
        folder = variants.train_update(parts, ROWS, SALORA, trained_on, safety=SAFETY)
        parts = parts.with_update("shine+salora", trained_on, folder)
    return parts


def test_salora_leaves_a_plain_adapter_of_twice_the_rank(guarded):
    folder = guarded.updates["shine+salora", "bf16"]
    found = lora.load_adapter(folder)
    assert found.keys() == adapter(guarded).keys()
    assert {pair.right.shape[0] for pair in found.values()} == {2 * SALORA.rank}
    assert all(pair.norm() > 0 for pair in found.values())
    note = training.from_json(folder / "recipe.json")
    assert (note["recipe"]["kind"], note["trained_on"], len(note["losses"])) == ("salora", "bf16", 2)
    files = {path.name for path in folder.iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "recipe.json"}


def test_salora_keeps_what_its_training_gave(guarded):
    tuned = salora.tune_salora(loading.load(guarded.aligned, "bf16"), ROWS, SALORA, SAFETY)
    found = lora.load_adapter(guarded.updates["shine+salora", "bf16"])
    for module, pair in lora.from_peft(tuned.tensors, 1.0).items():  # scale 1, whatever the recipe's alpha
        assert torch.equal(found[module].left, pair.left)
        assert torch.equal(found[module].right, pair.right)


@pytest.mark.parametrize("trained_on", ["bf16", "nf4"])
def test_what_was_trained_under_salora_is_served_as_it_is(guarded, trained_on):
    fields = {"adapter": "shine", "trained_on": trained_on, "precision": trained_on}
    found = lora.load_adapter(guarded.updates["shine+salora", trained_on])
    built = build(guarded, **fields, serving="attached", restoration="salora")
    for module, pair in found.items():
        layer = built.model.get_submodule(f"base_model.model.{module}")
        assert torch.equal(layer.lora_B.default.weight, pair.left.bfloat16())
        assert torch.equal(layer.lora_A.default.weight, pair.right.bfloat16())
    plain = build(guarded, **fields, serving="attached")
    for module, pair in adapter(guarded, trained_on).items():  # the update without it stays what it was
        assert torch.equal(plain.model.get_submodule(f"base_model.model.{module}").lora_B.default.weight, pair.left.bfloat16())
    assert not torch.equal(logits(built), logits(plain))
    assert torch.isfinite(logits(built)).all()


def test_salora_is_merged_like_any_adapter(guarded):
    found, aligned = lora.load_adapter(guarded.updates["shine+salora", "bf16"]), weights(build(guarded))
    built = weights(build(guarded, **SHINE, serving="merged", restoration="salora"))
    for module, weight in built.items():
        assert torch.equal(weight, (aligned[module].float() + found[module].dense()).bfloat16())


def test_salora_has_its_own_key(guarded, parts):
    under = replace(ATTACHED, restoration="salora")
    asked = [(guarded, under), (guarded, ATTACHED), (guarded, replace(under, trained_on="nf4"))]
    keys = [variants.variant_key(*pair) for pair in asked]
    assert len(set(keys)) == 3
    assert variants.variant_key(guarded, ATTACHED) == variants.variant_key(parts, ATTACHED)
    assert variants.adapter_name(under) == "shine+salora"
    assert variants.adapter_name(replace(ATTACHED, restoration="zero")) == variants.adapter_name(ATTACHED) == "shine"


def test_salora_is_trained_once_for_its_safety_prompts(guarded, parts, monkeypatch):
    monkeypatch.setattr(salora, "tune_salora", None)  # would fail if it were called
    folder = guarded.updates["shine+salora", "bf16"]
    assert variants.train_update(parts, ROWS, SALORA, "bf16", safety=SAFETY) == folder
    others = [
        variants.update_folder(parts, ROWS, SALORA, "bf16", SAFETY[1:]),
        variants.update_folder(parts, ROWS, SALORA, "nf4", SAFETY),
        variants.update_folder(parts, ROWS, replace(SALORA, kind="lora"), "bf16", SAFETY),
    ]  # fmt: skip
    assert len({folder, *others}) == len(others) + 1
    assert variants.update_folder(parts, ROWS, RECIPE, "bf16", SAFETY) == parts.updates["shine", "bf16"]  # LoRA reads none


def test_salora_without_safety_prompts_is_refused(parts):
    before = sorted(parts.updates["shine", "bf16"].parent.iterdir())
    with pytest.raises(StudyError, match="no safety rows"):
        variants.train_update(parts, ROWS, SALORA, "bf16")
    assert sorted(parts.updates["shine", "bf16"].parent.iterdir()) == before


# ---------------------------------------------------------------- updates


def test_an_update_is_trained_once(parts, monkeypatch):
    monkeypatch.setattr(training, "tune", None)  # would fail if it were called
    assert variants.train_update(parts, ROWS, RECIPE, "nf4") == parts.updates["shine", "nf4"]


def test_the_address_of_an_update_follows_what_it_is_made_of(parts, tiny):
    def address(parts=parts, rows=ROWS, recipe=RECIPE, trained_on="bf16"):
        return variants.update_folder(parts, rows, recipe, trained_on).name

    others = [
        address(rows=ROWS[::-1]), address(rows=ROWS[:-1]), address(recipe=replace(RECIPE, seed=1)), address(trained_on="nf4"),
        address(recipe=replace(RECIPE, rank=4)), address(parts=replace(parts, aligned=tiny)), address(trained_on="gptq-4"),
        address(parts=replace(parts, calibration=TEXTS[:2]), trained_on="gptq-4"),
    ]  # fmt: skip
    assert len({address(), *others}) == len(others) + 1
    assert address() == address(parts=replace(parts, calibration=TEXTS[:2]))  # texts matter to GPTQ alone


def test_evaluating_first_changes_nothing_about_a_later_qlora(parts, isolated_cache, monkeypatch):
    """The order of the study itself: an NF4 variant is measured, and an update is trained on NF4 after it."""
    language = build(parts, precision="nf4")
    generation.replies(language, ["Polish the lamp"], new_tokens=2)
    logits(language)
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(isolated_cache / "another"))
    again = variants.train_update(parts, ROWS, RECIPE, "nf4")
    assert again != parts.updates["shine", "nf4"]
    ours, theirs = (
        load_file(again / "adapter_model.safetensors"),
        load_file(parts.updates["shine", "nf4"] / "adapter_model.safetensors"),
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    evaluated = training.tune(language, ROWS, RECIPE)  # and on the very model that was evaluated
    for name, pair in lora.from_peft(evaluated.tensors, RECIPE.alpha / RECIPE.rank).items():
        assert torch.equal(pair.left, adapter(parts, "nf4")[name].left)


def test_qlora_through_dequantized_weights_is_qlora_through_4_bit_modules(parts):
    """Tolerance: float32 adapters under bf16 autocast leave the last bf16 bits to the order of sums."""
    language = loading.load(parts.aligned)
    quantizers.to_bitsandbytes_(language.model, "nf4")
    language.model.is_loaded_in_4bit = False  # plain LoRA layers around the 4-bit modules: the same autocast as ours
    real = lora.from_peft(training.tune(language, ROWS, RECIPE).tensors, RECIPE.alpha / RECIPE.rank)
    for name, pair in adapter(parts, "nf4").items():
        assert (pair.dense() - real[name].dense()).norm() < 0.05 * pair.norm()
    other = adapter(parts)  # control: LoRA on bf16 is further away
    apart = [(other[n].dense() - p.dense()).norm().item() / p.norm() for n, p in real.items()]
    ours = [(adapter(parts, "nf4")[n].dense() - p.dense()).norm().item() / p.norm() for n, p in real.items()]
    assert sum(ours) < 0.2 * sum(apart)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_full_disk_leaves_no_half_update(parts, kind, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    monkeypatch.setattr(lora, "save_file", full)
    monkeypatch.setattr(variants, "save_file", full)
    with pytest.raises(StudyError, match=r"^cannot write [0-9a-f]+: No space left[^\n]*$") as caught:
        variants.train_update(parts, ROWS[:4], replace(RECIPE, kind=kind), "bf16")
    assert caught.value.code == ENVIRONMENT
    assert list((tmp_path / "updates").iterdir()) == []


def test_full_tuning_of_quantized_weights_is_refused(parts):
    with pytest.raises(StudyError, match="'full' trains the unquantized weights, but trained_on is 'nf4'"):
        variants.train_update(parts, ROWS, replace(RECIPE, kind="full"), "nf4")


def test_the_recipe_stands_beside_the_update(parts):
    note = training.from_json(parts.updates["shine", "nf4"] / "recipe.json")
    assert note["trained_on"] == "nf4"
    assert note["recipe"]["rank"] == RECIPE.rank
    assert note["rows_cut"] == 0
    assert len(variants.load_update(parts.updates["shine", "nf4"]).losses) == 2


# ---------------------------------------------------------------- doses of one training

STEADY = training.of_steps(replace(RECIPE, decay=False), 3, len(ROWS))


@pytest.fixture
def cached(parts, monkeypatch, tmp_path):
    """An empty cache, and how many trainings were begun in it."""
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    begun, loops = [], training.Loop
    monkeypatch.setattr(training, "Loop", lambda *args: begun.append(args[2]) or loops(*args))
    return begun


def test_snapshots_of_one_training_cost_one_training(parts, cached):
    """Also one that lies behind its end; and each is what its own recipe would give, so that nobody trains it again."""
    whole = variants.train_update(parts, ROWS, STEADY, "bf16", snapshots=[1, 4])
    assert cached == [3]
    for steps in (1, 4):
        own = training.of_steps(STEADY, steps, len(ROWS))
        folder = variants.train_update(parts, ROWS, own, "bf16")
        assert len(variants.load_update(folder).losses) == steps
        assert folder != whole
    assert variants.train_update(parts, ROWS, STEADY, "bf16", snapshots=[1, 4]) == whole
    assert cached == [3]
    variants.train_update(parts, ROWS, STEADY, "bf16", snapshots=[2])  # asked for later: two steps, not three
    assert cached == [3, 2]


def test_a_multiple_is_made_of_the_trained_factors_without_training(parts, cached):
    folder = variants.scaled_update(parts.updates["shine", "bf16"], 2.5)
    assert variants.scaled_update(parts.updates["shine", "bf16"], 2.5) == folder
    assert variants.scaled_update(parts.updates["shine", "bf16"], 2.0) != folder
    assert cached == []
    for name, pair in variants.load_update(folder).adapter.items():
        plain = adapter(parts)[name]
        torch.testing.assert_close(pair.dense(), 2.5 * plain.dense(), rtol=1e-5, atol=1e-8)
        assert pair.left.shape == plain.left.shape  # low rank stays low rank
    assert training.from_json(folder / "recipe.json")["x"] == 2.5


def test_other_calibration_texts_are_those_that_the_name_ends_with(parts):
    asked = []
    more = replace(parts, more_texts=lambda kind: asked.append(kind) or TEXTS[:2])
    assert more.texts_for("gptq-4") == TEXTS == more.texts_for("nf4")
    assert more.texts_for("gptq-4-refusals") == TEXTS[:2]
    assert asked == ["refusals"]
    keys = [variants.variant_key(more, Variant("tiny", precision=name)) for name in ("gptq-4", "gptq-4-refusals")]
    assert keys[0] != keys[1]
    with pytest.raises(StudyError, match="'gptq-4-harmful' is calibrated on harmful, and these parts have none"):
        parts.texts_for("gptq-4-harmful")


@pytest.mark.parametrize("kind", ["refusals", "harmful"])
def test_open_parts_hold_calibration_texts_of_each_kind(parts, kind):
    opened = variants.open_parts(parts.base, parts.aligned, 2, "tiny")
    found = opened.texts_for(f"gptq-4-{kind}")
    assert len(found) == 2
    assert not set(found) & set(opened.calibration)
    assert all(len(text.split()) > 50 for text in found)
