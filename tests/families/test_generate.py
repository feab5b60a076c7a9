"""Every family: a batch of prompts of unequal length is answered as each of them alone."""

import pytest

from midblock.base import MidblockError
from midblock.evaluation.encoded_prompts import encode_prompts
from midblock.evaluation.generate import continue_ids
from midblock.evaluation.padding import padding_shows

from .pair import make_tokenizer
from .zoo import families, make

TEXTS = ["a, two and", "How many apples?"]
# What transformers 5 itself cannot run by `generate`, one prompt alone either.
SILENT = {"hrm_text", "xlstm"}
# Models whose state is no attention that a mask ends, or whose positions count the padding.
SHOWING = {"deepseek_v4", "minimax", "recurrent_gemma", "rwkv", "xlnet"}
HIDING = {"llama", "gpt2", "mamba", "mamba2", "jamba", "qwen3_next", "bamba"}


@pytest.mark.parametrize("family", [name for name in families() if name not in SILENT])
def test_a_padded_batch_answers_as_each_prompt_alone(family):
    model, tokenizer = make(family).eval(), make_tokenizer()
    prompts = encode_prompts(TEXTS, tokenizer)
    alone = continue_ids(model, tokenizer, prompts, stop=[], max_new_tokens=2, batch_tokens=1)
    assert continue_ids(model, tokenizer, prompts, stop=[], max_new_tokens=2) == alone
    if family in SHOWING | HIDING:
        assert padding_shows(model, prompts, 0) == (family in SHOWING)


@pytest.mark.parametrize("family", sorted(SILENT))
def test_what_cannot_write_is_refused_in_one_line(family):
    tokenizer = make_tokenizer()
    with pytest.raises(MidblockError, match="does not write with transformers' generate"):
        continue_ids(
            make(family).eval(), tokenizer, encode_prompts(TEXTS, tokenizer), stop=[], max_new_tokens=3, batch_tokens=1
        )
