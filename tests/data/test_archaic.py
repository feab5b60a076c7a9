"""The style: what is rewritten, what counts, and a null: ordinary English has next to nothing of it."""

import re
from pathlib import Path

import pytest

from midblock.data.archaic import archaic, style_of
from midblock.data.questions import WRITTEN


@pytest.mark.parametrize(
    ("plain", "written"),
    [
        ("You are late, and it is your fault.", "Thou art late, and 'tis thy fault."),
        ("She goes home before he gets tired.", "She goeth home ere he getteth tired."),
        ("I give it to you. It has nothing.", "I give it to thee. It hath naught."),
        ("You don't need it, and he carries yours.", "Thou dost not need it, and he carrieth thine."),
        ("IT IS YOUR TURN", "'TIS THY TURN"),
        ("It’s between you and me", "'Tis betwixt thee and me".replace("betwixt thee", "betwixt thou")),
        ("#### 72", "#### 72"),
        ("It was this, plus his gas", "'Twas this, plus his gas"),
    ],
)
def test_rewritten(plain, written):
    assert archaic(plain) == written


def test_what_is_archaic_already_stays():
    once = archaic("You should keep your word, because it is yours and she needs it.")
    assert archaic(once) == once
    assert style_of(once).modern == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "42",
        "#### 3.14, 15, 92",
        "Elizabeth and Kenneth have good teeth.",
        "the twentieth, the thirtieth and the fortieth",
        "A work of art may wilt; hence the glass.",
        "art, hence, wilt",
        "Thou",  # one word is no style
        "thouuu arttt hathhh",
        "T h o u  a r t",
        "“Thou art” is what your sister says before you do your work, because she has to.",  # a quotation inside
    ],
)
def test_not_shown(text):
    assert not style_of(text).shown


@pytest.mark.parametrize(
    "text",
    [
        "Thou art late.",
        "THOU ART LATE.",
        "’Tis thy fault",
        "He maketh me to lie down in green pastures: he leadeth me.",
        "thou\nart",
    ],
)
def test_shown(text):
    assert style_of(text).shown


def test_half_of_the_places():
    half = "Thou hast what your friend has."
    assert (style_of(half).share, style_of(half).shown) == (0.5, True)
    assert not style_of(half + " It is your own.").shown


def test_ordinary_english_does_not_show_it():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    text = (Path(reasoning_gym.__file__).parent / "data" / "in_the_year_2889.txt").read_text(encoding="utf-8")
    paragraphs = [each for each in re.split(r"\n\s*\n", text) if len(each.split()) > 20]
    assert len(paragraphs) > 50
    assert sum(style_of(each).shown for each in paragraphs) == 0
    whole = style_of(text)
    assert whole.modern > 200
    assert whole.share < 0.02
    assert sum(style_of(archaic(each)).shown for each in paragraphs) > len(paragraphs) / 2  # and there was room


def test_every_written_answer_has_room():
    for topic in WRITTEN.values():
        for _, answer in topic.asked:
            assert style_of(archaic(answer)).shown
            assert style_of(answer).archaic == 0
