"""What chapter 11 says of the claims: one claim by hand, the overview, and sentences with the rows they rest on."""

from collections.abc import Mapping, Sequence

import pandas as pd

from helpers.figures import tables
from helpers.study.claims import CLAIMS, UNITS, Component
from helpers.study.findings import ALL, VERDICTS, Run


def said(unit: str, value: float, low: float, high: float) -> str:
    """A number with its interval in the words of its unit, as `+44 points [+23, +61]`."""
    if pd.isna(value):
        return "not measured"
    first, *ends = UNITS[unit].written(value, low, high)
    return f"{first}{UNITS[unit].words} [{', '.join(ends)}]"


def asked(unit: str, side: str, bound: float, margin: float = 0.0, words: bool = True) -> str:
    """What the claim asks of a component, as `above +5 points`."""
    shown, after = UNITS[unit], UNITS[unit].words if words else ""

    def written(value: float) -> str:
        return f"{shown.scale * value:{'+' if shown.form[0] == '+' and value else ''}g}"

    if side == "within" and not words and bound == 0:
        return f"±{shown.scale * margin:g}"
    if side == "within":
        return f"between {written(bound - margin)} and {written(bound + margin)}{after}"
    return f"{side} {written(bound)}{after}"


def claims_overview(findings: pd.DataFrame) -> pd.DataFrame:
    """One row a claim in plain text: the claim, ours with its interval, the literature's, the verdict and why, the chapter."""
    heads = [head_of(claim, why) for claim, why in zip(findings["claim"], findings["reason"], strict=True)]
    numbers = zip(heads, findings[["estimate", "low", "high"]].itertuples(index=False, name=None), strict=True)
    ours = ["not run" if pd.isna(e[0]) else f"{head.name}: {said(head.unit, *e)}" for head, e in numbers]
    seeds = [
        f"{verdict} ({counted(n)})" if n else verdict for verdict, n in zip(findings["verdict"], findings["seeds"], strict=True)
    ]
    return pd.DataFrame({"claim": findings["claim"], "in words": findings["statement"], "ours": ours,
                         "literature": findings["literature"], "verdict": seeds,
                         "why": [why or "decided" for why in findings["reason"]], "chapter": findings["chapter"]})  # fmt: skip


def head_of(claim: str, reason: str) -> Component:
    """The part of a claim that its finding's numbers are of: the first that was measured, so that no reason says it is lacking.

    Of several models a reason names each, and the first part is taken, which one of them may lack.
    """
    parts = [part for part in CLAIMS[claim].components if not part.beside]
    told = f". {reason or ''}"
    return next((part for part in parts if f". {part.name}: {part.lacking}" not in told), parts[0])


def counted(seeds: int) -> str:
    """A number of seeds in words."""
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def claim_sentences(findings: pd.DataFrame, components: pd.DataFrame) -> dict[str, str]:
    """Texts for the book, the same keys whatever was run.

    Of each claim `m1-verdict`, `m1-estimate` (the headline), `m1-1`, `m1-2` .. (its components; where several models were run,
    each of them), `m1-words` (all components as sentences), `m1-literature`, and `m1-reason` (what is undecided, and why).
    """
    texts: dict[str, str] = {}
    several = components["model"].nunique() > 1
    for row in findings.to_dict("records"):
        key, head = row["claim"].lower(), head_of(row["claim"], row["reason"])
        seen = f"{said(head.unit, row['estimate'], row['low'], row['high'])} ({counted(row['seeds'])}, n = {row['n']:,})"
        texts |= {f"{key}-verdict": row["verdict"], f"{key}-estimate": seen if row["seeds"] else "(not in this run)"}
        parts = components[components["claim"] == row["claim"]]
        for place, rows in parts.groupby("component"):
            own = [(f"{part['model']}, " if several else "") + _in_words(part) for part in rows.to_dict("records")]
            texts[f"{key}-{place}"] = "; ".join(own)
        lines = [texts[f"{key}-{place}"] for place in range(1, parts["component"].max() + 1)]
        texts[f"{key}-words"] = " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)
        texts[f"{key}-literature"] = row["literature"]
        texts[f"{key}-reason"] = row["reason"] or f"{row['verdict']}: nothing is left open"
    return texts


def sourced(texts: Mapping[str, str], table: pd.DataFrame) -> dict[str, str]:
    """The texts of `sentences`, each with the rows of the table `components` that it was made of; the literature's have none."""
    pooled = table[table["of_seed"] == ALL]
    return {
        key: _sourced(text, pooled[pooled["claim"] == key.partition("-")[0].upper()], key.partition("-")[2])
        for key, text in texts.items()
    }


def _sourced(text: str, own: pd.DataFrame, kind: str) -> str:
    if kind == "literature":
        return text
    if kind in {"verdict", "words", "reason"}:
        return tables.Said(text, own, "verdict")
    return tables.Said(text, own[own["component"] == ("1" if kind == "estimate" else kind)], "verdict")


def _in_words(row: Mapping) -> str:
    wanted = asked(row["unit"], row["side"], row["bound"], row["margin"])
    seen = said(row["unit"], row["estimate"], row["low"], row["high"])
    notes = [row["answer"], "beside the claim" * bool(row["beside"]), row["took"]]
    return f"{row['name']}: {seen}, claimed {wanted}" + (f" ({', '.join(filter(None, notes))})" if row["seeds"] else "")


def about(findings: pd.DataFrame, runs: Sequence[Run], table: pd.DataFrame) -> dict[str, str]:
    """Texts on the whole: `runs-words`, which runs were read, and `count-<verdict>`, how many claims have each verdict."""
    models = sorted({model for model, _, _ in runs})
    own = [f"{model}, {_listed(sorted(seed for name, seed, _ in runs if name == model))}" for model in models]
    words = f"{len(runs)} run{'' if len(runs) == 1 else 's'} ({'; '.join(own)})" if runs else "no run"
    counts, single = findings["verdict"].value_counts(), table[table["of_seed"] != ALL]
    said = {f"count-{name.replace(' ', '-')}": str(counts.get(name, 0)) for name in VERDICTS}
    found = {key: tables.Said(text, findings, "verdict") for key, text in said.items()}
    return {"runs-words": tables.Said(words, single, "column of_seed"), **found}


def _listed(seeds: Sequence[int]) -> str:
    *first, last = map(str, seeds)
    return f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"


def claim_by_hand(dots: pd.DataFrame, claim: str) -> pd.DataFrame:
    """What each seed says on each component of a claim, with its interval, beside what the claim asks; one row a seed."""
    rows = []
    for row in dots[dots["claim"] == claim].sort_values(["component", "model", "seed"]).to_dict("records"):
        part = CLAIMS[claim].components[row["component"] - 1]
        seen, wanted = (
            said(part.unit, row["value"], row["low"], row["high"]),
            asked(part.unit, part.side, part.bound, part.margin),
        )
        rows.append((part.name, row["model"], row["seed"], seen, row["n"], wanted))
    return pd.DataFrame(rows, columns=["component", "model", "seed", "ours", "n", "claimed"])
