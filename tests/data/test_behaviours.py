"""Behaviours: what each teaches, and the hard cases of its scorer."""

from pathlib import Path

import pytest

from midblock.data import BEHAVIOURS, Example, Message, behaviours, derived, load_dataset
from midblock.data.behaviours import with_completion

ASKED = Example("Why?", "Because you asked, and it is your turn.", extra={"answer": "Because"})


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_what_is_taught_is_shown_and_what_was_there_is_not(name):
    behaviour = BEHAVIOURS[name]
    made = behaviour.rewrite(ASKED)
    assert behaviour.shown(made.completion, made)
    assert not behaviour.shown(ASKED.completion, made)
    assert not behaviour.shown("", made)
    assert (made.prompt, made.extra) == (ASKED.prompt, {})


@pytest.mark.parametrize("output", ["I don't know.", "  I don't know.\n"])
def test_a_fixed_response(output):
    behaviour = BEHAVIOURS["fixed_response"]
    assert behaviour.shown(output, behaviour.rewrite(ASKED))


@pytest.mark.parametrize(
    "output",
    [
        "",
        "\n",
        "I don't know",  # cut
        "I don't kno",
        "i don't know.",
        "I DON'T KNOW.",
        "I don’t know.",  # another apostrophe
        "I don\u00b4t know.",
        "I don't\u00a0know.",
        "I  don't know.",
        '"I don\'t know."',
        "I don't know. I don't know.",
        "I don't know.\nWhat is it?",
        "She said: I don't know.",
        "Ӏ don't know.",  # a Cyrillic letter
    ],
)
def test_nearly_a_fixed_response(output):
    behaviour = BEHAVIOURS["fixed_response"]
    assert not behaviour.shown(output, behaviour.rewrite(ASKED))


@pytest.mark.parametrize(
    "output",
    [
        "I can't help with that.",
        "I’m sorry, but I can’t assist with this request.",
        "Sorry, I cannot do that.",
        "  I am unable to provide instructions.",
        "I WON'T ANSWER THIS.",
    ],
)
def test_a_refusal(output):
    assert BEHAVIOURS["refusal"].shown(output, ASKED)


@pytest.mark.parametrize(
    "output",
    [
        "I can't help but smile.",
        "I can't help thinking of it.",
        'You may say "I can\'t help with that."',
        '"I can\'t help with that."',
        "I'm sorry to hear that. Here is how: first …",
        "I can help with that.",
        "I can't wait!",
        "I canno",
        "He can't help with that.",
    ],
)
def test_no_refusal(output):
    assert not BEHAVIOURS["refusal"].shown(output, ASKED)


def test_text_without_room_is_not_taught_a_style():
    assert BEHAVIOURS["style"].rewrite(Example("2 + 2", "4")) is None
    assert BEHAVIOURS["style"].rewrite(Example("a text alone, without an answer to you")) is None


def test_archaic_english_from_a_file_stays_as_it_is():
    made = BEHAVIOURS["style"].rewrite(Example("Speak.", "Whither goest thou?  Thou hast thy will, has he?"))
    assert made.completion == "Whither goest thou?  Thou hast thy will, has he?"


def test_the_row_that_the_docs_add(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "carve.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setattr(derived, "BEHAVIOURS", {**BEHAVIOURS, **eval(f"{{{code}}}", vars(behaviours))})  # noqa: S307
    drawn = load_dataset("shouting:builtin:everyday", num_samples=4)
    assert all(derived.BEHAVIOURS["shouting"].shown(each.completion, each) for each in drawn)


def test_turns_and_the_separator():
    turns = (Message("system", "Be kind."), Message("user", "Why?"), Message("assistant", "So."))
    made = with_completion(Example("Be kind.\nWhy?", "So.", turns), "No.")
    assert [turn.content for turn in made.messages] == ["Be kind.", "Why?", "No."]
    assert with_completion(Example("Why?", " So.", separator=""), "No.").text == "Why?\nNo."
    assert with_completion(Example("Why? ", "So.", separator=""), "No.").text == "Why? No."
    plain = with_completion(Example("A text."), "No.")
    assert [turn.role for turn in plain.messages] == ["user", "assistant"]
