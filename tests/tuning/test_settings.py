"""Options: what is out of range, unknown or contradictory is said in one line that names it."""

from dataclasses import fields

import pytest

from midblock.base import MidblockError, from_options
from midblock.tuning.flow.settings import FlowSettings
from midblock.tuning.loop.tune_settings import TuneSettings
from midblock.tuning.losses import LOSSES

MUST_BE_POSITIVE = (
    "lora_r", "lora_scale", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_train_epochs", "logging_steps", "max_length", "anchor_lambda", "iw_temperature", "kl_beta",
)  # fmt: skip


def complaint(**options):
    with pytest.raises(MidblockError) as caught:
        from_options(TuneSettings, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_asked_for_is_plain_lora_on_all_blocks():
    settings = from_options(TuneSettings, {})
    assert settings == TuneSettings()
    assert (settings.method, settings.layers, settings.loss, settings.anchor) == ("lora", "all", "nll", "none")


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_can_be_asked_for(loss):
    assert from_options(TuneSettings, {"loss": loss}).loss == loss


@pytest.mark.parametrize("name", MUST_BE_POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_must_be_above_zero(name, value):
    assert complaint(**{name: value}) == f"{name} is {value}; it must be above 0"


@pytest.mark.parametrize("name", ["learning_rate", "lora_scale", "kl_beta"])
def test_a_value_that_is_no_number(name):
    assert complaint(**{name: float("nan")}) == f"{name} is nan; it must be above 0"


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0])
def test_dropout_lies_between_zero_and_one(value):
    assert complaint(lora_dropout=value) == f"lora_dropout is {value}; it must lie in [0, 1)"


def test_the_bounds_themselves():
    assert from_options(TuneSettings, {"lora_dropout": 0.0}).lora_dropout == 0
    assert from_options(TuneSettings, {"warmup_steps": 0.0}).warmup_steps == 0
    assert complaint(warmup_steps=-1.0).startswith("warmup_steps is -1.0")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "loar"}, "unknown method 'loar' (did you mean 'lora'?)"),
        ({"loss": "dtf"}, "unknown loss 'dtf' (did you mean 'dft'?)"),
        ({"loss": "iw-published"}, "unknown loss 'iw-published' (did you mean 'iw_published'?)"),
        ({"anchor": "rpfst"}, "unknown anchor 'rpfst' (did you mean 'rpsft'?)"),
        ({"anchor_scope": "blok"}, "unknown anchor scope 'blok' (did you mean 'block'?)"),
        ({"anchor_dtype": "bfloat"}, "unknown anchor dtype 'bfloat' (did you mean 'bfloat16'?)"),
        ({"prefix_cache": "yes"}, "unknown prefix cache 'yes' (one of: auto, off, on)"),
        ({"method": "full", "also": ("heads",)}, "unknown part for `also` 'heads' (did you mean 'head'?)"),
    ],
)
def test_an_unknown_name_names_the_nearest(options, said):
    assert complaint(**options) == said


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("learningrate", "learning_rate"),
        ("lr_schedule_type", "lr_scheduler_type"),
        ("lora_rank", "lora_r"),
        ("max_len", "max_length"),
        ("train_batch_size", "per_device_train_batch_size"),
    ],
)
def test_an_unknown_option_names_the_nearest(option, nearest):
    assert complaint(**{option: 1}) == f"unknown option {option!r} (did you mean {nearest!r}?)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank_budget": 64, "match_parameters": "all:64"}, "rank_budget and match_parameters exclude each other"),
        ({"also": ("head",)}, "also is about the model's own weights (leave it out, or --method full)"),
        ({"method": "full", "rank_budget": 64}, "rank_budget is about adapters (leave it out, or --method lora)"),
        ({"method": "full", "match_parameters": "all:4"}, "match_parameters is about adapters"),
        ({"method": "full", "use_dora": True}, "use_dora is about adapters"),
        ({"method": "full", "use_rslora": True}, "use_rslora is about adapters"),
        ({"method": "full", "lora_alpha": 128.0}, "lora_alpha is about adapters"),
        ({"method": "full", "load_in_4bit": True}, "load_in_4bit is about adapters"),
    ],
)
def test_options_that_exclude_each_other(options, said):
    assert complaint(**options).startswith(said)


def test_full_tuning_takes_the_parts_outside_the_blocks():
    parts = ("embedding", "head", "final_norm", "norms")
    assert from_options(TuneSettings, {"method": "full", "also": parts}).also == parts


def test_every_option_is_declared_once():
    names = [each.name for each in fields(TuneSettings)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["per_device_train_batch_size", "gradient_accumulation_steps", "max_length"])
def test_numbers_that_no_machine_counts_to(name):
    assert getattr(from_options(TuneSettings, {name: 2**31}), name) == 2**31
    assert complaint(**{name: 10**30}) == f"{name} is {10**30}; it must be at most 2^31"


@pytest.mark.parametrize(
    ("loss", "option"), [(name, option) for name, loss in LOSSES.items() for option in loss.options]
)
def test_an_option_of_a_loss_is_taken_by_every_loss_that_names_it(loss, option):
    value = 3 if isinstance(getattr(TuneSettings(), option), int) else 2.0
    assert getattr(TuneSettings(loss=loss, **{option: value}), option) == value
    with pytest.raises(MidblockError, match=f"the loss nll uses no {option}"):
        TuneSettings(loss="nll", **{option: value})


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("learning_rate", 100.0), ("lora_scale", 1e6), ("lora_alpha", 1e6), ("weight_decay", 1e3),
        ("adam_epsilon", 1e3), ("warmup_steps", 2.0**31), ("num_train_epochs", 2.0**31),
    ],
)  # fmt: skip
def test_numbers_with_which_nothing_is_trained(name, most):
    assert getattr(from_options(TuneSettings, {name: most}), name) == most
    for value in (most * 1.01, 1e30, 1e300):
        assert complaint(**{name: value}) == f"{name} is {value:g}; it must be at most {most:,.0f}"


@pytest.mark.parametrize("name", ["max_steps", "lora_r", "save_steps", "logging_steps"])
def test_whole_numbers_beyond_all_bounds(name):
    assert complaint(**{name: 10**12}) == f"{name} is {10**12}; it must be at most 2^31"


@pytest.mark.parametrize(("budget", "bound"), [(0, "1 or more"), (-5, "1 or more"), (10**18, "at most 2^31")])
def test_a_rank_budget_that_is_none(budget, bound):
    assert complaint(rank_budget=budget) == f"rank_budget is {budget}; it must be {bound}"


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("nothing", ["", "  "])
def test_target_modules_that_name_nothing(method, nothing):
    assert complaint(method=method, target_modules=nothing).startswith("target_modules names nothing")


@pytest.mark.parametrize(("name", "value"), [("max_steps", 10**9), ("sketch_size", 10**12), ("sketch_size", -1)])
def test_a_flow_looks_at_a_few_steps(name, value):
    with pytest.raises(MidblockError, match=f"{name} is {value}"):
        FlowSettings(**{name: value})
