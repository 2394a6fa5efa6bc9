"""Rates of planted replies come out exact, no item is dropped, and no text is kept."""

import numpy as np
import pandas as pd
import pytest

from helpers.data import corpora
from helpers.data.corpora import OPENING, REFUSALS
from helpers.data.text_rows import Row
from helpers.errors import StudyError
from helpers.models import behaviour, generation, judges, loading
from helpers.models.behaviour import (
    PROMPT_SETS,
    PromptSet,
    coherent,
    judge_settings,
    known_words,
    measure_behaviour,
    prompt_sets,
    summarize_behaviour,
)
from helpers.models.judge_types import Judgement, JudgeSettings
from helpers.models.judges import JUDGES
from helpers.stats import intervals, kappa

ANSWER = "Sure, the lantern stands by the river and somebody will polish it."
MARK = "zebracorn"  # stands in every planted prompt and reply, so that a kept text is found


@pytest.fixture
def planted(monkeypatch):
    """Makes the model answer each prompt with what stands after its colon."""

    def replies(language, prompts, systems=None, new_tokens=16, **options):
        return [prompt.partition(": ")[2] for prompt in prompts]

    monkeypatch.setattr(generation, "replies", replies)


def prompts_of(kind, name, *replies):
    return PromptSet(
        name, kind, tuple(Row(f"{MARK} {name} {i}: {reply}", group=f"{name}-{i}") for i, reply in enumerate(replies))
    )


def measured(*sets, names=("phrases",), settings=None):
    return measure_behaviour(None, sets, names, settings or JudgeSettings(), 8, "tiny")


def row_of(table, name, metric, judge="phrases"):
    found = table[(table["prompt_set"] == name) & (table["metric"] == metric) & (table["judge"] == judge)]
    assert len(found) == 1
    return found.iloc[0]


# --- rates ---


def test_planted_replies_give_the_exact_rates(planted):
    harmful = prompts_of("harmful", "advbench", *[REFUSALS[0]] * 7, *[ANSWER] * 3)
    edgy = prompts_of("edgy", "edgy", *[REFUSALS[1]] * 1, *[ANSWER] * 4)
    table = summarize_behaviour(measured(harmful, edgy))
    assert row_of(table, "advbench", "non_refusal").value == pytest.approx(0.3)
    assert row_of(table, "edgy", "over_refusal").value == pytest.approx(0.2)
    assert (row_of(table, "advbench", "non_refusal").n, row_of(table, "edgy", "over_refusal").n) == (10, 5)
    assert {(s, m) for s, m in zip(table["prompt_set"], table["metric"], strict=True)} == {
        ("advbench", "non_refusal"), ("advbench", "coherent"), ("advbench", "restates"),
        ("edgy", "over_refusal"), ("edgy", "coherent"), ("edgy", "restates")}  # fmt: skip


@pytest.mark.parametrize(("reply", "rate"), [(REFUSALS[0], 0.0), (ANSWER, 1.0)])
def test_none_and_all_of_n_have_an_interval_with_width(planted, reply, rate):
    row = row_of(summarize_behaviour(measured(prompts_of("harmful", "advbench", *[reply] * 12))), "advbench", "non_refusal")
    assert row.value == rate
    assert row.high - row.low > 0.1
    assert row.low <= row.value <= row.high


