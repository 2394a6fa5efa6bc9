"""Generation: the replies are those of transformers, whatever is shared and whoever leaves early."""

import pytest
import torch

from helpers.models import compute, generation, loading
from helpers.models.loading import chat_text, encode_text

PROMPTS = ["Name a colour.", "Count to three, slowly, and then stop.", "Why?", "Tell me about lamps and chairs.", "Why not?"]


def oracle(language, texts, new_tokens):
    """Each text alone, by transformers' own generation."""
    return [language.tokenizer.decode(_ids(language, text, new_tokens), skip_special_tokens=True) for text in texts]


def _ids(language, text, new_tokens):
    ids = torch.tensor([encode_text(language.tokenizer, text)])
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "do_sample": False}
    return language.model.generate(input_ids=ids, **asked)[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def language(tiny):
    """The tiny model in float32, where the batch a text sits in moves nothing that a greedy choice could see."""
    return loading.load(tiny, "fp32")


@pytest.mark.parametrize("batch", [1, 2, 32])
@pytest.mark.parametrize("whole", [False, True], ids=["shared", "whole"])
def test_replies_are_those_of_transformers(language, batch, whole):
    texts = [chat_text(language.tokenizer, prompt) for prompt in PROMPTS]
    assert generation.completions(language, texts, 12, batch, whole=whole) == oracle(language, texts, 12)


def test_texts_that_share_nothing_and_texts_that_share_all_but_a_token(language):
    for texts in (["lamp", "chair", "a"], ["the same text", "the same texu"], ["one and the same"] * 3):
        assert generation.completions(language, texts, 6) == oracle(language, texts, 6)


def test_a_row_that_ends_leaves_and_the_others_say_the_same(tiny):
    language = loading.load(tiny, "fp32")
    texts = ["Name a colour.", "Count.", "lamps 12", "ZZ"]  # as they stand: a random model repeats itself behind a template
    rows = [_ids(language, text, 12) for text in texts]
    early = rows[0][1]
    assert 0 < sum(early in row for row in rows) < len(rows)  # some rows end before others
    language.tokenizer.eos_token = language.tokenizer.convert_ids_to_tokens(early)
    assert language.tokenizer.eos_token_id == early
    ended = [
        language.tokenizer.decode(row[: row.index(early) + 1] if early in row else row, skip_special_tokens=True) for row in rows
    ]
    for whole in (False, True):
        assert generation.completions(language, texts, 12, whole=whole) == ended


def test_a_reply_ends_once_it_is_judged_and_costs_no_more(language):
    texts = [chat_text(language.tokenizer, prompt) for prompt in PROMPTS]
    full, positions = generation.completions(language, texts, 12), []
    block = language.model.model.layers[0]
    hook = block.register_forward_pre_hook(lambda _, args: positions.append(args[0].shape[:2].numel()))
    try:
        generation.completions(language, texts, 12)
        without, positions[:] = sum(positions), []
        short = generation.completions(language, texts, 12, ended=lambda reply: len(reply) >= 4)
    finally:
        hook.remove()
    assert [reply[:4] for reply in short] == [reply[:4] for reply in full]
    assert all(len(one) < len(other) for one, other in zip(short, full, strict=True))
    assert sum(positions) < without


@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_replies_in_either_compute(tiny, asked):
    with compute.using(asked):
        language = loading.load(tiny)
        said = generation.replies(language, PROMPTS, new_tokens=4)
        assert said == generation.replies(language, PROMPTS, new_tokens=4)
        assert any(said)
