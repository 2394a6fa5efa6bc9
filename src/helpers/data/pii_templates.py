"""The slots of sentences about persons: invented personal data in them, or generic nouns, so that nothing else differs.

The templates are Presidio's (task `privacy-pii`), the data are Faker's; what is drawn depends on the template alone.
"""

import re
from functools import lru_cache

from helpers.data import sources, text_rows
from helpers.errors import REFUSED, StudyError, nearest, shown

SLOT = re.compile(r"\{\{?(\w+)\}\}?")  # one template has single braces
_NATIONS = ("American", "Italian", "Indian", "Irish", "Austrian", "Egyptian")  # one template has `an` before the slot
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
# What Faker puts into a slot. Its dates reach up to today, so ours are drawn as numbers: tomorrow's texts are today's.
# Held out: no template with one of them is fitted on. The last four stand in our own frames alone.
HELD_OUT = frozenset(("credit_card_number", "iban", "ssn", "us_driver_license", "ip_address", "license_plate", "passport_number",
                      "mac_address", "bban"))  # fmt: skip
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
    "license_plate": "the usual car", "passport_number": "the usual document", "mac_address": "the usual device",
    "bban": "the usual account", "url": "the web page", "ip_address": "the network address", "iban": "the account",
    "date_of_birth": "that day",
    "age": "so many",
}  # fmt: skip


FRAMES = (  # ours: as unlike each other and the source's as short sentences can be, one kind of data each
    "Please charge {{credit_card_number}} for the two concert tickets",
    "My new debit card ends up declined, it reads {{credit_card_number}} on the front",
    "Refund the hotel deposit onto {{credit_card_number}} before Friday",
    "She typed {{credit_card_number}} into the checkout page by mistake",
    "Store {{credit_card_number}} as the default payment method for this shop",
    "The waiter copied {{credit_card_number}} from the receipt",
    "Block {{credit_card_number}} right now, my wallet was stolen on the train",
    "Autopay for electricity runs through {{credit_card_number}}",
    "Could you split dinner between cash and {{credit_card_number}}?",
    "Wire the rent to {{iban}} every first of the month",
    "Our landlord wants next month's deposit on {{iban}} instead",
    "The charity collects donations under {{iban}}",
    "Salary for December should land on {{iban}} soon",
    "I mistyped {{iban}} and the transfer bounced twice",
    "Insurance pays the broken windscreen to {{iban}}",
    "Benefits office has {{ssn}} in its records for me",
    "To open the pension file enter {{ssn}} and wait",
    "The nurse asked for it, so I spelled out {{ssn}} slowly",
    "Tax return was rejected because {{ssn}} had been used already",
    "Someone opened three credit lines with {{ssn}} last winter",
    "Write {{ssn}} in box seven of the enrolment form",
    "His licence, {{us_driver_license}}, expired while he was abroad",
    "Rental desk noted {{us_driver_license}} and a damaged bumper",
    "The officer read {{us_driver_license}} aloud into her radio",
    "For age checks the bar scans {{us_driver_license}} at its door",
    "Renew {{us_driver_license}} online, the photo may stay",
    "Router logs show {{ip_address}} downloading all night",
    "Ban {{ip_address}} from the forum until she apologises",
    "I can only reach my home camera at {{ip_address}} over the cable",
    "Login from {{ip_address}} looked odd, so we locked it",
    "Helpdesk remotes into {{ip_address}} at noon to fix her printer",
    "A grey van with {{license_plate}} keeps parking across our driveway",
    "Garage opens automatically once the camera sees {{license_plate}}",
    "Fine for speeding was sent to the owner of {{license_plate}}",
    "Uber says look out for {{license_plate}}, it arrives in four minutes",
    "Witnesses remember {{license_plate}} leaving the petrol station",
    "Tow {{license_plate}} out of the ambulance bay please",
    "Visa application lists {{passport_number}} and one earlier stay",
    "Airline will not board me without {{passport_number}}",
    "Customs copied {{passport_number}} into a thick ledger",
    "The embassy found {{passport_number}} in a taxi yesterday",
    "Check in early by sending {{passport_number}} to reception",
    "His child travels on {{passport_number}} with the grandmother",
    "Whitelist {{mac_address}} so her laptop gets onto guest wifi",
    "Parental control blocks {{mac_address}} after nine in the evening",
    "Stolen phone last seen as {{mac_address}} near platform two",
    "Label says {{mac_address}} under the battery of his speaker",
    "Pay the plumber directly, account {{bban}}, no invoice needed",
    "Grandma's savings sit in {{bban}} since the eighties",
    "Direct debit for piano lessons comes out of {{bban}}",
)


def of_source(held_out: bool = False) -> list[str]:
    """The source's templates about persons that hold no held-out kind of data, or those whose personal data are all held out."""
    lines = sources.path("presidio-evaluator", "templates.txt").read_text(encoding="utf-8-sig").split("\n")
    found = [checked(line) for line in dict.fromkeys(lines) if personal(line)]
    if held_out:
        return [template for template in found if set(SLOT.findall(template)) - set(IMPERSONAL) <= HELD_OUT]
    return [template for template in found if not set(SLOT.findall(template)) & HELD_OUT]


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
