"""GGUF files as updates: what is read is what the package gguf says of each tensor, on the names of the base."""

import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from support import families
from support.bland import refused

from helpers.errors import NOT_COMPARABLE, REFUSED
from helpers.models import loading
from helpers.models.formats import gguf_files

TYPES = gguf.GGMLQuantizationType
SIZES = families.SIZES


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return families.write("qwen2", tmp_path_factory.mktemp("gguf") / "qwen")


def written(path, base, kind=TYPES.Q8_0, drop="", tokens=None, template=""):
    """The base as a GGUF file, matrices of the blocks quantized, and by name what the package says these stand for."""
    language = loading.load(base, "fp32")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, SIZES["num_hidden_layers"])
    writer, wanted = gguf.GGUFWriter(path, "qwen2"), {}
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(language.model.config.rms_norm_eps)
    writer.add_rope_freq_base(language.model.config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens or language.tokenizer.convert_ids_to_tokens(list(range(len(language.tokenizer)))))
    if template:
        writer.add_chat_template(template)
    for name, parameter in language.model.named_parameters():
        module, _, end = name.rpartition(".")
        array = parameter.detach().float().numpy()
        if name == drop:
            continue
        if ".layers." in name and parameter.ndim == 2:
            data = quants.quantize(array, kind)
            writer.add_tensor(f"{names.get_name(module)}.{end}", data, raw_dtype=kind)
            array = quants.dequantize(data, kind)
        else:
            writer.add_tensor(f"{names.get_name(module)}.{end}", array)
        wanted[name] = torch.from_numpy(np.array(array)).bfloat16()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, wanted


@pytest.mark.parametrize("kind", [TYPES.Q8_0, TYPES.Q4_0, TYPES.BF16], ids=lambda kind: kind.name)
def test_a_gguf_update_is_what_its_package_says_on_the_names_of_the_base(kind, base, tmp_path):
    path, wanted = written(tmp_path / "update.gguf", base, kind)
    found = gguf_files.on_base(path, base)
    language = loading.load(loading.base_folder(str(found.folder)), "fp32")
    for name, parameter in language.model.named_parameters():
        assert torch.equal(parameter, wanted[name].float()), name
    assert f"28 {kind.name}" in found.note
    before = dict(loading.load(base, "fp32").model.named_parameters())
    same = all(torch.equal(parameter, before[name]) for name, parameter in language.model.named_parameters())
    assert same is (kind == TYPES.BF16)  # the control
    assert loading.read_tokenizer(found.folder).chat_template == loading.read_tokenizer(base).chat_template


def test_its_own_template_replaces_the_bases(base, tmp_path):
    path, _ = written(tmp_path / "spoken.gguf", base, template="{{ messages[0]['content'] }} Go on:")
    assert loading.chat_text(loading.read_tokenizer(gguf_files.on_base(path, base).folder), "Hi") == "Hi Go on:"


def test_a_file_of_another_vocabulary_or_without_a_module_cannot_be_compared(base, tmp_path):
    tokens = loading.read_tokenizer(base).convert_ids_to_tokens(list(range(259)))
    path, _ = written(tmp_path / "other.gguf", base, tokens=[*tokens[:40], "lamp", *tokens[41:]])
    with refused(NOT_COMPARABLE, "token 40 of qwen is another in other.gguf"):
        gguf_files.on_base(path, base)
    path, _ = written(tmp_path / "hole.gguf", base, drop="model.layers.2.mlp.up_proj.weight")
    with refused(NOT_COMPARABLE, "hole.gguf has no tensor for model.layers.2.mlp.up_proj.weight"):
        gguf_files.on_base(path, base)


def test_what_is_no_gguf_and_folders_of_several_are_refused(base, tmp_path):
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + bytes(20))
    with refused(REFUSED, "torn.gguf is no GGUF file"):
        gguf_files.on_base(tmp_path / "torn.gguf", base)
    shutil.copy(tmp_path / "torn.gguf", tmp_path / "again.gguf")
    with refused(REFUSED, "holds 2 .gguf files, such as again.gguf"):
        gguf_files.gguf_file(tmp_path)
    assert gguf_files.gguf_file(base) is None
