"""What a user gives is read, or refused in one line with the right code, naming rows and columns and never showing a text."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import given
from support.bland import refused

from helpers.data import user_files
from helpers.data.intake import samples
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.models import checkpoints, loading
from helpers.models.foreign import templates
from helpers.monitors import frozen
from helpers.revalidation import inputs
from helpers.revalidation.candidate import movement, offer, settings
from helpers.revalidation.candidate.movement import Movement
from helpers.revalidation.options import Options
from helpers.revalidation.score_file import scored
from helpers.updates import lora

SECRET = "marmalade"  # stands in the texts of every bad file, and in no message


@pytest.fixture
def folder(tmp_path, tiny):
    """A folder with everything that a good run takes."""
    given.write(tmp_path / "labels.jsonl", given.labelled(40))
    given.write(tmp_path / "texts.txt", given.unlabelled(60))
    given.write(tmp_path / "fit.jsonl", given.labelled(80, "fit"))
    frozen.save([given.monitor(seed=i, layer=1 + i) for i in range(2)], tmp_path / "frozen")
    given.adapter(tmp_path / "adapter")
    return tmp_path


def options(folder, **changed):
    """The options of a good run, some of them changed; names of files in the folder become paths."""
    good = {"base": "tiny", "update": "adapter", "monitors": "frozen", "texts": "texts.txt", "labels": "labels.jsonl"} | changed
    paths = {name: str(folder / value) for name, value in good.items() if isinstance(value, str) and (folder / value).exists()}
    return Options(**{**good, **{name: path for name, path in paths.items() if good[name]}})


# ---------------------------------------------------------------- what is read


def test_a_good_set_of_inputs_is_read(folder, tiny):
    found = inputs.check_inputs(options(folder))
    assert (found.base, found.update.kind, found.update.name) == (tiny, "adapter", "adapter")
    assert (len(found.texts), len(found.labels), len(found.monitors)) == (60, 40, 2)
    assert {row.task for row in found.labels} == {"lamps"}
    assert found.notes == ()
    assert found.reads == given.READS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_labelled_rows_are_read_with_bom_and_crlf_in_either_form(tmp_path, name):
    rows = given.labelled(6, group="a")
    rows = [{**row, "group": f"g{i // 2}", "task": "lamps"} for i, row in enumerate(rows)]
    path = tmp_path / name
    given.write(path, rows)
    plain = user_files.labelled(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert user_files.labelled(path) == plain
    assert [(row.prompt, row.label, row.group, row.task) for row in plain] == [
        (row["text"], row["label"], row["group"], "lamps") for row in rows
    ]


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl"])
def test_unlabelled_texts_are_read_each_once(tmp_path, name):
    rows = given.unlabelled(5)
    given.write(tmp_path / name, [*rows, rows[0]])
    assert [row.prompt for row in user_files.unlabelled(tmp_path / name)] == [row["text"] for row in rows]


def test_without_groups_near_duplicates_share_one(tmp_path):
    rows = given.labelled(6)
    path = given.write(tmp_path / "l.jsonl", [*rows, {**rows[0], "text": rows[0]["text"].upper() + "!"}])
    groups = [row.group for row in user_files.labelled(tmp_path / path)]
    assert groups[0] == groups[6]
    assert len(set(groups)) == 6


def test_scores_are_read_by_monitor_with_what_is_optional(tmp_path):
    rows = [
        {"monitor": m, "id": i, "before": i, "after": i + 1, "label": i % 2, "threshold": 0.5} for m in "ab" for i in range(4)
    ]
    for name in ("s.csv", "s.jsonl"):
        given.write(tmp_path / name, rows)
        found = user_files.scores(tmp_path / name)
        assert [one.after for one in found["b"]] == [1.0, 2.0, 3.0, 4.0]
        assert {(one.label, one.threshold, one.group) for one in found["a"]} == {(0.0, 0.5, ""), (1.0, 0.5, "")}
    given.write(tmp_path / "s.csv", [{k: v for k, v in row.items() if k not in ("label", "threshold")} for row in rows])
    assert np.isnan([[one.label, one.threshold] for one in user_files.scores(tmp_path / "s.csv")["a"]]).all()


# ---------------------------------------------------------------- files that are refused

GOOD = {"text": f"the lamp and {SECRET}", "label": 1}
BAD_LABELS = {
    "empty": ("l.jsonl", "", ("holds no rows",)),
    "empty table": ("l.csv", "text,label\n", ("holds no rows",)),
    "wrong columns": ("l.csv", f"texts,target\n{SECRET},1\n", ("has no text or prompt", "it has texts, target")),
    "no label column": ("l.jsonl", json.dumps({"text": SECRET}), ("row 1 has no label", "it has text")),
    "no header": ("l.csv", f"the {SECRET} jar,1\nthe lamp,0\n", ("header is missing",)),
    "malformed line": ("l.jsonl", f'{json.dumps(GOOD)}\n{{"text": "{SECRET}\n', ("line 2 is not JSON",)),
    "not an object": ("l.jsonl", f'["{SECRET}"]', ("line 1 is not a JSON object",)),
    "deep": ("l.jsonl", "[" * 100_000, ("brackets within brackets",)),
    "one class": ("l.jsonl", "\n".join([json.dumps(GOOD)] * 3), ("all 3 labels are 1", "both labels")),
    "strange label": ("l.jsonl", json.dumps({**GOOD, "label": "yes"}), ("row 1 has no label 0, 1",)),
    "empty text": ("l.jsonl", json.dumps({"text": " ", "label": 0}), ("row 1 has an empty text",)),
    "number as text": ("l.jsonl", json.dumps({"text": 7, "label": 0}), ("its text is a int",)),
    "surrogate": ("l.jsonl", json.dumps({"text": SECRET + "\ud800", "label": 0}), ("row 1", "lone surrogate")),
    "long line": ("l.jsonl", json.dumps({"text": SECRET * 1_200_000, "label": 0}), ("line 1 is longer than 1048576",)),
    "not utf-8": ("l.csv", f"text,label\n{SECRET}".encode() + b"\xff,1\n", ("is not UTF-8",)),
    "extra field": ("l.csv", f"text,label\nthe lamp, the {SECRET},1\n", ("row 1 has more fields",)),
    "some groups": ("l.jsonl", "\n".join(map(json.dumps, [{**GOOD, "group": "a"}, GOOD])), ("row 2 has no group",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_labelled_file_is_refused_by_row_without_its_text(tmp_path, case):
    name, content, said = BAD_LABELS[case]
    given.write(tmp_path / name, content)
    with refused(REFUSED, name, *said, hidden=(SECRET, str(tmp_path))):
        user_files.labelled(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("t.txt", "\n \n", REFUSED, "holds no text"),
        ("t.csv", f"prompts\n{SECRET}\n", REFUSED, "it has prompts"),
        ("t.txt", b"\xff\xfe", REFUSED, "not UTF-8"),
        ("t.md", SECRET, USAGE, ".txt"),
        ("t.tsv", SECRET, USAGE, "separated by tabs; save it with commas: pandas.read_csv(path, sep='\\t').to_csv('texts.csv'"),
        ("t.json", SECRET, USAGE, "write an object a line: pandas.read_json(path).to_json('texts.jsonl'"),
        ("t.parquet", b"PAR1", USAGE, "pandas.read_parquet(path).to_json('texts.jsonl'"),
        ("t.jsonl.gz", b"\x1f\x8b", USAGE, "it is packed; unpack it first"),
        ("t.ndjson", SECRET, USAGE, "rename it to texts.jsonl"),
        ("t.pkl", SECRET, USAGE, "which can run code"),
        ("absent.txt", None, USAGE, "does not exist"),
    ],
)
def test_a_bad_file_of_texts_is_refused(tmp_path, name, content, code, said):
    if content is not None:
        given.write(tmp_path / name, content)
    with refused(code, said, hidden=(SECRET,)):
        user_files.unlabelled(tmp_path / name)


SCORE = {"monitor": "m", "id": "a", "before": 0.1, "after": 0.2, "label": 0, "threshold": 0.5}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"monitor": "m", "id": "a", "old": 1}], "has no before; it has monitor, id, old"),
        ([SCORE, {**SCORE, "label": 1}], "its id stands 2 times"),
        ([SCORE, {**SCORE, "id": "b"}], "all 2 labels of 'm' are 0"),
        ([SCORE, {**SCORE, "id": "b", "label": 1, "threshold": 0.6}], "thresholds that differ"),
        ([SCORE, {**SCORE, "id": "b", "label": ""}], "rows with and without a label"),
        ([{**SCORE, "after": "nan"}], "its after is not a finite number"),
        ([{**SCORE, "monitor": ""}], "empty monitor or id"),
    ],
)
def test_bad_scores_are_refused(tmp_path, rows, said):
    given.write(tmp_path / "s.jsonl", rows)
    with refused(REFUSED, said):
        user_files.scores(tmp_path / "s.jsonl")


# ---------------------------------------------------------------- inputs that do not go together


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"base": ""}, USAGE, "--base is missing"),
        ({"update": ""}, USAGE, "--update is missing"),
        ({"monitors": "", "fit": "fit.jsonl", "required": ("fit/lda-mean/3",)}, USAGE, "did you mean 'fit/lda-mean/2'"),
        ({"monitors": "", "fit": "fit.jsonl", "depths": (6.0,)}, USAGE, "depths 6.0"),
        ({"update": "nf5"}, USAGE, "did you mean 'nf4'"),
        ({"update": "nf4", "precision": "nf4"}, USAGE, "is a precision itself"),
        ({"precision": "7bit"}, USAGE, "unknown precision"),
        ({"monitors": ""}, USAGE, "give either --monitors"),
        ({"fit": "labels.jsonl"}, USAGE, "give either --monitors"),
        ({"monitors": "nowhere"}, USAGE, "is no folder"),
        ({"texts": "", "labels": ""}, USAGE, "both missing"),
        ({"required": ("lamps/lda-mean/9",)}, USAGE, "required monitor 'lamps/lda-mean/9' is not there"),
        ({"texts_limit": 1}, USAGE, "--texts-limit"),
        ({"kinds": ("attention",)}, USAGE, "no kind that can be fitted"),
        ({"base": "nowhere"}, USAGE, "unknown model"),
        ({"base": "owner/model"}, REFUSED, "has no revision"),
    ],
)
def test_options_that_cannot_be_are_refused(folder, changed, code, said):
    with refused(code, said):
        inputs.check_inputs(options(folder, **changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"width": 64}, "width is 64, the model's is 128"), ({"layers": 6}, "layers"), ({"reads": "x"}, "reads")],
)
def test_monitors_of_another_model_cannot_be_compared(folder, changed, said):
    frozen.save([given.monitor(**changed)], folder / "others")
    with refused(NOT_COMPARABLE, "monitor lamps/mean-difference-mean/2", said):
        inputs.check_inputs(options(folder, monitors="others"))


def test_an_edited_monitor_and_a_folder_of_pickles_are_refused(folder):
    path = folder / "frozen" / frozen.METADATA
    path.write_text(path.read_text().replace('"5": ', '"5": 1'))
    with refused(REFUSED, "was changed after it was frozen"):
        inputs.check_inputs(options(folder))
    (folder / "old").mkdir()
    (folder / "old" / "probe.pkl").write_bytes(b"")
    with refused(REFUSED, "old holds probe.pkl"):
        inputs.check_inputs(options(folder, monitors="old"))


def test_an_adapter_as_pickle_for_another_base_or_of_another_form_is_refused(folder):
    pickled = folder / "pickled"
    pickled.mkdir()
    shutil.copy(folder / "adapter" / "adapter_config.json", pickled)
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04")
    with refused(REFUSED, "pickled holds adapter_model.bin"):
        inputs.check_inputs(options(folder, update="pickled"))
    (folder / "adapter" / "training_args.bin").write_bytes(b"\x80\x04")  # never opened, so it does no harm beside the safetensors
    assert inputs.check_inputs(options(folder)).update.adapter
    given.adapter(folder / "larger", d_out=576, d_in=1536)
    with refused(NOT_COMPARABLE, "1 of 1 modules are not the base's (model.layers.0.mlp.down_proj)"):
        inputs.check_inputs(options(folder, update="larger"))
    given.adapter(folder / "deeper", module="model.layers.9.mlp.down_proj")
    with refused(NOT_COMPARABLE, "model.layers.9.mlp.down_proj", "another base"):
        inputs.check_inputs(options(folder, update="deeper"))
    (folder / "nothing").mkdir()
    with refused(REFUSED, "has neither adapter_config.json nor config.json"):
        inputs.check_inputs(options(folder, update="nothing"))


def test_a_merged_model_of_other_depth_tokenizer_or_template_cannot_be_compared(folder, tiny):
    merged = folder / "merged"
    shutil.copytree(tiny, merged)
    assert inputs.check_inputs(options(folder, update="merged")).update.kind == "merged"
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with refused(NOT_COMPARABLE, "num_hidden_layers is 6, the base's 4"):
        inputs.check_inputs(options(folder, update="merged"))
    (merged / "config.json").write_text(json.dumps(config))
    template = merged / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "human") + "Go on: ")
    with refused(NOT_COMPARABLE, "its tokenizer and template are"):
        inputs.check_inputs(options(folder, update="merged"))
    (merged / "tokenizer.json").write_text("{")
    with refused(REFUSED, "merged/tokenizer.json is no JSON file"):
        inputs.check_inputs(options(folder, update="merged"))


def test_of_more_texts_than_are_read_a_seeded_sample_is_and_the_report_says_so(folder, monkeypatch):
    monkeypatch.setattr(samples, "MOST_ROWS", 30)
    found = inputs.check_inputs(options(folder, monitors="", fit="fit.jsonl", kinds=("logistic",)))
    assert (len(found.texts), len(found.labels), len(found.training)) == (30, 30, 30)
    assert sum(row.label for row in found.labels) == 15
    said = [note for note in found.notes if "random sample of 30 was read (seed 0" in note]
    assert [note.split(" holds ")[0] for note in said] == ["texts.txt", "labels.jsonl", "fit.jsonl"]
    assert inputs.check_inputs(options(folder)).texts == found.texts
    other = inputs.check_inputs(options(folder, seed=1))
    assert other.texts != found.texts
    assert {row.prompt for row in other.texts} <= {row["text"] for row in given.unlabelled(60)}


def test_templates_see_the_instant_that_the_monitors_were_saved_at(folder, tiny):
    telling, then = folder / "telling", "2031-05-06T07:08:09"
    shutil.copytree(tiny, telling)
    template = telling / "chat_template.jinja"
    template.write_text("{{ strftime_now('%S') }}" + template.read_text(encoding="utf-8"), encoding="utf-8")
    with templates.clock(then):
        frozen.save([given.monitor(reads=settings.reads(telling))], folder / "timed")
    asked = options(folder, base="telling", monitors="timed")
    assert inputs.instant(options(folder)) == templates.INSTANT  # the control: monitors that were saved without a clock
    assert inputs.instant(asked) == then
    assert inputs.instant(replace(asked, instant="2032-01-01T00:00:00")) == "2032-01-01T00:00:00"
    with templates.clock(inputs.instant(asked)):
        assert [note for note in inputs.check_inputs(asked).notes if f"which stood at {then}" in note]
    with refused(NOT_COMPARABLE, "reads is"):
        inputs.check_inputs(asked)


def test_one_unlabelled_text_alone_is_refused_at_once(folder):
    given.write(folder / "one.txt", given.unlabelled(1))
    with refused(REFUSED, "one.txt holds one text", "give 50 or more"):
        inputs.check_inputs(options(folder, texts="one.txt", labels=""))
    assert len(inputs.check_inputs(options(folder, texts="one.txt")).texts) == 1  # the control: labels tell something


def test_texts_of_fit_may_not_be_judged_on(folder):
    fit = given.labelled(80, "fit")
    found = inputs.check_inputs(options(folder, monitors="", fit="fit.jsonl"))
    assert {row.split for row in found.training} == {"train", "validation"}
    assert (len(found.training), len(found.labels), {row.task for row in found.labels}) == (80, 40, {"fit"})
    alone = inputs.check_inputs(options(folder, monitors="", fit="fit.jsonl", labels=""))
    assert len(alone.training) + len(alone.labels) == 80
    assert {row.split for row in alone.labels} == {"test"}
    mixed = [*given.labelled(30), fit[4], {**fit[5], "text": fit[5]["text"].upper() + "  "}]
    given.write(folder / "both.jsonl", mixed)
    with refused(REFUSED, "2 text(s) of --labels are among those of --fit", "row 31 of both.jsonl", hidden=("thunder", "breeze")):
        inputs.check_inputs(options(folder, monitors="", fit="fit.jsonl", labels="both.jsonl"))


def test_labels_say_which_task_they_are_of_where_there_are_several(folder):
    frozen.save([given.monitor(), given.monitor("tools")], folder / "frozen")
    with refused(USAGE, "monitors are of 2 tasks", "a column 'task'"):
        inputs.check_inputs(options(folder))
    rows = [*given.labelled(10, task="lamps"), *given.labelled(10, "more", task="tools")]
    given.write(folder / "tasks.jsonl", rows)
    assert [row.task for row in inputs.check_inputs(options(folder, labels="tasks.jsonl")).labels] == ["lamps"] * 10 + [
        "tools"
    ] * 10
    given.write(folder / "tasks.jsonl", [{**row, "task": "boats"} for row in rows])
    with refused(REFUSED, "names task 'boats'"):
        inputs.check_inputs(options(folder, labels="tasks.jsonl"))


def test_what_a_user_should_know_is_noted(folder):
    given.write(folder / "few.txt", given.unlabelled(12))
    other = [given.monitor(seed=1)]
    frozen.save([models_named(other[0], "aligned-0123")], folder / "frozen")
    notes = inputs.check_inputs(options(folder, texts="few.txt")).notes
    assert any("12 unlabelled texts, fewer than 50" in note and "verdict" in note for note in notes)
    assert any("frozen on aligned-0123" in note for note in notes)


def models_named(monitor, name):
    """The monitor as frozen on a model of another name."""
    from dataclasses import replace

    return replace(monitor, model=name)


def test_scores_need_nothing_else(tmp_path):
    given.write(tmp_path / "s.jsonl", [SCORE, {**SCORE, "id": "b", "label": 1}])
    found = scored(Options(scores=str(tmp_path / "s.jsonl")))
    assert list(found) == ["m"]
    with refused(USAGE, "--scores was given with --update"):
        scored(Options(scores=str(tmp_path / "s.jsonl"), update="nf4"))
    with refused(USAGE, "required monitor 'x'"):
        scored(Options(scores=str(tmp_path / "s.jsonl"), required=("x",)))


# ---------------------------------------------------------------- how far an update moved


def test_an_update_says_how_far_and_from_which_block_on_it_moved(folder, tiny):
    stored = checkpoints.of_model(tiny, loading.load(tiny).model, torch.bfloat16)

    def moved(name, precision="bf16"):
        update = offer.check_update(str(folder / name) if (folder / name).is_dir() else name, precision, tiny, given.READS)
        language = offer.build(update, tiny, precision, "cpu", ["the lamp"])
        return movement.moved(language, update, precision, stored)

    shutil.copytree(tiny, folder / "same")
    given.adapter(folder / "upper", module="model.layers.2.mlp.down_proj")
    given.adapter(folder / "zero", size=0.0)
    assert (moved("none"), moved("same"), moved("zero")) == (Movement(0.0, 5),) * 3
    assert moved("upper").lowest == 2
    assert moved("upper").relative > 0
    assert moved("nf4").lowest == 0
    assert moved("none", "bf16") != moved("zero", "fp32")  # fp32 computes otherwise with the same weights
    language = loading.load(tiny)
    expected = lora.load_adapter(folder / "adapter")["model.layers.0.mlp.down_proj"].norm()
    total = sum(float(p.double().square().sum()) for n, p in language.model.named_parameters() if "proj" in n) ** 0.5
    assert moved("adapter").relative == pytest.approx(expected / total, rel=1e-4)
    lora.merge(language.model, lora.load_adapter(folder / "adapter"))
    loading.save(language, folder / "merged")
    assert moved("merged").relative == pytest.approx(moved("adapter").relative, rel=0.02)  # rounded to bf16 once


@pytest.mark.parametrize(("name", "lowest"), [("norm", 4), ("layers.3.input_layernorm", 3), ("embed_tokens", 0)])
def test_what_changed_outside_the_linear_modules_is_seen_too(folder, tiny, name, lowest):
    language = loading.load(tiny)
    with torch.no_grad():
        language.model.model.get_submodule(name).weight.mul_(1.5)
    loading.save(language, folder / "merged")
    update = offer.check_update(str(folder / "merged"), "bf16", tiny, given.READS)
    stored = checkpoints.of_model(tiny, loading.load(tiny).model, torch.bfloat16)
    found = movement.moved(offer.build(update, tiny, "bf16", "cpu", []), update, "bf16", stored)
    assert (found.relative, found.lowest) == (0.0, lowest)


def test_a_folder_is_known_by_its_content(folder, tiny):
    shutil.copytree(tiny, folder / "copy")
    assert offer.content_hash(folder / "copy") == offer.content_hash(tiny)
    assert offer.content_hash(folder / "adapter") != offer.content_hash(tiny)
    weights = next((folder / "copy").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert offer.content_hash(folder / "copy") != offer.content_hash(tiny)


def test_errors_are_study_errors_of_one_line(folder):
    with pytest.raises(StudyError) as caught:
        inputs.check_inputs(options(folder, labels="absent.jsonl"))
    assert "\n" not in str(caught.value)
