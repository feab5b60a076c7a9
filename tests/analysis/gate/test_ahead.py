"""What is known of a gate before anything is measured."""

import pytest

from midblock.analysis import AnalysisSettings
from midblock.analysis.gate.ahead import check_askable, check_names
from midblock.analysis.gate.conditions import read_conditions
from midblock.base import MidblockError
from midblock.checkpoints import Pair


@pytest.fixture(scope="module")
def pair(pico, tokenizer):
    base = pico("llama")
    return Pair.of_models(base, {"sft": base, "a, b": base}, tokenizer)


def ask(pair, text, **options):
    conditions = read_conditions(text)
    check_names(conditions)
    check_askable(conditions, AnalysisSettings(**options), pair)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("cka>0.5,delta_rel:block[0-2]@sft>1,kl_answers[L]>>0.3", {}),
        ("cka_debiased.no_sinks<<0.5,cka.null>1,cka.split_floor>1,cka.precision_floor>1", {}),
        ('cka@"a, b">0.5,gini@base>1,cka[-1]<0,cka[0.2-0.8]<0', {}),
        ("lidar>0.5,kl_general>1", {"metrics": "all", "general": "wikitext"}),
        ("cka.seed1>0.5,cka.no_sinks.seed2>1,cka.seeds>>1", {"seeds": 3}),
        ("cka.random>1,change_own.equal_step>>1", {"controls": "random,equal-step"}),
        ("delta_rel>1", {"weights_only": True}),
        ("cka[0-1]>1,kl_answers[L]>1", {"layers": "0-1"}),
        ("cka.no_sinks>1", {"tokens": "no-sinks"}),
    ],
)
def test_what_would_be_measured_may_be_asked(text, options, pair):
    ask(pair, text, **options)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("kl_answer>1", {}, "unknown metric 'kl_answer' (did you mean 'kl_answers'?)"),
        ("CKA>1", {}, "unknown metric 'CKA' (did you mean 'cka'?)"),
        ("cka.nosinks>1", {}, "unknown suffix of a metric '.nosinks' (did you mean '.no_sinks'?)"),
        ("cka.no_sinks.nul>1", {}, "unknown suffix of a metric '.nul' (did you mean '.null'?)"),
        ("cka.>1", {}, "unknown suffix of a metric '.'"),
        ("cka.seed0>1", {"seeds": 2}, "unknown suffix of a metric '.seed0'"),
        ("cka@stf>1", {}, "unknown model 'stf' (did you mean 'sft'?)"),
        ("lidar>1", {}, "lidar would not be measured (--metrics standard,lidar)"),
        ("cka>1", {"weights_only": True}, "cka would not be measured (leave out --weights-only)"),
        ("delta_rel>1", {"weights": False}, "delta_rel would not be measured (leave out --no-weights)"),
        ("change_own>1", {"num_token_samples": 0}, "change_own would not be measured (raise --num-token-samples)"),
        ("kl_answers>1", {"num_token_samples": 0}, "kl_answers would not be measured (raise --num-token-samples)"),
        ("kl_general>1", {}, "kl_general would not be measured (--general DATA)"),
        ("cka.no_sinks>1", {"tokens": "all"}, "cka.no_sinks would not be measured (--tokens all,no-sinks)"),
        ("cka>1", {"tokens": "no-sinks"}, "cka would not be measured (--tokens all,no-sinks)"),
        ("logit_kl.no_sinks>1", {}, "it is no mean over tokens, so it has no value without sinks"),
        ("gini.null>1", {}, "unrelated prompts say nothing of it"),
        ("delta_rel.null>1", {}, "of weights there is no reference"),
        ("cka.precision_floor>1", {"precision_floor": False}, "it takes a metric that compares two models"),
        ("gini.precision_floor>1", {}, "it takes a metric that compares two models"),
        ("cka.random>1", {"controls": "equal-step"}, "compares two models, and --controls random"),
        ("gini.equal_step>1", {"controls": "equal-step"}, "compares two models, and --controls equal-step"),
        ("cka.seed2>1", {"seeds": 2}, "cka.seed2 would not be measured (--seeds 3)"),
        ("cka.seeds>1", {}, "cka.seeds would not be measured (--seeds 2)"),
        ("cka@base>1", {}, "it compares a tuned model with the base"),
        ("delta_rel>>1", {}, "delta_rel has no interval (compare its value: >)"),
        ("cka.split_floor<<1", {}, "cka.split_floor has no interval (compare its value: <)"),
        ("cka[4]>1", {}, "[4] names layer 4; the model has -1 to 3"),
        ("cka[2]>1", {"layers": "0-1"}, "layer 2 would not be measured (--layers has 0-1 alone)"),
        ("cka[-1]>1", {"layers": "0-1"}, "layer -1 would not be measured (--layers has 0-1 alone)"),
        ("kl_answers[0-1]>1", {}, "kl_answers has no value at layers 0 to 1 (leave the layers out)"),
        ("change_own[-1]>1", {}, "change_own has no value at layer -1 (leave the layers out)"),
    ],
)
def test_what_cannot_be_told_is_refused_at_once(text, options, said, pair):
    with pytest.raises(MidblockError) as refused:
        ask(pair, text, **options)
    assert said in str(refused.value)
