"""The slots of sentences about persons: invented personal data in them, or generic nouns, so that nothing else differs.

The templates are Presidio's (task `privacy-pii`), the data are Faker's; what is drawn depends on the template alone.
"""

import re
from functools import lru_cache

from helpers.data import text_rows
from helpers.errors import REFUSED, StudyError, nearest, shown

SLOT = re.compile(r"\{\{?(\w+)\}\}?")  # one template has single braces
_NATIONS = ("American", "Italian", "Indian", "Irish", "Austrian", "Egyptian")  # one template has `an` before the slot
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
# What Faker puts into a slot. Its dates reach up to today, so ours are drawn as numbers: tomorrow's texts are today's.
_FAKER = {"person": "name", "organization": "company", "ip_address": "ipv4"}  # other slots have the name of Faker's provider
_DRAWN = {
    "age": lambda fake: fake.random_int(18, 90),
    "year": lambda fake: fake.random_int(1950, 2020),
    "date_of_birth": lambda fake: f"{fake.random_int(1940, 2005)}-{fake.random_int(1, 12):02}-{fake.random_int(1, 28):02}",
    "date_time": lambda fake: f"{fake.random_int(1990, 2020)}-{fake.random_int(1, 12):02}-{fake.random_int(1, 28):02}",
    "day_of_week": lambda fake: fake.random_element(_DAYS),
    "us_driver_license": lambda fake: fake.bothify("?#######").upper(),
    "nationality": lambda fake: fake.random_element(_NATIONS),
    "nation_woman": lambda fake: fake.random_element(_NATIONS),
    "nation_plural": lambda fake: fake.random_element(_NATIONS) + "s",
}
IMPERSONAL = {
    "city": "the city", "country": "the country", "nationality": "international", "nation_woman": "foreign",
    "nation_plural": "citizens", "year": "a past year", "organization": "the company", "job": "employee",
    "day_of_week": "that day", "date_time": "that day",
}  # fmt: skip
NOUNS = {
    **IMPERSONAL,
    **dict.fromkeys(("person", "name", "name_male", "name_female"), "a person"),
    **dict.fromkeys(("first_name", "first_name_male", "first_name_female", "first_name_nonbinary"), "somebody"),
    **dict.fromkeys(("last_name", "last_name_male", "last_name_female"), "somebody"),
    **dict.fromkeys(("prefix", "prefix_male", "prefix_female"), ""),
    **dict.fromkeys(("credit_card_number", "ssn", "us_driver_license"), "on file"),
    **dict.fromkeys(("postcode", "zipcode"), "the postal code"),
    "address": "the usual address", "building_number": "a house on", "street_name": "the street", "state_abbr": "the state",
    "secondary_address": "the upper floor", "phone_number": "the usual number", "email": "the usual mailbox",
    "url": "the web page", "ip_address": "the network address", "iban": "the account", "date_of_birth": "that day",
    "age": "so many",
}  # fmt: skip


def personal(line: str) -> bool:
    """Whether a slot of the line says something of one person: a city, a year or a company does not."""
    return bool(set(SLOT.findall(line)) - set(IMPERSONAL))


def checked(line: str) -> str:
    """The template that stands in a line of the source; refuses a slot that has no generic noun."""
    unknown = sorted(set(SLOT.findall(line)) - set(NOUNS))
    if unknown:
        raise StudyError(
            f"task 'privacy-pii': unknown slot {shown(unknown[0])}; {nearest(unknown[0], NOUNS)}name its noun", REFUSED
        )
    return line.strip().replace("\\n", "\n").replace("\ufffd", "-")


@lru_cache(maxsize=1)
def _faker():
    from faker import Faker

    return Faker("en_US")


def filled(template: str) -> str:
    """The template with invented personal data in its slots; the draw depends on the template alone."""
    fake = _faker()
    fake.seed_instance(int(text_rows.unit(template, "faker") * 2**32))

    def value(slot: re.Match) -> str:
        name = slot[1]
        drawn = _DRAWN[name](fake) if name in _DRAWN else getattr(fake, _FAKER.get(name, name))()
        return str(drawn).replace("\n", ", ")

    return SLOT.sub(value, template)


def generic(template: str) -> str:
    """The template with a generic noun in each slot, without doubled articles and nouns."""
    text = re.sub(r"\{\{prefix\w*\}\} ", "", template)

    def noun(slot: re.Match) -> str:
        before, after, said = text[: slot.start()].lower(), text[slot.end() :].lower(), NOUNS[slot[1]]
        if re.search(r"(?:\b(?:an?|the|my|your|this|our|her)|\}'s) $", before):
            said = re.sub(r"^(?:an?|the) ", "", said)
        if re.match(rf" {said.split()[-1]}\b", after):  # `lives on {street} street`
            said = said.rpartition(" ")[0]
        return said[:1].upper() + said[1:] if not before else said

    return SLOT.sub(noun, text)
