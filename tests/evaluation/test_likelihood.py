import pytest
import torch

from midblock.base import MidblockError
from midblock.data import TokenizedPrompt
from midblock.evaluation.likelihood import log_likelihoods


def asked(ids, start):
    return TokenizedPrompt(0, tuple(ids), start)


REQUESTS = [
    asked([5, 6, 7, 8], 3),
    asked([5, 6, 7, 9], 3),  # shares the pass of the first
    asked([5, 6, 7, 9], 1),
    asked([40, 41], 1),
    asked([9, 8, 7, 6, 5, 4, 3], 4),
    asked([5, 6, 7, 8], 3),
]


def by_definition(model, request):
    log_probs = torch.log_softmax(model(input_ids=torch.tensor([request.input_ids])).logits[0].double(), -1)
    places = range(request.answer_start, len(request.input_ids))
    return sum(float(log_probs[place - 1, request.input_ids[place]]) for place in places)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_the_sum_over_the_answers_tokens_by_definition(pico, family, batch_tokens):
    model = pico(family)
    with torch.no_grad():
        expected = [by_definition(model, request) for request in REQUESTS]
    found = log_likelihoods("pico", model, REQUESTS, batch_tokens=batch_tokens)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert found[0] == found[5]


def test_what_differs_in_the_last_token_alone_shares_a_pass(pico):
    model, rows = pico("llama"), []
    handle = model.model.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(out[0].shape[:2]), with_kwargs=True
    )
    log_likelihoods("pico", model, REQUESTS)
    handle.remove()
    assert (3, 6) in rows  # three different beginnings; the longest without its last token


@pytest.mark.parametrize("start", [0, 4])
def test_an_answer_without_tokens_or_with_nothing_before_it(pico, start):
    with pytest.raises(MidblockError, match="text 1 has no token to tell how likely it is, or none before it"):
        log_likelihoods("pico", pico("llama"), [REQUESTS[0], asked([5, 6, 7, 8], start)])


def test_what_a_model_cannot_take_or_say(pico):
    model = pico("llama")
    with pytest.raises(MidblockError, match="prompt 0 has 300 tokens; it exceeds the model's 256"):
        log_likelihoods("pico", model, [asked([5] * 300, 10)])
    with torch.no_grad():
        model.lm_head.weight[8] = float("inf")
    with pytest.raises(MidblockError, match="pico: the likelihood of a text is not finite"):
        log_likelihoods("pico", model, REQUESTS)
