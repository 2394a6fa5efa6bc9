"""A plan is refused by the name of what is wrong, before anything runs."""

import json
import re
from pathlib import Path

import pytest
from support import families
from support.bland import refused

from helpers.errors import USAGE, StudyError
from helpers.models import built_in
from helpers.runner import plans

ROOT = Path(__file__).parents[2]


def test_models_are_checked_by_name_folder_and_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plans.checked_model("tiny") == "tiny"
    with pytest.raises(StudyError, match="unknown model 'tinny'; did you mean 'tiny'"):
        plans.checked_model("tinny")
    with pytest.raises(StudyError, match="hub model 'owner/name' has no revision"):
        plans.checked_model("owner/name")
    assert plans.checked_model("Owner/Name@abc") == "owner-name-abc"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StudyError, match=r"config\.json"):
        plans.checked_model("folder")
    with pytest.raises(StudyError, match="expected str, got int 7"):
        plans.checked_model(7)


def test_a_pair_of_the_hub_brings_its_chat_model_and_both_are_pinned():
    for name, pair in built_in.PAIRS.items():
        assert plans.checked_model(name) == name
        for address in (pair.base, pair.chat):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", address), address
        assert pair.base.partition("@")[0] != pair.chat.partition("@")[0]
    plan = plans.check(ROOT, "smoke", ["qwen2.5-0.5b"])
    (values,) = plan.values.values()
    assert values["01_models"]["aligned_model"] == built_in.PAIRS["qwen2.5-0.5b"].chat
    assert plans.check(ROOT, "smoke").values[plans.check(ROOT, "smoke").runs[0]]["01_models"]["aligned_model"] == ""


def test_profile_gpu_is_every_pair_with_its_chat_model(monkeypatch):
    from helpers.models import loading

    monkeypatch.setattr(loading, "device", lambda name: name)  # no GPU here
    plan = plans.check(ROOT, "gpu")
    assert [run.model for run in plan.runs] == list(built_in.PAIRS)
    assert {"llama-3.2-1b", "qwen2.5-0.5b", "qwen2.5-1.5b", "gemma-3-1b", "smollm2-360m"} <= set(built_in.PAIRS)
    for run in plan.runs:
        own = plan.values[run]["01_models"]
        assert (own["model"], own["aligned_model"]) == (run.model, built_in.PAIRS[run.model].chat)
        assert own["device"] == "cuda"


@pytest.fixture
def profiles(tmp_path):
    """A project with the study's notebooks and a profile of its own."""
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "profiles").mkdir()
    return tmp_path, tmp_path / "profiles" / "own.yaml"


LEAN = 'lean:\n  from_seed: 3\n  skip: ["05", "triage"]\n  changes:\n    quantizers: [nf4]\n    train_lr: 0.5\n'


def test_lean_seeds_leave_chapters_out_and_change_parameters_and_the_others_do_not(profiles):
    root, path = profiles
    path.write_text(f"model: tiny\nseed: [2, 3, 7]\nquantizers: [int8, nf4]\n{LEAN.replace('0.5', '0.05')}")
    plan = plans.check(root, "own")
    whole, *lean = plan.runs
    assert plan.chapters(whole) == plan.notebooks
    assert plan.values[whole]["02_quantization"]["quantizers"] == ["int8", "nf4"]
    for run in lean:
        assert set(plan.notebooks) - set(plan.chapters(run)) == {"05_staleness", "06_triage"}
        assert plan.values[run]["02_quantization"]["quantizers"] == ["nf4"]
        assert plan.values[run]["03_finetuning"]["train_lr"] == 0.05
        prints = plan.fingerprints(run)
        assert list(prints) == list(plan.chapters(run))
        assert prints["01_models"] != plan.fingerprints(whole)["01_models"]  # another seed


def test_of_several_entries_for_lean_seeds_the_last_that_has_begun_holds(profiles):
    root, path = profiles
    later = 'lean:\n  - from_seed: 3\n    skip: ["05"]\n  - from_seed: 1\n    changes: {quantizers: [nf4]}\n'
    path.write_text(f"model: tiny\nseed: [0, 2, 7]\nquantizers: [int8, nf4]\n{later}")
    plan = plans.check(root, "own")
    assert [plan.values[run]["02_quantization"]["quantizers"] for run in plan.runs] == [["int8", "nf4"], ["nf4"], ["int8", "nf4"]]
    assert [len(plan.notebooks) - len(plan.chapters(run)) for run in plan.runs] == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lean: 3\n", ["'lean' is 3", "from_seed"]),
        ("lean:\n  skip: []\n", ["from_seed"]),
        ("lean:\n  from_seed: 3\n  leave: []\n", ["from_seed, and skip or changes"]),
        ("lean:\n  from_seed: x\n", ["lean.from_seed", "expected int"]),
        ("lean:\n  from_seed: -1\n", ["lean.from_seed", "allowed: from 0"]),
        ('lean:\n  from_seed: 3\n  skip: ["12"]\n', ["unknown chapter '12'"]),
        ("lean:\n  from_seed: 3\n  skip: 5\n", ["list of chapters"]),
        ("lean:\n  from_seed: 3\n  changes: {sead: 1}\n", ["unknown parameter 'sead'"]),
        ("lean:\n  from_seed: 3\n  changes: {quantizers: [nf5]}\n", ["quantizers", "nf5"]),
        ("lean:\n  from_seed: 3\n  changes: {model: tiny}\n", ["'lean' changes 'model'", "one for all seeds"]),
    ],
)
def test_a_wrong_entry_for_lean_seeds_is_refused_in_one_line(profiles, text, words):
    root, path = profiles
    path.write_text(f"model: tiny\nseed: [0, 3]\n{text}")
    with refused(USAGE, *words):
        plans.check(root, "own")


def test_a_chapter_that_reads_lower_seeds_rests_on_what_they_have(profiles, monkeypatch):
    """So that seeds which ran side by side, each without the other's cells, are put right by one more run."""
    root, path = profiles
    path.write_text("model: tiny\nseed: [0, 1]\n")
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", "results")

    def prints(*seeds):
        plan = plans.check(root, "own", seeds=seeds)
        return plan.fingerprints(plan.runs[-1])

    alone, both = prints(1), prints(0, 1)
    assert {name for name in alone if alone[name] != both[name]} == {"06_triage", "10_realignment", "11_findings"}
    status = root / "results" / "own" / "tiny" / "seed-0" / "status" / "06_triage.json"
    status.parent.mkdir(parents=True)
    status.write_text(json.dumps({"fingerprint": prints(0)["06_triage"]}))
    assert prints(1)["06_triage"] == both["06_triage"]
    status.write_text(json.dumps({"fingerprint": "another"}))
    assert prints(1)["06_triage"] not in {alone["06_triage"], both["06_triage"]}


def test_a_model_of_ones_own_has_two_threads_a_chapter_unless_the_profile_says_another_number(profiles, tmp_path):
    root, path = profiles
    own = str(families.write("qwen2", tmp_path / "own"))

    def threads(text: str, model: str) -> set[int]:
        path.write_text(text)
        plan = plans.check(root, "own", [model])
        return {values["threads"] for values in plan.values[plan.runs[0]].values()}

    assert threads("", "tiny") == {1}
    assert threads("", own) == {plans.ALONE}
    assert threads("threads: 3", own) == {3}
