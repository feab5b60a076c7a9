from midblock.data import Example, Message
from midblock.data.examples import hash_examples


def test_text_joins_prompt_and_completion():
    assert Example("a", "b").text == "a\nb"
    assert Example("a", "b", separator="").text == "ab"
    assert Example("a").text == "a"


def test_hash_is_the_same_everywhere():
    examples = [Example("Grüße", "🦊", extra={"answer": "🦊"}), Example("plain")]
    assert hash_examples(examples) == "a7ab46bf75f9f2e06fe9f79e92588f7352c557d2d769757274f80d367ab4ebbf"


def test_hash_depends_on_every_field_and_the_order():
    examples = [
        Example("a", "b"),
        Example("a\nb"),
        Example("a", "b", separator=""),
        Example("a", "b", (Message("user", "a"), Message("assistant", "b"))),
        Example("a", "b", extra={"answer": "b"}),
    ]
    assert len({hash_examples([example]) for example in examples}) == len(examples)
    assert hash_examples(examples) != hash_examples(examples[::-1])


def test_hash_ignores_the_order_of_extra():
    assert hash_examples([Example("a", extra={"x": "1", "y": "2"})]) == hash_examples(
        [Example("a", extra={"y": "2", "x": "1"})]
    )
