import sys

import pytest

from midblock.base import MidblockError
from midblock.data import BUILTIN_SETS, load_dataset
from midblock.data.procedural import split_of

pytest.importorskip("reasoning_gym")


def prompts(*args, **kwargs):
    return [example.prompt for example in load_dataset(*args, **kwargs).examples]


@pytest.mark.parametrize("name", BUILTIN_SETS)
def test_no_question_is_shared_or_repeated(name):
    train = prompts(f"builtin:{name}", split="train", num_samples=1500)
    test = prompts(f"builtin:{name}", split="test", num_samples=400, seed=1)
    assert not set(train) & set(test)
    assert (len(set(train)), len(set(test))) == (1500, 400)
    assert {split_of(prompt) for prompt in test} == {"test"}


def test_a_longer_draw_begins_with_the_shorter():
    long = prompts("builtin:gsm_symbolic", num_samples=30)
    assert prompts("builtin:gsm_symbolic", num_samples=10) == long[:10]
    assert prompts("builtin:gsm_symbolic", num_samples=10, skip=20) == long[20:]


def test_the_seed_decides():
    sets = [load_dataset("builtin:chain_sum", num_samples=20, seed=seed) for seed in (0, 0, 1)]
    assert sets[0] == sets[1]
    assert sets[0].content_hash != sets[2].content_hash


def test_defaults():
    examples = load_dataset("builtin:chain_sum")
    assert (len(examples), examples.split, examples.layout) == (1000, "test", "question/answer")


def test_gsm_symbolic_completions_end_in_the_scored_answer():
    for example in load_dataset("builtin:gsm_symbolic", num_samples=300):
        steps, _, answer = example.completion.rpartition("\n#### ")
        assert answer == example.extra["answer"]
        assert steps.strip()


def test_chain_sum_completions_are_right():
    for example in load_dataset("builtin:chain_sum", num_samples=50):
        terms = example.prompt.rpartition(": ")[2].removesuffix(" =").replace("- ", "-").replace("+ ", "").split()
        assert sum(map(int, terms)) == int(example.completion) == int(example.extra["answer"])


def test_questions_of_one_template_are_variants_of_one_question():
    found = load_dataset("builtin:gsm_symbolic", num_samples=200)
    clusters = found.clusters
    assert len(found) == 200
    assert 40 < clusters.count < 90
    first = {}
    for example, number in zip(found, clusters.numbers, strict=True):
        first.setdefault(number, []).append(example.prompt)
    # variants differ in names and numbers: most of their words are the same
    shares = [
        len(set(one.split()) & set(other.split())) / len(set(one.split()))
        for one, other, *_ in (prompts for prompts in first.values() if len(prompts) > 1)
    ]
    assert sorted(shares)[len(shares) // 2] > 0.6
    assert load_dataset("builtin:chain_sum", num_samples=20).clusters is None


def test_unknown_names():
    with pytest.raises(MidblockError, match=r"unknown builtin dataset 'chainsum' .*'chain_sum'"):
        load_dataset("builtin:chainsum")
    with pytest.raises(MidblockError, match=r"unknown split 'tests' .*'test'"):
        load_dataset("builtin:chain_sum", split="tests")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MidblockError, match=r'pip install "midblock\[demo\]"'):
        load_dataset("builtin:chain_sum", num_samples=1)
