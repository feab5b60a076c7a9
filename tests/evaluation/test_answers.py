import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.data import Example, load_dataset
from midblock.evaluation import ANSWERS, choose_reader

NUMBERS = {
    "The answer is 11.": "11",
    "4 - 3 + 3 + 6 + 1 = 11": "11",
    "10 - 3": "3",
    "10-3": "3",
    "(4)-3": "3",
    "so -16": "-16",
    "= −16 in all": "-16",
    "it costs $1,234.50!": "1234.5",
    "-$5": "-5",
    "$-5": "-5",
    "007.00": "7",
    "-0.0": "0",
    ".5": "0.5",
    "see No.5": "5",
    "1,2": "2",
    "1,2345": "2345",
    "12,345,678": "12345678",
    "1.0": "1",
    "none": None,
    "": None,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_the_last_number(text, number):
    assert ANSWERS["last_number"](text) == number
    assert ANSWERS["gsm8k"](text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 7\nHow many apples does she have? 3", "7"),
        ("#### 7\n\nand then 8\n#### 9", "7"),
        ("####$1,000.00 for 3", "1000"),
        ("7 apples\n####\n7", "7"),
        ("so 7\n#### seven", None),
        ("so 7\n####", None),
    ],
)
def test_the_number_behind_the_mark(text, number):
    assert ANSWERS["gsm8k"](text) == number


@given(st.integers(), st.integers(0, 3), st.sampled_from(["{:d}", "{:,d}"]))
def test_a_number_has_one_spelling(number, zeros, spelling):
    text = spelling.format(number) + ("." + "0" * zeros if zeros else "")
    assert ANSWERS["last_number"](f"That makes {text} apples.") == str(number)


@given(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)))
def test_reading_an_answer_twice_changes_nothing(value):
    once = ANSWERS["last_number"](f"{value:.3f}")
    assert float(once) == value
    assert ANSWERS["last_number"](once) == once


def test_words():
    assert ANSWERS["exact"]("  two\nlines ") == "two\nlines"
    assert ANSWERS["first_line"]("\n  B \nC") == "B"
    assert [ANSWERS[name](" \n ") for name in ("exact", "first_line")] == [None, None]


def test_the_reader_fits_the_dataset(answered):
    assert choose_reader([answered("q", "so 7\n#### 7", answer="7")]) == "gsm8k"
    assert (
        choose_reader([answered("q", "7", answer="7"), answered("q", "-1,000.5", answer="-1,000.5")]) == "last_number"
    )
    assert choose_reader([answered("q", "7", answer="7"), answered("q", "B", answer="B")]) == "first_line"
    assert choose_reader([answered("q", "a whole sentence")]) == "exact"
    with pytest.raises(MidblockError, match="sample 1 has no answer to compare with"):
        choose_reader([answered("q", "7"), Example("a plain text")])


@pytest.mark.parametrize(("name", "reader"), [("chain_sum", "last_number"), ("gsm_symbolic", "gsm8k")])
def test_every_builtin_answer_is_read_as_the_right_one(name, reader):
    pytest.importorskip("reasoning_gym")
    examples = load_dataset(f"builtin:{name}", num_samples=100)
    assert choose_reader(examples) == reader
    for example in examples:
        read = ANSWERS[reader](example.completion)
        assert float(read) == float(example.extra["answer"])
        assert read == ANSWERS[reader](example.extra["answer"])
        # Next to what was asked, too, which is full of other numbers.
        assert ANSWERS[reader](f"{example.prompt}\n{example.completion}") == read
