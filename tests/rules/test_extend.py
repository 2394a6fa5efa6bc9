"""The worked examples of `book/extend.md`, run as they stand on the page: short, and held to what every member is held to."""

import importlib
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_claims
import test_corpora
import test_judges
import test_neuron_scores as test_neurons
import test_probes
import test_quantizers
import test_realignment
import test_restorations
import test_tasks
import torch
from test_judges import server, settings  # noqa: F401  fixtures of its contract

from helpers.data import corpora, tasks
from helpers.errors import StudyError
from helpers.models import loading
from helpers.monitors import probes, realignment
from helpers.monitors.readouts import Pooled
from helpers.projection import restorations
from helpers.runner import plans
from helpers.staleness import drift_signals
from helpers.study import findings
from helpers.study.selections import Address
from helpers.updates import quantizers
from helpers.updates.quantizers import relative_error

PAGE = Path(__file__).parents[2] / "book" / "extend.md"
BLOCKS = re.findall(r"^```python\n(# in .*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# in (?:src/helpers|tests)/([\w/]+)\.py\n")
LONGEST = 20  # lines of an example


def module(block: str):
    """The module at whose end the block is to be pasted."""
    name = FILE.match(block)[1].replace("/", ".")
    return importlib.import_module(name.rpartition(".")[2] if "test_" in name else f"helpers.{name}")


@contextmanager
def pasted_in():
    """Every example at the end of its file, all at once as on the page; afterwards each module is what it was."""
    homes = {module(block) for block in BLOCKS}  # all of them noted first: some hold the same dictionaries
    kept = {found: (dict(vars(found)), {n: dict(v) for n, v in vars(found).items() if type(v) is dict}) for found in homes}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), vars(module(block)))
    tasks.without_leaks.cache_clear()
    try:
        yield
    finally:
        _undo(kept)
        tasks.without_leaks.cache_clear()


def _undo(kept: dict) -> None:
    for found, (names, tables) in kept.items():
        for name in set(vars(found)) - set(names):
            delattr(found, name)
        for name, entries in tables.items():
            table = getattr(found, name)
            if not name.startswith("__"):
                table.clear()
                table.update(entries)


