"""What people offer as base or update is taken as the ecosystem writes it, or refused for what it is, with what to do."""

import json
import re
import shutil

import pytest
import test_packed
import torch
from safetensors.torch import load_file, save_file
from support import given
from support.bland import refused

from helpers.errors import REFUSED, USAGE
from helpers.models import checkpoints, loading
from helpers.monitors import frozen
from helpers.revalidation import inputs
from helpers.revalidation.behaviour import speech
from helpers.revalidation.options import Options
from helpers.updates import lora

POINTER = b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 5\n"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path, tiny):
    """A folder with everything that a good run takes, and a merged update that is the base."""
    given.write(tmp_path / "labels.jsonl", given.labelled(40))
    frozen.save([given.monitor()], tmp_path / "frozen")
    given.adapter(tmp_path / "adapter")
    shutil.copytree(tiny, tmp_path / "merged")
    return tmp_path


def checked(folder, update="merged", base="tiny"):
    """The inputs of a run with that update and base, which are names in the folder where they are there."""
    names = [str(folder / name) if (folder / name).exists() else name for name in (base, update)]
    return inputs.check_inputs(Options(*names, monitors=str(folder / "frozen"), labels=str(folder / "labels.jsonl")))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_no_file(folder, name):
    (folder / "merged" / name).write_bytes(POINTER)
    with refused(REFUSED, f"merged/{name} is a pointer of Git LFS", "git lfs pull"):
        checked(folder)
    with refused(REFUSED, f"merged/{name} is a pointer of Git LFS"):
        loading.base_folder(str(folder / "merged"))


def test_an_adapter_that_is_a_pointer_is_no_file(folder):
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(POINTER)
    with refused(REFUSED, "adapter/adapter_model.safetensors is a pointer of Git LFS"):
        checked(folder, "adapter")


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "fetch the index too"),
        (["weights.safetensors"], "rename it to model.safetensors"),
        (["adapter_model.safetensors"], "that is an adapter"),
    ],
)
def test_weights_that_nobody_would_load_are_named(folder, names, how):
    for name in names:
        shutil.copy(folder / "merged" / WEIGHTS, folder / "merged" / name)
    (folder / "merged" / WEIGHTS).unlink()
    with refused(REFUSED, f"merged holds {', '.join(names)}, but neither", how):
        loading.base_folder(str(folder / "merged"))


def test_a_folder_that_holds_models_is_told_from_one_that_is_one(folder):
    for i in (1, 2):
        shutil.copytree(folder / "adapter", folder / "run" / f"version-{i}")
    with refused(REFUSED, "run", "version-1, version-2", "give one of them, such as run/version-"):
        loading.base_folder(str(folder / "run"))
    (folder / "nothing").mkdir()
    with refused(REFUSED, "nothing has no readable config.json; give the folder of a transformers model"):
        loading.base_folder(str(folder / "nothing"))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.gguf", "gguf_file='model.gguf'"),
        ("model.safetensors", "give the folder in which it lies"),
        ("model.bin", "a pickle, which can run code"),
        ("model.txt", "give the folder of a transformers model"),
    ],
)
def test_a_file_in_place_of_a_folder_is_refused_by_its_kind(folder, name, how, monkeypatch):
    (folder / name).write_bytes(b"GGUF")
    said = "model.gguf" if name.endswith(".gguf") else f"--update {name} is a file, no folder"  # GGUF is read, but not four bytes
    with refused(REFUSED, said, ";"):
        checked(folder, name)
    monkeypatch.chdir(folder.parent)  # where it looks like a hub id
    with refused(REFUSED, f"{name} is a file, no folder", how):
        loading.base_folder(f"{folder.name}/{name}")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_weights_that_are_not_packed_under_settings_that_say_so_are_refused_at_once(folder, method):
    path = folder / "merged" / "config.json"
    settings = {"quant_method": method, "load_in_4bit": True, "bits": 4, "group_size": 64}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    with refused(REFUSED, "merged: quantization_config says", "remove that field"):
        checked(folder)


@pytest.mark.parametrize(
    "names", [["eight.gguf"], ["EIGHT.GGUF"], ["folder/eight.gguf"], ["folder/a.gguf", "folder/b.gguf"]], ids=str
)
def test_a_gguf_file_is_no_base_wherever_it_lies(folder, names):
    (folder / "folder").mkdir()
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    first = names[0].rpartition("/")
    with refused(
        REFUSED, f"--base '{first[2]}' is a GGUF file", "give the folder of the model that it was made from", "--update"
    ):
        checked(folder, "adapter", first[0] or names[0])
    shutil.copy(
        folder / "merged" / WEIGHTS, folder / "folder" / WEIGHTS
    )  # the control: beside safetensors it is not what is read
    with refused(REFUSED, "folder has no readable config.json"):
        checked(folder, "adapter", "folder")


# ---------------------------------------------------------------- models of the hub


