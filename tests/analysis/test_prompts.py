import copy

import pytest
import torch

from midblock.analysis.prompts import prepare_prompts
from midblock.analysis.settings import AnalysisSettings
from midblock.base import MidblockError
from midblock.checkpoints import Pair, load_pair
from midblock.data import Example, ExampleSet, Message

FEW = "{} prompts are few: of heavy-tailed values less than 93 % of the intervals hold the truth."
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"


def examples(count=12, answers=True):
    made = [Example("apples " * (1 + i % 5), f"she has {i} apples" if answers else "") for i in range(count)]
    return ExampleSet("some:data", "test", "question/answer", tuple(made), "0" * 64)


@pytest.fixture(scope="module")
def pair(pico, tuned_from, tokenizer):
    base = pico("llama")
    return Pair.of_models(base, {"tuned": tuned_from(base)}, tokenizer)


def prepare(pair, data=None, views=False, **options):
    options = {"num_token_samples": 5, "batch_tokens": 64} | options
    return prepare_prompts(pair, data or examples(), AnalysisSettings(**options), views=views)


def indices(batches):
    return sorted(int(i) for batch in batches for i in batch.index)


def test_deep_and_pooled_part_the_prompts(pair):
    prompts = prepare(pair)
    assert len(indices(prompts.deep)) == 5
    assert sorted(indices(prompts.deep) + indices(prompts.pooled)) == list(range(12))


@pytest.mark.parametrize(("asked", "deep"), [(0, 0), (12, 12), (50, 12)])
def test_deep_prompts_are_as_many_as_asked_for_or_there_are(pair, asked, deep):
    prompts = prepare(pair, num_token_samples=asked)
    assert len(indices(prompts.deep)) == deep
    assert len(indices(prompts.pooled)) == 12 - deep
    assert prompts.facts["num_token_samples"] == deep


def test_the_seed_decides_which_prompts_are_deep(pair):
    assert indices(prepare(pair, seed=1).deep) == indices(prepare(pair, seed=1).deep)
    assert len({tuple(indices(prepare(pair, seed=seed).deep)) for seed in range(6)}) > 1


def test_batches_keep_to_their_budget_and_to_the_tokenizers_ids(pair, tokenizer):
    prompts, data = prepare(pair), examples()
    for batch in prompts.deep + prompts.pooled:
        assert batch.input_ids.numel() <= 64
        for row, ids, mask in zip(batch.index, batch.input_ids, batch.attention_mask.bool(), strict=True):
            assert ids[mask].tolist() == tokenizer(data.examples[int(row)].text)["input_ids"]


def test_views_hold_every_prompt_with_fewer_tokens(pair):
    prompts = prepare(pair, views=True, token_dropout=0.4)
    whole = sum(int(batch.attention_mask.sum()) for batch in prompts.deep + prompts.pooled)
    assert len(prompts.views) == 2
    for view in prompts.views:
        assert indices(view) == list(range(12))
        assert sum(int(batch.attention_mask.sum()) for batch in view) < whole


def test_views_are_made_only_if_wanted(pair):
    assert prepare(pair).views == ()


@pytest.mark.parametrize("region", ["answer", "prompt", "all"])
def test_a_prompt_without_the_region_is_left_out(pair, region):
    mixed = examples(6).examples + examples(6, answers=False).examples
    data = ExampleSet("some:data", "test", "question/answer", mixed, "0" * 64)
    prompts = prepare(pair, data, region=region)
    assert sorted(indices(prompts.deep) + indices(prompts.pooled)) == list(range(6 if region == "answer" else 12))
    for batch in prompts.deep + prompts.pooled:
        assert bool(batch.region(region).any(1).all())


def test_too_few_prompts_raise(pair):
    with pytest.raises(MidblockError, match=r"only 3 of 3 prompts of some:data .*4 are needed"):
        prepare(pair, examples(3))


def test_ids_beyond_a_models_vocabulary_raise(pico, tokenizer):
    base = pico("llama", vocab_size=200)
    pair = Pair.of_models(base, {"tuned": base}, tokenizer)
    with pytest.raises(MidblockError, match="beyond the 200 ids all models share"):
        prepare(pair)


@pytest.fixture
def pair_with(pair, tokenizer, tmp_path):
    """The pair on disk, its tuned model with a tokenizer of its own."""

    def save(other):
        for variant, own in zip(pair, (tokenizer, other), strict=True):
            variant.model.save_pretrained(tmp_path / variant.name)
            own.save_pretrained(tmp_path / variant.name)
        return load_pair(str(tmp_path / "base"), str(tmp_path / "tuned"))

    return save


def test_tokenizers_that_disagree_raise_and_are_named(pair_with, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["apples"])
    with pytest.raises(MidblockError, match="the tokenizers of the base and of tuned differ"):
        prepare(pair_with(other))


def test_a_chat_template_may_come_from_a_tuned_model(pair_with, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = CHAT
    turns = tuple(
        Example(each.prompt, each.completion, (Message("user", each.prompt), Message("assistant", each.completion)))
        for each in examples()
    )
    chats = ExampleSet("some:chat", "test", "messages", turns, "0" * 64)
    prompts = prepare(pair_with(other), chats, template="chat")
    assert prompts.facts["template"] == CHAT
    first = next(batch for batch in prompts.deep + prompts.pooled if 0 in batch.index)
    ids = first.input_ids[first.index == 0][first.attention_mask[first.index == 0].bool()]
    assert other.decode(ids).startswith("user: ")


def test_facts_say_what_was_measured(pair):
    prompts = prepare(pair, max_length=8)
    kept = torch.cat([batch.attention_mask.sum(1) for batch in prompts.deep + prompts.pooled])
    assert prompts.facts["tokens"] == int(kept.sum())
    assert prompts.facts["num_samples"] == 12
    assert prompts.facts["truncated"] > 0
    assert prompts.facts["content_hash"] == "0" * 64
    assert prompts.samples == [example.text for example in examples().examples[:3]]


def test_prompts_left_out_are_counted_and_told(pair):
    mixed = ExampleSet("some:data", "", "text", examples(8).examples + examples(4, answers=False).examples, "0" * 64)
    prompts = prepare(pair, mixed, region="answer")
    assert (prompts.facts["asked"], prompts.facts["without_region"], prompts.facts["num_samples"]) == (12, 4, 8)
    assert prompts.notes() == ["4 prompt(s) without a token in the region 'answer': left out.", FEW.format(8)]
    cut = prepare(pair, max_length=3)
    assert cut.facts["completion_lost"] == 12
    assert cut.notes() == [
        "12 prompt(s) cut at 3 tokens, before the completion begins.",
        FEW.format("2 different"),
        "10 of 12 prompts repeat the tokens of an earlier one: values count every prompt, intervals resample a prompt "
        "together with its repeats, and intrinsic_dimension takes each different one (2) once. Fewer than 4 different "
        "ones give no interval of a mean, fewer than 8 none of what is computed from all together.",
    ]
    assert prepare(pair, examples(24), num_token_samples=24).notes() == []


@pytest.mark.parametrize(
    ("count", "deep", "said"),
    [
        (12, 5, [FEW.format(12)]),
        (23, 0, [FEW.format(23)]),
        (24, 24, []),
        (24, 0, []),
        (30, 5, [FEW.format("5").replace("prompts", "prompts, those of token-level metrics,")]),
    ],
)
def test_few_prompts_are_told(pair, count, deep, said):
    """As by the verbs that judge answers, from the same number on."""
    notes = prepare(pair, examples(count), num_token_samples=deep).notes()
    assert [note for note in notes if "are few" in note] == said
