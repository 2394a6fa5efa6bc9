"""Keys name meanings and inputs, never code: a renamed function keeps every result, another number or input keeps none."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import definitions
from helpers.data import corpora
from helpers.data.splits import Example
from helpers.definitions import DEFINITIONS, DRAWING, PLAIN, Definition, content_key
from helpers.models import compute, loading
from helpers.models.encoding import Plan
from helpers.monitors import spot_check
from helpers.monitors.spot_check import Sketch
from helpers.neurons import experiments
from helpers.staleness import forecast_data
from helpers.study import fingerprints, statuses
from helpers.updates import measurements, quantized_models, safety_tuning, training, variants
from helpers.updates.names import Variant
from helpers.updates.safety_tuning import Target
from helpers.updates.variants import Parts

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
IDS = [path.stem for path in CHAPTERS]


# ---------------------------------------------------------------- content keys and lineages


def test_content_keys_do_not_depend_on_order_and_do_on_values():
    assert content_key(a=1, b=[2, 3]) == content_key(b=[2, 3], a=1)
    assert len({content_key(a=1), content_key(a=2), content_key(b=1), content_key(a="1"), content_key(a=[1])}) == 5


def test_a_raised_number_changes_the_keys_of_all_that_uses_it_and_of_nothing_else():
    one, other = Definition("one", 1), Definition("other", 1)
    raised = replace(one, version=2)
    above, higher = Definition("above", 1, (one,)), Definition("above", 1, (raised,))
    assert Definition("top", 3, (above, other)).lineage == ("above v1", "one v1", "other v1", "top v3")
    assert len({d.key(a=1) for d in (one, raised, other, above, higher)}) == 5
    assert replace(one, code=("module",)).key(a=1) == one.key(a=1)  # where its code lies is no part of what it means


def test_every_definition_is_on_the_page_under_its_own_name_and_rests_on_such():
    named = {name: one for name, one in vars(definitions).items() if isinstance(one, Definition)}
    assert list(named.values()) == list(DEFINITIONS.values())
    assert [name for name, one in named.items() if name.lower().replace("_", "-") != one.name] == []
    assert [one.name for one in named.values() if set(one.uses) - set(named.values())] == []


def test_every_helper_that_a_chapter_reaches_is_watched_by_a_definition_or_changes_no_number():
    watched = {module for one in DEFINITIONS.values() for module in one.code}
    reached = {module for path in CHAPTERS for module in fingerprints.imported_helpers(fingerprints.code_cells(path))}
    assert {name for name in reached - watched if not name.startswith(f"{DRAWING}.")} == set(PLAIN)
    assert watched <= reached
    assert not {name for name in watched if name in PLAIN or name.startswith(f"{DRAWING}.")}


def test_no_helper_hashes_the_text_of_helpers_but_to_tell_that_figures_are_older():
    """Whoever parses code makes the fingerprints; whoever calls its hash marks the figures of a chapter."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "src" / "helpers").rglob("*.py")}
    assert [name for name, text in texts.items() if "code_hash(" in text] == ["fingerprints"]
    assert texts["fingerprints"].count("code_hash(") == 2  # its definition, and `marks`


# ---------------------------------------------------------------- a renamed function changes nothing

KEYS = """
import json
from helpers.data import corpora
from helpers.models import loading
from helpers.updates import quantized_models, safety_tuning, training, variants
from helpers.updates.names import Variant
from helpers.updates.variants import Parts
tiny = loading.tiny()
parts, rows = Parts(tiny, tiny, ("a lamp", "a river")), corpora.alignment_rows(2, 2, "tiny")
found = [variants.variant_key(parts, Variant("tiny", precision=name)) for name in ("bf16", "nf4", "gptq-4")]
lora, full = training.Recipe(kind="lora"), training.Recipe(kind="full")
found += [variants.update_folder(parts, rows, lora, name).name for name in ("bf16", "gptq-4")]
found.append(safety_tuning.aligned_folder(tiny, rows, full, safety_tuning.Target(), "tiny", "cpu", 6).name)
found.append(quantized_models.ADDRESS(loading.load(tiny), "gptq-4", parts.calibration).name)
print(json.dumps(found))
"""


