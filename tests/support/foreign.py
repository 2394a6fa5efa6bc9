"""Files of other people: a model of a few thousand numbers whose files a test may break, and random ways to break them."""

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from helpers.data.splits import Example
from helpers.models import activations, built_in, generation, loading
from helpers.models.encoding import Plan
from helpers.models.formats import packed_folders
from helpers.monitors import readings
from helpers.revalidation.candidate import settings

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 272}  # fmt: skip
TEXTS = (Example("lamps", "", 0, "", "Polish the lamp"), Example("lamps", "", 0, "", "lamp", "So be it"))
JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
TEMPLATE = "chat_template.jinja"


def write(folder: Path) -> Path:
    """The folder, holding a random Llama of a few thousand numbers."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(built_in.tiny_config(**SIZES)).to(torch.bfloat16).save_pretrained(folder)
    built_in.tiny_tokenizer().save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path) -> Path:
    """The folder, holding a LoRA of rank 2 on two kinds of modules of that base, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, bias="none",
                            task_type="CAUSAL_LM")  # fmt: skip
        get_peft_model(loading.load(base).model, config).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return edit(folder, "adapter_config.json", **{**settings, "base_model_name_or_path": base.name, "init_lora_weights": True})


def copy(folder: Path, place: Path) -> Path:
    """Another folder with the same files, the small ones to be changed."""
    place.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            os.link(path, place / path.name)
        else:
            shutil.copyfile(path, place / path.name)
    return place


def edit(folder: Path, name: str, **fields: Any) -> Path:
    """The folder, in which fields of a JSON file have other values; `...` takes one out."""
    found = {**json.loads((folder / name).read_text(encoding="utf-8")), **fields}
    kept = {key: value for key, value in found.items() if value is not ...}
    (folder / name).write_text(json.dumps(kept), encoding="utf-8")
    return folder


def use(folder: Path, whole: bool = True) -> None:
    """What is done with a base or a merged update: checked, loaded and read; as a `whole` also compared with itself and asked."""
    folder = packed_folders.plain(folder).folder
    loading.base_folder(str(folder))
    if whole:
        settings.compare_folders(folder, folder)
    language = loading.load(folder)
    readings.fingerprint(language.tokenizer)
    activations.read(language, Plan(TEXTS, (0.5, 1.0), 16))
    if whole:
        generation.replies(language, ["Polish the lamp"], ["Be brief."], new_tokens=2)


# ---------------------------------------------------------------- random changes

ODD = (
    None, True, False, 0, 1, -1, 2, 3, 7, 271, 272, 273, 10**6, 10**12, 2**63, -(2**31), 0.5, -0.5, 1e30, float("nan"),
    float("inf"), "", "x", "16", "true", "llama", "gelu", "eager", "../up", "\x1b[31m", "{{ 1 / 0 }}", "<|im_end|>",
    "\ud800", [], [0], ["x"], [None], [[1]], {}, {"type": "Bogus"}, {"type": "BPE"}, {"content": "x"}, {"x": 1}, {"0": 5},
    {"rope_type": "yarn"},
)  # fmt: skip
ADDED = (
    "sliding_window", "layer_types", "rope_scaling", "rope_parameters", "head_dim", "dtype", "torch_dtype",
    "_attn_implementation", "output_hidden_states", "output_attentions", "return_dict", "num_labels", "text_config",
    "tie_word_embeddings", "chat_template", "pad_token", "unk_token", "added_tokens_decoder", "extra_special_tokens",
    "model_max_length", "tokenizer_class", "truncation", "padding", "normalizer", "pre_tokenizer", "post_processor",
    "decoder", "transformers_weights", "sep_token", "split_special_tokens", "quantization_config", "temperature",
    "eos_token_id", "use_cache", "partial_rotary_factor", "attention_chunk_size",
)  # fmt: skip
OF_ADAPTERS = (
    "lora_alpha", "r", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "use_dora", "bias", "lora_bias",
    "modules_to_save", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "init_lora_weights", "peft_type", "task_type",
    "base_model_name_or_path", "revision", "auto_mapping", "layer_replication", "trainable_token_indices", "lora_dropout",
    "eva_config", "loftq_config", "megatron_config", "megatron_core", "exclude_modules", "target_parameters", "gate_scale",
)  # fmt: skip
SNIPPETS = (
    "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ 'a' * 10 ** 6 }}", "{% if %}",
    "{% endif %}", "{% for %}", "{{ nothing.at.all }}", "{{ messages[7] }}", "{{ messages | bogus }}",
    "{{ messages[0].content[99] }}", "{%", "}}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ strftime_now('%S') }}", "{{ strftime_now(5) }}", "{{ datetime.now() }}", "{{ raise_exception('no') }}",
    "{{ raise_exception(5) }}", "{% include 'x' %}", "{% import 'x' as y %}", "{{ ''.__class__ }}",
    "{{ messages.append(1) }}", "{% set messages = 5 %}", "{{ messages | tojson(indent='x') }}", "{{ [].pop() }}", "\ud800",
    "\x1b[31m", "{{ {}['x'] }}", "{{ none + 1 }}", "{{ 'x'.format(1) }}", "{{ '{0.y}'.format(1) }}", "{{ namespace(_x=1) }}",
    "{% break %}", "{% generation %}", "{{ messages | sort }}", "{{ messages | sum }}", "{{ loop.index }}",
    "{{ 2 ** 99999 }}", "{{ 'x' % 5 }}",
)  # fmt: skip


def _paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Where the values in a JSON document lie; of the many tokens of a vocabulary a few."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [path, *(deeper for key, one in inner[:24] for deeper in _paths(one, (*path, key)))]


def _changed(value: Any, path: tuple, change) -> Any:
    """The document with another value at a path; `...` takes it out."""
    if not path:
        return change(value)
    found = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    new = _changed(found[path[0]], path[1:], change)
    found = {key: new if key == path[0] else one for key, one in found.items() if key != path[0] or new is not ...}
    return found if isinstance(value, dict) else list(found.values())


@st.composite
def broken_json(draw, document: Any, added: Sequence[str] = ADDED) -> str:
    """The text of a JSON document in which one to three things are other, gone or new (`added`); at times it is cut off."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(document)[1:] or [()]))
        new = draw(st.sampled_from([..., *ODD]))
        if draw(st.integers(0, 3)) == 0 and isinstance(document, dict):
            document = {**document, draw(st.sampled_from(added)): None if new is ... else new}
        elif path:
            document = _changed(document, path, partial(_to, new))
    text = json.dumps(document)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 19)) == 0 else text


def _to(new: Any, old: Any) -> Any:
    return new


@st.composite
def broken_template(draw, template: str) -> str:
    """A template with one or two snippets put in, or a part taken out."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(template)))
        if draw(st.integers(0, 4)) == 0:
            template = template[:place] + template[place + draw(st.integers(1, 30)) :]
        else:
            template = template[:place] + draw(st.sampled_from(SNIPPETS)) + template[place:]
    return template


def broken_file(folder: Path) -> st.SearchStrategy[tuple[str, str]]:
    """Name and content of one broken file of a folder."""
    known = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in JSON}
    kinds = [st.tuples(st.just(name), broken_json(document)) for name, document in known.items()]
    template = (folder / TEMPLATE).read_text(encoding="utf-8")
    return st.one_of(*kinds, st.tuples(st.just(TEMPLATE), broken_template(template)))
