"""Own replies: what is planted is found (one monitor reads the request, one what is said), and no label is invented."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support import planted

from helpers.data import corpora
from helpers.errors import StudyError
from helpers.figures import staleness as figures
from helpers.figures import staleness_tables
from helpers.models import behaviour, generation, loading
from helpers.staleness import cohorts, own_replies, verdicts
from helpers.staleness.own_replies import LEAST, Heard, ReplyPlan
from helpers.updates.names import Variant, keyed
from helpers.updates.variants import Parts

ALIGNED = Variant("tiny")
LORA = replace(ALIGNED, adapter="lora-dialogue-harm10", trained_on="bf16", serving="attached")
HARMFUL, SAFE = 60, 60  # prompts of a part
LAYER = 2  # of the tiny model's four, at a depth of a half


def rows(part: str) -> tuple[corpora.Row, ...]:
    return tuple(corpora.Row(f"{part} {i}", group=f"{part}-{i}") for i in range(HARMFUL + SAFE))


HOW = ReplyPlan(rows("fit"), rows("harmless"), rows("test"), (0.5,), 4, "tiny")
REQUEST = np.repeat([1, 0], [HARMFUL, SAFE])  # what is asked: harmful or not


def said(refused: np.ndarray, seed: int, deaf: bool = False) -> Heard:
    """A model whose states hold the request before its reply and, unless it is deaf to it, what it says during the reply."""
    draw = torch.Generator().manual_seed(seed)
    before, during = (torch.randn(len(refused), planted.D, generator=draw) for _ in range(2))
    before[:, 0] += 6 * torch.tensor(REQUEST)
    during[:, 3] += 0 if deaf else 6 * torch.tensor(np.nan_to_num(refused))
    return Heard(np.asarray(refused, float), {f"last/{LAYER}": before, f"mean/{LAYER}": during})


@pytest.fixture(scope="module")
def fitted():
    """Monitors of an aligned model that refuses what is harmful, and answers the rest, by seed."""
    heard = {HOW.fitted: said(REQUEST, 1), HOW.harmless: Heard(np.zeros(120), said(np.zeros(120), 2).states)}
    heard[HOW.harmless].states[f"last/{LAYER}"][:HARMFUL, 0] -= 6  # nothing of it is harmful

    def made(tiny, seed: int = 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(own_replies, "listen", lambda parts, variant, texts, how: heard[texts])
            return own_replies.fit(Parts(tiny, tiny), ALIGNED, HOW, seed)

    return made


@pytest.fixture(scope="module")
def monitors(tiny, fitted):
    """Those of one seed."""
    return fitted(tiny)


GROUPS = np.array([row.group for row in HOW.test])
BEFORE = said(REQUEST, 3)


def compared(monitors, after: Heard) -> pd.DataFrame:
    """The mean over kinds of probe by what a monitor reads and metric; shuffled labels are left out."""
    table = own_replies.compare_replies(monitors, BEFORE, after, GROUPS)
    own = table[(table["layer"] > 0) & ~table["probe"].str.startswith("shuffled")]
    return own.assign(reads=own["probe"].map(cohorts.pooling_of)).pivot_table(index="metric", columns="reads", values="value")


def test_on_the_model_itself_both_read_well_and_nothing_is_lost(monitors):
    found = compared(monitors, BEFORE)
    assert (found.loc["tpr_5"] > 0.9).all()
    assert (found.loc["fpr_5"] < 0.15).all()
    assert (found.loc["auroc"] > 0.98).all()
    assert (found.loc[["tpr_loss_5", "stale_tpr_5", "stale_fpr_5"]] == 0).all(axis=None)


def test_where_the_model_begins_to_comply_the_one_that_reads_the_request_cries_refusal(monitors):
    """The attack: two thirds of the harmful prompts are answered. Nothing moved, the labels did."""
    found = compared(monitors, said(REQUEST * (np.arange(120) % 3 == 0), 3))
    assert found.loc["fpr_5", "last"] == pytest.approx(40 / 100, abs=0.08)  # the answers to harmful prompts
    assert found.loc["fpr_5", "mean"] < 0.1
    assert found.loc["stale_fpr_5"].tolist() == [1.0, 0.0]
    assert found.loc["tpr_loss_5", "last"] == 0  # what it still refuses was flagged before, and is
    assert found.loc["auroc", "mean"] > 0.98 > found.loc["auroc", "last"]


def test_where_the_states_no_longer_hold_what_is_said_refusals_are_missed(monitors):
    found = compared(monitors, said(REQUEST, 3, deaf=True))
    assert found.loc["stale_tpr_5"].tolist() == [0.0, 1.0]
    assert found.loc["tpr_loss_5", "mean"] > 0.8
    assert found.loc["tpr_5", "mean"] < 0.2


def test_shuffled_labels_know_nothing_on_average(tiny, fitted):
    found = []
    for seed in range(12):
        table = own_replies.compare_replies(fitted(tiny, seed), BEFORE, BEFORE, GROUPS)
        found.append(table[table["probe"].str.startswith("shuffled") & (table["metric"] == "auroc")])
    control = pd.concat(found)["value"]
    assert len(control) == 24
    assert 0.3 < control.mean() < 0.7
    table = keyed(ALIGNED, found[0])
    assert cohorts.single_monitors(table).empty


@pytest.mark.parametrize("refusals", [0, LEAST - 1, LEAST])
def test_of_fewer_than_ten_replies_of_a_kind_nothing_is_said(monitors, refusals):
    refused = np.where(np.arange(120) < refusals, 1.0, 0.0)
    metrics = set(own_replies.compare_replies(monitors, BEFORE, said(refused, 3), GROUPS)["metric"])
    enough = {"auroc", "tpr_5", "tpr_loss_5", "stale_tpr_5", "stale_fpr_5"}  # stale: where both sides can be seen, or not at all
    assert metrics & enough == (enough if refusals >= LEAST else set())
    assert {"refused", "fpr_5"} <= metrics


def test_a_prompt_without_a_reply_counts_nowhere(monitors):
    silent = np.where(np.arange(120) % 2, np.nan, REQUEST)
    table = own_replies.compare_replies(monitors, BEFORE, said(silent, 3), GROUPS).set_index("metric")
    assert table.loc["refused", ["value", "n"]].tolist() == [0.5, 60]
    assert set(table.loc["tpr_5", "n"]) == set(table.loc["fpr_5", "n"]) == {30}
    assert own_replies.compare_replies(monitors, BEFORE, said(np.full(120, np.nan), 3), GROUPS).empty


def alike(refused: np.ndarray, groups: int = 0) -> ReplyPlan:
    """A plan whose fitted prompts are refused like this; groups: into so many groups the refused ones fall, 0: each its own."""
    of = [i % groups if groups and one else i for i, one in enumerate(refused)]
    return replace(HOW, fitted=tuple(replace(row, group=f"{refused[i]}-{of[i]}") for i, row in enumerate(HOW.fitted)))


@pytest.mark.parametrize(
    ("refused", "groups", "line"),
    [(np.arange(120) < 2 * LEAST - 1, 0, "refused 9 and 10 in the two halves"), (np.arange(120) < 90, 0, "answered 15 and 15"),
     (REQUEST == 1, 1, "refused 60 and 0 in the two halves"), (np.full(120, np.nan), 0, "refused 0 and 0")],
)  # fmt: skip
def test_a_model_that_refuses_or_answers_too_little_gets_no_monitor_and_a_line_says_so(
    tiny, monkeypatch, capsys, refused, groups, line
):
    monkeypatch.setattr(own_replies, "listen", lambda *_: said(refused, 1))
    plan = HOW if np.isnan(refused.astype(float)).all() else alike(refused.astype(int), groups)
    assert own_replies.fit(Parts(tiny, tiny), ALIGNED, plan) == []
    out = capsys.readouterr().out
    assert line in out or line.replace("60 and 0", "0 and 60") in out
    assert f"{LEAST} of each are needed, and 19 answers in the second" in out


def test_where_the_aligned_model_refuses_too_little_of_the_test_no_monitor_is_judged(tiny, monkeypatch, capsys):
    heard = {HOW.test: said(np.arange(120) < LEAST - 1, 1), HOW.fitted: said(REQUEST, 1), HOW.harmless: said(0 * REQUEST, 2)}
    monkeypatch.setattr(own_replies, "listen", lambda parts, variant, texts, how: heard[texts])
    table = own_replies.observe_replies(Parts(tiny, tiny), ALIGNED, [ALIGNED, LORA], HOW)
    assert "of the test the aligned model refused 9 and answered 111; 10 are needed" in capsys.readouterr().out
    assert table["metric"].tolist() == ["refused"] * 2


def test_scores_that_are_all_tied_are_no_ranking(monitors):
    mute = [replace(m, tensors={name: 0 * np.asarray(t) for name, t in m.tensors.items()}) for m in monitors[:1]]
    metrics = set(own_replies.compare_replies(mute, BEFORE, BEFORE, GROUPS)["metric"])
    assert "tpr_5" in metrics
    assert "auroc" not in metrics


# ---------------------------------------------------------------- prompts and readings


def test_no_prompt_stands_in_two_parts():
    how = own_replies.asked(5, (0.5,), 4, "tiny")
    parts = [{row.prompt for row in part} for part in (how.fitted, how.harmless, how.test)]
    assert all(parts)
    assert not any(a & b for a, b in ((parts[0], parts[1]), (parts[0], parts[2]), (parts[1], parts[2])))
    with pytest.raises(StudyError, match="reply_prompts 0 leaves no prompt; give 1 or more"):
        own_replies.asked(0, (0.5,), 4)


@pytest.mark.real
def test_no_prompt_of_the_study_stands_in_two_parts():
    how = own_replies.asked(48, (0.5,), 12)
    groups = [{(row.group, row.prompt) for row in part} for part in (how.fitted, how.harmless, how.test)]
    assert len(how.test) == 3 * 48 + 97
    assert not any(a & b for a, b in ((groups[0], groups[1]), (groups[0], groups[2]), (groups[1], groups[2])))


def test_what_is_read_are_the_states_of_the_prompt_and_of_the_reply_itself(tiny):
    """Against a plain pass of transformers over prompt and reply, text by text."""
    language, how = loading.load(tiny, "fp32"), own_replies.asked(2, (0.5, 1.0), 4, "tiny")
    texts = how.test[:5]
    found = own_replies._heard(language, texts, how)
    replies = generation.replies(language, [row.prompt for row in texts], new_tokens=4)
    for i, (row, reply) in enumerate(zip(texts, replies, strict=True)):
        if not reply.strip():
            assert np.isnan(found["refused"][i])
            continue
        asked = loading.encode_text(language.tokenizer, loading.chat_text(language.tokenizer, row.prompt))
        both = loading.encode_text(language.tokenizer, loading.chat_text(language.tokenizer, row.prompt) + reply)
        assert both[: len(asked)] == asked
        with torch.no_grad():
            hidden = language.model(input_ids=torch.tensor([both]), output_hidden_states=True).hidden_states[LAYER][0]
        torch.testing.assert_close(found[f"last/{LAYER}"][i], hidden[len(asked) - 1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[f"mean/{LAYER}"][i], hidden[len(asked) :].mean(0), rtol=1e-4, atol=1e-4)


def test_labels_are_those_of_the_judge_of_phrases(tiny_model, monkeypatch):
    how = own_replies.asked(2, (0.5,), 4, "tiny")
    told = [corpora.REFUSALS[0], "Sure, a lamp.", "\u200b", corpora.REFUSALS[1]]  # the third is empty to the judge
    monkeypatch.setattr(generation, "replies", lambda *_, **__: told)
    found = own_replies._heard(tiny_model, how.test[:4], how)
    assert found["refused"].isnan().tolist() == [False, False, True, False]
    assert found["refused"][[0, 1, 3]].tolist() == [1.0, 0.0, 1.0]
    assert not found[f"mean/{LAYER}"][2].any()


def test_a_model_is_heard_once(tiny, monkeypatch):
    how = own_replies.asked(1, (0.5,), 3, "tiny")
    first = own_replies.listen(Parts(tiny, tiny), ALIGNED, how.test, how)
    monkeypatch.setattr(own_replies, "build_variant", lambda *_: pytest.fail("built again"))
    again = own_replies.listen(Parts(tiny, tiny), ALIGNED, how.test, how)
    np.testing.assert_array_equal(first.refused, again.refused)
    assert all(torch.equal(states, again.states[name]) for name, states in first.states.items())
    with pytest.raises(pytest.fail.Exception, match="built again"):  # other tokens, another key
        own_replies.listen(Parts(tiny, tiny), ALIGNED, how.test, replace(how, tokens=4))


def test_nothing_that_was_asked_or_said_is_kept(tiny, isolated_cache):
    how = own_replies.asked(1, (0.5,), 5, "tiny")
    own_replies.listen(Parts(tiny, tiny), ALIGNED, how.fitted, how)
    replies = generation.replies(loading.load(tiny), [row.prompt for row in how.fitted], new_tokens=5)
    files = [path.read_bytes() for path in (isolated_cache / "replies").iterdir()]
    assert files
    for text in (*replies, *(row.prompt for row in how.fitted)):
        assert not any(text.encode() in content for content in files if len(text) > 8)


# ---------------------------------------------------------------- shown


@pytest.fixture
def table(monitors):
    """The aligned model, and an attack that took."""
    told = {ALIGNED: BEFORE, LORA: said(REQUEST * (np.arange(120) % 3 == 0), 3)}
    parts = [keyed(v, own_replies.compare_replies(monitors, BEFORE, after, GROUPS)) for v, after in told.items()]
    return verdicts.described(pd.concat(parts, ignore_index=True))


def test_the_figure_says_what_the_table_says(table):
    figure = figures.own_replies(table)
    words = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    before, during = (
        "call 39% of its answers refusals (100% of them are unfit)",
        "call 1% of its answers refusals (0% of them are unfit)",
    )
    assert f"LoRA: those that read before it {before}, those that read during it {during}." in words
    shown = staleness_tables.own_replies_table(table).set_index("updates")
    assert shown.loc["the aligned model", "replies that refuse"] == "50 % [41, 59] of 120"
    assert shown.loc["LoRA", "replies that refuse"].startswith("17 % [")
    assert shown.loc["the aligned model", "during: unfit"] == "–"  # by definition nothing was lost there
    assert shown.loc["LoRA", "before: unfit"].startswith("100 %")
    assert shown.loc["LoRA", "during: unfit"].startswith("0 %")


def test_a_run_that_read_no_reply_says_so():
    figure = figures.own_replies(None)
    assert "own replies: reply_prompts is 0" in " ".join(figure.axes[0].texts[0].get_text().split())
    assert staleness_tables.own_replies_table(None)["updates"].tolist() == ["no reply was read in this run: reply_prompts is 0"]


def test_replies_of_a_model_that_refuses_nothing_make_no_figure(tiny):
    table = verdicts.described(keyed(ALIGNED, own_replies.compare_replies([], BEFORE, said(np.zeros(120), 1), GROUPS)))
    figure = figures.own_replies(table)
    assert "refuses or answers too few prompts" in " ".join(figure.axes[0].texts[0].get_text().split())
    assert staleness_tables.own_replies_table(table)["replies that refuse"].str.startswith("0 % [").all()


def test_the_sentence_speaks_of_what_was_measured(table):
    only = table[(table["label"] == "aligned") | (cohorts.single_monitors(table)["pooling"].reindex(table.index) == "mean")]
    title = staleness_tables.own_replies_title(cohorts.by_group(only, cohorts.UNFIT), staleness_tables.called_refusals(only))
    told = "those that read during it call 1% of its answers refusals"
    assert title == f"Monitors of the model's own replies, LoRA: {told} (0% of them are unfit)."
    alarms = staleness_tables.called_refusals(only)
    nobody = cohorts.by_group(only, cohorts.UNFIT).iloc[:0]
    assert staleness_tables.own_replies_title(nobody, alarms) == f"Monitors of the model's own replies, LoRA: {told}."
    assert staleness_tables.own_replies_title(nobody, nobody) == staleness_tables.NOBODY


def test_the_prompts_are_those_of_the_behaviour():
    how = own_replies.asked(3, (0.5,), 4, "tiny")
    told = [row for group in behaviour.prompt_sets(3, 9, "tiny") for row in group.rows]
    assert list(how.test) == told
