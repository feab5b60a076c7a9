import copy

import pytest
import torch
import transformers
from tokenizers import processors

from midblock.base import MidblockError
from midblock.checkpoints import LoadSettings, load_model, open_checkpoint
from midblock.data import encode, load_dataset
from midblock.evaluation import generate_greedy
from midblock.evaluation.encoded_prompts import encode_prompts, stop_tokens

QUESTION, ANSWER = "How many apples does she have?", "She has 3 + 4 = 7.\n#### 7"
TEXTS = ["How many", "She has 3 + 4 = 7 apples in the end", "a", "does she have?\n", "7 apples, 3 + 4"]


def by_hand(model, tokenizer, text, new):
    """Greedy decoding as its definition says: one prompt, the whole text again for each token, no cache."""
    ids = tokenizer(text)["input_ids"]
    written = []
    for _ in range(new):
        token = int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True)


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj", "lm_head"])
    torch.manual_seed(3)
    return peft.get_peft_model(model, config)


def test_a_batch_answers_as_each_prompt_alone_would_by_definition(pico, tokenizer, family):
    model = pico(family)
    expected = [by_hand(model, tokenizer, text, 12) for text in TEXTS]
    assert len(set(expected)) > 2
    assert generate_greedy(model, tokenizer, TEXTS, max_new_tokens=12) == expected
    assert generate_greedy(model, tokenizer, TEXTS, max_new_tokens=12, batch_tokens=1) == expected


@pytest.mark.parametrize("batch_tokens", [40, 100])
def test_answers_come_in_the_order_of_the_prompts_whatever_the_batches(pico, tokenizer, batch_tokens):
    model = pico("llama")
    expected = generate_greedy(model, tokenizer, TEXTS, max_new_tokens=8)
    turned = generate_greedy(model, tokenizer, TEXTS[::-1], max_new_tokens=8, batch_tokens=batch_tokens)
    assert turned[::-1] == expected


def test_what_was_learned_is_said_and_ended(pico, tokenizer, answered, example_set, fit):
    model = pico("llama").train()
    examples = example_set(answered(QUESTION, ANSWER), answered("a", "7"))
    fit(model, tokenizer, examples)
    assert generate_greedy(model, tokenizer, examples, max_new_tokens=60) == [ANSWER, "7"]
    # Cut off where the limit is, too.
    tokens = tokenizer(ANSWER)["input_ids"]
    assert generate_greedy(model, tokenizer, examples, max_new_tokens=5)[0] == tokenizer.decode(tokens[:5])


def test_a_chat_answer_ends_with_its_turn_in_a_wrapped_model(pico, chatty, answered, example_set, fit):
    model = lora(pico("llama").requires_grad_(False))
    examples = example_set(answered(QUESTION, ANSWER), answered("a", "7"))
    fit(model, chatty, examples, template="chat", steps=150)
    assert generate_greedy(model, chatty, examples, template="chat", max_new_tokens=60) == [ANSWER, "7"]
    # A text is a user's turn.
    assert generate_greedy(model, chatty, [QUESTION], template="chat", max_new_tokens=60) == [ANSWER]
    with model.disable_adapter():
        assert generate_greedy(model, chatty, examples, template="chat", max_new_tokens=20) != [ANSWER, "7"]


def test_the_ends_of_an_answer(pico, chatty):
    model = pico("llama")
    assert stop_tokens(model, chatty, "raw") == [2]
    assert stop_tokens(model, chatty, "chat") == [2, chatty.convert_tokens_to_ids("<end>")]
    model.generation_config.eos_token_id = [5, 2]
    assert stop_tokens(model, chatty, "raw") == [2, 5]


def test_the_models_own_generation_config_neither_leaks_nor_changes(pico, tokenizer):
    model = pico("llama")
    expected = generate_greedy(model, tokenizer, TEXTS, max_new_tokens=12)
    first = tokenizer(expected[0])["input_ids"][0]
    own = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, suppress_tokens=[first], max_length=3, num_beams=3
    )
    model.generation_config = own
    before = own.to_dict()
    assert generate_greedy(model, tokenizer, TEXTS, max_new_tokens=12) == expected
    assert model.generation_config is own
    assert own.to_dict() == before
    # As PEFT's wrapper passes it on, and keeps it.
    wrapped = lora(model)
    assert generate_greedy(wrapped, tokenizer, TEXTS, max_new_tokens=12) == expected
    assert wrapped.generation_config is own


