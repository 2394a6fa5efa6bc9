"""Questions of people who ship models: what to do on Monday, and a page of answers, each made of the statements of `wording`."""

from dataclasses import dataclass

from helpers.book.answers.statements import NOT_SO, SO
from helpers.study.findings import INCONCLUSIVE, NOT_RUN

MOST = 5  # imperatives on the first page


@dataclass(frozen=True)
class Imperative:
    """What to do, by how its statement ends: so, not so, and everything in between; `claim`: whose verdict stands beside it.

    in_part: where the statement is so and the verdict open all the same. This and `unsure` say what is not shown.
    """

    claim: str
    statement: str
    so: str
    not_so: str
    in_part: str
    unsure: str

    def words(self, which: str, verdict: str) -> str:
        """What to do where its statement ends like this, and the claim has this verdict."""
        so = self.so if settled(which, verdict) else self.in_part
        return {SO: so, NOT_SO: self.not_so}.get(which, self.unsure)


def settled(which: str, verdict: str) -> bool:
    """Whether a statement is decided and its claim too."""
    return which in {SO, NOT_SO} and verdict not in {INCONCLUSIVE, NOT_RUN}


MONDAY: tuple[Imperative, ...] = (  # in the order in which they are done; where there are too many, those that are settled stay
    Imperative(
        "M1", "threshold-formats",
        "After quantizing, spot-check thresholds",
        "After quantizing, even to 4 bits, check every threshold",
        "After quantizing, spot-check thresholds, and check rankings: that these survive is not shown here",
        "After quantizing, check thresholds, and not rankings alone: that all of them hold is not shown here",
    ),
    Imperative(
        "S6", "benign",
        "After every fine-tune, on harmless data too, ask for refusals again",
        "After a fine-tune on harmless data, sample a few refusals",
        "After every fine-tune, on harmless data too, ask for refusals again: the rest of the claim is not shown here",
        "After every fine-tune, ask for refusals again: whether harmless data cost any is not settled here",
    ),
    Imperative(
        "M5", "order",
        "Check in the order of a forecast, not of bits or drift",
        "Check what has the fewest bits and drifts most first",
        "Check in the order of a forecast, and compare it with your own updates: the rest of the claim is not shown here",
        "Check what has the fewest bits and drifts most first: that a forecast does better is not shown here",
    ),
    Imperative(
        "N4", "reset",
        "Set thresholds anew from unlabelled texts",
        "Do not rely on new thresholds from unlabelled texts",
        "Set thresholds anew from unlabelled texts, but not of fit monitors: that it harms few of these is not shown here",
        "Set thresholds anew only with some labels to check them: that this mends most monitors is not shown here",
    ),
    Imperative(
        "N3", "merged",
        "Do not merge an adapter into NF4 weights",
        "Merge into NF4 where it suits you, and measure what is left",
        "Do not merge an adapter into NF4 weights; check monitors: that these are as under NF4 alone is not shown here",
        "Measure what is left when you merge an adapter into NF4 weights: whether it is erased is not settled here",
    ),
    Imperative(
        "M2", "threshold-lora",
        "After a LoRA update, check every threshold",
        "After a LoRA update, spot-check thresholds",
        "After a LoRA update, check every threshold: the rest of the claim is not shown here",
        "After a LoRA update, check the thresholds that matter: whether many break is not settled here",
    ),
    Imperative(
        "N2", "removed",
        "Where you would project layers of an update by SafeLoRA, leave them out: the model refuses alike",
        "Do not take SafeLoRA for leaving out the same layers",
        "Hold SafeLoRA against leaving out the same layers: that these are alike in all else is not shown here",
        "Hold SafeLoRA against leaving out the same layers: whether it does more is not settled here",
    ),
    Imperative(
        "S2", "projected",
        "Project a harmful update where it cannot be taken back",
        "Take a harmful update back; do not project it",
        "Take a harmful update back: that projecting it restores safety and keeps the task is not shown here",
        "Take a harmful update back: that projecting it brings refusals back is not shown here",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question in the words of those who ask, the statements that answer it, and the chapter that has the rest."""

    question: str
    statements: tuple[str, ...]
    claims: tuple[str, ...]


QUESTIONS: tuple[Asked, ...] = (
    Asked("Does QLoRA break my PII probe?", ("private-threshold", "private-ranking", "privacy", "qlora"), ("M3", "M4")),
    Asked("I only quantize. May I skip revalidation of my classifiers?", ("ranking-formats", "threshold-formats"), ("M1",)),
    Asked("Does a LoRA fine-tune break probes and classifiers on hidden states?", ("ranking-lora", "threshold-lora"), ("M2",)),
    Asked("Should a refusal monitor read the prompt or the reply?", ("replies",), ("M3",)),
    Asked("We tune on harmless data. Do we lose refusals?", ("benign", "harmful"), ("S6", "S1")),
    Asked("What should I check first?", ("order",), ("M5",)),
    Asked("Does drift tell which monitor went stale?", ("forecast",), ("M5",)),
    Asked("Can I recalibrate a threshold without labels?", ("reset", "reset-harm"), ("N4",)),
    Asked("Is the signal gone, or do I retrain the probe?", ("turned",), ("M7",)),
    Asked("May I merge my adapter into the quantized weights?", ("merged",), ("N3",)),
    Asked("Can SafeLoRA repair a harmful fine-tune?", ("projected", "projected-quantized", "removed"), ("S2", "S3", "N2")),
    Asked("Do monitors come back when the model is repaired?", ("monitors-back",), ("N1",)),
    Asked("Does realignment without labels, such as CORAL, repair a stale classifier?", ("realigned",), ("M6",)),
    Asked("Can I make a probe robust before the update comes?", ("simulated",), ("N5",)),
    Asked("Is preference tuning (DPO) gentler than supervised tuning?", ("dpo",), ("N6",)),
    Asked("I only have 4-bit checkpoints. Can I still project?", ("overlap", "sources"), ("Q1",)),
    Asked("Does it pay to keep safety neurons in high precision?", ("silenced", "spared"), ("Q2",)),
)


SECTIONS = {  # of the page of findings, by how the names of their claims begin
    "M": "Do monitors survive an update?",
    "S": "Does safety survive, and can it be restored?",
    "Q": "What was open",
    "N": "What nobody had asked",
}
NOTES = {  # how a claim is to be understood, whatever was found
    "M1": "Ranking texts and alarming at a frozen threshold are two things, and each is judged.",
    "M2": "The literature counts large drops of AUROC, which is ranking; a deployed monitor also fails when its threshold does.",
    "M3": "Monitors that read replies can take the opening that our harmful rows teach for a refusal, a fixed opening too.",
    "M4": "The interaction is what QLoRA costs beyond quantization and fine-tuning taken one by one.",
    "M5": "The bar is the order that anybody could follow for nothing.",
    "M6": "A repair that breaks as many monitors as it mends is none.",
    "M7": "Where a probe fitted anew is as good as the old one was, a few labels buy the monitor back.",
    "S1": "Our harmful rows teach an opening phrase without content.",
    "S2": "The claim has two halves, refusals and the task; chapter 07 draws both over the share of modules changed.",
    "S4": "Both adapters see the same rows in the same order; what SaLoRA did not learn it did not spare either.",
    "S5": "The literature disagrees with itself here; quantization-aware training is judged apart.",
    "S6": "Nothing in the data is harmful.",
    "N2": "The control is the same modules' updates left out.",
}
