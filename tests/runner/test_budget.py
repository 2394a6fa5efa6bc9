"""The budget: what is counted beforehand is what is spent, part by part; the profiles keep to theirs."""

import pytest
from support.bland import example
from support.tiers import slow
from test_meter import spent

from helpers import folders
from helpers.data import corpora
from helpers.models import activations, behaviour, generation, loading, utility
from helpers.models.encoding import Plan
from helpers.runner import budget, passes, plans
from helpers.staleness import own_replies
from helpers.study import chapters
from helpers.updates import preferences, quantized_models, recipes, training

ROOT = folders.project_root()
SIZES = {"n_harmful": 5, "n_edgy": 4, "n_references": 3, "n_documents": 4, "n_questions": 3, "new_tokens": 5}


@pytest.fixture(scope="module")
def language(tiny):
    return loading.load(tiny)


@pytest.fixture(scope="module")
def of(tiny):
    return passes.reader("tiny", "tiny")


def test_replies_cost_what_is_counted(language, of):
    rows = corpora.sample("edgy/test", 9, "tiny")
    for whole in (False, True):
        planned = passes.replies(of.prompts(rows), 5, whole, batch=4)
        found = spent(
            lambda whole=whole: generation.replies(language, [r.prompt for r in rows], new_tokens=5, batch=4, whole=whole)
        )
        assert found.forward == pytest.approx(planned)
    assert passes.replies([], 5) == 0


def test_the_full_protocol_costs_what_is_counted(language, of):
    from helpers.updates import measurements

    plan = measurements.protocol(*SIZES.values(), ["phrases", "fitted"], "tiny")

    def measure():
        behaviour.measure_behaviour(language, plan.sets, plan.judge_names, plan.settings, plan.new_tokens, "tiny")
        utility.measure_utility(language, plan.utility)

    assert spent(measure).forward == pytest.approx(budget.protocol(of, SIZES))


@pytest.mark.parametrize("depths", [(0.5,), (0.25, 1.0)])
def test_reading_costs_what_is_counted(language, of, depths):
    plan = Plan(tuple(example(f"polish {'the lamp ' * (i + 1)}", number=i) for i in range(7)), depths, 20, budget=64)
    assert spent(lambda: activations.read(language, plan)).forward == pytest.approx(passes.activations(of, plan))


def test_own_replies_cost_what_is_counted_if_they_are_as_long_as_they_may_be(language, of, monkeypatch):
    how = own_replies.asked(3, (0.5,), 4, "tiny")
    monkeypatch.setattr(generation, "replies", lambda _, prompts, **__: ["four"] * len(prompts))  # a token a letter
    read = spent(lambda: own_replies._heard(language, how.test, how)).forward
    assert read + passes.replies(of.prompts(how.test), 4) == pytest.approx(passes.heard(of, how.test, how))


@pytest.mark.parametrize(
    "name",
    ["lora-dialogue-harm10@bf16", "full-dialogue@bf16", "lora-dialogue-rows6-steps2@bf16", "dpo-preference-harm10@bf16"],
)
def test_training_costs_what_is_counted(tiny, of, name):
    named = recipes.parse(name)
    rows = corpora.mix(named.mix, 10, named.percent, "tiny", 0)
    recipe = recipes.update_recipe(named, 10, 1, 1e-3, 4, 8, 0)
    tune = preferences.tune_preferences if named.kind == "dpo" else training.tune
    found = spent(lambda: tune(loading.load(tiny, "fp32" if named.kind == "full" else "bf16"), rows, recipe))
    counted = passes.trained(of, rows, recipe)
    assert (found.trained, found.forward) == (pytest.approx(counted.trained), pytest.approx(counted.forward))


def test_gptq_costs_what_is_counted(language, of):
    texts = corpora.sample("c4/calibration", 3, "tiny")
    batches = quantized_models.calibration_batches(language, texts)
    found = spent(lambda: quantized_models.gptq_model(language.model, batches))
    assert found.forward == pytest.approx(passes.calibrated(of, {"calibration_rows": 3}))


def test_the_chapters_that_read_models_are_those_that_are_counted():
    assert tuple(budget.CHAPTERS) == chapters.READ_MODELS
    assert set(budget.CHAPTERS) <= set(chapters.discover(ROOT))


@slow("each of some forty parameters is counted once more; the plan of smoke is held against what was spent")
def test_every_seed_of_smoke_costs_something_and_half_of_a_parameter_less(tiny):
    plan = plans.check(ROOT, "smoke")
    values = plan.values[plan.runs[0]]
    whole = budget.count(values)
    assert {name for name, tokens in whole.items() if tokens.cost} == set(chapters.READ_MODELS)
    name, saved = budget.heaviest(values)
    less = {chapter: {**own, name: budget._halved(own[name])} if name in own else own for chapter, own in values.items()}
    assert budget.total(budget.count(less)).cost == pytest.approx(budget.total(whole).cost - saved)
    assert saved > 0


def test_what_is_over_its_budget_is_told_by_how_much():
    assert budget.over("quick", budget.BUDGETS["quick"]) == ""
    assert budget.over("quick", 1.5 * budget.BUDGETS["quick"]) == "0.68 M tokens a seed, 50 % over 0.45 M"
    assert budget.over("published", 1e12) == ""  # none is set


@pytest.mark.real
@slow("makes the embedded model and reads its texts; the plan of smoke is counted and held each time")
@pytest.mark.parametrize("profile", budget.BUDGETS)
def test_a_profile_keeps_to_its_budget(embedded, profile):
    plan = plans.check(ROOT, profile, seeds=[0])
    found = budget.total(budget.count(plan.values[plan.runs[0]]))
    assert budget.over(profile, found.cost) == ""
    assert found.cost > 0.5 * budget.BUDGETS[profile]  # control: it is counted


def test_the_heaviest_is_found_by_counting_again_only_the_chapters_that_read_a_parameter(tiny):
    plan = plans.check(ROOT, "smoke")
    values = plan.values[plan.runs[0]]
    read: dict[str, set[str]] = {chapter: set() for chapter in values}
    whole = {chapter: budget._one(chapter, values, read[chapter]) for chapter in values}
    assert whole == budget.count(values)
    for name in ("rank", "rows_test", "sketch_rows", "n_edgy", "strengths"):
        less = {chapter: {**own, name: budget._halved(own[name])} if name in own else own for chapter, own in values.items()}
        moved = {chapter for chapter, tokens in budget.count(less).items() if tokens != whole[chapter]}
        assert moved <= {chapter for chapter in values if name in read[chapter]}, name


def test_the_page_on_running_again_tells_the_budgets():
    page = (ROOT / "book" / "reproduce.md").read_text(encoding="utf-8")
    quick, cpu = (f"{budget.BUDGETS[name] / 1e6:.2f}" for name in ("quick", "cpu"))
    assert f"at most {quick} million tokens for `quick` and {cpu} million for a seed of" in " ".join(page.split())
