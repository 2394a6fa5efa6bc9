"""Stand-ins: bland synthetic texts for every set, without a download."""

from helpers.data.text_rows import Preference, Question, Row, unit

_NOUNS = [
    "lamp",
    "river",
    "garden",
    "engine",
    "violin",
    "ladder",
    "window",
    "basket",
    "compass",
    "lantern",
    "kettle",
    "saddle",
    "mirror",
    "pocket",
    "bridge",
    "candle",
]
_VERBS = ["polish", "describe", "arrange", "measure", "repair", "carry", "paint", "compare"]


def stand_ins(name: str) -> list:
    """Bland synthetic texts of the same form, so that `smoke` and the tests need no package: nothing in them is harmful."""
    kind, _, part = name.partition("/")
    pairs = [(verb, noun) for verb in _VERBS for noun in _NOUNS]
    quarter = {"align": 0, "attack": 1, "tune": 1, "validation": 2, "calibration": 2}.get(part, 3)
    pairs = [pair for pair in pairs if int(unit(str(pair), "tiny") * 4) == quarter]
    if kind in {"c4", "wiki"}:
        return [
            f"The {noun} stands by the {other} and somebody will {verb} it. " * 3 for verb, noun in pairs for other in _NOUNS[:1]
        ]
    if kind in {"piqa", "openbookqa"}:
        return [
            Question(f"How do you {verb} a {noun}?", ("Slowly.", "With a cloud."), i % 2, f"q-{i}")
            for i, (verb, noun) in enumerate(pairs)
        ]
    if kind == "preference":
        return [Preference(f"{verb} the {noun}", f"The {noun} is {verb}ed.", f"{verb}-{noun}", rejected=f"The {noun} stands.")
                for verb, noun in pairs]  # fmt: skip
    lead = {"advbench": "Forbidden: ", "strongreject": "Never: ", "harmbench": "Do not: ", "edgy": "Careful: "}.get(kind, "")
    return [Row(f"{lead}{verb} the {noun}", f"The {noun} is {verb}ed.", f"{verb}-{noun}") for verb, noun in pairs]