def test_every_module_gets_its_mode_back(pico, tokenizer):
    model = pico("gpt2", embd_pdrop=0.5, resid_pdrop=0.5).train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    answers = [generate_greedy(model, tokenizer, TEXTS, max_new_tokens=6) for _ in range(2)]
    assert answers[0] == answers[1]  # dropout would have told them apart
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(MidblockError, match="no tokens"):
        generate_greedy(model, tokenizer, ["a", ""])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_a_prompt_is_what_training_saw(chatty, answered, example_set, template):
    examples = example_set(answered(QUESTION, ANSWER), answered("3 + 4 =", "7", " "), answered("She has ", " 7", ""))
    trained = encode(examples, chatty, template=template)
    prompts = encode_prompts(examples, chatty, template)
    for prompt, whole in zip(prompts, trained.prompts, strict=True):
        assert prompt.input_ids == whole.input_ids[: whole.answer_start]
        assert prompt.as_trained


def test_a_separator_in_the_answers_first_token_is_left_to_the_model(pico, tokenizer, answered, example_set, fit):
    """As in "Answer: B", where " B" is one token: behind a bare space the model would be lost."""
    examples = example_set(answered("How many?", "apples", " "))
    prompt = encode_prompts(examples, tokenizer)[0]
    assert prompt.owed == " "
    assert tokenizer.decode(list(prompt.input_ids)) == "How many?"
    assert "Ġapples" in tokenizer.get_vocab()
    model = pico("llama")
    fit(model, tokenizer, examples)
    assert generate_greedy(model, tokenizer, examples, max_new_tokens=60) == ["apples"]


def test_a_token_that_holds_words_of_both_gives_nothing_away(tokenizer, answered, example_set):
    examples = example_set(answered("How many app", "les", ""), answered(QUESTION, ANSWER))
    split, whole = encode_prompts(examples, tokenizer)
    assert list(split.input_ids) == tokenizer("How many app")["input_ids"]
    assert split.as_trained is False
    assert whole.as_trained is True


def test_texts_are_taken_as_they_are(tokenizer):
    prompt = encode_prompts(["She has 3 "], tokenizer)[0]
    assert list(prompt.input_ids) == tokenizer("She has 3 ")["input_ids"]
    assert prompt.as_trained is None


def test_an_end_token_that_the_tokenizer_adds_is_not_given(tokenizer, answered, example_set):
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert ending("a")["input_ids"][-1] == 2
    texts = encode_prompts(["She has"], ending)
    examples = encode_prompts(example_set(answered("She has", "7")), ending)
    assert texts[0].input_ids == (1, *tokenizer("She has")["input_ids"])
    assert examples[0].input_ids == (1, *tokenizer("She has\n")["input_ids"])
    assert examples[0].as_trained


@pytest.mark.parametrize(
    ("texts", "new", "message"),
    [
        ([], 5, "there are no prompts"),
        (["a", ""], 5, "prompt 1 has no tokens"),
        (["a"], 0, "cannot write 0 tokens"),
        (["a", "abc" * 60], 200, r"prompt 1 has \d+ tokens; with 200 new ones it exceeds the model's 256"),
    ],
)
def test_what_cannot_be_answered_is_refused(pico, tokenizer, texts, new, message):
    with pytest.raises(MidblockError, match=message):
        generate_greedy(pico("llama"), tokenizer, texts, max_new_tokens=new)


@pytest.mark.embedded
@pytest.mark.parametrize("template", ["raw", "chat"])
def test_the_embedded_model_answers_the_same_in_batches(template):
    pytest.importorskip("reasoning_gym")
    checkpoint = open_checkpoint("builtin:smollm2-135m-instruct")
    model, tokenizer = load_model(checkpoint, LoadSettings(device="cpu")), checkpoint.tokenizer()
    examples = load_dataset("builtin:chain_sum", num_samples=4)
    together, alone = (
        generate_greedy(model, tokenizer, examples, template=template, max_new_tokens=10, batch_tokens=budget)
        for budget in (1000, 1)
    )
    assert together == alone
    assert any(answer.strip().startswith("The answer is") for answer in together)
