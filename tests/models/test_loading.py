"""Models: deterministic, refused where unsafe or damaged, whole or absent on disk, and indifferent to padding."""

import errno
import json
import resource
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiers import slow

from helpers import cache, results
from helpers.errors import ENVIRONMENT, REFUSED, USAGE, StudyError
from helpers.models import built_in, checkpoints, generation, loading

WEIGHTS = "model.safetensors"
PROMPTS = ["Polish the lamp.", "Hi", "Describe how a lantern is carried across the river in the rain, please."]


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "candidate")


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def expect(code, *words):
    """A context in which a StudyError of that exit code must be raised, in one line that holds all the words."""
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- the tiny model


def test_the_tiny_model_is_the_same_wherever_it_is_made(tiny, tmp_path):
    built_in._write_tiny(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()
    language = loading.load(tiny)
    assert (language.depth, language.width, language.device.type) == (4, 128, "cpu")
    assert language.model.dtype == torch.bfloat16
    assert not language.model.training
    assert not any(p.requires_grad for p in language.model.parameters())
    assert loading.base_folder("tiny") == tiny
    assert loading.check_folder(tiny) == tiny


def test_making_the_tiny_model_leaves_the_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    built_in._write_tiny(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_any_text_is_tokenized_back(tiny_model):
    text = "naïve 漢字 \x00 <b>\n"
    assert tiny_model.tokenizer.decode(loading.encode_text(tiny_model.tokenizer, text)) == text


def test_the_chat_text_ends_where_the_reply_begins(tiny_model):
    text = loading.chat_text(tiny_model.tokenizer, "Hello", "Be brief.")
    assert text.startswith("<|im_start|>system\nBe brief.")
    assert text.endswith("<|im_start|>assistant\n")
    assert "system" not in loading.chat_text(tiny_model.tokenizer, "Hello")


def test_a_template_that_fails_is_one_line(tiny_model):
    tiny_model.tokenizer.chat_template = "{{ raise_exception('no such turn') }}"
    for system in ("", "Be brief."):
        with expect(REFUSED, "chat template", "no such turn"):
            loading.chat_text(tiny_model.tokenizer, "Hello", system)


def test_a_system_message_that_is_left_out_opens_the_prompt(tiny_model):
    tiny_model.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert loading.chat_text(tiny_model.tokenizer, "Hello", "Be brief.") == "Be brief.\n\nHello"


# ---------------------------------------------------------------- what is refused

CONFIGS = {
    "auto_map": {"auto_map": {"AutoModel": "evil.Model"}},
    "nested trust_remote_code": {"text_config": {"inner": {"trust_remote_code": True}}},
    "in a list": {"parts": [{"auto_map": {}}]},
    "internal kernel": {"_attn_implementation_internal": "owner/kernel"},
    "kernel": {"attn_implementation": "owner/kernel"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_asks_for_foreign_code_is_refused(folder, kind):
    change(folder, **CONFIGS[kind])
    with expect(REFUSED, "candidate/config.json", "foreign code"):
        loading.base_folder(str(folder))


def test_a_harmless_attention_field_is_not_refused(folder):
    change(folder, _attn_implementation_autoset=True)
    assert loading.base_folder(str(folder)) == folder


@pytest.mark.parametrize("kind", ["made-up", None])
def test_an_unknown_model_type_is_refused(folder, kind):
    change(folder, model_type=kind)
    with expect(REFUSED, "candidate", repr(kind), "llama"):
        loading.base_folder(str(folder))


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\ufeff{}"])
def test_a_folder_without_a_readable_config_is_refused(folder, content):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content, encoding="utf-8")
    with expect(REFUSED, "candidate", "no readable config.json"):
        loading.base_folder(str(folder))


@pytest.mark.parametrize(
    ("name", "found"), [("pytorch_model.bin", "only pytorch_model.bin, which is a pickle"), ("x.txt", "no weights")]
)
def test_a_folder_without_safetensors_is_refused(folder, name, found):
    (folder / WEIGHTS).rename(folder / name)
    with expect(REFUSED, "candidate", found, "save_pretrained"):
        loading.base_folder(str(folder))


def test_a_folder_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with expect(REFUSED, "candidate", "no chat template"):
        loading.base_folder(str(folder))


def test_a_pickle_under_the_name_of_safetensors_is_refused(folder):
    torch.save({"weight": torch.zeros(3)}, folder / WEIGHTS)
    with expect(REFUSED, "candidate", "cannot be loaded"):
        loading.load(folder)


def test_weights_that_are_cut_short_are_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with expect(REFUSED, "candidate", "cannot be loaded"):
        loading.load(folder)


@pytest.mark.parametrize(
    ("tensor", "reason"), [(None, "is missing"), (torch.zeros(3, 5), r"has shape \(3, 5\), not \(128, 128\)")]
)
def test_a_missing_or_misshapen_tensor_is_refused_and_never_random(folder, tensor, reason):
    name, tensors = "model.layers.2.self_attn.q_proj.weight", load_file(folder / WEIGHTS)
    tensors.pop(name)
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / WEIGHTS, {"format": "pt"})
    with expect(REFUSED, "candidate", name, reason):
        loading.load(folder)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with expect(REFUSED, "absent"):
        loading.load(tmp_path / "absent")


def test_an_unknown_model_is_named_with_what_there_is():
    with expect(USAGE, "'tinny'", "embedded, tiny"):
        loading.base_folder("tinny")


def test_a_hub_model_needs_a_revision():
    with expect(REFUSED, "owner/name@<commit>"):
        loading.base_folder("owner/name")


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_a_hub_model_asked_for_offline_is_one_line(offline, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with expect(ENVIRONMENT, "owner/name@main", "check the network"):
        loading.base_folder("owner/name@main")


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """A hub that holds a pair: the base model without a chat template, both of one architecture."""
    base, chat = (shutil.copytree(tiny, tmp_path / name) for name in ("base", "chat"))
    (base / "chat_template.jinja").unlink()
    (chat / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|im_end|>")
    places = {"Owner/Base@1": base, "Owner/Chat@2": chat}
    monkeypatch.setattr(checkpoints, "from_hub", places.__getitem__)
    monkeypatch.setitem(loading.PAIRS, "planted", built_in.HubPair("Owner/Base@1", "Owner/Chat@2"))
    return base, chat


def test_a_base_model_without_a_template_speaks_as_its_chat_model_does(hub):
    base, chat = hub
    folder = loading.base_folder("planted")
    language = loading.load(folder)
    assert loading.chat_text(language.tokenizer, "Hi") == "Hi<|im_end|>"
    assert (folder / WEIGHTS).resolve() == (base / WEIGHTS).resolve()
    assert (folder / "tokenizer.json").resolve() == (chat / "tokenizer.json").resolve()
    assert loading.base_folder("planted") == folder  # made once
    assert loading.identity(folder) == folder.name == "owner-base@1+owner-chat@2"
    shutil.copy(chat / "chat_template.jinja", base)  # the control: one that has a template keeps its own
    assert loading.base_folder("planted") == base


def test_a_gated_model_says_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*args, **kwargs):
        raise GatedRepoError.__new__(GatedRepoError)  # what it is told of the response is not looked at

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    with expect(ENVIRONMENT, "owner/name@main", "gated", "accept its licence at huggingface.co/owner/name"):
        loading.base_folder("owner/name@main")


def test_an_absent_gpu_and_an_unknown_device_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with expect(ENVIRONMENT, "'cuda'", "device=cpu"):
        loading.device("cuda")
    with expect(USAGE, "'toaster'"):
        loading.device("toaster")
    assert loading.device("cpu").type == "cpu"


def test_slugs(tmp_path):
    assert results.slug("tiny") == "tiny"
    assert results.slug("Owner/Name-7B@1a2b") == "owner-name-7b-1a2b"
    (tmp_path / "My Model").mkdir()
    assert results.slug(str(tmp_path / "My Model")) == "my-model"
    assert len(results.slug("a" * 300)) == 64
    for bad in ("", "///", "..", "漢字"):
        with expect(USAGE, "no usable name"):
            results.slug(bad)


def test_two_folders_of_one_name_are_two_models(tiny, tmp_path):
    one, other = (shutil.copytree(tiny, tmp_path / place / "model") for place in "ab")
    assert loading.identity(one) != loading.identity(other)
    before = loading.identity(one)
    change(one, rope_theta=7.0)
    assert loading.identity(one) != before
    assert loading.identity(tiny) == tiny.name


# ---------------------------------------------------------------- writing


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("half")
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        cache.atomic_folder(tmp_path / "deep" / "target", fail)
    assert list((tmp_path / "deep").iterdir()) == []


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    for write, target in ((cache.atomic_folder, tmp_path / "folder"), (cache.atomic_file, tmp_path / "file")):
        with expect(ENVIRONMENT, target.name, "No space left", "AFTER_UPDATE_CACHE"):
            write(target, full_disk)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_under_safetensors_is_one_line(tiny_model, tmp_path):
    """The library says so with an error of its own, which is no OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with expect(ENVIRONMENT, "saved", "AFTER_UPDATE_CACHE"):
            loading.save(tiny_model, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_hold_folders_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with expect(ENVIRONMENT, "target"):
        cache.atomic_folder(tmp_path / "file" / "target", lambda folder: None)


def test_two_writers_at_once_leave_one_whole_folder(tmp_path):
    barrier, errors = threading.Barrier(2), []

    def write(folder):
        (folder / "weights").write_text("whole")
        barrier.wait(10)  # both have written, neither has renamed

    def run():
        try:
            cache.atomic_folder(tmp_path / "target", write)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=run) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "weights").read_text() == "whole"


def test_what_is_there_is_not_written_again(tmp_path):
    (tmp_path / "target").mkdir()
    assert cache.atomic_folder(tmp_path / "target", full_disk) == tmp_path / "target"


def test_a_file_keeps_its_old_content_when_the_new_fails(tmp_path):
    target = cache.atomic_file(tmp_path / "file", lambda path: path.write_text("old"))
    with expect(ENVIRONMENT, "file"):
        cache.atomic_file(target, full_disk)
    assert target.read_text() == "old"


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_saved_and_loaded_is_equal_bit_for_bit(tiny_model, tmp_path, tied, dtype):
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    model = LlamaForCausalLM(built_in.tiny_config(tie_word_embeddings=tied)).to(loading.GRIDS[dtype])
    folder = loading.save(loading.LanguageModel(model, tiny_model.tokenizer, tmp_path), tmp_path / "saved")
    assert ("lm_head.weight" in load_file(folder / WEIGHTS)) is not tied  # a shared tensor is stored once
    again = loading.load(loading.check_folder(folder), dtype).model
    assert (again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()) is tied
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---------------------------------------------------------------- padding


def test_pad_and_length_batches():
    assert loading.pad([[1, 2, 3], [4]], 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert loading.pad([[1, 2, 3], [4]], 0, "left").tolist() == [[1, 2, 3], [0, 0, 4]]
    assert loading.length_batches([5, 1, 5, 3], 2) == [[1, 3], [0, 2]]
    assert loading.length_batches([], 2) == []


def tokens(language):
    return [loading.encode_text(language.tokenizer, loading.chat_text(language.tokenizer, prompt)) for prompt in PROMPTS]


@torch.no_grad()
def test_real_tokens_never_see_the_padding_on_their_right(tiny_model):
    rows = tokens(tiny_model)
    padded = tiny_model.model.model(input_ids=loading.pad(rows, 2)).last_hidden_state
    for place, row in enumerate(rows):
        alone = tiny_model.model.model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(padded[place, : len(row)], alone, atol=2e-5, rtol=1e-5)


def test_replies_in_a_padded_batch_are_those_of_one_prompt_at_a_time(tiny_model):
    sharpen(tiny_model)
    together = generation.replies(tiny_model, PROMPTS, new_tokens=8)
    assert together == [generation.replies(tiny_model, [prompt], new_tokens=8)[0] for prompt in PROMPTS]
    assert len(set(together)) == len(PROMPTS)  # the control: the prompts do matter


def test_likelihoods_in_a_padded_batch_are_those_of_one_row_at_a_time(tiny_model):
    rows = tokens(tiny_model)
    starts = [len(row) // 2 for row in rows]
    total, count = generation.log_likelihoods(tiny_model, rows, starts)
    for i, row in enumerate(rows):
        with torch.no_grad():
            logits = tiny_model.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        expected = sum(logits[place - 1, row[place]].item() for place in range(starts[i], len(row)))
        assert total[i] == pytest.approx(expected, rel=1e-5)
        assert count[i] == len(row) - starts[i]


def sharpen(language):
    """Makes a random model's replies depend on its prompt: larger weights, so that no token wins everywhere."""
    with torch.no_grad():
        for name, p in language.model.named_parameters():
            if "proj" in name:
                p.mul_(8)


@pytest.mark.parametrize("family", ["Gemma2", "Llama"])
def test_logits_are_the_models_own(family):
    import transformers

    changes = {"final_logit_softcapping": 0.05} if family == "Gemma2" else {}
    config = getattr(transformers, f"{family}Config")(**{**built_in.tiny_config().to_dict(), **changes, "head_dim": 32})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, hidden = model(input_ids=ids).logits, model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(loading.logits(model, hidden), expected)
    assert loading.logits is loading.logits


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with loading.threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- the embedded model


@slow("the embedded model itself")
@pytest.mark.real
def test_the_embedded_base_is_whole_and_the_same_every_time(embedded):
    language = loading.load(loading.check_folder(embedded))
    assert (language.depth, language.width) == (30, 576)
    assert loading.chat_text(language.tokenizer, "Hello").endswith("<|im_start|>assistant\n")
    again = loading.load(embedded).model.state_dict()
    for name, tensor in language.model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        assert tensor.float().std() > 0, name
        assert tensor.is_floating_point(), name  # packed GGUF blocks would be bytes
        assert torch.equal(tensor, again[name]), name
