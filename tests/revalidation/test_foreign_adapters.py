"""Adapters of other people: whatever stands in adapter_config.json is read, or refused in one line that names it."""

import json
import math
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from support import foreign
from support.bland import refused
from support.tiers import slow

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import activations
from helpers.models.encoding import Plan
from helpers.models.foreign import adapter_file, culprit
from helpers.revalidation.candidate import offer
from helpers.revalidation.candidate import settings as compared

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of a few thousand numbers."""
    return foreign.write(tmp_path_factory.mktemp("foreign") / "base")


@pytest.fixture(scope="module")
def reads(base):
    return compared.reads(base)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """An adapter of that model, with every field that PEFT writes today."""
    return foreign.write_adapter(base, tmp_path_factory.mktemp("foreign") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may break."""
    return foreign.copy(whole, tmp_path / "candidate")


def use(folder, base, reads, served=True):
    """What is done with an adapter: checked, and where it is to be `served` put on its base and read."""
    found = offer.check_update(str(folder), "bf16", base, reads)
    if served:
        language = offer.build(found, base, "bf16", "cpu", ())
        activations.read(language, Plan(foreign.TEXTS, (0.5, 1.0), 16))
    return found


def test_the_adapter_is_read_as_long_as_its_files_are_whole(folder, base, reads):
    found = use(folder, base, reads)  # the control
    assert len(found.adapter) == 4
    assert found.notes == ()


FIELDS = {
    "a scale beyond every number": {"lora_alpha": 10**400}, "a scale that is none": {"lora_alpha": math.nan},
    "a scale that overflows": {"lora_alpha": 1e38}, "a scale as a list": {"lora_alpha": [8]}, "no scale": {"lora_alpha": ...},
    "a rank of none": {"r": 0}, "a rank that is less than none": {"r": -2}, "a rank of another adapter": {"r": 3},
    "a rank as words": {"r": "two"}, "ranks as a list": {"rank_pattern": ["q_proj"]}, "ranks as text": {"rank_pattern": "q_proj"},
    "a rank that is no number": {"rank_pattern": {"q_proj": None}}, "a pattern that is none": {"alpha_pattern": {"(": 2}},
    "modules by a number": {"target_modules": 5}, "modules by a pattern that is none": {"target_modules": "("},
    "modules by a mapping": {"target_modules": {"q_proj": 1}}, "modules by numbers": {"target_modules": [5]},
    "a kind that is a number": {"peft_type": 5}, "a kind that is a list": {"peft_type": ["LORA"]},
    "another kind": {"peft_type": "IA3"},
    "a kind with signs": {"peft_type": "\x1b[31m" * 40}, "a start that is a list": {"init_lora_weights": ["pissa"]},
    "a start nobody knows": {"init_lora_weights": "\u202eassip"}, "a field nobody knows": {"gate_scale": 4.0},
    "a bias with signs": {"bias": "\x1b[31m\n" * 90}, "saved modules": {"modules_to_save": ["lm_head"]},
    "a root that is text": {"use_rslora": "no"}, "one that is a number": {"use_rslora": 7},
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_that_makes_no_sense_is_named(folder, base, reads, case):
    (name, _), *_ = FIELDS[case].items()
    foreign.edit(folder, CONFIG, **FIELDS[case])
    with refused(REFUSED, "candidate", ";", name if name not in {"r", "rank_pattern"} else "r") as caught:
        use(folder, base, reads)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", ["", "{", "[1]", "5", "null", "[" * 10**5, '{"a":' * 10**5, "\ufeff{}", "\0"])
def test_a_file_that_is_no_json_object_is_named(folder, base, reads, content):
    (folder / CONFIG).write_text(content, encoding="utf-8")
    with refused(REFUSED, f"candidate/{CONFIG}", ";"):
        use(folder, base, reads)


@pytest.mark.parametrize("name", ["base_model_name_or_path", "revision"])
@pytest.mark.parametrize("value", [5, ["a"], {"a": 1}, "\x1b[31m/\ud800", "x" * 10**5])
def test_what_an_adapter_says_of_its_base_is_a_note_at_most(folder, base, reads, name, value):
    foreign.edit(folder, CONFIG, **{name: value})
    if not isinstance(value, str):
        with refused(REFUSED, f"{name} is ", "not a name"):
            use(folder, base, reads, served=False)
        return
    (note,) = use(folder, base, reads, served=False).notes
    assert (note.isprintable(), len(note) < 400) == (True, True)


def test_factors_that_are_no_numbers_are_named(folder, base, reads):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.1.mlp" in name and "lora_B" in name)
    tensors[name][0, 0] = math.inf
    path.unlink()  # it is a link to the whole one
    save_file(tensors, path)
    with refused(REFUSED, "candidate: the update of 'model.layers.1.mlp.down_proj'", "NaN or infinite", ";"):
        use(folder, base, reads)


def test_a_pattern_that_does_not_end_is_stopped(folder, base, reads, monkeypatch):
    foreign.edit(folder, CONFIG, target_modules=r"([\w.]+)+\?")
    monkeypatch.setattr(adapter_file, "SECONDS", 0.2)
    with refused(REFUSED, f"candidate/{CONFIG}", "patterns did not end within 0.2 s", "name the modules"):
        use(folder, base, reads, served=False)


# ---------------------------------------------------------------- random changes


def survive(folder, base, reads, served, content):
    """Uses an adapter with a broken file: it works, or is refused in one line with 12 or 13."""
    (folder / CONFIG).write_text(content, encoding="utf-8", errors="surrogatepass")
    said = notes = None
    try:
        notes = use(folder, base, reads, served).notes
    except StudyError as error:
        said = error
    if said:
        text = str(said)
        assert (said.code in {REFUSED, NOT_COMPARABLE}, text.isprintable(), len(text) < 500) == (True, True, True), text
        assert ";" in text, text  # what is wrong; what to do
    else:
        assert all(note.isprintable() for note in notes), notes


def fuzz(whole, folder, base, reads, served, examples, monkeypatch):
    monkeypatch.setattr(culprit, "SECONDS", 0.02)
    known = json.loads((whole / CONFIG).read_text(encoding="utf-8"))

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(foreign.broken_json(known, foreign.OF_ADAPTERS))
    def run(content):
        survive(folder, base, reads, served, content)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


def test_broken_adapters_are_refused_in_one_line(whole, folder, base, reads, monkeypatch):
    fuzz(whole, folder, base, reads, False, 200, monkeypatch)


@slow("2,000 broken adapters, each served; 200 of them are checked each time")
def test_many_broken_adapters_are_refused_in_one_line(whole, folder, base, reads, monkeypatch):
    fuzz(whole, folder, base, reads, True, 2_000, monkeypatch)
