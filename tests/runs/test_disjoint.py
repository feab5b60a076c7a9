"""Samples that share no text."""

from midblock.data import Example, ExampleSet
from midblock.data.examples import hash_examples
from midblock.runs.disjoint import different, part_of, with_examples

TEXTS = ["one", "two", "one", "three", "two"]


def in_memory(texts):
    examples = tuple(Example(text) for text in texts)
    return ExampleSet("some:data", "test", "text", examples, hash_examples(examples))


def test_each_text_has_one_place_the_first_in_the_order_given():
    data = in_memory(TEXTS)
    assert different(data) == [0, 1, 3]
    assert different(data, [4, 2, 3, 1, 0]) == [4, 2, 3]


def test_a_part_keeps_the_order_of_the_data_and_has_a_hash_of_its_own():
    part = part_of(in_memory(TEXTS), [3, 0])
    assert part == in_memory(["one", "three"])
    assert part.content_hash != in_memory(TEXTS).content_hash


def test_other_examples_of_the_same_dataset():
    assert with_examples(in_memory(TEXTS), in_memory(["four"]).examples) == in_memory(["four"])
