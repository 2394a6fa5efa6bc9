"""What is compared is what is loaded, in the values that are stored, with everything else that a forward pass depends on."""

import json
import shutil
from dataclasses import replace

import gguf
import pytest
import test_gguf
import test_packed
import torch
from safetensors.torch import load_file, save_file
from support import families, given
from support.bland import refused
from test_decoders import written

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.models import checkpoints, loading
from helpers.monitors import frozen
from helpers.revalidation import inputs
from helpers.revalidation.candidate import movement, offer, settings
from helpers.revalidation.options import Options
from helpers.revalidation.report import files

FLOAT = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture
def merged(tiny, tmp_path):
    """A copy of the tiny model that may be changed."""
    shutil.copytree(tiny, tmp_path / "merged")
    return tmp_path / "merged"


def edit(path, **changes):
    """Fields of a JSON file, changed; None removes one."""
    found = json.loads(path.read_text())
    found |= changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def single(folder, change=None, name="model.safetensors"):
    """Changes the tensors of the one file of a folder."""
    tensors = load_file(folder / "model.safetensors")
    save_file({key: part.contiguous() for key, part in ((change or dict)(tensors)).items()}, folder / name, {"format": "pt"})


def moved(folder, base):
    """How far a merged model in a folder lies from a base, and its settings that are others."""
    stored = checkpoints.of_model(base, loading.load(base, linear=False).model, torch.bfloat16)
    update = offer.check_update(str(folder), "bf16", base, settings.reads(base))
    language = offer.build(update, base, "bf16", "cpu", [])
    return movement.moved(language, update, "bf16", stored), [one.what for one in update.differing]


# ---------------------------------------------------------------- settings

CONFIG = {
    "rope": ({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, "config: rope_parameters.rope_theta"),
    "norm": ({"rms_norm_eps": 0.01}, "config: rms_norm_eps"),
    "activation": ({"hidden_act": "relu"}, "config: hidden_act"),
    "context": ({"max_position_embeddings": 1234}, "config: max_position_embeddings"),
    "unknown": ({"gate_scale": 4.0}, "config: gate_scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIG)
def test_equal_weights_with_another_configuration_are_no_equal_model(merged, tiny, name):
    change, what = CONFIG[name]
    edit(merged / "config.json", **change)
    found, others = moved(merged, tiny)
    assert (found.relative, found.lowest) == (0.0, 0)
    assert others == [what]


def test_what_changes_nothing_of_a_forward_pass_is_no_difference(merged, tiny):
    edit(merged / "config.json", use_cache=False, transformers_version="9.9.9", attention_dropout=0.3, _name_or_path="x")
    assert moved(merged, tiny) == (movement.Movement(0.0, 5), [])


def test_a_default_that_is_written_out_is_the_default(merged, tiny):
    edit(merged / "config.json", mlp_bias=False, attention_bias=False)
    assert moved(merged, tiny)[1] == []


def test_generation_settings_are_listed_and_move_no_state(merged, tiny):
    (merged / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "eos_token_id": 1, "suppress_tokens": [5]}))
    found, others = moved(merged, tiny)
    assert found == movement.Movement(0.0, 5)
    assert {"generation: temperature", "generation: suppress_tokens"} <= set(others)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "added_tokens"])
def test_a_tokenizer_of_the_same_ids_that_reads_otherwise_cannot_be_compared(merged, tiny, part):
    found = json.loads((merged / "tokenizer.json").read_text())
    if part == "added_tokens":
        found["added_tokens"][-1]["lstrip"] = True
    else:
        found[part] = {"type": "Lowercase"} if part == "normalizer" else {"type": "WhitespaceSplit"}
    (merged / "tokenizer.json").write_text(json.dumps(found))
    with refused(NOT_COMPARABLE, "its tokenizer and template are"):
        offer.check_update(str(merged), "bf16", tiny, settings.reads(tiny))


def test_states_that_differ_with_nothing_to_explain_it_are_named():
    class Seen:
        def __init__(self, **pooled):
            self.pooled = pooled

    same, other = torch.ones(2, 3), torch.zeros(2, 3)
    before, after = Seen(**{"mean/1": same, "mean/3": same}), Seen(**{"mean/1": same, "mean/3": other})
    assert movement.unexplained(before, after, 2) == []
    assert movement.unexplained(before, after, 3) == ["mean/3"]


