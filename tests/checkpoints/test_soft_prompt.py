"""Soft prompts: the same predictions as PEFT's on the same folder, padding that does not show, and what is refused."""

import json
import shutil

import pytest
import torch
from peft import PeftModel

import midblock
from midblock.base import MidblockError
from midblock.checkpoints import (
    LoadSettings,
    ModelReference,
    SoftPrompt,
    fed,
    load_model,
    load_models,
    open_checkpoint,
    prompted,
)
from midblock.checkpoints.prompted import put_prompt, soft_prompt_in
from midblock.data import TokenizedPrompt, make_batches
from midblock.evaluation import generate_greedy, mean_divergence, mean_nll

N, IDS = 5, tuple(range(3, 15))
CPU = LoadSettings(device="cpu", dtype="float32")


def soft(seed=0, width=32, **options):
    drawn = torch.randn(N, width, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(0.4 * drawn, "somewhere", **options)


@pytest.fixture
def saved(tmp_path, pico, tokenizer):
    """A model's folder and a soft prompt's, made for it."""
    model = pico("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    made_for = open_checkpoint(str(tmp_path / "model")).weight_hash()
    values = soft().values
    SoftPrompt(values, str(tmp_path / "model"), weight_hash=made_for).write(tmp_path / "prompt", config=model.config)
    return tmp_path / "model", tmp_path / "prompt"


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2", "opt", "mixtral", "bloom"])
def test_predictions_are_pefts(pico, tmp_path, family):
    model = pico(family)
    soft().write(tmp_path, config=model.config)
    ours = prompted(model, SoftPrompt.open(tmp_path))
    plain = model(input_ids=torch.tensor([IDS])).logits
    found = ours(input_ids=torch.tensor([soft_prompt_in(ours).insert(IDS)])).logits[:, N:]
    theirs = PeftModel.from_pretrained(model, tmp_path)(input_ids=torch.tensor([IDS])).logits[:, N:]
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-6)
    assert (found - plain).abs().max() > 0.01
    assert soft_prompt_in(model) is None  # the model without is as it was, and shares its weights
    assert torch.equal(model(input_ids=torch.tensor([IDS])).logits, plain)
    assert ours.get_input_embeddings().weight is model.get_input_embeddings().weight


def test_written_answers_are_those_of_one_prompt_alone(pico, tokenizer):
    model = prompted(pico("llama"), soft())
    texts = ["How many?", "She has 3 apples, then 4 more. How many apples does she have in the end?", "7"]
    together = generate_greedy(model, tokenizer, texts, max_new_tokens=6)
    alone = [generate_greedy(model, tokenizer, [text], max_new_tokens=6)[0] for text in texts]
    assert together == alone
    assert together != generate_greedy(pico("llama"), tokenizer, texts, max_new_tokens=6)


@torch.no_grad()
@pytest.mark.parametrize("position", ["start", "after-bos"])
def test_likelihoods_count_the_same_tokens_as_without(pico, position):
    rows = [(1, *IDS), (1, *IDS[:5]), IDS[:7]]
    prompts = [TokenizedPrompt(place, ids, 3) for place, ids in enumerate(rows)]
    batches = make_batches(prompts)
    model, put = pico("llama"), soft(position=position, bos=1)
    ours = prompted(model, put)
    found, plain = mean_nll(ours, batches), mean_nll(model, batches)
    assert torch.equal(found.counts, plain.counts)
    for place, ids in enumerate(rows):
        whole = torch.tensor([soft_prompt_in(ours).insert(ids)])
        log_probs = ours(input_ids=whole).logits[0].double().log_softmax(-1)
        wanted = torch.tensor(ids[3:])
        own = -log_probs[N + 2 : -1][torch.arange(len(wanted)), wanted].sum()
        assert float(found.sums[place]) == pytest.approx(float(own), abs=1e-5)
    assert mean_divergence(ours, model, batches).value > 0.01
    assert mean_divergence(model, model, batches).value < 1e-9


def test_after_bos_stands_behind_that_token_and_start_before_it(pico):
    first = prompted(pico("llama"), soft())
    second = prompted(pico("llama"), soft(position="after-bos", bos=1))
    ids = soft_prompt_in(first).ids
    assert soft_prompt_in(first).insert((1, 7)) == (*ids, 1, 7)
    assert soft_prompt_in(second).insert((1, 7)) == (1, *ids, 7)
    assert soft_prompt_in(second).insert((7, 1)) == (*ids, 7, 1)
    rows, where = torch.tensor([[1, 7, 0], [7, 8, 9]]), torch.tensor([[True, False, False], [False, True, False]])
    moved, places = fed(second.get_input_embeddings(), rows, where)
    assert moved.tolist() == [[1, *ids, 7, 0], [*ids, 7, 8, 9]]
    assert places.nonzero().tolist() == [[0, N], [1, N + 1]]
    assert fed(pico("llama").get_input_embeddings(), rows, where)[0] is rows
    with pytest.raises(MidblockError, match="needs that token's id"):
        soft(position="after-bos")


def test_a_reference_names_a_model_with_its_prompt(saved):
    model, prompt = saved
    checkpoint = open_checkpoint(f"{model}+{prompt}")
    assert checkpoint.name == "model+prompt"
    assert prompt in checkpoint.places
    assert checkpoint.weight_hash() != checkpoint.bare.weight_hash() == open_checkpoint(str(model)).weight_hash()
    loaded = load_model(checkpoint, CPU)
    assert torch.equal(soft_prompt_in(loaded).prompt, soft().values)
    alone = open_checkpoint(str(prompt))  # names its model, as an adapter names its base
    assert alone.folder == model
    assert torch.equal(alone.prompt.values, soft().values)
    with pytest.raises(MidblockError, match="two soft prompts"):
        open_checkpoint(f"{model}+{prompt}+{prompt}")


def test_a_reference_that_was_parsed_before_names_the_same(saved, tmp_path):
    """Whoever parses it for its name, and whoever opens it, read one reference."""
    model, prompt = saved
    run = tmp_path / "erased"
    run.mkdir()
    (run / "run.json").write_text("{}")
    shutil.copytree(prompt, run / "prompt")
    reference = ModelReference.parse(f"{model}+{run}")
    assert reference.label == "model+erased"
    assert reference.below.text == str(model)
    checkpoint = open_checkpoint(reference)
    assert checkpoint.name == "model+erased"
    assert torch.equal(checkpoint.prompt.values, soft().values)
    assert ModelReference.parse(str(run)).label == "erased"


@pytest.mark.parametrize("verb", ["analyze", "swap", "merge", "steer"])
def test_verbs_that_look_at_weights_take_none(saved, verb):
    model, prompt = saved

    pair = load_models(f"{model}+{prompt}", str(model))
    named = f"{model}+{prompt}", str(model)
    arguments = {"steer": named, "merge": (*named, 0.5)}
    options = {"merge": {"output_dir": "out"}, "swap": {"segments": "3"}}
    with pytest.raises(MidblockError, match=f"has a soft prompt, which {verb} does not take"):
        getattr(midblock, verb)(*arguments.get(verb, (pair,)), **options.get(verb, {}))


def test_a_prompt_of_another_width_or_for_other_weights_is_refused(saved, pico, tmp_path):
    model, prompt = saved
    with pytest.raises(MidblockError, match="16 channels, it 32"):
        prompted(pico("llama"), soft(width=16), "it")
    pico("llama", seed=9).save_pretrained(model)
    with pytest.raises(MidblockError, match="made for other weights"):
        load_model(open_checkpoint(f"{model}+{prompt}"), CPU)
    (prompt / "soft_prompt.json").unlink()  # from elsewhere: nobody says what it was made for
    assert soft_prompt_in(load_model(open_checkpoint(f"{model}+{prompt}"), CPU)) is not None


def test_files_that_contradict_each_other_are_refused(saved):
    _, prompt = saved
    config = json.loads((prompt / "adapter_config.json").read_text())
    (prompt / "adapter_config.json").write_text(json.dumps({**config, "num_virtual_tokens": N + 1}))
    with pytest.raises(MidblockError, match=r"holds 5 × 32 numbers, .* promises 6 × 32"):
        SoftPrompt.open(prompt)
    (prompt / "adapter_config.json").write_text(json.dumps(config))
    (prompt / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MidblockError):
        SoftPrompt.open(prompt)


def test_a_model_that_looks_at_its_ids_elsewhere_is_refused_and_left_as_it_was(pico):
    class Looking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = pico("llama")
            self.config = self.inside.config

        def get_input_embeddings(self):
            return self.inside.get_input_embeddings()

        def forward(self, input_ids=None, inputs_embeds=None, **options):
            out = self.inside(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)
            if input_ids is not None:
                out.logits = out.logits + input_ids[..., None]
            return out

    model = Looking()
    with pytest.raises(MidblockError, match="looks at token ids beside its embedding"):
        put_prompt(model, soft(), "it")
    assert soft_prompt_in(model) is None
