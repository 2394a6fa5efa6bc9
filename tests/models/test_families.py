"""Models of other families, each through every wing: nothing in the house asks for a name where a structure will do."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from support import families
from support.bland import example, refused

from helpers.data.text_rows import Preference, Row
from helpers.errors import REFUSED
from helpers.models import activations, checkpoints, encoding, generation, loading, shared_prefix
from helpers.neurons import neuron_scores
from helpers.projection import alignment_matrix, safelora, safety_inputs
from helpers.staleness import moved_weights
from helpers.updates import lora, preferences, quantized_models, quantizers, training, variants
from helpers.updates.names import Variant

PROMPTS = ["Polish the lamp.", "Hi", "Describe how a lantern is carried across the river in the rain, please, and then back."]
ROWS = [Row(f"Polish lamp {i}", f"Lamp {i} shines.") for i in range(4)]
DEPTHS = (0.25, 0.5, 1.0)


@pytest.fixture(scope="module", params=families.FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory) -> Path:
    return loading.base_folder(str(families.write(name, tmp_path_factory.mktemp("family") / name)))


@pytest.fixture
def language(folder):
    return loading.load(folder, "fp32")


def test_the_blocks_the_head_and_the_end_of_a_turn_are_found(name, language):
    assert len(loading.blocks(language.model)) == language.depth == families.SIZES["num_hidden_layers"]
    assert language.width == families.SIZES["hidden_size"]
    assert language.tokenizer.eos_token == families.FAMILIES[name].ends
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        hidden, wanted = (
            loading.backbone(language.model)(input_ids=ids).last_hidden_state[0],
            language.model(input_ids=ids).logits[0],
        )
    assert torch.allclose(loading.logits(language.model, hidden), wanted, atol=1e-5)


def test_a_system_message_arrives_whatever_the_template_thinks_of_it(name, language):
    text = loading.chat_text(language.tokenizer, "Hi", "Be brief.")
    assert "Be brief." in text.partition("Hi")[0]
    plain = loading.chat_text(language.tokenizer, "Hi")
    assert "Be brief." not in plain
    assert text.endswith(plain.partition("Hi")[2])  # both end where the reply begins


@pytest.mark.parametrize("shared", [True, False], ids=["from a shared prefix", "whole"])
def test_replies_are_those_of_transformers_own_generate(language, shared):
    """Each alone and without padding there, in one batch here; longer than the window where there is one."""
    texts = [loading.chat_text(language.tokenizer, prompt, "You are a lamp. " * (3 if shared else 0)) for prompt in PROMPTS]
    found = generation.completions(language, texts, new_tokens=12, whole=not shared)
    for text, reply in zip(texts, found, strict=True):
        ids = torch.tensor([loading.encode_text(language.tokenizer, text)])
        made = language.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert language.tokenizer.decode(made, skip_special_tokens=True) == reply


def test_a_prefix_that_padding_would_push_out_of_a_window_is_not_shared(name, language):
    assert shared_prefix.beyond_window(language, 25) is (name == "gemma3")
    assert not shared_prefix.beyond_window(language, 24)


def test_activations_are_the_hidden_states_of_transformers(language):
    texts = tuple(example(prompt, "The lamp shines." if i else "", number=i) for i, prompt in enumerate(PROMPTS))
    plan = encoding.Plan(texts, DEPTHS, 64)
    found, encoded = activations.read(language, plan), encoding.encode(language.tokenizer, plan)
    last = {}  # of the last block: what transformers tells there is behind the final norm
    loading.blocks(language.model)[-1].register_forward_hook(
        lambda _, inputs, out: last.update(out=out[0] if isinstance(out, tuple) else out)
    )
    for i, row in enumerate(encoded.rows):
        with torch.no_grad():
            states = language.model(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
        span = slice(encoded.starts[i], encoded.stops[i])
        for layer in found.layers:
            whole = last["out"].view(1, len(row), -1)[0] if layer == language.depth else states[layer][0]
            assert torch.allclose(found.pooled[f"last/{layer}"][i], whole[-1], atol=1e-4), layer
            assert torch.allclose(found.pooled[f"mean/{layer}"][i], whole[span].mean(0), atol=1e-4), layer


def test_an_adapter_is_trained_saved_and_merged_as_it_is_served(name, folder, language, tmp_path):
    linear = len(quantizers.linear_names(language.model))
    assert linear == families.SIZES["num_hidden_layers"] * (4 if name == "gpt-neox" else 7)
    tuned = training.tune(language, ROWS, training.Recipe(epochs=1, lr=0.05, batch=2, rank=2, limit=64))
    adapter = lora.from_peft(tuned.tensors, 8.0)
    assert len(adapter) == linear
    assert all(pair.norm() > 0 for pair in adapter.values())
    lora.save_adapter(adapter, tmp_path / "adapter", {})
    ids, logits = torch.arange(40, 60)[None], {}
    for serving in ("attached", "merged"):
        parts = variants.Parts(folder, folder, updates={("lora-dialogue", "bf16"): tmp_path / "adapter"})
        served = variants.build_variant(parts, Variant("m", 0, "bf16", "lora-dialogue", "bf16", serving)).model
        logits[serving] = served(input_ids=ids).logits.float()
    plain = loading.load(folder).model(input_ids=ids).logits.float()
    apart, moved = (float((logits["merged"] - other).norm()) for other in (logits["attached"], plain))
    assert apart < 0.2 * moved


def test_full_tuning_and_qat_change_the_blocks_linear_weights_alone(folder):
    for kind in ("full", "qat"):
        tuned = training.tune(
            loading.load(folder, "fp32"), ROWS, training.Recipe(kind=kind, epochs=1, lr=1e-3, batch=4, limit=64)
        )
        assert {clean.removesuffix(".weight") for clean in tuned.tensors} == set(
            quantizers.linear_names(loading.load(folder).model)
        )


def test_preference_tuning_begins_where_nothing_is_preferred(folder):
    """The fault: the network below the head was asked for as `.model`, whatever its family calls it."""
    rows = [Preference(row.prompt, row.reply, rejected="No.") for row in ROWS]
    recipe = training.Recipe(kind="dpo", epochs=1, lr=1e-3, batch=4, rank=2, alpha=2, limit=64)
    tuned = preferences.tune_preferences(loading.load(folder, "fp32"), rows, recipe)
    assert tuned.losses == pytest.approx([math.log(2)], abs=1e-5)


def test_what_modules_read_where_the_model_refuses_is_told_of_every_module(folder, language):
    found = safety_inputs.safety_inputs(folder, tuple(ROWS))
    assert list(found) == quantizers.linear_names(language.model)


@pytest.mark.parametrize("precision", [*quantizers.QUANTIZERS])
def test_every_quantizer_keeps_the_model_a_model(language, precision):
    ids = torch.arange(40, 60)[None]
    before = language.model(input_ids=ids).logits
    quantized_models.quantize_(language, precision, ["polish the lamp and carry it across the river"])
    after = language.model(input_ids=ids).logits
    assert after.isfinite().all()
    most = {"none": 0.0, "int8": 0.1, "rtn-8": 0.1, "rtn-2": 2.0}.get(precision, 0.9)
    assert float((after - before).norm() / before.norm()) <= most


def test_safelora_reads_the_weights_of_every_module_by_its_name(folder, language, tmp_path):
    """Planted: an update inside the span of V has cosine s near that of C itself; one off its span has 0."""
    torch.manual_seed(0)
    names = quantizers.linear_names(language.model)
    left, right = {}, {}
    with torch.no_grad():
        for module in names:
            weight = language.model.get_submodule(module).weight
            left[module], right[module] = torch.randn(len(weight), 2), torch.randn(2, weight.shape[1])
            weight.add_(left[module] @ right[module])
    changed = loading.save(language, tmp_path / "changed")
    pair = alignment_matrix.Pair(checkpoints.checkpoint(folder), checkpoints.checkpoint(changed), tuple(names))
    for module in names:
        change = pair.change(module)
        basis = torch.linalg.qr(torch.cat([left[module], torch.randn(len(left[module]), 2)], 1))[0]
        inside, beside = (lora.LowRank(part, torch.randn(2, 8)) for part in (basis[:, :2], basis[:, 2:]))
        found = [lora.cosine(safelora.moved(change, one), one) for one in (inside, beside)]
        assert found[0] > 0.5 > 0.1 > abs(found[1]), module


def test_what_moved_is_told_by_module_and_writers_are_those_that_add_to_the_residual_stream(folder, language):
    before = dict(moved_weights.effective_weights(loading.load(folder, "fp32").model))
    with torch.no_grad():
        for module in quantizers.linear_names(language.model):
            language.model.get_submodule(module).weight.mul_(1.1)
    changes = moved_weights.weight_changes(before, moved_weights.effective_weights(language.model), {4: torch.randn(64, 1)})
    assert moved_weights.relative_change(changes, 4) == pytest.approx(0.1, rel=1e-3)
    assert changes["writes"].sum() == 2 * families.SIZES["num_hidden_layers"]  # one of each attention, one of each MLP
    assert moved_weights.output_overlap(changes, 4) > 0


def test_neurons_are_found_where_the_mlp_is_gated_and_refused_in_one_line_where_it_is_not(name, folder, language):
    if name == "gpt-neox":
        with refused(REFUSED, "'gpt_neox'", "gate_proj, up_proj, down_proj in every block"):
            neuron_scores.mlps(language.model)
        return
    other = loading.load(folder, "fp32")
    with torch.no_grad():
        for mlp in neuron_scores.mlps(other.model):
            mlp.down_proj.weight.mul_(1.1)
    seen = neuron_scores.evidence(language, other, PROMPTS[:1], ROWS[:2], 4, 0)
    for kind, scores in neuron_scores.score_neurons(seen, ["snip", "wanda", "activation-contrast"]).items():
        assert tuple(scores.shape) == (families.SIZES["num_hidden_layers"], families.SIZES["intermediate_size"]), kind
        assert scores.max() > 0


def test_a_plain_text_opens_as_the_tokenizer_opens_one(language, tiny_model):
    class WithBos:  # as Gemma's and Llama's tokenizers do, by a post-processor of theirs
        bos_token_id = 7

        def __call__(self, text, add_special_tokens=True, **_):
            return {"input_ids": [7] * add_special_tokens + [ord(letter) for letter in text]}

    assert loading.document_ids(WithBos(), "ab", 2) == [7, 97]
    for own in (language.tokenizer, tiny_model.tokenizer):
        assert loading.document_ids(own, "lamp") == loading.encode_text(own, "lamp")


# ---------------------------------------------------------------- what is refused, or made the same


def _with(folder: Path, target: Path, **fields) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


def test_packed_weights_are_refused(tiny, tmp_path):
    with refused(REFUSED, "packed", "packed weights", "bf16"):
        loading.base_folder(str(_with(tiny, tmp_path / "packed", quantization_config={"bits": 4})))


BUILT_OTHERWISE = {
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, "its blocks", "no linear module"),  # Conv1D, transposed weights
}


@pytest.mark.parametrize("kind", BUILT_OTHERWISE)
def test_a_model_that_is_built_in_another_way_is_refused_in_one_line(kind, tiny, tmp_path):
    import transformers

    changes, *words = BUILT_OTHERWISE[kind]
    config = getattr(transformers, f"{kind}Config")(**changes, vocab_size=384, eos_token_id=2, bos_token_id=1, pad_token_id=2)
    model_class = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    model_class(config).save_pretrained(tmp_path / "odd")
    for path in (*tiny.glob("*token*"), tiny / "chat_template.jinja"):
        shutil.copy(path, tmp_path / "odd")
    folder = loading.base_folder(str(tmp_path / "odd"))  # transformers knows it, and runs nobody's code for it
    with refused(REFUSED, "odd", "another way", *words):
        loading.load(folder)


def test_a_family_nobody_here_tried_is_taken_if_it_is_built_alike(tiny, tmp_path):
    import transformers

    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 384, **heads}
    transformers.StableLmForCausalLM(transformers.StableLmConfig(**sizes)).save_pretrained(tmp_path / "new")
    for path in (*tiny.glob("*token*"), tiny / "chat_template.jinja"):
        shutil.copy(path, tmp_path / "new")
    assert "stablelm" not in loading.FAMILIES
    language = loading.load(loading.base_folder(str(tmp_path / "new")))
    assert len(generation.replies(language, ["Hi"], new_tokens=4)) == 1


@pytest.mark.parametrize("template", ["{{ strftime_now('%d %b %Y') }}", "{{ date_string }}"])
def test_a_template_that_tells_the_date_says_the_same_on_any_day(tiny_model, template):
    tiny_model.tokenizer.chat_template = f"{template} {{{{ messages[0]['content'] }}}}"
    assert loading.chat_text(tiny_model.tokenizer, "Hi") == "26 Jul 2024 Hi"


def test_a_template_that_thinks_aloud_is_asked_not_to(tiny_model):
    tiny_model.tokenizer.chat_template = "{{ messages[0]['content'] }}{% if enable_thinking is false %} at once{% endif %}"
    assert loading.chat_text(tiny_model.tokenizer, "Hi") == "Hi at once"


def test_a_tokenizer_without_an_end_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "endless")
    tokenizer = loading.read_tokenizer(folder)
    tokenizer.eos_token, tokenizer.chat_template = None, "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "endless")
    with refused(REFUSED, "endless", "no token ends a reply"):
        loading.read_tokenizer(tmp_path / "endless")
