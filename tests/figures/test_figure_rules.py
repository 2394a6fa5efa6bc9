"""The rules for figures catch what breaks them; each figure is held to them where it is drawn (`check_page`)."""

import matplotlib.pyplot as plt
import pytest
from support import figure_rules
from test_model_figures import drawing  # noqa: F401

from helpers.figures.drawing import layout, theme, two_heaps


def sound(count=3, size=11.0, sentence="All that is drawn here is well."):
    figure, ax = plt.subplots(figsize=(8, 3), constrained_layout=True)
    ax.plot(range(count), range(count), "o", label="one")
    ax.set_title("a panel", fontsize=size)
    return layout.message(figure, sentence)


def test_a_sound_figure_breaks_no_rule():
    assert figure_rules.broken(sound()) == []
    assert figure_rules.broken(sound(figure_rules.MOST)) == []


def with_an_empty_panel():
    figure, axes = plt.subplots(1, 2, constrained_layout=True)
    axes[0].plot([0, 1], [0, 1], "o", label="one")
    axes[0].set_title("full")
    axes[1].set_title("nothing here")
    return layout.message(figure, "The panel on the right is empty.")


BROKEN = {
    "its title is no sentence": lambda: sound(sentence="AUROC"),
    "panel 'a panel' has 61 marks": lambda: sound(figure_rules.MOST + 1),
    "'a panel' has 8.0 pixels": lambda: sound(size=6.0),
    "panel 'nothing here' is empty": with_an_empty_panel,
}


@pytest.mark.parametrize("said", BROKEN)
def test_each_rule_speaks(said):
    (found,) = figure_rules.broken(BROKEN[said]())
    assert found.startswith(said)


def test_a_line_counts_once_and_dots_of_single_seeds_do_not():
    figure, ax = plt.subplots()
    ax.plot(range(200), range(200), label="a line")
    ax.plot(range(100), range(100), "o", label="M1, one seed")
    ax.plot([0], [0], "o", label="mean")
    assert figure_rules.counted(figure) == {"": 2}


def test_marks_with_words_of_their_own_are_no_crowd():
    figure, ax = plt.subplots(constrained_layout=True, figsize=(8, 14))
    ax.plot([0] * 70, range(70), "o", label="a component")
    assert [line for line in figure_rules.broken(layout.message(figure, "A forest has a line a mark.")) if "marks" in line]
    for y in range(70):
        ax.text(0.01, y, f"row {y}")
    assert figure_rules.broken(figure) == []


# ---------------------------------------------------------------- one colour code


def test_harmless_is_blue_and_to_be_flagged_orange_in_chapters_on_the_board_and_in_explore(pytestconfig):
    root = pytestconfig.rootpath
    board = (root / "book" / "_static" / "board" / "05.svg").read_text(encoding="utf-8")
    css = (root / "book" / "_static" / "explore.css").read_text(encoding="utf-8")
    script = (root / "book" / "_static" / "explore.js").read_text(encoding="utf-8")
    assert two_heaps.CALLED == {0: "harmless", 1: "to be flagged"}
    assert two_heaps.CLASSES[0]["edgecolor"] == theme.HARMLESS
    assert two_heaps.CLASSES[1]["edgecolor"] == theme.FLAGGED
    assert board.index(theme.HARMLESS) < board.index(theme.FLAGGED)  # the left heap is the harmless one
    assert '["harmless", -1, "a"], ["flagged", 1, "b"]' in script
    blues, oranges = ([c for line in css.splitlines() if f"--ex-{side}:" in line for c in [line.split(f"--ex-{side}: #")[1][:6]]]
                      for side in "ab")  # fmt: skip
    assert len(blues) == len(oranges) == 2
    assert all(int(c[4:], 16) > int(c[:2], 16) for c in blues)
    assert all(int(c[:2], 16) > int(c[4:], 16) for c in oranges)
