"""Texts to tokens: the content is found whatever the text and the template, cut where a character ends, and never shown."""

from dataclasses import replace

import numpy as np
import pytest
from support.bland import ODD, SYSTEM, content, example

from helpers.errors import REFUSED, USAGE, StudyError
from helpers.models import built_in, loading
from helpers.models.activations import read
from helpers.models.encoding import Encoded, Plan, encode, shared_prefix, token_batches


def plan(examples, limit: int = 64) -> Plan:
    return Plan(examples, (0.5,), limit)


@pytest.fixture
def tokenizer():
    found = built_in.tiny_tokenizer()
    found.chat_template = SYSTEM + built_in.TINY_TEMPLATE
    return found


@pytest.fixture
def language(tiny_model, tokenizer) -> loading.LanguageModel:
    return replace(tiny_model, tokenizer=tokenizer)


def refused(code: int, *words: str):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- the content


@pytest.mark.parametrize("budget", [1, 40, 512])
def test_batches_hold_every_text_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 60, 100).tolist()
    batches = token_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)
    flat = [(lengths[i], i) for batch in batches for i in batch]
    assert flat == sorted(flat)
    with refused(USAGE, "budget 0"):
        token_batches(lengths, 0)


def test_the_prefix_ends_before_any_content_and_leaves_a_token():
    def prefix(rows, starts):
        return shared_prefix(Encoded(tuple(rows), tuple(starts), tuple(map(len, rows)), 0))

    assert prefix([(1, 2, 3, 9), (1, 2, 4, 9)], (3, 3)) == 2
    assert prefix([(1, 2, 3, 9), (1, 2, 3, 9)], (2, 3)) == 2  # equal texts: up to the content
    assert prefix([(1, 2, 3)], (3,)) == 2  # one token is left
    assert prefix([(1, 2), (3, 2)], (1, 1)) == 0


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_the_content_is_found_whatever_the_text(tokenizer, text):
    assert content(tokenizer, [example(text), example("lamp", reply=text)]) == [text, text]
    found = encode(tokenizer, plan((example(text), example("lamp", reply=text))))
    opening = loading.chat_text(tokenizer, text)
    assert tokenizer.decode(found.rows[0]) == opening  # what the model really sees
    assert opening.startswith(tokenizer.decode(found.rows[0][: found.starts[0]]) + text)
    assert found.stops[0] < len(found.rows[0])  # the last token of a prompt is where the reply begins
    assert found.stops[1] == len(found.rows[1])  # of a reply, its own last one


def test_a_lone_surrogate_is_read_as_a_question_mark(tokenizer):
    assert content(tokenizer, [example("lamp \ud800"), example("Hi", reply="\udc00")]) == ["lamp ?", "?"]


def test_a_template_that_trims_its_text_is_followed():
    tokenizer = built_in.tiny_tokenizer()
    tokenizer.chat_template = built_in.TINY_TEMPLATE.replace("message['content']", "message['content'] | trim")
    assert content(tokenizer, [example("  user \n")]) == ["user"]


def test_a_template_that_hides_a_text_is_refused_without_its_words():
    tokenizer = built_in.tiny_tokenizer()
    tokenizer.chat_template = "{{ 'x' if 'violin' in messages[0]['content'] else '<' + messages[0]['content'] + '>' }}"
    assert content(tokenizer, [example("lamp")]) == ["lamp"]
    with refused(REFUSED, r"text 1 \([0-9a-f]{8}\) of task 'lamps'", "unlike other texts") as caught:
        content(tokenizer, [example("lamp"), example("violin")])
    assert "violin" not in str(caught.value)


def test_a_text_is_cut_before_the_template_and_a_prompt_to_half(language, tokenizer):
    rows = [example("0123456789"), example("01234567"), example("0123456789", reply="abcdefghij"), example("01", reply="ab")]
    found = encode(tokenizer, plan(tuple(rows), limit=8))
    assert content(tokenizer, rows, limit=8) == ["01234567", "01234567", "abcdefgh", "ab"]
    assert [tokenizer.decode(row) for row in found.rows] == [
        loading.chat_text(tokenizer, "01234567"), loading.chat_text(tokenizer, "01234567"),
        loading.chat_text(tokenizer, "0123") + "abcdefgh", loading.chat_text(tokenizer, "01") + "ab",
    ]  # fmt: skip
    assert found.cut == 2
    assert read(language, plan(tuple(rows), limit=8)).counts["cut"] == 2


def test_a_task_may_be_cut_later_than_the_others(tokenizer):
    rows = (example("lamp " * 40), example("lamp " * 40, task="long", number=1))
    asked = replace(plan(rows, 8), limits=(("long", 20),))
    found = encode(tokenizer, asked)
    assert found.stops[0] - found.starts[0] <= 8 < found.stops[1] - found.starts[1] <= 20
    assert found.cut == 2
    assert asked.key() != plan(rows, 8).key()
    with refused(USAGE, "limit 1"):
        encode(tokenizer, replace(asked, limits=(("long", 1),)))


def test_a_cut_never_halves_a_character(tokenizer):
    lamp = "\U0001f4a1"  # four tokens
    assert content(tokenizer, [example(lamp * 3)], limit=8) == [lamp * 2]
    assert content(tokenizer, [example(lamp * 3)], limit=7) == [lamp]
    with refused(REFUSED, "text 0", "no token left", "raise limit above 3"):
        content(tokenizer, [example(lamp)], limit=3)


@pytest.mark.parametrize("empty", [example(""), example(" \n"), example("Hi", reply=" ")])
def test_empty_content_is_refused_by_place_and_hash(tokenizer, empty):
    with refused(REFUSED, r"text 1 \([0-9a-f]{8}\) of task 'lamps' is empty"):
        encode(tokenizer, plan((example("Hi"), empty)))


def test_a_text_beyond_the_context_is_refused_without_its_words(language):
    language.model.config.max_position_embeddings = 100
    rows = (example("Hi"), example("violin " * 20))
    with refused(REFUSED, r"text 1 \([0-9a-f]{8}\)", "the model reads 100", "limit below 200") as caught:
        read(language, plan(rows, limit=200))
    assert "violin" not in str(caught.value)
    assert read(language, plan(rows, limit=20)).counts["cut"] == 1


def test_a_plan_of_nothing_is_refused(language):
    with refused(USAGE, "0 texts"):
        read(language, plan(()))
    with refused(USAGE, "limit 1"):
        read(language, plan((example("Hi"),), limit=1))
