import pytest
from hypothesis import given
from hypothesis import strategies as st

from midblock.base import MidblockError
from midblock.data import Example, load_dataset
from midblock.evaluation import ANSWERS, choose_reader
from midblock.evaluation.answers import choose_strict_reader, read_gold

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


BOXES = {
    r"So \boxed{42}.": "42",
    r"\boxed{1} and then \boxed{2}": "2",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{\text{a {b} c}}": r"\text{a {b} c}",
    r"\boxed{\boxed{5}}": "5",
    r"\boxed {1{,}000}": "1000",
    r"\fbox{$1,234.50$}": "1234.5",
    r"\boxed{\$5.00}": "5",
    r"\boxed{18\%}": "18",
    r"\boxed{-3}": "-3",
    r"\boxed{x = \{1, 2\}}": r"x = \{1, 2\}",
    r"\boxed{7} but \boxed{8": "7",
    r"\boxed{8": None,
    r"\boxed{}": None,
    "boxed{8}": None,
    "the answer is 8": None,
}


@pytest.mark.parametrize(("text", "answer"), BOXES.items())
def test_what_the_last_whole_box_holds(text, answer):
    assert ANSWERS["boxed"](text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("7\n#### 8", "8"), ("#### 1,000 apples", "1000"), ("it is 8", None), ("8\n####", None), ("", None)],
)
def test_marked_takes_no_number_that_is_not_marked(text, answer):
    assert ANSWERS["marked"](text) == answer


def asked(completion, **extra):
    return Example("How many?", completion, extra=extra)


@pytest.mark.parametrize(
    ("completions", "reader"),
    [
        (["so\n#### 4", "#### 5"], "marked"),
        ([r"so \boxed{4}", r"\boxed{x}"], "boxed"),
        (["4", "5"], "first_line"),
        (["4", "5\n6"], "exact"),
    ],
)
def test_no_rule_is_chosen_that_takes_any_last_number(completions, reader):
    assert choose_strict_reader([asked(text) for text in completions]) == reader


def test_right_answers_need_no_mark_of_their_own():
    assert read_gold("marked", asked("so\n#### 1,000", answer="1,000")) == "1000"
    assert read_gold("boxed", asked("1000", answer="1,000")) == "1000"
    assert read_gold("boxed", asked(r"so \boxed{\frac12}")) == r"\frac12"
    assert read_gold("last_number", asked("none")) is None