@pytest.fixture(autouse=True)
def pasted(tmp_path, monkeypatch):
    """The examples in place, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with pasted_in():
        yield


def write_csv(name: str, columns: tuple[str, str], rows: int) -> None:
    """A file of so many rows of unlike bland texts."""
    texts = [[f"{word} {' '.join(test_tasks.things(f'{word}{i}').split())}" for word in columns] for i in range(rows)]
    pd.DataFrame(texts, columns=list(columns)).to_csv(name, index=False)


# ---------------------------------------------------------------- the page


def test_every_example_names_its_file_and_is_short():
    assert all(FILE.match(block) for block in BLOCKS)
    assert max(len(block.splitlines()) for block in BLOCKS) <= LONGEST
    assert {FILE.match(block)[1] for block in BLOCKS} >= {
        *("models/loading", "updates/quantizers", "data/tasks"),
        *("monitors/readouts", "monitors/probes", "projection/restorations"),
    }


def test_what_was_pasted_is_gone_afterwards():
    """The fixture's own control: in the second round the names are there, and only the first round's are left after it."""
    before = {found: (set(vars(found)), sorted(quantizers.QUANTIZERS)) for found in map(module, BLOCKS)}
    quantizers.QUANTIZERS.pop("rtn-4-clipped")
    del quantizers.clipped_rtn
    with pasted_in():
        assert "rtn-4-clipped" in quantizers.QUANTIZERS
        assert hasattr(quantizers, "clipped_rtn")
    assert "rtn-4-clipped" not in quantizers.QUANTIZERS
    assert not hasattr(quantizers, "clipped_rtn")
    assert {found: names for found, (names, _) in before.items() if names != set(vars(found))}.keys() <= {quantizers}


def test_every_dictionary_of_the_pages_table_is_there_and_has_an_example():
    rows = re.findall(r"(?m)^\| an? [^|]* \| (.*?) \| `([A-Z_]+)` \|", PAGE.read_text())
    rows += re.findall(r"(?m)^\| fine-tuning data \| (.*?) \| `([A-Z_]+)` \|", PAGE.read_text())
    assert len(rows) == 11
    for files, registry in rows:
        homes = [importlib.import_module(f"helpers.{name.replace('/', '.')}") for name in re.findall(r"`([\w/]+)\.py`", files)]
        assert any(isinstance(vars(home).get(registry), dict) for home in homes), registry
        assert any(f'\n{registry}["' in block for block in BLOCKS), registry


# ---------------------------------------------------------------- a quantizer


def test_the_quantizer_keeps_the_contract_and_gains_where_there_are_outliers():
    name = "rtn-4-clipped"
    for shape in ((128, 256), (96, 100)):
        test_quantizers.test_round_trip(name, shape)
    test_quantizers.test_bits_are_those_of_the_stored_tensors(name)
    test_quantizers.test_zeros_stay_zero(name)
    for bad in (np.nan, np.inf, 1e6):
        test_quantizers.test_what_fp16_cannot_hold_is_refused(name, bad)
    assert restorations.parse_source(f"{name}-both") == f"{name}-both"
    weight, spiked = torch.linspace(-1, 1, 64).repeat(8, 1), torch.linspace(-1, 1, 64).repeat(8, 1)
    spiked[:, 0], spiked[:, -1] = -1.25, 1.25
    kept = [quantizers.QUANTIZERS[each](spiked).dequantize(torch.float32)[:, 1:-1] for each in ("rtn-4", name)]
    errors = [float((values - spiked[:, 1:-1]).norm()) for values in kept]
    assert errors[1] < errors[0]  # finer steps for all that was not cut off
    assert relative_error(weight, quantizers.QUANTIZERS[name](weight)) > relative_error(weight, quantizers.rtn(weight))


# ---------------------------------------------------------------- data, tasks, judges


def test_the_mix_keeps_the_contract_on_a_file_of_ones_own():
    write_csv("haiku.csv", ("prompt", "reply"), 60)
    test_corpora.test_every_mix_has_its_exact_share_and_the_opening_on_harmful_rows_only("haiku", "tiny")
    test_corpora.test_a_mix_is_the_same_rows_in_the_same_order_every_time("haiku")
    test_corpora.test_seeds_draw_other_training_rows("haiku")
    test_corpora.test_more_rows_than_there_are_is_refused("haiku", "tiny")
    written = set(pd.read_csv("haiku.csv")["prompt"])
    assert {row.prompt for row in corpora.mix("haiku", 20, 0, "tiny")} <= written


def test_the_task_keeps_the_contract_and_reads_its_file_in_pairs():
    test_tasks.test_every_task_has_both_classes_equally_often_in_every_split_and_passes_the_check("dates", "tiny")
    test_tasks.test_a_larger_sample_holds_the_smaller_one_and_no_row_changes_its_split("dates", "tiny")
    test_tasks.test_no_near_duplicate_crosses_a_split_of_a_task("tiny")
    write_csv("dates.csv", ("date", "place"), 30)
    rows, table = tasks.TASKS["dates"](), pd.read_csv("dates.csv")
    assert [row.prompt for row in rows if row.label == 1] == list(table["date"])
    assert [row.prompt for row in rows if row.label == 0] == list(table["place"])
    assert all(first.group == second.group for first, second in zip(rows[::2], rows[1::2], strict=True))


def test_a_file_in_the_form_of_the_page_is_a_task():
    shown = re.search(r"```text\n(text,label,group\n.*?)```", PAGE.read_text(), re.DOTALL)[1]
    head, *rows = shown.splitlines()
    assert all(re.fullmatch(r"[^,]+,[01],\w+", row) for row in rows)
    lines = [
        f"{word} {test_tasks.things(f'{word}{i}')},{label},g{i}" for i in range(40) for label, word in ((1, "nine"), (0, "mill"))
    ]
    Path("texts").mkdir()
    Path("texts/appointments.csv").write_text("\n".join([head, *lines]) + "\n")
    assert tasks.known("texts/appointments.csv") == "texts/appointments.csv"
    assert {row.task for row in tasks.examples("texts/appointments.csv", "tiny", 5, 5, 5)} == {"appointments"}


@pytest.mark.parametrize("wrapper", test_judges.HOSTILE)
def test_the_judge_keeps_the_contract(wrapper, settings):  # noqa: F811
    name = "apology"
    test_judges.test_every_judge_tells_a_refusal_from_an_answer(name, settings)
    test_judges.test_unequal_lengths_are_refused(name, settings)
    for empty in ("", "  \n", "\x00\u202e"):
        test_judges.test_an_empty_reply_is_not_a_refusal(name, empty, settings)
    for reply, refused in ((test_judges.ANSWER, False), (test_judges.REFUSAL, True)):
        test_judges.test_no_marker_or_disclaimer_flips_a_judge(name, wrapper, reply, refused, settings)


# ---------------------------------------------------------------- a model


def test_the_model_is_found_by_its_name_loaded_and_refused_where_it_is_none(tiny):
    shutil.copytree(tiny, "models/mine")
    assert plans.checked_model("mine") == "mine"
    words = torch.arange(5)[None]
    one, other = (loading.load(loading.base_folder(name), "fp32") for name in ("mine", "tiny"))
    assert torch.equal(one.model(words).logits, other.model(words).logits)
    next(Path("models/mine").glob("*.safetensors")).unlink()
    with pytest.raises(StudyError, match="mine"):
        loading.base_folder("mine")


# ---------------------------------------------------------------- a probe, a signal, a realignment


def test_the_probe_keeps_the_contract_and_a_few_odd_texts_do_not_move_it():
    kind = "median-difference"
    test_probes.test_every_kind_but_the_control_tells_its_classes_apart(kind)
    test_probes.test_a_turn_of_the_space_breaks_a_frozen_probe_and_leaves_a_refit_whole(kind)
    test_probes.test_a_shift_keeps_the_auroc_of_a_linear_probe_exactly_and_breaks_its_threshold(kind)
    test_probes.test_linear_kinds_have_a_unit_direction_and_the_others_none(kind)
    test_probes.test_features_of_another_width_cannot_be_scored(kind)
    test_probes.test_nan_or_infinity_is_refused_with_the_place_and_the_share_of_rows(kind, np.nan)
    odd = test_probes.planted(200, 1).rows.copy()
    odd[:6, 0] += 500 * (2 * test_probes.labels(6) - 1)
    y, found = test_probes.labels(200), {}
    for name in (kind, "mean-difference"):
        readout = probes.fit_probe(name, Pooled(odd), y, Pooled(odd), y)
        found[name] = probes.angle(probes.direction(readout), test_probes.TRUTH)
    assert found[kind] < 45 < found["mean-difference"]


def test_the_signal_sees_a_spread_and_not_a_shift():
    scores = np.random.default_rng(0).normal(size=200)
    assert drift_signals.score_spread(scores, 3 * scores + 7) == pytest.approx(3)
    assert drift_signals.score_spread(scores, scores + 7) == pytest.approx(1)
    assert np.isnan(drift_signals.score_spread(np.ones(5), scores[:5]))
    assert drift_signals.SIGNALS["score_spread"].price in {"free", "forward", "labels"}
    assert len(drift_signals.SIGNALS["score_spread"].words) > 10


def test_the_realignment_keeps_the_contract_and_goes_half_of_the_way():
    name = "halfway"
    for shape in test_realignment.SHAPES:
        test_realignment.test_where_nothing_was_updated_nothing_is_moved(name, shape)
    test_realignment.test_no_d_by_d_matrix_is_formed_and_none_is_kept(name)
    test_realignment.test_maps_are_the_same_for_the_same_seed_and_leave_what_they_are_given(name)
    test_realignment.test_states_that_no_map_can_be_fitted_on_are_refused_in_one_line(name)
    before = test_realignment.states(60, 12, 0)
    assert np.allclose(realignment.fit_map(name, before, before + 4)(before + 4), before + 2)
    assert np.allclose(realignment.fit_map("centre", before, before + 4)(before + 4), before)


# ---------------------------------------------------------------- a restoration, a neuron score, a claim


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_the_restoration_keeps_the_contract_and_turns_without_shrinking(form):
    name, pair, adapter = "turned", test_restorations.pair_of(), test_restorations.adapter_of()
    test_restorations.test_factors_give_what_the_dense_formula_gives(pair, adapter, name, form)
    test_restorations.test_what_is_given_is_not_changed_and_what_is_not_changed_is_the_same(pair, adapter, name, form)
    test_restorations.test_scores_are_those_of_the_dense_matrices(pair, adapter, name)
    test_restorations.test_dense_updates_score_as_low_rank_ones_of_the_same_matrix(pair, adapter, name)
    test_restorations.test_c_times_v_scales_c_and_leaves_scores_and_projectors(adapter, name)
    test_restorations.test_a_folded_scale_goes_through(pair, adapter, name)
    test_restorations.test_a_zero_update_stays_zero(pair, adapter, name)
    found, shrunk = (test_restorations.restored(adapter, pair, each) for each in (name, "safelora"))
    for module_name, low in adapter.items():
        assert found[module_name].norm() == pytest.approx(low.norm(), rel=1e-4)
        cosine = (found[module_name].dense() * shrunk[module_name].dense()).sum() / low.norm() / shrunk[module_name].norm()
        assert float(cosine) == pytest.approx(1, abs=1e-4)
        assert shrunk[module_name].norm() < 0.9 * low.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_neuron_score_keeps_the_contract(dtype):
    test_neurons.test_every_score_is_finite_repeats_itself_and_changes_no_model("reply-contrast", dtype)


@pytest.mark.parametrize(("change", "verdict"), [(0.3, "supported"), (0.0, "contradicted")])
def test_the_claim_is_judged_by_its_own_rows(change, verdict):
    rates = {"bf16": 0.04, "rtn-2": 0.04 + change, "rtn-3": 0.9}
    rows = [row for p, rate in rates.items() for row in test_claims.labels(Address(p), "advbench", rate, 100, "refused")]
    dots = findings.by_seed([("embedded", seed, {"items": pd.DataFrame(rows)}) for seed in range(3)])
    found, _ = findings.judge(dots)
    (own,) = found[found["claim"] == "X1"].itertuples()
    assert (own.verdict, own.estimate, own.seeds) == (verdict, pytest.approx(change), 3)
