"""The outlook: one compute a run, never two in one folder; planned tokens and minutes in the line that a run begins with."""

import json

import pytest
from support.bland import refused

from helpers import folders
from helpers.errors import NOT_COMPARABLE
from helpers.models import compute
from helpers.models.meter import Tokens
from helpers.runner import outlook, plans
from helpers.study import chapters
from helpers.study.chapters import PlannedRun

ROOT = folders.project_root()


def begun(folder, **computes):
    """A run's folder in which chapters were computed in something; None: by a version that did not say in what."""
    (folder / "status").mkdir(parents=True)
    for name, made_in in computes.items():
        machine = {} if made_in is None else {"compute": made_in}
        (folder / "status" / f"{name}.json").write_text(json.dumps({"machine": machine}))
    return folder


@pytest.fixture(params=[True, False], ids=["with units", "without units"])
def units(request, monkeypatch):
    """A machine with units for bf16, and one without."""
    monkeypatch.setattr(compute, "native", lambda device: request.param)
    return request.param


def test_a_run_begins_in_what_the_machine_has(units, tmp_path):
    assert outlook.settled("auto", "cpu", tmp_path, []).name == ("bf16" if units else "fp32")


def test_a_run_goes_on_in_what_it_was_begun_in(units, tmp_path):
    same = "bf16" if units else "fp32"
    folder = begun(tmp_path, first=same, second="", third=None)
    assert outlook.settled("auto", "cpu", folder, ["first", "second", "third"]).name == same


def test_auto_goes_on_in_float32_which_every_machine_can(units, tmp_path):
    assert outlook.settled("auto", "cpu", begun(tmp_path, first="fp32"), ["first"]).name == "fp32"


def test_two_computes_are_never_mixed_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "native", lambda device: False)
    folder = begun(tmp_path / "quick" / "tiny" / "seed-0", first="bf16")
    with refused(NOT_COMPARABLE, "quick/tiny/seed-0", "computed in bf16", "compute auto is fp32", "--force", "--compute bf16"):
        outlook.settled("auto", "cpu", folder, ["first"])
    assert outlook.settled("bf16", "cpu", folder, ["first"]).name == "bf16"  # asked for: emulated, with a warning
    assert outlook.settled("auto", "cpu", folder, []).name == "fp32"  # nothing of it is kept


def test_what_is_not_the_studys_own_is_not_counted():
    assert outlook.counted({"01_first": {"x": 1}}, ["01_first"]) == {}


def test_a_run_without_models_to_read_has_no_outlook(tmp_path):
    run = PlannedRun("smoke", "tiny", "tiny", 0, tmp_path)
    assert outlook.of("auto", {run: {"11_findings": {}}}, {run: ["11_findings"]}, {}) == {}
    assert outlook.together({}) is None


def test_the_line_says_machine_compute_tokens_and_minutes(tiny):
    plan = plans.check(ROOT, "smoke")
    run = plan.runs[0]
    found = outlook.of("fp32", plan.values, {run: chapters.READ_MODELS[:4]}, {})
    together = outlook.together(found)
    assert set(found[run].tokens[run]) == set(chapters.READ_MODELS[:4])
    words = together.words
    assert "core" in words
    assert "float32" in words
    assert f"{together.total.words} planned" in words
    assert "about" in words
    assert "from an empty cache" in words
    assert together.minutes > 0


def test_minutes_grow_with_tokens_and_chapters():
    one, two = {"a": Tokens(6e4)}, {"a": Tokens(6e4), "b": Tokens()}
    speed = outlook.Speed(1e3)
    assert outlook.minutes(one, speed) == pytest.approx(outlook.PASSES + outlook.KERNEL / 60)
    assert outlook.minutes(two, speed) - outlook.minutes(one, speed) == pytest.approx(outlook.KERNEL / 60)


def test_chapters_side_by_side_are_over_with_the_longest_row_of_them():
    """01, then 02, 03 and 04 beside one another: two at once halve the work, many at once leave the row of two."""
    tokens, speed = {f"{number}_x": Tokens(6e4) for number in ("01", "02", "03", "04")}, outlook.Speed(1e3)
    each = outlook.minutes({"01_x": Tokens(6e4)}, speed)
    assert outlook.minutes(tokens, speed) == pytest.approx(4 * each)
    assert outlook.minutes(tokens, speed, None, 2) == pytest.approx(2 * each)
    assert outlook.minutes(tokens, speed, None, 8) == pytest.approx(2 * each)


@pytest.fixture(scope="module")
def values():
    """The parameters of profile quick, by the number of the chapter."""
    plan = plans.check(ROOT, "quick")
    return {name[:2]: own for name, own in plan.values[plan.runs[0]].items()}


@pytest.mark.parametrize(
    ("chapter", "one"), [("02", "gptq"), ("02", "round"), ("03", "load"), ("07", "product"), ("08", "round"), ("08", "product")]
)
def test_what_reads_no_text_is_foreseen_too(values, chapter, one):
    still = outlook.besides(chapter, values, outlook.Speed(1.0))
    assert outlook.besides(chapter, values, outlook.Speed(1.0, **{one: 1.0})) > still


def test_gptq_counts_where_it_is_asked_for(values):
    def taken(quantizers):
        asked = {**values, "02": {**values["02"], "quantizers": quantizers}}
        return outlook.besides("02", asked, outlook.Speed(1.0, gptq=60.0))

    assert (taken(["gptq-4", "nf4"]), taken(["rtn-4", "nf4"])) == (60.0, 0.0)


def test_quick_takes_about_what_it_took_where_its_speed_was_measured():
    """Two cores told to leave AVX-512, December 2026: 322 tokens a second in the trial; chapters of 31.8 minutes in 19.4."""
    plan = plans.check(ROOT, "quick")
    parameters = plan.values[plan.runs[0]]
    cost = {"01": 81475, "02": 39651, "03": 100057, "04": 20736, "05": 96131, "07": 39344, "08": 22335, "09": 46342}
    tokens = {name: Tokens(float(cost.get(name[:2], 0))) for name in parameters}
    speed = outlook.Speed(322.0, load=0.6, round=3.4, gptq=15.0, product=0.7)
    assert outlook.minutes(tokens, speed, parameters) == pytest.approx(31.8, rel=0.15)
    assert outlook.minutes(tokens, speed, parameters, 2) == pytest.approx(19.4, rel=0.15)


def test_a_trial_tells_every_cost_of_the_model(tiny):
    found = outlook.trial("tiny", 1, 0.05)
    assert found.tokens > 0
    assert min(found.load, found.round, found.gptq, found.product) > 0
