import copy
import math

import pytest
import torch
from tokenizers import processors

from midblock.base import MidblockError, Silent
from midblock.evaluation.task import Subject, TaskSettings
from midblock.evaluation.tasks import open_task

TEXTS = [{"text": "She has 3 + 4 = 7 apples."}, {"text": "How many é?"}, {"text": "a"}]
PAIRS = [{"prompt": "How many?", "completion": "7 apples"}, {"prompt": "And é?", "completion": "é 3"}]


def scored(task, subject):
    return list(task.run(subject, task.items, TaskSettings(), Silent()))


def nll(model, ids, start):
    log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_texts_by_definition(pico, tokenizer, rows_file):
    path, model = rows_file(*TEXTS), pico("llama")
    subject = Subject("pico", model, tokenizer)
    task = open_task(f"perplexity:{path}")
    assert (task.metric, task.kind, task.higher_is_better, task.rule) == ("nll", "mean", False, "tokens: all")
    ids = [[tokenizer.bos_token_id, *tokenizer(row["text"])["input_ids"]] for row in TEXTS]
    with torch.no_grad():
        sums = [nll(model, each, 1) for each in ids]
    rows = scored(task, subject)
    assert [row.item for row in rows] == [item.id for item in task.items]
    assert [row.weight for row in rows] == [len(each) - 1 for each in ids]
    assert [row.value * row.weight for row in rows] == pytest.approx(sums)
    bits = scored(open_task(f"bits_per_byte:{path}"), subject)
    assert [row.weight for row in bits] == [len(row["text"].encode()) for row in TEXTS]
    assert [row.value * row.weight for row in bits] == pytest.approx([each / math.log(2) for each in sums])


def test_a_tokenizer_that_begins_texts_itself_or_has_no_token_for_it(pico, tokenizer, rows_file):
    path, model = rows_file(*TEXTS), pico("llama")
    begins, none = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    task = open_task(f"perplexity:{path}")
    assert scored(task, Subject("pico", model, begins)) == scored(task, Subject("pico", model, tokenizer))
    none.bos_token = none.eos_token = None
    with pytest.raises(MidblockError, match="nothing of 'a' can be predicted: it is one token"):
        scored(task, Subject("pico", model, none))


def test_of_pairs_the_answers_count(pico, tokenizer, rows_file):
    model, path = pico("llama"), rows_file(*PAIRS)
    subject, task = Subject("pico", model, tokenizer), open_task(f"perplexity:{path}")
    assert task.rule == "tokens: answers"
    bits = scored(open_task(f"bits_per_byte:{path}"), subject)
    for row, bit, pair in zip(scored(task, subject), bits, PAIRS, strict=True):
        start = len(tokenizer(pair["prompt"])["input_ids"])
        ids = tokenizer(pair["prompt"] + pair["completion"])["input_ids"]
        with torch.no_grad():
            assert row.value * row.weight == pytest.approx(nll(model, ids, start))
        assert (row.weight, bit.weight) == (len(ids) - start, len(pair["completion"].encode()))


def test_what_is_too_long_is_cut_and_says_so(pico, tokenizer, rows_file):
    subject = Subject("pico", pico("llama"), tokenizer)
    text = scored(open_task(f"perplexity:{rows_file({'text': 'ab ' * 300})}"), subject)[0]
    assert (text.weight, text.failed) == (255, "cut at 256 tokens")
    pair = {"prompt": "ab " * 300, "completion": "7 apples"}
    task = open_task(f"perplexity:{rows_file(pair)}")
    row, count = scored(task, subject)[0], len(tokenizer("7 apples")["input_ids"])
    assert (row.weight, row.failed) == (count, "cut at 256 tokens")
    ids = tokenizer(pair["prompt"] + pair["completion"])["input_ids"][-256:]
    with torch.no_grad():
        assert row.value * row.weight == pytest.approx(nll(subject.model, ids, 256 - count))


def test_it_wants_a_dataset():
    with pytest.raises(MidblockError, match="the task 'perplexity' wants a dataset"):
        open_task("perplexity")