# ---------------------------------------------------------------- weights


def test_a_stale_index_beside_a_single_file_is_not_what_is_read(merged, tiny):
    single(merged, lambda t: {key: part + 1 for key, part in t.items()}, "model-00001-of-00001.safetensors")
    names = dict.fromkeys(load_file(merged / "model.safetensors"), "model-00001-of-00001.safetensors")
    (merged / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert moved(merged, tiny)[0] == movement.Movement(0.0, 5)
    assert moved(tiny, merged)[0] == movement.Movement(0.0, 5)
    notes = offer.check_update(str(merged), "bf16", tiny, settings.reads(tiny)).notes
    assert "model-00001-of-00001.safetensors, model.safetensors.index.json" in notes[0]


@pytest.mark.parametrize("name", ["old_model.safetensors", "consolidated.safetensors", "model.fp32.safetensors"])
def test_a_backup_beside_the_weights_is_named_and_not_read(merged, tiny, name):
    single(merged, lambda t: {key: 2 * part for key, part in t.items()}, name)
    assert moved(tiny, merged)[0] == movement.Movement(0.0, 5)
    assert name in offer.check_update(str(merged), "bf16", tiny, settings.reads(tiny)).notes[0]


def test_shards_are_read_as_transformers_reads_them(merged, tiny):
    language = loading.load(tiny)
    (merged / "model.safetensors").unlink()
    language.model.to(torch.bfloat16).save_pretrained(merged, max_shard_size="100KB")
    assert len(checkpoints.weight_files(merged)) > 1
    assert moved(merged, tiny)[0] == movement.Movement(0.0, 5)
    assert checkpoints.beside(merged) == []


def test_a_model_saved_without_its_head_has_the_same_tensors(merged, tiny):
    single(merged, lambda t: {key.removeprefix("model."): part for key, part in t.items() if key != "lm_head.weight"})
    assert moved(merged, tiny)[0] == movement.Movement(0.0, 5)
    assert moved(tiny, merged)[0] == movement.Movement(0.0, 5)


def test_a_tied_head_that_is_stored_again_with_other_values_counts(merged, tiny):
    single(merged, lambda t: {**t, "lm_head.weight": 1.5 * t["model.embed_tokens.weight"]})
    for pair in ((merged, tiny), (tiny, merged)):
        assert moved(*pair)[0] == movement.Movement(0.0, 4)


def test_tensors_that_are_not_those_that_were_loaded_are_refused(merged):
    language = loading.load(merged)
    single(merged, lambda t: {**t, "model.norm.weight": t["model.norm.weight"] + 1})
    with refused(REFUSED, "'model.norm.weight' was loaded with other values"):
        checkpoints.of_model(merged, language.model, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOAT)
def test_an_exact_copy_is_no_update_in_any_type_of_number(merged, dtype, tmp_path):
    noise = torch.Generator().manual_seed(0)
    single(merged, lambda t: {key: (part.float() + 1e-4 * torch.randn(part.shape, generator=noise)).to(FLOAT[dtype])
                              for key, part in t.items()})  # fmt: skip
    edit(merged / "config.json", dtype={"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype])
    shutil.copytree(merged, tmp_path / "copy")
    assert moved(tmp_path / "copy", merged)[0] == movement.Movement(0.0, 5)
    if dtype != "bf16":  # the control: what lies below the grid on which both are read is seen too
        single(
            tmp_path / "copy",
            lambda t: {**t, "model.layers.1.mlp.up_proj.weight": t["model.layers.1.mlp.up_proj.weight"] * 1.001},
        )
        found = moved(tmp_path / "copy", merged)[0]
        assert 0 < found.relative < 1e-3
        assert found.lowest == 1


# ---------------------------------------------------------------- adapters


def adapter_notes(folder, tiny):
    return " ".join(offer.check_update(str(folder), "bf16", tiny, settings.reads(tiny)).notes)


def test_an_adapters_own_template_counts_wherever_it_stands(tiny, tmp_path):
    folder = tmp_path / "adapter"
    given.adapter(folder)
    template = (tiny / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template)
    assert offer.check_update(str(folder), "bf16", tiny, settings.reads(tiny)).differing == ()
    (folder / "chat_template.jinja").write_text("You are somebody else. " + template)
    with refused(NOT_COMPARABLE, "adapter: its tokenizer and template are"):
        offer.check_update(str(folder), "bf16", tiny, settings.reads(tiny))
    (folder / "chat_template.jinja").unlink()
    shutil.copy(tiny / "tokenizer_config.json", folder)
    assert offer.check_update(str(folder), "bf16", tiny, settings.reads(tiny)).adapter
    edit(folder / "tokenizer_config.json", chat_template="Somebody else. " + template)
    with refused(NOT_COMPARABLE, "its tokenizer and template are"):
        offer.check_update(str(folder), "bf16", tiny, settings.reads(tiny))


def test_a_whole_model_beside_an_adapter_is_named(merged, tiny):
    given.adapter(merged)
    assert "holds a whole model (model.safetensors) beside an adapter" in adapter_notes(merged, tiny)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha_pattern": {"v_proj": 32}}, "alpha_pattern 'v_proj'"),
        ({"rank_pattern": {"layers.9.mlp": 4}}, "rank_pattern 'layers.9.mlp'"),
        ({"target_modules": ["down_proj", "nothing"]}, "target_modules 'nothing'"),
        ({"base_model_name_or_path": "somebody/Other-7B"}, "was made for Other-7B"),
        ({"base_model_name_or_path": "somebody/Other-7B", "revision": "abc123"}, "was made for Other-7B (revision abc123)"),
        ({"base_model_name_or_path": "owner/tiny-1", "revision": "abc123"}, "was made for revision abc123"),
    ],
)
def test_what_is_odd_about_an_adapter_is_noted(tiny, tmp_path, change, said):
    given.adapter(tmp_path / "adapter")
    assert adapter_notes(tmp_path / "adapter", tiny) == ""
    edit(tmp_path / "adapter/adapter_config.json", **change)
    assert said in adapter_notes(tmp_path / "adapter", tiny)


# ---------------------------------------------------------------- what a monitor reads, and what a report leaves


def asked(tmp_path, monitors, **changed):
    """The inputs of a run with these monitors."""
    frozen.save(monitors, tmp_path / "frozen")
    given.write(tmp_path / "labels.jsonl", given.labelled(40))
    given.write(tmp_path / "texts.txt", given.unlabelled(60))
    paths = {
        name: str(tmp_path / file) for name, file in (("monitors", "frozen"), ("labels", "labels.jsonl"), ("texts", "texts.txt"))
    }
    return inputs.check_inputs(Options(base="tiny", update="nf4", **paths, **changed))


def test_monitors_read_as_many_tokens_as_they_were_frozen_at(tiny, tmp_path):
    found = asked(tmp_path, [given.monitor(limit=28)])
    assert (found.limit, found.notes) == (28, ())
    other = asked(tmp_path, [given.monitor(limit=28)], texts_limit=96)
    assert other.limit == 28
    assert "28 tokens of a text were read, as the monitors were frozen, not 96" in other.notes
    silent = asked(tmp_path, [given.monitor(limit=0)], texts_limit=40)
    assert silent.limit == 40
    assert "do not say how many tokens" in silent.notes[0]
    with refused(USAGE, "frozen at 28 and 96 tokens"):
        asked(tmp_path, [given.monitor(limit=28), given.monitor("tools", limit=96)])


def test_the_limit_is_part_of_a_monitors_hash():
    assert given.monitor(limit=28).hash != given.monitor(limit=64).hash


def test_monitors_repaired_under_an_older_update_go_with_its_report(tmp_path):
    from support import sample_reports

    files.write(sample_reports.stale(), tmp_path / "out")
    frozen.save([given.monitor()], tmp_path / "out" / "repaired")
    frozen.save([given.monitor()], tmp_path / "out" / "monitors")
    files.write(sample_reports.fine(), tmp_path / "out")
    assert not (tmp_path / "out" / "repaired").exists()
    assert (tmp_path / "out" / "monitors" / "monitors.json").is_file()  # those that were frozen on the base stay
    with refused(USAGE, "would be removed there"):
        files.ready(tmp_path / "out", str(tmp_path / "out" / "repaired"))


def test_errors_name_the_update_and_not_a_folder_made_for_the_comparison(tiny, tmp_path):
    given.adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").write_text("{")
    with pytest.raises(StudyError, match=r"^adapter/tokenizer\.json is no JSON file"):
        offer.check_update(str(tmp_path / "adapter"), "bf16", tiny, settings.reads(tiny))


def test_a_replaced_setting_is_seen_by_its_value():
    one = settings.Setting("config: rms_norm_eps", "1e-05", "0.01", False)
    assert offer.Candidate("x", "merged", settings=(one, replace(one, same=True))).differing == (one,)


# ---------------------------------------------------------------- families


def mixture(tiny, folder):
    """A mixture of experts whose base is tried by no test of the study, and a copy of it."""
    base = written("qwen3-moe", tiny, folder / "moe")
    shutil.copytree(base, folder / "tuned")
    return base, folder / "tuned"


def test_an_expert_that_changed_is_an_update_though_no_linear_module_is(tiny, tmp_path):
    """Planted in block 2; the control is the copy."""
    base, tuned = mixture(tiny, tmp_path)
    same = movement.Movement(0.0, 5)
    assert moved(tuned, base)[0] == same
    expert = "model.layers.2.mlp.experts.1.up_proj.weight"
    single(tuned, lambda held: {**held, expert: held[expert] + 0.1})
    found = moved(tuned, base)[0]
    assert found.relative > 0
    assert found.lowest == 2


def test_what_a_quantizer_leaves_as_it_is_is_told_and_one_that_touches_nothing_is_refused(tiny, tmp_path):
    base, _ = mixture(tiny, tmp_path)
    told = offer.check_update("nf4", "bf16", base, settings.reads(base)).notes
    assert ["moe: nf4 is of 16 linear modules; 12 other matrices" in note for note in told] == [True]
    assert offer.check_update("nf4", "bf16", tiny, settings.reads(tiny)).notes == ()
    other = written("gpt2", tiny, tmp_path / "gpt2")
    with pytest.raises(StudyError, match="no linear module"):
        offer.check_update("nf4", "bf16", other, settings.reads(other))


# ---------------------------------------------------------------- stored in few bits


@pytest.mark.parametrize("name", test_packed.PACKERS)
def test_a_packed_update_is_compared_as_what_its_codes_stand_for(name, tiny, tmp_path):
    """As far from the base as its codes are, no further; the same format as base and update is no update."""
    wanted = test_packed.packed(name, tiny, tmp_path / "packed")
    found, others = moved(tmp_path / "packed", tiny)
    stored = {module: loading.load(tiny).model.get_submodule(module).weight.double() for module in wanted}
    change, size = (sum(float(part.square().sum()) for part in parts) for parts in (
        [stored[module] - wanted[module].bfloat16().double() for module in wanted], stored.values()))  # fmt: skip
    assert found.relative == pytest.approx((change / size) ** 0.5, rel=1e-3)
    assert found.lowest == 0
    assert others == []
    base, (note,) = inputs._base(str(tmp_path / "packed"))
    assert f"stored as {name}" in note
    assert moved(tmp_path / "packed", base) == (movement.Movement(0.0, 5), [])


@pytest.mark.parametrize("inside", [False, True], ids=["a file", "a folder with one"])
def test_a_gguf_update_is_compared_with_the_base_it_was_made_from(inside, tmp_path):
    """In 8 bits it lies as far as its steps; whole in bf16 it is the base, in weights and settings."""
    base, folder = families.write("qwen2", tmp_path / "qwen"), tmp_path / "served"
    folder.mkdir()
    path, _ = test_gguf.written(folder / "eight.gguf", base)
    found, others = moved(folder if inside else path, base)
    assert 0.001 < found.relative < 0.01
    assert others == []
    whole, _ = test_gguf.written(tmp_path / "whole.gguf", base, gguf.GGMLQuantizationType.BF16)
    assert moved(whole, base) == (movement.Movement(0.0, 5), [])
    with refused(REFUSED, "is a GGUF file", "--update"):
        inputs._base(str(path))