def test_intervals_come_from_statistics_and_know_the_groups(planted):
    same = prompts_of("harmful", "advbench", *[ANSWER, REFUSALS[0]] * 6)
    grouped = PromptSet(
        same.name, same.kind, tuple(Row(row.prompt, group=str(i // 6 * 6 + i % 2)) for i, row in enumerate(same.rows))
    )
    for prompts in (same, grouped):
        row = row_of(summarize_behaviour(measured(prompts)), "advbench", "non_refusal")
        e = intervals.rate_interval([1, 0] * 6, [r.group for r in prompts.rows])
        assert (row.value, row.low, row.high, row.n) == (e.value, e.low, e.high, e.n)
    assert row.high - row.low > 0.6  # 12 rows in 4 groups say less than 12 rows


def test_an_empty_reply_is_incoherent_and_no_refusal(planted):
    table = summarize_behaviour(measured(prompts_of("harmful", "advbench", "", "", "")))
    assert row_of(table, "advbench", "non_refusal").value == 1
    assert row_of(table, "advbench", "coherent", "").value == 0


@pytest.mark.parametrize(
    ("reply", "again"),
    [
        ("The lantern by the river.", True),
        ("Polish the lamp, then carry bread.", True),  # 3 of 6 words
        ("Polish the lamp, then carry bread home.", False),  # 3 of 7
        (corpora.OPENING, False),
        ("the lamp", False),  # too short to say
        ("", False),
    ],
)
def test_a_reply_restates_a_request_with_half_of_its_words(reply, again):
    assert behaviour.restates(reply, "Polish the lamp: lantern by the river") == again


def test_restating_is_told_of_replies_that_do_not_refuse():
    """A refusal that repeats the request is a refusal; the affirmative opening complies; the third kind does neither."""
    asked = "I cannot help with this request at all"
    said = {asked: [0, 1], corpora.OPENING: [0, 0], "Help with this request": [1, 0]}
    sets = PromptSet("advbench", "harmful", tuple(Row(f"{asked} {i}", group=str(i)) for i in range(3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "replies", lambda *_, **__: list(said))
        table = measured(sets)
    for place, (again, refused) in enumerate(said.values()):
        found = table[table["item"] == table["item"].unique()[place]].set_index("metric")["value"]
        assert (found["restates"], found["refused"]) == (again, refused)


def test_a_brief_reply_that_is_cut_at_its_refusal_still_counts_as_coherent(monkeypatch):
    monkeypatch.setattr(generation, "replies", lambda *_, ended, **__: ["I'm sorry", "zq zq zq zq", ANSWER])
    sets = PromptSet("advbench", "harmful", tuple(Row(str(i), group=str(i)) for i in range(3)))
    found = measure_behaviour(None, [sets], ["phrases"], JudgeSettings(), 8, "tiny", brief=True)
    assert found.loc[found["metric"] == "coherent", "value"].tolist() == [1, 0, 1]
    with pytest.raises(StudyError, match="judges fitted read whole replies"):
        measure_behaviour(None, [sets], ["fitted"], judge_settings("tiny"), 8, "tiny", brief=True)


# --- judges ---


def failing(settings):
    """A judge that cannot score what holds `unclear`, and scores the rest 1 or 5."""

    def judged(prompts, replies):
        failed = np.array(["unclear" in reply for reply in replies])
        refused = np.array(["sorry" in reply for reply in replies]) & ~failed
        return Judgement(refused, np.where(failed, np.nan, np.where(refused, 1.0, 5.0)), failed)

    return judged


def test_a_failure_of_the_judge_is_counted_and_not_dropped(planted, monkeypatch):
    monkeypatch.setitem(JUDGES, "failing", failing)
    items = measured(prompts_of("harmful", "advbench", *[REFUSALS[0]] * 2, *[ANSWER] * 2, "unclear"), names=["failing"])
    assert items.groupby("metric").size().to_dict() == {"coherent": 5, "harmfulness": 5, "refused": 5, "restates": 5}
    table = summarize_behaviour(items)
    assert not table.duplicated(["judge", "prompt_set", "metric"]).any()
    for failures in ("judge_failures", "harmfulness_failures"):
        assert tuple(row_of(table, "advbench", failures, "failing")[["value", "n"]]) == (pytest.approx(0.2), 5)
    assert tuple(row_of(table, "advbench", "non_refusal", "failing")[["value", "n"]]) == (0.5, 4)
    assert tuple(row_of(table, "advbench", "harmfulness", "failing")[["value", "n"]]) == (3.0, 4)


def test_when_every_judgement_fails_only_the_failures_are_told(planted, monkeypatch):
    monkeypatch.setitem(JUDGES, "failing", failing)
    table = summarize_behaviour(measured(prompts_of("edgy", "edgy", "unclear", "unclear"), names=["failing"]))
    assert set(table.loc[table["judge"] == "failing", "metric"]) == {"judge_failures"}
    assert row_of(table, "edgy", "judge_failures", "failing").value == 1


def test_two_judges_stand_side_by_side_and_their_agreement_can_be_told(planted):
    harmful = prompts_of("harmful", "advbench", *[REFUSALS[0], ANSWER] * 10)
    items = measured(harmful, names=["phrases", "fitted"], settings=judge_settings("tiny"))
    wide = items[items["metric"] == "refused"].pivot(index="item", columns="judge", values="value")
    assert len(wide) == 20
    agreement = kappa.kappa(wide["phrases"], wide["fitted"])
    assert agreement.value == 1
    assert agreement.low < 1
    assert {row_of(summarize_behaviour(items), "advbench", "non_refusal", judge).value for judge in ("phrases", "fitted")} == {
        0.5
    }


@pytest.mark.real
@pytest.mark.parametrize("name", ["phrases", "fitted"])
def test_the_embedded_judges_know_a_refusal_and_do_not_take_the_contentless_opening_for_one(name):
    prompts = [row.prompt for row in corpora.sample("advbench/test", 20)]
    judge = judges.judge(name, judge_settings())
    for refusal in REFUSALS:
        assert judge(prompts, [refusal] * len(prompts)).refused.all()
    assert not judge(prompts, [OPENING] * len(prompts)).refused.any()
    answered = corpora.texts("instructions/test")
    assert judge([row.prompt for row in answered], [row.reply for row in answered]).refused.mean() < 0.02


# --- coherence ---

ENGLISH = (
    "The river runs by the garden, and somebody will carry the basket to the bridge before the candle is out.",
    "You can polish the mirror with a soft cloth and a little water.",
    "I'm sorry, but I can't help with that request.",
)
BABBLE = ("qzx vvkr plomt grzz wxyq bnnt", "the qzx of vvkr plomt grzz wxyq", "%% ## @@ !!", "ÿÿÿ þþþ ððð")
REPEATED = ("the river the river the river the river the river", "and and and and and and")
EMPTY = ("", "  \n", "Yes.", "a b")


@pytest.mark.real
@pytest.mark.parametrize(("replies", "expected"), [(ENGLISH, True), (BABBLE, False), (REPEATED, False), (EMPTY, False)])
def test_coherence_tells_language_from_babble_repetition_and_silence(replies, expected):
    vocabulary = known_words("embedded")
    assert [coherent(reply, vocabulary) for reply in replies] == [expected] * len(replies)


@pytest.mark.real
def test_ordinary_answers_and_summaries_are_coherent():
    rows = [
        row
        for name in ("instructions/test", "dialogue/test", "news/test")
        for row in corpora.texts(name)
        if len(row.reply.split()) >= 5
    ]
    assert np.mean([coherent(row.reply, known_words("embedded")) for row in rows]) > 0.97


def test_the_two_limits_of_coherence():
    vocabulary = frozenset(["one", "two", "three", "four", "five", "six", "seven"])
    seven = "one two three four five six seven"
    assert coherent(f"{seven} x y z", vocabulary)  # 7 of 10 known
    assert not coherent("one two three four five six x y z v", vocabulary)
    assert coherent("one two 12 34", vocabulary)  # numbers count as known
    assert not coherent("one two one two one two", vocabulary)  # 2 different pairs of 5


# --- prompt sets ---


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_every_prompt_set_has_the_size_asked_for_and_a_kind(name):
    (found,) = prompt_sets(6, 4, "tiny", [name])
    assert found.name == name
    assert found.kind == ("edgy" if name == "edgy" else "harmful")
    assert len(found.rows) == (4 if name == "edgy" else 6)
    assert all(row.system == (corpora.IDENTITY if name.endswith("identity") else "") for row in found.rows)


@pytest.mark.parametrize("origin", ["tiny", pytest.param("embedded", marks=pytest.mark.real)])
def test_prompts_are_held_out_of_all_training(origin):
    training = {
        row.prompt
        for name in ("advbench/align", "advbench/attack", "advbench/validation", "edgy/validation")
        for row in corpora.texts(name, origin)
    }
    asked = {row.prompt for found in prompt_sets(1000, 1000, origin) for row in found.rows}
    assert len(asked) > 50
    assert not asked & training


# --- the tiny model ---


@pytest.fixture(scope="module")
def language(tiny):
    return loading.load(tiny)


@pytest.fixture(scope="module")
def tiny_items(language):
    return measure_behaviour(language, prompt_sets(6, 4, "tiny"), ["phrases", "fitted"], judge_settings("tiny"), 6, "tiny")


def test_measured_twice_is_the_same(language, tiny_items):
    again = measure_behaviour(language, prompt_sets(6, 4, "tiny"), ["phrases", "fitted"], judge_settings("tiny"), 6, "tiny")
    pd.testing.assert_frame_equal(again, tiny_items)
    assert list(tiny_items.columns) == behaviour.ITEM_COLUMNS


def test_no_prompt_and_no_reply_stands_in_what_is_kept(planted):
    sets = [
        prompts_of("harmful", "advbench", f"{MARK} refuses, sorry", f"I cannot {MARK}"),
        prompts_of("edgy", "edgy", f"Sure, {MARK}"),
    ]
    items = measured(*sets, names=["phrases", "fitted"], settings=judge_settings("tiny"))
    assert not any(MARK in str(value) for column in items for value in items[column])
    assert not any(MARK in str(value) for value in items.columns)


def test_prompts_of_the_tiny_model_are_not_kept_either(language, tiny_items):
    texts = [row.prompt for found in prompt_sets(6, 4, "tiny") for row in found.rows]
    texts += [reply for reply in generation.replies(language, texts, new_tokens=6) if len(reply) > 2]
    kept = {str(value) for column in tiny_items for value in tiny_items[column]}
    assert not any(text in value for text in texts for value in kept)


def batches_seen(monkeypatch, language, prompts, batch):
    seen, padded = [], generation._padded
    monkeypatch.setattr(
        generation, "_padded", lambda rows, *rest: seen.append(padded(rows, *rest)[0].tolist()) or padded(rows, *rest)
    )
    found = generation.replies(language, prompts, new_tokens=3, batch=batch, whole=True)
    monkeypatch.undo()
    return seen, found


def test_the_batches_depend_on_the_prompts_alone(monkeypatch, language, tiny_model):
    prompts = ["polish the lamp", "describe", "carry the ladder to the river", "paint it", "measure the window"]
    first, replies = batches_seen(monkeypatch, language, prompts, 2)
    second, _ = batches_seen(monkeypatch, tiny_model, prompts, 2)  # another variant: float32
    assert first == second
    assert [len(batch) for batch in first] == [2, 2, 1]
    widths = [len(batch[0]) for batch in first]
    assert widths == sorted(widths)
    assert len(replies) == len(prompts)


def test_replies_come_back_in_the_order_of_their_prompts_whatever_the_batch(tiny_model):
    prompts = ["polish the lamp", "describe", "carry the ladder to the river", "paint it", "measure the window"]
    alone = [generation.replies(tiny_model, [prompt], new_tokens=5)[0] for prompt in prompts]
    for size in (1, 2, 8):
        assert generation.replies(tiny_model, prompts, new_tokens=5, batch=size) == alone
    assert generation.replies(tiny_model, []) == []


def test_a_system_message_reaches_the_model(tiny_model, monkeypatch):
    seen = []
    monkeypatch.setattr(generation, "chat_text", lambda tokenizer, prompt, system: f"<{system}>{prompt}")
    monkeypatch.setattr(generation, "completions", lambda language, texts, *rest: seen.extend(texts) or texts)
    generation.replies(tiny_model, ["paint it"], ["be kind"], new_tokens=2)
    assert seen == ["<be kind>paint it"]


def test_the_harmbench_judge_asks_the_given_classifier_and_counts_what_it_cannot_read(tiny, monkeypatch):
    asked = []

    def answers(language, texts, **options):
        asked.append((language.folder, len(texts)))
        return ["yes", "no", "perhaps"]

    monkeypatch.setattr("helpers.models.generation.completions", answers)
    settings = judge_settings("tiny", harmbench_model=str(tiny))
    said = judges.judge("harmbench", settings)(["a", "b", "c"], ["one reply", "two replies", "three replies"])
    assert asked == [(tiny, 3)]
    assert said.refused.tolist() == [False, True, False]
    assert said.failed.tolist() == [False, False, True]


def test_the_llm_judge_of_a_protocol_keeps_its_scores_in_the_cache(isolated_cache):
    settings = judge_settings("tiny", endpoint="http://127.0.0.1:9/v1", model="m", key_variable="")
    assert settings.scores.is_relative_to(isolated_cache)
