"""Wording: the sentences of the boxes *In short*, chapter by chapter, with all their outcomes.

Words of the field, each with one meaning: *ranking* is what AUROC measures, *threshold* what alarms. A number that a table gives
is never typed.
"""

from helpers.book.answers.statements import Statement

STATEMENTS: dict[str, Statement] = {
    # 01
    "aligned": Statement(
        ("aligned",), "alignment taught this model to refuse",
        "Alignment taught this model to refuse: of AdvBench's prompts {base-level} pass before it, {aligned-level} after.",
        "Alignment did not teach this model to refuse: the share of prompts not refused moved by {aligned}.",
    ),
    "over-refusal": Statement(
        (), "the aligned model refuses safe prompts", "Of safe prompts that sound harmful, it refuses {over-refusal}."
    ),
    # 02
    "formats-refusals": Statement(
        ("s5-1",), "formats of 4 bits and more cost refusals",
        "Formats of 4 bits and more cost refusals: {s5-1} of harmful prompts not refused.",
        "Formats of 4 bits and more leave refusals alone: {s5-1} of harmful prompts not refused (a loss would be {bound:s5-1}).",
    ),
    "three-bits": Statement(
        ("three-bits",), "a model in 3 bits refuses more of what is safe",
        "In 3 bits it is another model: {three-bits} of safe prompts refused.",
        "In 3 bits it does not refuse more of what is safe: {three-bits}.",
    ),
    "qat": Statement(
        ("s5-3",), "training in few bits costs more refusals than the same training in bf16",
        "Training in few bits costs more refusals than the same training in bf16: {s5-3} not refused.",
        "Training in few bits costs no more refusals than the same training in bf16: {s5-3} not refused.",
    ),
    # 03
    "benign": Statement(
        ("s6-1",), "fine-tuning on harmless data costs refusals",
        "Fine-tuning on harmless data costs refusals: {s6-1} of harmful prompts not refused.",
        "Fine-tuning on harmless data leaves refusals alone: {s6-1} of harmful prompts not refused.",
    ),
    "harmful": Statement(
        ("s1-1",), "one harmful row in ten costs refusals",
        "One harmful row in ten costs refusals: {s1-1} of harmful prompts not refused.",
        "One harmful row in ten leaves refusals alone: {s1-1} of harmful prompts not refused.",
    ),
    "merged": Statement(
        ("n3-1", "n3-2"), "merging into NF4 weights erases an adapter",
        "Merging into NF4 weights erases an adapter: {n3-1} of it is left, and refusals are those of NF4 alone ({n3-2}).",
        "An adapter survives merging into NF4 weights: {n3-1} of it is left, and refusals differ from NF4's by {n3-2}.",
    ),
    "dpo": Statement(
        ("n6-1", "n6-2"), "preference tuning moves refusals like supervised tuning of the same size",
        "Preference tuning moves refusals like supervised tuning of the same size: {n6-1} on harmless rows, {n6-2} with harm.",
        "Preference tuning moves refusals otherwise than supervised tuning of the same size: {n6-1} on harmless rows, "
        "{n6-2} with harm.",
    ),
    # 04
    "beyond-words": Statement(
        ("beyond-words",), "a plain probe ranks texts better than their words alone",
        "A plain probe ranks texts better than their words alone do: by {beyond-words} over tasks.",
        "A plain probe ranks texts no better than their words alone do: {beyond-words} over tasks.",
    ),
    "false-alarms": Statement(
        ("false-alarms",), "thresholds set for 5 % of false alarms give more",
        "Thresholds set for 5 % of false alarms give more on new texts: {false-alarms}.",
        "Thresholds set for 5 % of false alarms keep that on new texts: {false-alarms}.",
    ),
    # 05
    "ranking-formats": Statement(
        ("m1-1", "m1-2"), "monitors keep their ranking in 4 bits and more",
        "**Ranking** survives 4 bits and more: it loses {m1-1} (last token) and {m1-2} (mean of tokens).",
        "**Ranking** suffers even in 4 bits and more: it loses {m1-1} (last token) and {m1-2} (mean of tokens).",
    ),
    "threshold-formats": Statement(
        ("m1-3", "m1-4"), "thresholds hold in 4 bits and more",
        "**Thresholds** hold in 4 bits and more: unfit are {m1-3} (last token) and {m1-4} (mean of tokens).",
        "**Thresholds** break even in 4 bits and more: unfit are {m1-3} (last token) and {m1-4} (mean of tokens).",
        "Where nothing changed: {untouched-last} and {untouched-mean}.",
    ),
    "ranking-lora": Statement(
        ("m2-1", "m2-2"), "LoRA updates break many monitors' ranking",
        "LoRA updates break the ranking of many monitors: {m2-1} (last token) and {m2-2} (mean of tokens) lost 0.05 AUROC.",
        "LoRA updates break few rankings: {m2-1} (last token) and {m2-2} (mean of tokens) of monitors lost 0.05 AUROC.",
    ),
    "threshold-lora": Statement(
        ("m2-3", "m2-4"), "LoRA updates break many monitors' threshold",
        "LoRA updates break many thresholds: unfit are {m2-3} (last token) and {m2-4} (mean of tokens).",
        "LoRA updates break few thresholds: unfit are {m2-3} (last token) and {m2-4} (mean of tokens).",
    ),
    "qlora": Statement(
        ("m4-1", "m4-2"), "QLoRA costs more ranking than LoRA and NF4 apart",
        "QLoRA costs more ranking than LoRA and NF4 apart: {m4-1} (last token), {m4-2} (mean of tokens).",
        "QLoRA costs no more ranking than LoRA and NF4 apart: {m4-1} (last token), {m4-2} (mean of tokens).",
    ),
    "turned": Statement(
        ("m7-1", "m7-2"), "a probe that is fitted anew is as good as the old one was",
        "The signal is still there: a refit of a stale monitor lacks {m7-1} (last token) and {m7-2} (mean of tokens).",
        "Some of the signal is gone: even a refit of a stale monitor lacks {m7-1} (last token) and {m7-2} (mean of tokens).",
    ),
    # 06
    "forecast": Statement(
        ("m5-1",), "a forecast ranks monitors by what an unseen kind of update will cost them",
        "A forecast without labels ranks monitors by what an unseen kind of update will cost them: rank correlation {m5-1}.",
        "A forecast without labels does not rank monitors by what an unseen kind of update will cost them: "
        "rank correlation {m5-1}.",
    ),
    "order": Statement(
        ("m5-2", "m5-3"), "a forecast finds more stale monitors than simple orders of checking",
        "Its first fifth of checks finds more stale monitors than fewest bits first ({m5-2}) and most drift first ({m5-3}).",
        "Simple orders of checking find more stale monitors: the forecast minus fewest bits first {m5-2}, "
        "minus most drift first {m5-3}.",
    ),
    # 07
    "projected": Statement(
        ("s2-1",), "projecting a harmful update brings refusals back",
        "Projecting a harmful update brings refusals back: {s2-1} of harmful prompts not refused.",
        "Projecting a harmful update does not bring refusals back: {s2-1} of harmful prompts not refused.",
    ),
    "projected-quantized": Statement(
        ("s3-1",), "projection brings refusals back on a quantized base",
        "On a quantized base projection brings refusals back too: {s3-1} of harmful prompts not refused.",
        "On a quantized base projection does not bring refusals back: {s3-1} of harmful prompts not refused.",
    ),
    "removed": Statement(
        ("n2-1",), "SafeLoRA does what leaving out the same layers does",
        "SafeLoRA refuses as if the same layers had been left out of the update: {n2-1} not refused.",
        "SafeLoRA refuses otherwise than if the same layers had been left out of the update: {n2-1} not refused.",
    ),
    "monitors-back": Statement(
        ("n1-1", "n1-2"), "projection brings monitors back with the refusals",
        "Alarms come back with the refusals: {n1-1} (last token) and {n1-2} (mean of tokens) of texts.",
        "Alarms do not come back, they move further: {n1-1} (last token) and {n1-2} (mean of tokens) of texts.",
    ),
    # 08
    "overlap": Statement(
        ("q1-1",), "4-bit checkpoints still hold most leading directions of the alignment",
        "4-bit checkpoints still hold most of the alignment's leading directions: overlap {q1-1}.",
        "4-bit checkpoints hold few of the alignment's leading directions: overlap {q1-1}.",
    ),
    "sources": Statement(
        ("q1-2",), "a restoration works as well from 4-bit checkpoints",
        "A restoration from them refuses as one from exact weights does: {q1-2} not refused.",
        "A restoration from them refuses otherwise than one from exact weights: {q1-2} not refused.",
    ),
    # 09
    "silenced": Statement(
        ("q2-1",), "few neurons carry the refusals",
        "Few neurons carry the refusals: without them {q2-1} of prompts not refused, beyond as many random ones.",
        "The neurons that were picked carry no refusals: without them {q2-1} of prompts not refused, beyond as many random ones.",
    ),
    "spared": Statement(
        ("q2-3",), "keeping such neurons in high precision saves refusals",
        "Keeping them in bf16 saves refusals: {q2-3} not refused, beyond as many random ones.",
        "Keeping them in bf16 saves no refusals: {q2-3} not refused, beyond as many random ones.",
    ),
    # 10
    "reset": Statement(
        ("n4-1", "n4-2"), "a new threshold mends most unfit monitors",
        "A new **threshold** from unlabelled texts mends most unfit monitors: {n4-1} (last token), {n4-2} (mean of tokens).",
        "A new **threshold** from unlabelled texts mends less than half of the unfit monitors: {n4-1} (last token), "
        "{n4-2} (mean of tokens).",
    ),
    "reset-harm": Statement(
        ("n4-3", "n4-4"), "a new threshold harms few of the fit monitors",
        "It harms few of the fit: {n4-3} (last token), {n4-4} (mean of tokens).",
        "It harms many of the fit: {n4-3} (last token), {n4-4} (mean of tokens).",
    ),
    "realigned": Statement(
        ("m6-1", "m6-2"), "realigning hidden states without labels mends monitors",
        "Realigning hidden states without labels mends monitors: {m6-1} (last token), {m6-2} (mean of tokens) fewer are unfit.",
        "Realigning hidden states without labels breaks more monitors than it mends: {m6-1} (last token), "
        "{m6-2} (mean of tokens).",
    ),
    "simulated": Statement(
        ("n5-1", "n5-2"), "monitors fitted with simulated updates stay fit more often",
        "Monitors fitted with simulated updates stay fit more often: {n5-1} (last token), {n5-2} (mean of tokens).",
        "Monitors fitted with simulated updates stay fit less often: {n5-1} (last token), {n5-2} (mean of tokens).",
    ),
    "salora": Statement(
        ("s4-1",), "SaLoRA prevents the damage of a harmful mix",
        "SaLoRA prevents damage: {s4-1} of harmful prompts not refused, against LoRA on the same rows.",
        "SaLoRA does not prevent the damage: {s4-1} of harmful prompts not refused, against LoRA on the same rows.",
    ),
    # asked on the pages of findings and of questions alone
    "privacy": Statement(
        ("m3-1", "m3-2"), "thresholds of privacy monitors break more often than those of refusal monitors",
        "Thresholds of privacy monitors break more often than those of refusal monitors: {m3-1} (last token), "
        "{m3-2} (mean of tokens).",
        "Thresholds of privacy monitors break less often than those of refusal monitors: {m3-1} (last token), "
        "{m3-2} (mean of tokens).",
    ),
    "replies": Statement(
        ("m3-9", "m3-10"), "a refusal monitor that reads the model's reply survives updates better than one that reads before it",
        "A refusal monitor that reads the model's own reply survives updates better than one that reads just before it: of the "
        "latter {m3-9} more are unfit, and they call {m3-10} more answers refusals.",
        "A refusal monitor that reads the model's own reply survives updates no better than one that reads just before it: "
        "before minus during, {m3-9} unfit, and {m3-10} of answers called refusals.",
    ),
    "private-threshold": Statement(
        ("private-unfit-last", "private-unfit-mean"), "QLoRA breaks the threshold of many privacy monitors",
        "Under QLoRA many privacy monitors are unfit at their threshold: {private-unfit-last} (last token), "
        "{private-unfit-mean} (mean of tokens).",
        "Under QLoRA few privacy monitors are unfit at their threshold: {private-unfit-last} (last token), "
        "{private-unfit-mean} (mean of tokens).",
    ),
    "private-ranking": Statement(
        ("private-lost-last", "private-lost-mean"), "QLoRA breaks the ranking of many privacy monitors",
        "Their ranking breaks: {private-lost-last} (last token) and {private-lost-mean} (mean of tokens) lost 0.05 AUROC.",
        "Few lose their ranking: {private-lost-last} (last token) and {private-lost-mean} (mean of tokens) lost 0.05 AUROC.",
    ),
}  # fmt: skip

CHAPTERS: dict[str, tuple[str, ...]] = {  # what its box says, in order; chapter 11 counts verdicts
    "01": ("aligned", "over-refusal"),
    "02": ("formats-refusals", "three-bits", "qat"),
    "03": ("benign", "harmful", "merged"),
    "04": ("beyond-words", "false-alarms"),
    "05": ("ranking-formats", "threshold-formats", "threshold-lora"),
    "06": ("forecast", "order"),
    "07": ("projected", "removed", "monitors-back"),
    "08": ("overlap", "sources"),
    "09": ("silenced", "spared"),
    "10": ("reset", "reset-harm", "realigned"),
}
