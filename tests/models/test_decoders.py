"""Decoders of many families, found by structure: what is read of them is what transformers itself tells of its hidden states."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bland import example, refused

from helpers.errors import REFUSED
from helpers.models import activations, checkpoints, encoding, generation, loading
from helpers.models.formats import decoders, fused_experts

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 448, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 24}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "head_dim": 16}
KINDS: dict[str, tuple[str, dict]] = {  # class in transformers, and what its configuration says besides SIZES
    "llama-3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-4-text": ("Llama4", {"num_local_experts": 2, "head_dim": 16, "intermediate_size_mlp": 128}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32}),
    "gemma2": ("Gemma2", {**WINDOWS, "head_dim": 16, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3", {**WINDOWS, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "mixtral": ("Mixtral", {**EXPERTS, "num_local_experts": 4}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", WINDOWS),
    "granite": ("Granite", {"logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "smollm3": ("SmolLM3", {}),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.25}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "gpt-oss": ("GptOss", {**WINDOWS, **EXPERTS, "num_local_experts": 4}),
    "opt": ("OPT", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt2": ("GPT2", {"num_key_value_heads": None}),
}
MIXTURES = {"llama-4-text", "qwen3-moe", "mixtral", "gpt-oss"}
NOT_LINEAR = {*MIXTURES, "gpt2"}
TEXTS = [example("Polish the lamp."), example("Hi", "The lamp shines."), example("Carry a lantern across the river. " * 3)]


def model_of(kind: str):
    """A random model of that family."""
    import transformers

    name, changes = KINDS[kind]
    texts = "TextConfig" if kind in {"gemma3", "llama-4-text"} else "Config"
    found = next(n for n in (f"{name}ForCausalLM", f"{name}LMHeadModel") if hasattr(transformers, n))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, found)(getattr(transformers, f"{name}{texts}")(**{**SIZES, **changes}))
        for parameter in model.parameters():  # fused experts are not filled by every family, and biases not by any
            parameter.data = 0.05 * torch.randn_like(parameter) + (parameter.data if parameter.ndim == 1 else 0)
    return model.eval()


def written(kind: str, tiny: Path, folder: Path) -> Path:
    """The folder, holding such a model in bf16 and the tiny tokenizer."""
    model_of(kind).to(torch.bfloat16).save_pretrained(folder)
    for path in (*tiny.glob("*token*"), tiny / "chat_template.jinja"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tiny, tmp_path_factory) -> Path:
    return loading.base_folder(str(written(kind, tiny, tmp_path_factory.mktemp("decoders") / kind)))


@pytest.fixture(scope="module")
def language(folder):
    return loading.load(folder, "fp32", linear=False)


def test_states_are_those_that_transformers_tells(language):
    plan = encoding.Plan(tuple(TEXTS), (0.25, 0.5, 1.0), 64)
    found, encoded, last = activations.read(language, plan), encoding.encode(language.tokenizer, plan), {}
    found_last = decoders.blocks(language.model)[-1].register_forward_hook(
        lambda _, inputs, out: last.update(out=out[0] if isinstance(out, tuple) else out)
    )
    for i, row in enumerate(encoded.rows):
        with torch.no_grad():
            states = language.model(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
        span = slice(encoded.starts[i], encoded.stops[i])
        for layer in found.layers:  # of the last block transformers tells what is behind the final norm
            whole = last["out"].view(1, len(row), -1)[0] if layer == language.depth else states[layer][0]
            assert torch.allclose(found.pooled[f"last/{layer}"][i], whole[-1], atol=2e-4, rtol=1e-3), layer
            assert torch.allclose(found.pooled[f"mean/{layer}"][i], whole[span].mean(0), atol=2e-4, rtol=1e-3), layer
    found_last.remove()


def test_the_head_and_the_sizes_are_found(folder, language):
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        hidden = decoders.backbone(language.model)(input_ids=ids).last_hidden_state[0]
        wanted = language.model(input_ids=ids).logits[0]
    assert torch.allclose(decoders.logits(language.model, hidden), wanted, atol=1e-5)
    assert (language.depth, language.width) == (4, 64)
    assert checkpoints.sizes(folder) | {"model_type": ""} == {"model_type": "", "num_hidden_layers": 4, "hidden_size": 64}


def test_what_is_compared_is_what_was_loaded(folder, language):
    """Fused experts too: what loading makes of many stored tensors is made again of these."""
    stored = checkpoints.of_model(folder, language.model, torch.float32)
    for name, parameter in language.model.named_parameters(remove_duplicate=False):
        assert torch.equal(stored(name).float(), parameter), name


def test_wings_that_change_modules_take_only_linear_ones(kind, folder):
    assert bool(decoders.other_matrices(loading.load(folder, linear=False).model)) is (kind in NOT_LINEAR)
    if kind in NOT_LINEAR:
        with refused(REFUSED, kind, "built in another way", "no linear module"):
            loading.load(folder)
    else:
        assert len(generation.replies(loading.load(folder), ["Hi"], new_tokens=2)) == 1


def test_an_expert_that_another_file_holds_is_not_what_was_loaded(tiny, tmp_path):
    """Planted: the twelfth expert is changed on disk after loading; the control is the test above."""
    folder = written("qwen3-moe", tiny, tmp_path / "moe")
    model = loading.load(folder, "fp32", linear=False).model
    held = load_file(folder / "model.safetensors")
    held["model.layers.2.mlp.experts.3.up_proj.weight"] += 1
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with refused(REFUSED, "moe", "layers.2.mlp.experts.gate_up_proj", "other values"):
        checkpoints.of_model(folder, model, torch.float32)


def test_experts_are_stacked_by_number_and_joined_in_the_order_of_their_parts():
    stored = {f"m.mlp.experts.{i}.{part}.weight": torch.full((1, 2), 10.0 * i + j)
              for i in range(11) for j, part in enumerate(("gate_proj", "up_proj"))}  # fmt: skip
    made = fused_experts.fused("m.mlp.experts.gate_up_proj", stored, stored.__getitem__)
    assert made is not None
    assert made()[..., 0].tolist() == [[10.0 * i, 10.0 * i + 1] for i in range(11)]
    del stored["m.mlp.experts.4.up_proj.weight"]
    assert fused_experts.fused("m.mlp.experts.gate_up_proj", stored, stored.__getitem__) is None


def test_a_model_that_also_sees_images_is_read_at_its_decoder():
    """Its vision tower has as many layers here, and stands before the decoder."""
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    text = {**SIZES, "head_dim": 16, "num_key_value_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    found = decoders.blocks(model)
    assert len(found) == 4
    assert {type(block).__name__ for block in found} == {"Gemma3DecoderLayer"}
    assert decoders.text_config(model).hidden_size == 64


def test_a_head_that_does_something_else_is_refused(monkeypatch, tiny, tmp_path):
    folder = written("granite", tiny, tmp_path / "odd")
    assert loading.load(folder)  # the control
    monkeypatch.setattr(decoders, "SCALES", {})
    with refused(REFUSED, "odd", "'granite'", "head", "more than a product"):
        loading.load(folder)
