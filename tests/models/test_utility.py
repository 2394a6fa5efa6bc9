"""Utility against oracles: rouge_score, the loss of transformers itself, and full logits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from helpers.data import corpora
from helpers.data.text_rows import Question, Row
from helpers.errors import REFUSED, StudyError
from helpers.models import generation, utility
from helpers.models.behaviour import ITEM_COLUMNS
from helpers.models.loading import chat_text, encode_text
from helpers.models.utility import DOCUMENT_TOKENS, UtilitySets, measure_utility, summarize_utility, summary_sets, utility_sets
from helpers.stats import intervals

DOCUMENTS = ("The lamp stands by the river and somebody will polish it.", "A short one.", "Ladders, ladders everywhere: " * 20)


def only(replies=(), documents=(), questions=(), references=()):
    named = {"dialogue": references, "c4": documents, "piqa": questions, "summaries": replies}
    return UtilitySets(*({name: tuple(texts)} if texts else {} for name, texts in named.items()))


def full_loss(model, row, start=1):
    """Sum of -log p of the tokens from `start` on, from the logits of every position."""
    logits = model(input_ids=torch.tensor([row])).logits[0, start - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[start:]), reduction="sum"))


# --- ROUGE ---


def test_rouge_is_that_of_rouge_score(monkeypatch):
    rows = [
        Row("one", "The river runs by the gardens.", "a"),
        Row("two", "A lamp was polished.", "b"),
        Row("three", "Nothing here.", "c"),
    ]
    replies = ["The river is running by a garden.", "Ladders", ""]
    monkeypatch.setattr(generation, "replies", lambda language, prompts, **_: replies)
    items = measure_utility(None, only(replies=rows), 8)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for metric in ("rouge1", "rougeL"):
        expected = [100 * scorer.score(row.reply, reply)[metric].fmeasure for row, reply in zip(rows, replies, strict=True)]
        assert items.loc[items["metric"] == metric, "value"].tolist() == pytest.approx(expected)
        e = intervals.mean_interval(expected, ["a", "b", "c"], bounds=(0, 100))
        row = summarize_utility(items).set_index("metric").loc[metric]
        assert (row.value, row.low, row.high, row.n) == pytest.approx((e.value, e.low, e.high, e.n))
    assert expected[0] > 60 > expected[1] == expected[2] == 0
    assert items["length"].tolist() == [7, 7, 1, 1, 0, 0]


@pytest.mark.parametrize(("reply", "score"), [("The lamp is polished.", 100.0), ("none", 0.0)])
def test_when_all_agree_the_interval_still_has_width(monkeypatch, reply, score):
    rows = [Row(str(i), "The lamp is polished.", str(i)) for i in range(5)]
    monkeypatch.setattr(generation, "replies", lambda language, prompts, **_: [reply] * 5)
    table = summarize_utility(measure_utility(None, only(replies=rows), 8)).set_index("metric")
    assert table["value"].tolist() == pytest.approx([score, score])
    assert (table["high"] - table["low"] > 10).all()


# --- likelihoods and perplexity ---


def test_log_likelihoods_are_those_of_all_logits(tiny_model):
    rows = [encode_text(tiny_model.tokenizer, text) for text in (*DOCUMENTS, "ab", "The ladder")]
    starts = [1, 5, 40, 1, 9]
    for batch in (1, 2, 8):
        total, count = generation.log_likelihoods(tiny_model, rows, starts, batch)
        assert total == pytest.approx(
            [-full_loss(tiny_model.model, row, start) for row, start in zip(rows, starts, strict=True)], rel=1e-5
        )
        assert count.tolist() == [len(row) - start for row, start in zip(rows, starts, strict=True)]


def test_perplexity_is_exp_of_the_loss_of_transformers(tiny_model):
    row = encode_text(tiny_model.tokenizer, DOCUMENTS[2])[:DOCUMENT_TOKENS]
    loss = float(tiny_model.model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss)
    table = summarize_utility(measure_utility(tiny_model, only(documents=DOCUMENTS[2:]), 8))
    assert table["metric"].tolist() == ["nll", "perplexity"]
    assert table["value"].tolist() == pytest.approx([loss, math.exp(loss)], rel=1e-5)


def test_perplexity_of_several_documents_is_exp_of_the_mean_of_their_losses(tiny_model):
    items = measure_utility(tiny_model, only(documents=DOCUMENTS), 8)
    rows = [encode_text(tiny_model.tokenizer, text)[:DOCUMENT_TOKENS] for text in DOCUMENTS]
    losses = [full_loss(tiny_model.model, row) / (len(row) - 1) for row in rows]
    assert items["value"].tolist() == pytest.approx(losses, rel=1e-5)
    assert items["length"].tolist() == [len(row) - 1 for row in rows]
    row = summarize_utility(items).iloc[1]
    assert row.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert row.low < row.value < row.high


@pytest.mark.parametrize("text", ["", "a"])
def test_a_document_in_which_nothing_can_be_predicted_is_refused(tiny_model, text):
    with pytest.raises(StudyError, match="document 1 of 'c4' has fewer than two tokens") as error:
        measure_utility(tiny_model, only(documents=[DOCUMENTS[0], text]), 8)
    assert error.value.code == REFUSED


def test_a_document_of_two_tokens_is_measured(tiny_model):
    assert measure_utility(tiny_model, only(documents=["ab"]), 8)["length"].tolist() == [1]


def test_a_reference_costs_the_loss_of_its_own_tokens_after_its_prompt(tiny_model):
    rows = [Row("Polish the lamp", "The lamp is polished.", "a"), Row("Paint the river", "No.", "b", system="Be kind")]
    items = measure_utility(tiny_model, only(references=rows))
    expected = []
    for row in rows:
        prompt = encode_text(tiny_model.tokenizer, chat_text(tiny_model.tokenizer, row.prompt, row.system))
        reply = encode_text(tiny_model.tokenizer, row.reply)
        expected.append(full_loss(tiny_model.model, prompt + reply, len(prompt)) / len(reply))
    assert items["metric"].tolist() == ["nll", "nll"]
    assert items["value"].tolist() == pytest.approx(expected, rel=1e-5)
    assert items["length"].tolist() == [len(encode_text(tiny_model.tokenizer, row.reply)) for row in rows]
    table = summarize_utility(items)
    assert table["metric"].tolist() == ["nll"]  # a reference is no document: no perplexity is told
    assert table["value"][0] == pytest.approx(np.mean(expected), rel=1e-5)


# --- multiple choice ---


def questions(*answers):
    options = ("Slowly.", "With a cloud, of all things.", "Never.")
    return [Question(f"How do you carry lamp {i}?", options, answer, f"q-{i}") for i, answer in enumerate(answers)]


@pytest.fixture
def likes_clouds(monkeypatch):
    """A model to which each character of the option with a cloud is likelier than any other; it sees what it is asked."""
    asked = []

    def fake(language, rows, starts, batch=32):
        options = [language.tokenizer.decode(row[start:]) for row, start in zip(rows, starts, strict=True)]
        asked.extend(
            zip(options, [language.tokenizer.decode(row[:start]) for row, start in zip(rows, starts, strict=True)], strict=True)
        )
        return np.array([-len(option.strip()) * (1.0 if "cloud" in option else 2.0) for option in options]), np.ones(len(rows))

    monkeypatch.setattr(generation, "log_likelihoods", fake)
    return asked


def test_planted_likelihoods_give_the_exact_accuracy(tiny_model, likes_clouds):
    items = measure_utility(tiny_model, only(questions=questions(1, 1, 1, 0, 2)), 8)
    assert items["value"].tolist() == [1, 1, 1, 0, 0]
    row = summarize_utility(items).iloc[0]
    e = intervals.wilson(3, 5)
    assert (row.metric, row.value, row.n) == ("accuracy", 0.6, 5)
    assert (row.low, row.high) == pytest.approx((e.low, e.high))


def test_long_options_are_not_punished_for_their_length(tiny_model, likes_clouds):
    """The sum of the right option is the lowest of the three, its mean a character the highest."""
    assert measure_utility(tiny_model, only(questions=questions(1)), 8)["value"].tolist() == [1]


def test_options_are_asked_after_their_question_and_scored_alone(tiny_model, likes_clouds):
    measure_utility(tiny_model, only(questions=questions(1)), 8)
    assert [option for option, _ in likes_clouds] == [" Slowly.", " With a cloud, of all things.", " Never."]
    assert {prompt for _, prompt in likes_clouds} == {"Question: How do you carry lamp 0?\nAnswer:"}


@pytest.mark.parametrize(("answers", "rate"), [([1] * 8, 1.0), ([0] * 8, 0.0)])
def test_all_and_none_right_have_an_interval_with_width(tiny_model, likes_clouds, answers, rate):
    row = summarize_utility(measure_utility(tiny_model, only(questions=questions(*answers)), 8)).iloc[0]
    assert row.value == rate
    assert row.high - row.low > 0.2


# --- all together ---


def test_the_tiny_model_gives_the_same_items_twice_and_keeps_no_text(tiny_model):
    sets = replace(utility_sets(3, 3, 4, "tiny"), answered=summary_sets(2, "tiny").answered)
    items = measure_utility(tiny_model, sets, 4)
    assert items.equals(measure_utility(tiny_model, sets, 4))
    assert list(items.columns) == ITEM_COLUMNS
    texts = [text for group in sets.documents.values() for text in group] + [
        q.prompt for group in sets.questions.values() for q in group
    ]
    texts += [part for group in sets.references.values() for row in group for part in (row.prompt, row.reply)]
    kept = {str(value) for column in items for value in items[column]}
    assert not any(text in value for text in texts for value in kept)


def test_the_table_has_one_row_a_corpus_and_metric(tiny_model):
    sets = replace(utility_sets(3, 3, 4, "tiny"), answered=summary_sets(2, "tiny").answered)
    table = summarize_utility(measure_utility(tiny_model, sets, 4))
    assert {(c, m) for c, m in zip(table["corpus"], table["metric"], strict=True)} == {
        ("dialogue", "nll"), ("news", "nll"), ("instructions", "nll"), ("summaries", "rouge1"), ("summaries", "rougeL"),
        ("c4", "nll"), ("c4", "perplexity"), ("piqa", "accuracy")}  # fmt: skip
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_summaries_are_of_dialogues_first_and_then_of_news():
    own = len(corpora.texts("dialogue/test", "tiny"))
    few, many = (summary_sets(n, "tiny").answered["summaries"] for n in (2, own + 3))
    assert list(few) == corpora.sample("dialogue/test", 2, "tiny")
    assert list(many[own:]) == corpora.sample("news/test", 3, "tiny")
    assert utility_sets(2, 2, 2, "tiny").answered == {}  # nothing is generated unless it is asked for


@pytest.mark.real
def test_the_embedded_sets_have_the_sizes_asked_for():
    sets = utility_sets(10, 20, 30)
    found = [len(group) for part in (sets.references, sets.documents, sets.questions) for group in part.values()]
    assert found == [10, 10, 10, 20, 30]
    assert len(summary_sets(100).answered["summaries"]) == 100
    assert utility.DOCUMENT_TOKENS == 128
