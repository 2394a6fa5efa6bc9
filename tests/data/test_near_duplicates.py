"""Near duplicates: pairs by their definition, clusters by chains of them."""

import pytest

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


# ---------------------------------------------------------------- every script

SCRIPTS = {
    "Russian": ("Отнеси старую лампу в сад до полудня и закрой за собой калитку", "калитку", "дверь",
               "Расскажи мне как делают скрипки и кто их чинит"),
    "Greek": ("Πήγαινε την παλιά λάμπα στον κήπο πριν από το μεσημέρι σήμερα", "σήμερα", "αύριο",
               "Πες μου πώς φτιάχνονται τα βιολιά και ποιος"),
    "Arabic": ("خذ المصباح القديم إلى الحديقة قبل الظهر ثم أغلق الباب خلفك", "خلفك", "بهدوء",
               "أخبرني كيف تصنع الكمنجات ومن يصلحها في المدينة"),
    "Hindi": ("दोपहर से पहले पुराना दीपक बगीचे में ले जाओ और दरवाज़ा बंद करो", "दरवाज़ा", "फाटक",
               "मुझे बताओ वायलिन कैसे बनते हैं और कौन ठीक करता"),
    "Korean": ("정오 전에 오래된 등불을 정원으로 가져가고 뒤의 문을 조용히 닫아 주세요", "조용히", "천천히",
               "바이올린이 어떻게 만들어지는지 누가 고치는지 알려 주세요"),
    "Chinese": ("请在中午之前把旧灯搬到花园里去然后把身后的门轻轻关上", "花园", "河边",
               "告诉我小提琴是怎样做成的以及城里有谁会修理它们"),
    "Japanese": ("正午までに古いランプを庭へ運びそのあと静かに門を閉めてください", "静かに", "そっと",
               "バイオリンの作り方とだれが直すのかを教えてほしい"),
    "Thai": ("ยกโคมไฟเก่าไปที่สวนก่อนเที่ยงแล้วปิดประตูข้างหลังเบาๆ", "เบาๆ", "ช้าๆ",
               "บอกฉันว่าไวโอลินทำอย่างไรและใครเป็นคนซ่อม"),
}  # fmt: skip


@pytest.mark.parametrize("latin", ["", " iPhone"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_copy_with_one_word_changed_is_found_in_any_script_and_another_text_is_none(name, latin):
    """One Latin word in each text makes them no more alike."""
    text, word, instead, other = SCRIPTS[name]
    assert word in text
    found = clusters([text + latin, text.replace(word, instead) + latin, other + latin])
    assert found[0] == found[1] != found[2]


def test_texts_without_any_letter_are_compared_by_their_signs():
    assert near_pairs(["?!?!?!"], ["?!?!?!", "...---..."]) == [(0, 0)]
    assert near_pairs([" "], [" "]) == []
    assert words("😀😀 🎉") == {"😀😀", "😀🎉"}


def test_letters_that_look_alike_and_marks_belong_to_their_words():
    assert words("Ｃａｆé") == words("CAFÉ") == {"café"}
    assert words("दीपक") == {"दीपक"}
    assert words("don't stop_here 42") == {"don't", "stop", "here", "42"}
