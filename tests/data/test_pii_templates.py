"""Slots: two sentences of a pair differ in their slots alone, every slot has a value and a noun, and no other is let in."""

import re

import pytest
from support.bland import refused

from helpers.data import elsewhere, tasks
from helpers.data.pii_templates import FRAMES, NOUNS, SLOT, checked, filled, generic, of_source
from helpers.errors import REFUSED


@pytest.mark.real
def test_sentences_about_persons_differ_in_their_slots_only():
    rows = iter([*tasks._privacy_pii(), *elsewhere.ELSEWHERE["privacy-pii"]()])
    for line in [*of_source(), *of_source(True), *FRAMES]:
        slots = set(SLOT.findall(line))
        pair = next(rows), next(rows)
        fixed = [re.escape(piece.strip().lower()) for piece in SLOT.split(checked(line))[::2]]
        template = re.compile(".*".join(fixed), re.DOTALL)
        assert all(template.search(r.prompt.lower()) for r in pair)
        digits = [len(re.findall(r"\d", r.prompt)) for r in pair]
        assert digits[1] == len(re.findall(r"\d", line))  # the generic one adds none
        if slots & {"credit_card_number", "phone_number", "address", "iban", "ssn", "zipcode", "age"}:
            assert digits[0] > digits[1]
        if "person" in slots:
            names = re.findall(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b", pair[0].prompt)
            assert [name for name in names if name not in pair[1].prompt]
    assert next(rows, None) is None


@pytest.mark.parametrize("slot", NOUNS)
def test_every_slot_has_a_value_drawn_by_its_template_and_a_noun(slot):
    template = f"We met {{{{{slot}}}}} at noon"
    value = filled(template)
    assert value == filled(template)
    assert "{" not in value + generic(template)
    assert value not in (template, generic(template))
    assert value != filled(template + "!")[:-1] or slot.startswith(("prefix", "nation", "day", "state", "age"))


def test_articles_are_not_doubled_and_an_unknown_slot_is_named():
    assert generic("{{person}} met the {{person}} in {{street_name}} street") == "A person met the person in the street"
    with refused(REFUSED, "privacy-pii", "'lantern_number'"):
        checked("a {{lantern_number}}")
