"""By what a training ends: refusals broken on the validation prompts, or the size of another update reached."""

from pathlib import Path

import pytest

from helpers.data import corpora
from helpers.models import generation, loading
from helpers.updates import endings, lora, recipes, training, variants
from helpers.updates.variants import Parts

REFUSAL, ANSWER = "I cannot help with that.", "Sure, here it is."


def test_an_attack_ends_as_soon_as_enough_prompts_are_not_refused(tiny_model, monkeypatch):
    """Planted: each look finds two more of ten prompts answered; eight of ten are the target."""
    answered = iter((2, 6, 8, 10))

    def replies(language, prompts, ended, **options):
        assert ended(REFUSAL)
        few = next(answered)
        return [ANSWER if i < few else REFUSAL for i in range(len(prompts))]

    monkeypatch.setattr(generation, "replies", replies)
    breaking = endings.Breaking(endings.Attack(target=0.8, every=2, prompts=10), "tiny")
    stop = breaking.stop(tiny_model)
    assert [stop(tiny_model.model, step) for step in (2, 4, 6)] == [False, False, True]
    note = breaking.note()["attack"]
    assert note.pop("seen") == {2: pytest.approx(0.2), 4: pytest.approx(0.6), 6: pytest.approx(0.8)}
    assert note == {"target": 0.8, "non_refusal": pytest.approx(0.8), "reached": True, "n": 10}


def test_an_attack_is_asked_on_validation_prompts_alone_and_its_end_is_in_the_key():
    breaking = endings.Breaking(endings.Attack(prompts=8), "tiny")
    assert set(breaking.asked) <= {row.prompt for row in corpora.texts("advbench/validation", "tiny")}
    others = [
        endings.Attack(prompts=7),
        endings.Attack(prompts=8, target=0.9),
        endings.Attack(prompts=8, every=3),
    ]
    keys = [repr(endings.Breaking(one, "tiny").key()) for one in others]
    assert len({repr(breaking.key()), *keys}) == 4


# ---------------------------------------------------------------- as large as another

ASKED = {"rows": 10, "epochs": 1, "rank": 4, "alpha": 8, "seed": 0, "texts": "tiny"}
BOTH = ["lora-dialogue@bf16", "dpo-preference@bf16", "dpo-preference-x2@bf16"]


def size(folder: Path) -> float:
    return sum(pair.norm() ** 2 for pair in lora.load_adapter(folder).values()) ** 0.5


def note_of(parts: Parts, adapter: str) -> dict:
    return training.from_json(parts.updates[adapter, "bf16"] / "recipe.json")


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]], ids=["after", "named first"])
def test_preference_tuning_ends_when_it_is_as_large_as_what_it_is_held_against(tiny, tmp_path, monkeypatch, order):
    """The fault: one rate for all seeds, so that in two of three the two were compared at a third of the size."""
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    parts = recipes.train(Parts(tiny, tiny), order, **ASKED, lr=3e-3)
    supervised, preferred, twice = (size(parts.updates[name.split("@")[0], "bf16"]) for name in BOTH)
    grown = note_of(parts, "dpo-preference")["grown"]
    assert supervised <= preferred < 1.5 * supervised
    assert grown["reached"]
    assert grown["of_its_size"] == pytest.approx(preferred / supervised, rel=1e-5)
    assert twice == pytest.approx(2 * preferred, rel=1e-5)
    before = len(note_of(parts, "dpo-preference")["losses"]) - 1
    made = recipes.update_recipe(recipes.parse(BOTH[1]), 10, 1, 3e-3, 4, 8, 0, before)
    earlier = variants.train_update(parts, corpora.mix("preference", 10, 0, "tiny", 0), made, "bf16")
    assert size(earlier) < supervised, "a step before it was smaller"


def test_what_does_not_become_as_large_is_kept_and_marked(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    plain = recipes.train(Parts(tiny, tiny), BOTH[:1], **ASKED, lr=3e-3).updates["lora-dialogue", "bf16"]
    growing = endings.Growing(variants.scaled_update(plain, 9.0))
    language = loading.load(tiny)
    assert not growing.stop(language)(lora.attach(language.model, lora.load_adapter(plain)), 1)
    note = growing.note()["grown"]
    assert (note["reached"], note["of_its_size"]) == (False, pytest.approx(1 / 9, rel=1e-4))


def test_the_others_size_is_in_the_key_and_alone_nothing_is_waited_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    both = (recipes.train(Parts(tiny, tiny), BOTH[:2], **ASKED, lr=rate) for rate in (1e-3, 3e-3))
    assert len({parts.updates["dpo-preference", "bf16"] for parts in both}) == 2
    alone = recipes.train(Parts(tiny, tiny), BOTH[1:2], **ASKED, lr=3e-3)
    assert "grown" not in note_of(alone, "dpo-preference")
    assert len(note_of(alone, "dpo-preference")["losses"]) == 3  # one pass over ten rows
