"""Parameters and profiles: what is accepted, and one line for everything that is not."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from helpers import seeding
from helpers.errors import StudyError
from helpers.runner import plans
from helpers.study import limits, parameters
from helpers.study.parameters import Limit

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
CELL = """
seed = 0            # a comment
model = "embedded"
must_hold = True
rank = 8
train_lr = 2e-4
alpha = 16.0
quantizers = ["none", "nf4"]
harm_percents = [0, 10]
nothing = []
"""


def write(path: Path, *cells: str) -> Path:
    """A notebook whose cells are all tagged as parameters."""
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]}) for text in cells]
    made.cells.append(nbformat.v4.new_code_cell("other = 1"))
    nbformat.write(made, path)
    return path


@pytest.fixture
def notebooks(tmp_path) -> dict[str, Path]:
    """One notebook that declares a parameter of each kind."""
    return {"01_x": write(tmp_path / "01_x.ipynb", CELL)}


def resolve(notebooks, **overrides):
    """The parameters of the one chapter."""
    return parameters.resolve(notebooks, overrides, limits.all_limits(), "profiles/x.yaml")["01_x"]


# ---------------------------------------------------------------- notebooks


def test_declared_reads_literals_in_order(notebooks):
    found = parameters.declared(notebooks["01_x"])
    assert list(found) == ["seed", "model", "must_hold", "rank", "train_lr", "alpha", "quantizers", "harm_percents", "nothing"]
    assert (found["train_lr"], found["quantizers"], found["must_hold"]) == (2e-4, ["none", "nf4"], True)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ((), "has 0 cells tagged 'parameters'"),
        (("a = 1", "b = 2"), "has 2 cells tagged"),
        (("a = 1 + int('2')",), "is not a literal"),
        (("a = 1\nb = a",), "parameter 'b = a' is not a literal"),
        (("a = b = 1",), "is not 'name = literal'"),
        (("import os",), "is not 'name = literal'"),
        (("a = 1\na = 2",), "declares parameter 'a' twice"),
        (("a = (",), "is not Python (line 1)"),
    ],
)
def test_other_parameter_cells_are_refused(tmp_path, cells, text):
    with pytest.raises(StudyError) as caught:
        parameters.declared(write(tmp_path / "01_x.ipynb", *cells))
    assert text in str(caught.value)
    assert "01_x.ipynb" in str(caught.value)


def test_a_broken_notebook_is_named(tmp_path):
    (tmp_path / "01_x.ipynb").write_text('{"cells": [')
    with pytest.raises(StudyError, match=r"notebook 01_x\.ipynb cannot be read"):
        parameters.declared(tmp_path / "01_x.ipynb")


def test_one_parameter_has_one_default(tmp_path):
    both = {name: write(tmp_path / f"{name}.ipynb", text) for name, text in {"01_a": "n = 1", "02_b": "n = True"}.items()}
    with pytest.raises(StudyError, match="parameter 'n' has two defaults, 1 in 01_a and True in 02_b"):
        parameters.consistent(both)
    both["02_b"] = write(tmp_path / "02_b.ipynb", "n = 1\nm = 2")
    assert parameters.consistent(both) == {"n": 1, "m": 2}


# ---------------------------------------------------------------- profiles as files

BAD = {
    "doubled": ("rank: 1\nseed: 2\nrank: 3\n", "line 1: key 'rank' stands there twice"),
    "anchored": ("a: &x 1\n", "anchors and aliases are not allowed"),
    "bomb": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchors and aliases are not allowed"),
    "alias": ("a: *x\n", "anchors and aliases are not allowed"),
    "tab": ("\trank: 1\n", "line 1: found character '\\t'"),
    "python": ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    "list": ("- rank\n", "holds a list; write one 'parameter: value' a line"),
    "text": ("rank\n", "holds a str"),
    "number": ("1: 2\n", "key 1 is not a name"),
    "nan": ("train_lr: .nan\n", "parameter 'train_lr' is nan (from profiles/nan.yaml); give a finite number"),
    "inf": ("a: [1.0, -.inf]\n", "parameter 'a' is -inf"),
    "surrogate": ('a: "\\ud800"\n', "holds half a character"),
    "deep": ("a: " + "[" * 5000, "recursion"),
    "large": ("# " + "x" * 70_000, "a profile is at most 65536"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_profile_file_is_one_line(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text(BAD[name][0])
    with pytest.raises(StudyError) as caught:
        parameters.profile(name, tmp_path)
    text = str(caught.value)
    assert (BAD[name][1] in text, "\n" in text, f"profiles/{name}.yaml" in text, caught.value.code) == (True, False, True, 2), (
        text
    )


def test_a_profile_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(StudyError, match="not UTF-8"):
        parameters.profile("x", tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../../x", "a/b", ".hidden", "CON", "ä", "a b", "a" * 65, "x\n", "a\0"])
def test_a_name_that_is_no_name_is_refused_with_the_pattern(tmp_path, name):
    with pytest.raises(StudyError) as caught:
        parameters.profile(name, tmp_path)
    assert "[a-z0-9._-]{1,64}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_gets_the_nearest_name():
    with pytest.raises(StudyError, match=r"unknown profile 'smok'; did you mean 'smoke'\?"):
        parameters.profile("smok", ROOT / "profiles")


def test_scalars_mean_one_thing_only(tmp_path):
    text = "a: no\nb: 007\nc: 1e-3\nd: 1.0e-3\ne: true\nf: 2020-01-01\ng: 1:30\nh: -3\ni: 'true'\nj: [1, on]\nk: 0x1F\n"
    (tmp_path / "x.yaml").write_text(text)
    found = parameters.profile("x", tmp_path)
    words = dict(
        zip("abcdefghijk", ["no", "007", "1e-3", 0.001, True, "2020-01-01", "1:30", -3, "true", [1, "on"], "0x1F"], strict=True)
    )
    assert json.dumps(found) == json.dumps(words)


def test_an_empty_profile_changes_nothing(tmp_path, notebooks):
    (tmp_path / "quick.yaml").write_text("# nothing\n")
    assert resolve(notebooks, **parameters.profile("quick", tmp_path)) == parameters.declared(notebooks["01_x"])


# ---------------------------------------------------------------- types, ranges, names


def test_good_values_are_taken_in_the_type_of_the_default(notebooks):
    found = resolve(notebooks, seed=3, alpha=32, quantizers=["gptq-4"], harm_percents=[100], nothing=["x"], model="tiny")
    assert (found["seed"], found["alpha"], type(found["alpha"]), found["quantizers"]) == (3, 32.0, float, ["gptq-4"])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("rnak", 4, "unknown parameter 'rnak' (from profiles/x.yaml); did you mean 'rank'?"),
        ("rank", "4", "expected int (a whole number without quotes), got str '4' (from profiles/x.yaml); its default is 8"),
        ("rank", 7.0, "expected int (a whole number without quotes), got float 7.0"),
        ("rank", True, "expected int (a whole number without quotes), got bool True"),
        ("rank", None, "got NoneType None"),
        ("rank", "007", "expected int"),
        ("rank", [1], "expected int"),
        ("rank", 0, "parameter 'rank' is 0 (from profiles/x.yaml); allowed: from 1 up to 256"),
        ("rank", 257, "allowed: from 1 up to 256"),
        ("seed", -1, "allowed: from 0 up to 2147483647"),
        ("seed", 2**31, "allowed: from 0"),
        ("train_lr", "1e-3", "expected float (such as 0.001, without quotes), got str '1e-3' (from profiles/x.yaml)"),
        ("train_lr", 0.0, "allowed: above 0 up to 0.1"),
        ("train_lr", 1, "allowed: above 0 up to 0.1"),
        ("train_lr", float("nan"), "give a finite number"),
        ("alpha", -1.0, "allowed: above 0"),
        ("must_hold", "false", "expected bool (true or false), got str 'false'"),
        ("must_hold", "no", "expected bool"),
        ("must_hold", 0, "expected bool"),
        ("model", 5, "expected str, got int 5"),
        ("quantizers", "nf4", "expected list, got str 'nf4'"),
        ("quantizers", ["nf5"], "parameter 'quantizers[0]' is 'nf5' (from profiles/x.yaml); did you mean 'nf4'?"),
        ("quantizers", ["nf4", 4], "parameter 'quantizers[1]': expected str, got int 4"),
        ("quantizers", ["nf4", "nf4"], "lists 'nf4' twice"),
        ("quantizers", [], "is an empty list"),
        ("harm_percents", [1.5], "expected int"),
    ],
)
def test_bad_values_are_one_line_with_name_value_and_source(notebooks, name, value, text):
    with pytest.raises(StudyError) as caught:
        resolve(notebooks, **{name: value})
    message = str(caught.value)
    assert (text in message, name in message, "\n" in message, caught.value.code) == (True, True, False, 2), message


def test_a_notebook_default_outside_its_limit_is_refused_too(tmp_path):
    own = {"01_x": write(tmp_path / "01_x.ipynb", "rank = 0")}
    with pytest.raises(StudyError, match="parameter 'rank' is 0 \\(from the notebook\\)"):
        resolve(own)


def test_an_empty_list_is_allowed_where_a_limit_says_so(notebooks):
    limits = {"quantizers": Limit(choices=lambda: ("none",), may_be_empty=True)}
    with pytest.raises(StudyError, match="from the notebook"):  # its default names nf4
        parameters.resolve(notebooks, {"quantizers": []}, limits)
    limits = {"quantizers": Limit(may_be_empty=True)}
    assert parameters.resolve(notebooks, {"quantizers": []}, limits)["01_x"]["quantizers"] == []


def test_each_chapter_gets_only_what_it_declares(tmp_path):
    both = {
        name: write(tmp_path / f"{name}.ipynb", text) for name, text in {"01_a": "rank = 1\nx = 1", "02_b": "rank = 1"}.items()
    }
    assert parameters.resolve(both, {"rank": 2, "chapter_seconds": 5}) == {"01_a": {"rank": 2, "x": 1}, "02_b": {"rank": 2}}


# ---------------------------------------------------------------- this project's own


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
def test_our_notebooks_agree_on_their_defaults():
    assert parameters.consistent(NOTEBOOKS)


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "gpu" or torch.cuda.is_available()])
def test_our_profiles_are_valid(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = plans.check(ROOT, profile)
    assert all(set(plan.values[each]) == set(NOTEBOOKS) for each in plan.runs)


@pytest.mark.skipif(torch.cuda.is_available() or not NOTEBOOKS, reason="needs a machine without a GPU, and notebooks")
def test_a_gpu_that_is_absent_is_named_before_anything_runs():
    with pytest.raises(
        StudyError, match=r"device 'cuda' was asked for, but torch sees no GPU; use device=cpu or the cpu profile"
    ) as caught:
        plans.check(ROOT, "gpu")
    assert caught.value.code == 14


# ---------------------------------------------------------------- seeds


def test_seeds_come_from_names_and_do_not_collide():
    seeds = {seeding.derive_seed(seed, name) for seed in range(20) for name in ("align", "mix", "train", "judge")}
    assert len(seeds) == 80
    assert seeding.derive_seed(0, "align") == seeding.derive_seed(0, "align")
    assert max(seeds) < 2**31


def test_set_up_makes_draws_repeat():
    threads = torch.get_num_threads()
    draws = []
    for _ in range(2):
        seeding.set_up(1, 5)
        draws.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    torch.set_num_threads(threads)
    assert draws[0] == draws[1]
