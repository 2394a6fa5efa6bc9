"""Foreign files: whatever is wrong with a configuration, tokenizer or template is one line that names it, never a traceback."""

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import foreign
from support.bland import refused
from support.tiers import slow

from helpers.data.splits import Example
from helpers.errors import ENVIRONMENT, NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import activations, checkpoints, generation, loading
from helpers.models.encoding import Plan
from helpers.models.foreign import boundary, culprit, settings_file, templates


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of a few thousand numbers, as it should be."""
    return foreign.write(tmp_path_factory.mktemp("foreign") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may break."""
    return foreign.copy(whole, tmp_path / "candidate")


def test_the_model_is_read_as_long_as_its_files_are_whole(folder):
    foreign.use(folder)  # the control


# ---------------------------------------------------------------- each kind by its name

CONFIG = {
    "a number as text": ({"hidden_size": "16"}, "hidden_size is '16'"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "no heads for keys": ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    "an activation nobody knows": ({"hidden_act": "foo"}, "hidden_act is 'foo'"),
    "layers of a kind nobody knows": ({"layer_types": ["foo", "bar"]}, "layer_types is ['foo', 'bar']"),
    "fewer layer types than layers": ({"layer_types": ["full_attention"]}, "layer_types is ['full_attention']"),
    "a window as text": ({"sliding_window": "x"}, "sliding_window is 'x'"),
    "padding beyond the table": ({"pad_token_id": 999}, "pad_token_id is 999"),
    "scaling without its factor": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
    "a type of number nobody knows": ({"dtype": "float7"}, "dtype is 'float7'"),
    "more layers than can be": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "more words than are stored": ({"vocab_size": 10**12}, "embed_tokens.weight has shape"),
    "wide beyond memory": ({"intermediate_size": 10**12}, "mlp"),
    "heads that are not there": ({"num_attention_heads": ...}, "hidden size (16) is not a multiple"),
    "weights by a number": ({"transformers_weights": 7}, "candidate"),
    "a type that is a list": ({"model_type": ["llama"]}, "model_type is ['llama']"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_a_broken_configuration_is_named_by_its_field(folder, case):
    fields, said = CONFIG[case]
    foreign.edit(folder, "config.json", **fields)
    with refused(REFUSED, "candidate", said, ";"):
        foreign.use(folder)


TOKENS = {
    **{f"{part} of a newer kind": ({part: {"type": "Bogus"}}, f"tokenizer.json: {part} is of type 'Bogus'")
       for part in ("pre_tokenizer", "normalizer", "post_processor", "decoder", "model")},
    "a newer version": ({"version": "9.0"}, "tokenizer.json: version is '9.0'"),
    "no vocabulary": ({"model": {"type": "BPE"}}, "tokenizer.json: model is of type 'BPE'"),
    "no model": ({"model": ...}, "tokenizer.json cannot be read"),
    "added words as text": ({"added_tokens": "x"}, "tokenizer.json: added_tokens is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENS)
def test_a_broken_tokenizer_is_named_by_its_part(folder, case):
    fields, said = TOKENS[case]
    foreign.edit(folder, "tokenizer.json", **fields)
    with refused(REFUSED, f"candidate/{said}", "save the tokenizer again"):
        loading.read_tokenizer(folder)


SETTINGS = {
    "end of text": {"eos_token": 5}, "padding": {"pad_token": ["x"]}, "beginning": {"bos_token": {"content": 5}},
    "length": {"model_max_length": "x"}, "added": {"added_tokens_decoder": 5}, "special": {"extra_special_tokens": 5},
    "side": {"padding_side": "up"}, "inputs": {"model_input_names": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_a_field_of_the_tokenizers_settings_of_another_type_is_named(folder, case):
    (name, value), *_ = SETTINGS[case].items()
    foreign.edit(folder, "tokenizer_config.json", **SETTINGS[case])
    with refused(REFUSED, f"candidate/tokenizer_config.json: {name} is {value!r}"):
        loading.read_tokenizer(folder)


@pytest.mark.parametrize("name", foreign.JSON[:3])
@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 10**5])
def test_a_file_that_is_no_json_object_is_named(folder, name, content):
    (folder / name).write_text(content)
    with refused(REFUSED, "candidate", name.removesuffix(".json")):
        foreign.use(folder)


def test_a_padding_token_beyond_the_embedding_table_is_named(folder):
    known = loading.read_tokenizer(folder)
    known.add_tokens([f"[{i}]" for i in range(20)])
    known.pad_token = "[19]"
    known.save_pretrained(folder)
    with refused(REFUSED, "candidate", "'[19]'", "id 278", "embedding has 272 rows", "resize_token_embeddings"):
        loading.load(folder)


def test_an_added_word_beyond_the_table_is_named_where_a_text_has_it(folder):
    known = loading.read_tokenizer(folder)
    known.add_tokens([f"[{i}]" for i in range(20)])
    known.save_pretrained(folder)
    language = loading.load(folder)  # nobody needs those words
    foreign.use(folder)
    with refused(REFUSED, "candidate", "'[19]'", "embedding has 272 rows"):
        activations.read(language, Plan((Example("lamps", "", 0, "", "a [19] b"),), (0.5,), 16))
    with refused(REFUSED, "candidate", "'[19]'", "embedding has 272 rows"):
        generation.replies(language, ["a [19] b"], new_tokens=2)


# ---------------------------------------------------------------- templates

CONTENT = "{{ messages[0]['content'] }}"
TEMPLATES = {
    "divides by zero": ("\n\n{{ 1 / 0 }}", "line 3", "division by zero"),
    "adds a number to a text": ("{{ 'a' + 1 }}", "line 1", "concatenate"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "line 1", "RecursionError"),
    "counts too far": ("{% for i in range(10 ** 9) %}x{% endfor %}", "line 1", "Range too big"),
    "reads a turn that is not there": ("{{ messages[7].content }}", "line 1", "no element 7"),
    "is no template": ("{% if %}", "line 1", "Expected an expression"),
    "is empty": ("", "no template", ""),
    "writes without end": ("{{ 'a' * 10 ** 7 }}", "characters around a text", ""),
    "leaves out the text": ("Hello", "leaves out the user's text", ""),
    "shows turns as they are stored": ("{{ messages }}", "leaves out the user's text", ""),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_that_fails_is_named_by_file_and_line(folder, case):
    source, where, why = TEMPLATES[case]
    (folder / foreign.TEMPLATE).write_text(source, encoding="utf-8")
    with refused(REFUSED, "candidate/chat_template.jinja", where, why, "mend the template"):
        foreign.use(folder)


def test_a_template_that_does_not_end_is_stopped(folder, monkeypatch):
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / foreign.TEMPLATE).write_text(loops, encoding="utf-8")
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    with refused(REFUSED, "candidate/chat_template.jinja", "did not end within 0.2 s"):
        loading.chat_text(loading.read_tokenizer(folder), "Hi")


def test_named_templates_need_one_called_default(folder):
    (folder / foreign.TEMPLATE).unlink()
    named = [{"name": "default", "template": CONTENT}, {"name": "tools", "template": "x"}]
    foreign.edit(folder, "tokenizer_config.json", chat_template=named)
    assert loading.chat_text(loading.read_tokenizer(folder), "Hi") == "Hi"
    foreign.edit(folder, "tokenizer_config.json", chat_template=named[1:])
    with refused(REFUSED, "candidate/tokenizer_config.json", "['tools']", "default"):
        loading.chat_text(loading.read_tokenizer(folder), "Hi")


def test_a_template_that_fails_on_a_text_does_not_show_it(folder):
    source = "{{ raise_exception(messages[0].content) if 'violin' in messages[0].content else messages[0].content }}"
    (folder / foreign.TEMPLATE).write_text(source, encoding="utf-8")
    tokenizer = loading.read_tokenizer(folder)
    assert loading.chat_text(tokenizer, "lamp") == "lamp"
    with refused(REFUSED, "candidate/chat_template.jinja", "TemplateError", hidden=["violin"]):
        loading.chat_text(tokenizer, "a violin")


# ---------------------------------------------------------------- the clock

TELLING = {
    "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}": "2031-05-06 07:08:09", "{{ datetime.now() }}": "2031-05-06 07:08:09",
    "{{ datetime.now().strftime('%S') }}": "09", "{{ date_string }}": "06 May 2031",
}  # fmt: skip


@pytest.mark.parametrize("source", TELLING)
def test_what_a_template_sees_as_now_is_the_recorded_instant(folder, source):
    (folder / foreign.TEMPLATE).write_text(f"{source} {CONTENT}", encoding="utf-8")
    tokenizer = loading.read_tokenizer(folder)
    usual = loading.chat_text(tokenizer, "Hi")
    assert loading.chat_text(tokenizer, "Hi") == usual
    with templates.clock("2031-05-06T07:08:09"):
        other = loading.chat_text(tokenizer, "Hi")
    assert other != usual == loading.chat_text(tokenizer, "Hi")
    assert other == f"{TELLING[source]} Hi"


def test_a_template_keeps_its_blanks_where_the_clock_is_stopped(folder):
    (folder / foreign.TEMPLATE).write_text(f"\n  {CONTENT}\n{{{{ strftime_now('%Y') }}}}", encoding="utf-8")
    assert loading.chat_text(loading.read_tokenizer(folder), "Hi") == "\n  Hi\n2024"


def test_the_instant_is_in_the_fingerprint_of_templates_that_ask_the_clock(folder):
    from helpers.monitors import readings

    plain = loading.read_tokenizer(folder)
    before = readings.fingerprint(plain)
    (folder / foreign.TEMPLATE).write_text("{% if strftime_now('%H') == '99' %}x{% endif %}" + CONTENT, encoding="utf-8")
    telling = loading.read_tokenizer(folder)
    usual = readings.fingerprint(telling)
    with templates.clock("2031-05-06T07:08:09"):
        assert readings.fingerprint(plain) == before  # the control
        assert readings.fingerprint(telling) != usual
    assert readings.fingerprint(telling) == usual


def test_an_instant_that_is_none_is_one_line():
    with refused(2, "'yesterday'", templates.INSTANT), templates.clock("yesterday"):
        pass


# ---------------------------------------------------------------- the boundary


class Panic(BaseException):
    """What Rust code raises when it panics: no Exception."""


@pytest.mark.parametrize(
    "error", [AssertionError("a\nb"), Panic("no"), KeyError("x"), RecursionError(), ValueError("\x1b[31mred")]
)
def test_whatever_is_raised_becomes_one_line_and_is_kept(error):
    with refused(REFUSED, "the file (", "; mend it", hidden=["\x1b"]) as caught, boundary.foreign("the file", "mend it"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [StudyError("said", NOT_COMPARABLE), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_ours_passes_the_boundary(error):
    with pytest.raises(type(error)) as caught, boundary.foreign("the file", "mend it"):
        raise error
    assert caught.value is error


def test_a_full_disk_is_no_fault_of_a_file():
    with refused(ENVIRONMENT, "no room"), boundary.foreign("the file", "mend it"):
        raise OSError(28, "No space left on device")


# ---------------------------------------------------------------- how attention is computed, and names in wrappers


@pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attention_2", {"": "sdpa"}, "paged|eager"])
@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation"])
def test_a_way_of_computing_attention_is_no_foreign_code(whole, folder, field, name):
    foreign.edit(folder, "config.json", **{field: name})
    language, plain = loading.load(loading.base_folder(str(folder))), loading.load(whole)
    assert language.model.config._attn_implementation == plain.model.config._attn_implementation
    assert "attention" in settings_file.notes_on(folder)[0]
    assert settings_file.notes_on(whole) == []


@pytest.mark.parametrize("name", ["owner/kernel", "kernels-community/flash-attn", {"": "owner/kernel"}, "paged|owner/kernel", 5])
def test_a_repository_that_computes_attention_is_foreign_code(folder, name):
    foreign.edit(folder, "config.json", attn_implementation=name)
    with refused(REFUSED, "candidate/config.json", "foreign code (attn_implementation)"):
        loading.base_folder(str(folder))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_tensors_in_wrappers_are_those_of_the_model(whole, folder, prefix):
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {f"{prefix}{name}": tensor for name, tensor in load_file(path).items()}
    path.unlink()  # it is a link to the whole one
    save_file(tensors, path, {"format": "pt"})
    language, plain = loading.load(folder), loading.load(whole)
    assert all(torch.equal(a, b) for a, b in zip(language.model.parameters(), plain.model.parameters(), strict=True))
    stored = checkpoints.of_model(folder, language.model, torch.bfloat16)
    assert torch.equal(stored("model.embed_tokens.weight"), plain.model.get_input_embeddings().weight)


# ---------------------------------------------------------------- settings of packed weights

PACKED = (
    {"quant_method": "gptq", "bits": "x"}, {"quant_method": 5}, {"quant_method": ["gptq"]}, {"load_in_4bit": "no"},
    {"quant_method": "compressed-tensors", "sparsity_config": 5}, {"quant_method": "compressed-tensors", "format": ["x"]}, {},
)  # fmt: skip


@pytest.mark.parametrize("settings", PACKED, ids=str)
def test_settings_of_packed_weights_that_make_no_sense_are_one_line(folder, settings):
    foreign.edit(folder, "config.json", quantization_config=settings)
    with refused(REFUSED, ";"):
        foreign.use(folder)


# ---------------------------------------------------------------- random changes


def survive(whole, place, every, name, content):
    """Uses a copy of the model with one broken file: it works, or is refused in one line with 12 or 13."""
    path = place / name
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    said = None
    try:
        foreign.use(place, every)
    except StudyError as error:
        said = error
    finally:
        path.write_bytes((whole / name).read_bytes())
    if said:
        text = str(said)
        assert (said.code in {REFUSED, NOT_COMPARABLE}, text.isprintable()) == (True, True), text  # a line break is not printable
        assert ";" in text, text  # what is wrong; what to do


def fuzz(whole, place, every, examples, seconds, monkeypatch):
    monkeypatch.setattr(culprit, "SECONDS", seconds)
    monkeypatch.setattr(templates, "SECONDS", 2.0)
    checks = list(HealthCheck)

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    @given(st.shared(foreign.broken_file(whole)))
    def run(broken):
        survive(whole, place, every, *broken)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


def test_broken_files_are_refused_in_one_line(whole, folder, monkeypatch):
    fuzz(whole, folder, False, 200, 0.02, monkeypatch)


@slow("2,000 broken files; 200 of them are read each time")
def test_many_broken_files_are_refused_in_one_line(whole, folder, monkeypatch):
    fuzz(whole, folder, True, 2_000, 0.1, monkeypatch)