RENAMED = (
    *("updates/quantized_models", "updates/quantizers", "updates/training", "updates/variants", "updates/safety_tuning"),
    "models/judges",
)


def renamed(package: Path) -> None:
    """In a copy of the package, every private function of some modules gets another name, wherever it is called."""
    for module in RENAMED:
        path = package / f"{module}.py"
        text = path.read_text(encoding="utf-8")
        names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        private = sorted(name for name in names if re.fullmatch(r"_[a-z]\w+", name))
        assert private, module
        for name in private:
            text = re.sub(rf"(?<![\w.]){name}\b", f"{name}_by_another_name", text)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def mended(tmp_path_factory) -> Path:
    """The folder of a package in which functions were renamed."""
    folder = tmp_path_factory.mktemp("mended")
    shutil.copytree(ROOT / "src" / "helpers", folder / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    renamed(folder / "helpers")
    return folder


def test_a_renamed_helper_function_changes_no_key(mended, isolated_cache, capsys):
    exec(KEYS.replace("ADDRESS", "_gptq_path"), {})
    before = json.loads(capsys.readouterr().out)
    environment = {**os.environ, "PYTHONPATH": str(mended)}
    code = KEYS.replace("ADDRESS", "_gptq_path_by_another_name")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == before
    assert len(set(before)) == 7


def in_package(monkeypatch, folder: Path) -> None:
    monkeypatch.setattr(fingerprints, "PACKAGE", folder)
    fingerprints._module.cache_clear()


@pytest.fixture
def package(monkeypatch):
    """Reads the helpers' code from another folder until the test ends."""
    yield lambda folder: in_package(monkeypatch, folder)
    fingerprints._module.cache_clear()


def all_prints() -> list[str]:
    return [fingerprints.fingerprint(path, {}) for path in CHAPTERS]


def test_a_renamed_helper_function_changes_no_fingerprint_and_the_trip_wire_sees_it(mended, package):
    prints, marks = all_prints(), [fingerprints.marks(path) for path in CHAPTERS]
    moved = [fingerprints.code_hash(definitions.QUANTIZE.code)]
    package(mended / "helpers")
    assert all_prints() == prints
    assert [fingerprints.marks(path) for path in CHAPTERS] == marks
    assert fingerprints.code_hash(definitions.QUANTIZE.code) not in moved


def test_code_that_draws_makes_figures_older_and_numbers_not(tmp_path, package):
    shutil.copytree(ROOT / "src" / "helpers", tmp_path / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    prints, marks = all_prints(), [fingerprints.marks(path) for path in CHAPTERS]
    path = tmp_path / "helpers" / "figures" / "triage.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nWIDER = 1\n", encoding="utf-8")
    package(tmp_path / "helpers")
    assert all_prints() == prints
    assert [name for name, path, old in zip(IDS, CHAPTERS, marks, strict=True) if fingerprints.marks(path) != old] == [
        "06_triage"
    ]


def test_helpers_in_folders_are_followed(tmp_path, package):
    """A module may move into a folder of the package: its dotted name is what a definition then names."""
    for name, text in {"top.py": "from helpers.wing import low\n", "wing/low.py": "import helpers.wing.lower\n",
                       "wing/lower.py": "from helpers.other import thing\n", "other.py": "thing = 1\n"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    package(tmp_path)
    assert fingerprints.imported_helpers(["from helpers import top"]) == ["other", "top", "wing.low", "wing.lower"]
    assert fingerprints.code_hash(["wing.low"]) != fingerprints.code_hash(["wing.lower"])


# ---------------------------------------------------------------- fingerprints


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_raised_number_makes_the_chapters_that_rest_on_it_run_again(name, monkeypatch):
    prints = all_prints()
    asked = [name in {one.partition(" v")[0] for one in fingerprints.marks(path)["definitions"]} for path in CHAPTERS]
    lifted = {one.name: one for one in DEFINITIONS.values()}
    lifted[name] = replace(lifted[name], version=lifted[name].version + 1)
    for one in lifted.values():  # and in the lineages of those above it, which stand below it on the page
        lifted[one.name] = replace(one, uses=tuple(lifted[used.name] for used in one.uses))
    monkeypatch.setattr(fingerprints, "DEFINITIONS", lifted)
    changed = [old != new for old, new in zip(prints, all_prints(), strict=True)]
    assert changed == asked
    assert any(changed)


LOCK = "torch==2.13.0\nrouge_score==0.1.2\nnumpy==2.4.6 ; python_version >= '3.12'\nnumpy==2.3.0 ; python_version < '3.12'\n"


@pytest.mark.parametrize(
    ("line", "same"), [("rich==1\n", True), ("ipykernel==9\n", True), ("# torch==1\n", True), ("scipy==1\n", False)]
)
def test_a_numeric_package_ages_a_chapter_and_another_does_not(tmp_path, line, same):
    (tmp_path / "notebooks").mkdir()
    notebook, lock = tmp_path / "notebooks" / "01_first.ipynb", tmp_path / "requirements.lock"
    shutil.copy(CHAPTERS[0], notebook)
    lock.write_text(LOCK)
    before = fingerprints.fingerprint(notebook, {})
    assert fingerprints.pinned(lock)["numpy"] == ["2.4.6", "2.3.0"]
    assert fingerprints.pinned(lock)["rouge-score"] == ["0.1.2"]
    lock.write_text(LOCK + line)
    assert (fingerprints.fingerprint(notebook, {}) == before) is same


def test_every_numeric_package_is_pinned():
    assert [name for name, versions in fingerprints.pinned(ROOT / "requirements.lock").items() if not versions] == []


# ---------------------------------------------------------------- keys hold all that values depend on


@pytest.fixture(scope="module")
def parts(tiny) -> Parts:
    return Parts(tiny, tiny, ("a lamp on a table", "a river under a bridge"))


PLAN = Plan((Example("t", "train", 1, "g", "a lamp"),), (0.5,), 16)


class Found(Exception):
    """Ends a call where it would look into the cache."""


def stored_under(monkeypatch, run) -> list[str]:
    """The name of the file that a call would read from the cache."""
    names: list[str] = []

    def path(kind: str, name: str) -> Path:
        names.append(f"{kind}/{name}")
        raise Found

    with monkeypatch.context() as patch:
        for module in (
            "results",
            "cache",
            "updates.quantized_models",
            "updates.safety_tuning",
            "updates.variants",
        ):
            patch.setattr(f"helpers.{module}.cache_path", path)
        with pytest.raises(Found):
            run()
    return names


SKETCHED = {"reading": PLAN, "monitors": (), "split": "test"}


def rows():
    """Rows of a safety tuning."""
    return corpora.alignment_rows(2, 2, "tiny")


def small() -> measurements.Protocol:
    """The smallest protocol."""
    return measurements.protocol(1, 1, 1, 1, 1, 2, ["phrases"], "tiny")


KEPT = {
    "activations": lambda p: measurements.stored(p, Variant("tiny"), PLAN),
    "measurements": lambda p: measurements.items(p, Variant("tiny"), small()),
    "gptq": lambda p: quantized_models.gptq_file(loading.load(p.aligned, "fp32"), "gptq-4", p.calibration),
    "update": lambda p: variants.update_folder(p, rows(), training.Recipe(kind="lora"), "nf4"),
    "salora": lambda p: variants.update_folder(p, rows(), training.Recipe(kind="salora"), "nf4", rows()),
    "aligned": lambda p: safety_tuning.aligned_folder(
        p.base, rows(), training.Recipe(kind="full"), Target(), "tiny", p.device, 6
    ),
    "signals": lambda p: forecast_data.weight_signals(p, Variant("tiny"), []),
    "sketch": lambda p: spot_check.stored("of", Sketch(small(), **SKETCHED), lambda: None),
    "scores": lambda p: experiments.measured_scores(p, ["snip"], 2, 2, 0, "tiny"),
}


@pytest.mark.parametrize("name", KEPT)
def test_another_machine_is_another_key(name, parts, monkeypatch):
    """What `compute.machine` says, compute, device, threads and torch, is in the key of all that a pass computed."""
    keys = []
    for machine in ({"compute": "fp32"}, {"compute": "fp32"}, {"compute": "bf16"}):
        monkeypatch.setattr(compute, "machine", lambda device, machine=machine: machine)
        keys += stored_under(monkeypatch, lambda: KEPT[name](parts))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_gptq_is_kept_for_the_whole_model_that_its_passes_see(parts, name):
    """The key covers embeddings and norms, not the linear weights alone, and a permutation that keeps every sum."""
    language = loading.load(parts.aligned, "fp32")
    before = quantized_models._gptq_path(language, "gptq-4", parts.calibration)
    with torch.no_grad():
        weight = language.model.get_parameter(name)
        weight.copy_(weight.flip(-1) if weight.unique().numel() > 1 else weight + 1)
    assert quantized_models._gptq_path(language, "gptq-4", parts.calibration) != before


def test_gptq_is_kept_for_the_configuration_and_the_tokens(parts):
    language = loading.load(parts.aligned, "fp32")
    same = loading.load(parts.aligned, "fp32")
    before = quantized_models._gptq_path(language, "gptq-4", parts.calibration)
    assert quantized_models._gptq_path(same, "gptq-4", parts.calibration) == before
    assert quantized_models._gptq_path(language, "gptq-4", parts.calibration[:1]) != before
    assert quantized_models._gptq_path(language, "gptq-3", parts.calibration) != before
    long = tuple(f"{text} " * 40 for text in parts.calibration)  # cut to as many tokens as the passes read
    cut = [quantized_models._gptq_path(language, "gptq-4", tuple(text + more for text in long)) for more in ("", "and more")]
    assert cut[0] == cut[1]
    same.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 9.0}
    assert quantized_models._gptq_path(same, "gptq-4", parts.calibration) != before


def test_an_aligned_model_is_kept_for_the_judge_and_the_prompts_that_end_its_training(parts, monkeypatch):
    def key() -> str:
        return KEPT["aligned"](parts).name

    keys, real = [key()], corpora.sample
    monkeypatch.setattr(corpora, "sample", lambda name, *more: real(name, *more)[: -1 if name == "edgy/validation" else None])
    keys.append(key())
    monkeypatch.undo()
    judge = replace(definitions.JUDGES, version=9)
    uses = tuple(judge if one.name == "judges" else one for one in definitions.ALIGN.uses)
    monkeypatch.setattr(safety_tuning, "ALIGN", replace(definitions.ALIGN, uses=uses))
    keys.append(key())
    assert len(set(keys)) == 3


def test_an_update_is_kept_for_what_quantizes_and_converts_it():
    assert {str(one) for one in (definitions.LOWRANK, definitions.QUANTIZE, definitions.MODELS)} <= set(definitions.TRAIN.lineage)
    assert {str(definitions.TRAIN), str(definitions.SALORA)} <= set(definitions.SALORA.lineage)


# ---------------------------------------------------------------- what a status says of itself


def entry(**changes) -> dict:
    return {"fingerprint": "old", "definitions": ["quantize v1"], "files": {}, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "new"}, ""),
        ({}, "its cells, parameters or packages changed"),
        ({"definitions": ["models v1", "quantize v0"]}, "quantize v0 is no longer what that name means"),
    ],
)
def test_a_status_says_why_it_no_longer_holds(tmp_path, changes, reason):
    assert statuses._reason(tmp_path, entry(**changes), "new", {}) == reason


def test_a_status_without_definitions_was_made_under_older_keys(tmp_path):
    old = entry()
    del old["definitions"]
    assert statuses._reason(tmp_path, old, "new", {}) == "it was made under older keys"


@pytest.mark.parametrize(("drawn", "older"), [("", False), ("another", True), (None, False)])
def test_figures_are_older_where_other_code_drew_them_and_what_tells_nothing_is_let_be(tmp_path, drawn, older):
    """`None`: drawn by today's code. Results of before this mark was kept say nothing of what drew them."""
    notebook = CHAPTERS[4]
    marks = fingerprints.marks(notebook)
    path = statuses.status_path(tmp_path, notebook.stem)
    path.parent.mkdir()
    path.write_text(json.dumps(marks if drawn is None else {**marks, "drawn": drawn}))
    assert (statuses.older_figures(tmp_path, {notebook.stem: notebook}) == [notebook.stem]) is older
