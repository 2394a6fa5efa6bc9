"""Near duplicates: pairs by their definition, clusters by chains of them."""

from helpers.data.near_duplicates import NEAR, clusters, near_pairs, without_near, words
from helpers.data.text_rows import Row

LAMP = "Please polish the old brass lamp in the garden before noon"
PLANTED = [LAMP, LAMP.replace("noon", "dusk"), LAMP.upper() + "!", "Carry a ladder to the river", "Tell me how violins are made"]


def jaccard(first, second):
    a, b = words(first), words(second)
    return len(a & b) / len(a | b)


def test_near_pairs_are_those_of_the_definition():
    others = [*PLANTED, "", "river"]
    expected = {(i, j) for i, a in enumerate(PLANTED) for j, b in enumerate(others) if b and jaccard(a, b) >= NEAR}
    assert set(near_pairs(PLANTED, others)) == expected
    assert near_pairs([], PLANTED) == near_pairs(PLANTED, []) == []


def test_planted_duplicates_share_a_cluster_and_nothing_else_does():
    found = clusters(PLANTED)
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 3


def test_a_chain_of_near_duplicates_is_one_cluster():
    spelled = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    chain = [" ".join(spelled[i : i + 8]) for i in range(3)]
    assert jaccard(chain[0], chain[2]) < NEAR + 1e-9 < jaccard(chain[0], chain[1])
    assert len(set(clusters(chain))) == 1


def test_rows_near_to_other_texts_are_left_out():
    rows = [Row(text) for text in PLANTED]
    assert [row.prompt for row in without_near(rows, [LAMP])] == PLANTED[3:]
