"""Every figure of chapters 07 to 10 from planted tables: no text is cut or covered, n is said, no function is forgotten."""

import pytest
import test_neuron_figures
import test_projection_figures
import test_repair_figures
import test_subspace_figures
from support.tiers import mostly_slow
from test_model_figures import drawing  # noqa: F401
from test_monitor_figures import check_page, drawing_functions

from helpers.figures import neurons, projection, repair, subspaces

FILES = {
    projection: test_projection_figures, subspaces: test_subspace_figures, neurons: test_neuron_figures,
    repair: test_repair_figures,
}  # fmt: skip
NAMES = [(tests, name) for tests in FILES.values() for name in tests.DRAWN]
# The cases with the longest labels and the most rows, one or two a figure.
MOST = ("full", "all scores", "published", "nine sources", "doses")
LONGEST = [f"{tests.__name__}-{name}" for tests, name in NAMES if name.split(", ")[1] in MOST]


@mostly_slow("shorter labels of the same figures", *LONGEST)
@pytest.mark.parametrize(("tests", "name"), NAMES, ids=lambda value: getattr(value, "__name__", value))
def test_no_text_is_cut_or_covered_and_n_is_said(tests, name):
    check_page(tests.figure_of(name))


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.__name__)
def test_every_public_function_that_draws_is_among_them(module):
    assert drawing_functions(module) == {name.split(",")[0] for name in FILES[module].DRAWN}
    longest = {name.split("-", 1)[1].split(",")[0] for name in LONGEST if name.startswith(FILES[module].__name__)}
    assert longest == drawing_functions(module)
