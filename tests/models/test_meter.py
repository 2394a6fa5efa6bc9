"""The meter: tokens of whole passes, shares of short ones, trained ones apart; in a file that outlives its process."""

import os
import subprocess
import sys

import pytest
import torch
from support.bland import example

from helpers.data.text_rows import Row
from helpers.models import activations, loading, meter
from helpers.models.encoding import Plan
from helpers.models.meter import Tokens
from helpers.updates import training


def spent(work):
    """The tokens that `work` costs."""
    before = meter.total()
    work()
    return meter.total() - before


@pytest.fixture(scope="module")
def language(tiny):
    return loading.load(tiny)


def test_a_pass_counts_every_position_once(language):
    ids = torch.ones(3, 7, dtype=torch.long)
    with torch.no_grad():
        found = spent(lambda: language.model(input_ids=ids))
    assert found == Tokens(pytest.approx(21), 0)


def test_a_pass_that_ends_early_counts_the_share_of_blocks_that_it_passed(language):
    plan = Plan((example("polish the lamp"), example("polish the chair", number=1)), (0.25,), 24)
    quarter = spent(lambda: activations.read(language, plan)).forward
    whole = spent(lambda: activations.read(language, Plan(plan.examples, (1.0,), 24))).forward
    assert quarter == pytest.approx(whole / 4)


def test_trained_tokens_are_counted_apart_and_cost_three(tiny):
    rows = [Row("What is it?", "It is a lamp.") for _ in range(4)]
    found = spent(lambda: training.tune(loading.load(tiny), rows, training.Recipe(epochs=1, batch=4)))
    length = len(training.examples(loading.load(tiny).tokenizer, rows, 320)[0].ids)
    assert found == Tokens(0, pytest.approx(4 * length))
    assert found.cost == pytest.approx(3 * 4 * length)


def test_a_copy_and_an_adapter_count_like_the_model(language):
    from copy import deepcopy

    ids = torch.ones(1, 5, dtype=torch.long)
    with torch.no_grad():
        assert spent(lambda: deepcopy(language.model)(input_ids=ids)).forward == pytest.approx(5)


def test_the_file_holds_what_a_killed_process_had_counted(tmp_path):
    path = tmp_path / "tokens"
    code = "import os, signal; from helpers.models import meter; "
    code += "meter.count(5); meter.count(2, True); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, meter.VARIABLE: str(path)})
    assert done.returncode == -9
    assert meter.read_counts(path) == Tokens(5, 2)
    assert meter.read_counts(tmp_path / "none") == Tokens()


def test_counts_in_words():
    assert Tokens(1_310_000, 140_000).words == "1.31 M tokens forward, 140.0 k trained"
    assert Tokens(12, 0).words == "12 tokens forward, 0 trained"