@pytest.fixture
def hub(folder, tiny, monkeypatch):
    """A hub of one model at one commit, in the folders that its cache makes; `Owner/Packed` is stored in few bits."""
    places = {}
    for name in ("Packed", "Plain"):
        place = folder / f"models--Owner--{name}" / "snapshots" / "abc123"
        place.parent.mkdir(parents=True)
        if name == "Packed":
            test_packed.packed("gptq", tiny, place)
        else:
            shutil.copytree(tiny, place)
        places[f"Owner/{name}@abc123"] = place
    monkeypatch.setattr(checkpoints, "from_hub", places.__getitem__)
    monkeypatch.setattr(loading, "from_hub", places.__getitem__)
    return places


def test_a_packed_model_of_the_hub_is_a_base_as_its_folder_is(folder, hub):
    found = checked(folder, "adapter", "Owner/Packed@abc123")
    assert found.base.name.startswith("Packed@abc123-unpacked-")
    assert any("Packed@abc123 is stored as gptq" in note for note in found.notes)
    local = checked(folder, "adapter", str(hub["Owner/Packed@abc123"]))
    assert (local.base, local.reads) == (found.base, found.reads)
    assert checked(folder, "adapter", "Owner/Plain@abc123").base == hub["Owner/Plain@abc123"]  # the control


def test_an_adapter_of_a_packed_model_of_the_hub_is_known_to_be_made_for_it(folder, hub):
    path = folder / "adapter" / "adapter_config.json"
    plain = json.loads(path.read_text())
    for made_for, noted in ((("Owner/Packed", None), False), (("Owner/Packed", "abc123"), False), (("Owner/Other", None), True)):
        path.write_text(json.dumps({**plain, "base_model_name_or_path": made_for[0], "revision": made_for[1]}))
        notes = checked(folder, "adapter", "Owner/Packed@abc123").notes
        assert any("was made for" in note for note in notes) == noted, made_for


def test_a_model_of_the_hub_has_a_revision_as_base_and_is_fetched_first_as_update(folder):
    with refused(REFUSED, "'Owner/Packed' has no revision; pin one"):
        checked(folder, "adapter", "Owner/Packed")
    for name, revision in (("Owner/Change@abc123", "abc123"), ("Owner/Change", "<commit>"), ("owner/ad.apter-1@main", "main")):
        own = name.partition("@")[0]
        how = f"hf download {own} --revision {revision} --local-dir {own.rpartition('/')[2]}"
        with refused(USAGE, f"--update '{name}' is no folder here", how):
            checked(folder, name)


# ---------------------------------------------------------------- adapters

NAMES = {
    "its own name": lambda name: name.replace(".weight", ".default.weight"),
    "another name": lambda name: name.replace(".weight", ".mine.weight"),
    "compiled": lambda name: f"_orig_mod.{name}",
    "in parallel": lambda name: f"module.{name}",
    "compiled inside": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "without prefix": lambda name: name.removeprefix("base_model.model."),
}


def rename(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("kind", NAMES)
def test_an_adapter_is_the_same_under_the_names_that_are_written_in_practice(folder, kind):
    before = lora.load_adapter(folder / "adapter")
    rename(folder / "adapter", NAMES[kind])
    found = checked(folder, "adapter")
    assert found.update.adapter.keys() == before.keys()
    assert all(torch.equal(found.update.adapter[name].left, pair.left) for name, pair in before.items())
    assert any("read without what wrappers put" in note for note in found.notes) == (kind != "without prefix")


def test_two_adapters_in_one_file_are_not_taken_for_one(folder):
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {re.sub(r"\.weight$", ".other.weight", name): tensor + 1 for name, tensor in tensors.items()}, path)
    with refused(REFUSED, "adapter holds several adapters", "save one of them alone"):
        checked(folder, "adapter")


def test_what_is_read_otherwise_than_it_stands_is_noted_of_base_and_update(folder):
    assert not any("attention was computed" in note for note in checked(folder).notes)
    path = folder / "merged" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_attn_implementation": "flash_attention_2"}))
    tensors = load_file(folder / "merged" / WEIGHTS)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, folder / "merged" / WEIGHTS, {"format": "pt"})
    for base, update in (("tiny", "merged"), ("merged", "adapter")):
        notes = " ".join(checked(folder, update, base).notes)
        assert "merged/config.json names how attention was computed (_attn_implementation 'flash_attention_2')" in notes
        assert "merged: _orig_mod.model" in notes


# ---------------------------------------------------------------- weights that are no numbers


def test_weights_above_the_deepest_monitor_that_are_not_finite_are_named(tiny_model):
    texts = ["Polish the lamp.", "Carry it."]
    assert len(speech.speak(tiny_model, texts, 16).totals) == 2  # the control
    tiny_model.model.model.layers[3].mlp.down_proj.weight.data[0, 0] = torch.nan
    with refused(REFUSED, "what it says next is NaN", "model.layers.3.mlp.down_proj.weight holds NaN"):
        speech.speak(tiny_model, texts, 16)
