"""Patterns of an adapter: real ones are quick and match as PEFT matches; nested ones end in one line."""

import re
import time
from pathlib import Path

import pytest
from peft.utils.other import get_pattern_key

from midblock.base import MidblockError
from midblock.checkpoints import name_patterns
from midblock.checkpoints.name_patterns import NamePattern, check_quick, patterns_of

FILE = Path("adapter_config.json")
MODULES = [
    f"model.layers.{block}.{part}"
    for block in range(30)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.experts.17.down_proj", "input_layernorm")
]
MODULES += ["model.embed_tokens", "lm_head", "a" * 40]


def pattern(text: str, key: str = "rank_pattern") -> NamePattern:
    (found,) = patterns_of({key: {text: 8} if key == "rank_pattern" else text}, FILE)
    return found


REAL = [
    "q_proj", r"layers\.0\.self_attn\.q_proj", r"^model.layers.2.mlp.down_proj$", r".*\.(q|k|v)_proj",
    r"model\.layers\.[0-9]+\.self_attn\.(q_proj|v_proj)", r"layers\.(1[0-9]|2\d)\..*", r"[^.]+\.q_proj",
    "base_model.model.model.layers.0.mlp.gate_proj", r"(?:model|language_model)\.layers\.\d+\.mlp\..*",
]  # fmt: skip


@pytest.mark.parametrize("text", REAL)
def test_real_patterns_are_matched_without_another_process(text, monkeypatch):
    monkeypatch.setattr(name_patterns, "_TRY", "raise SystemExit")  # would be refused, were it asked
    check_quick([pattern(text)], MODULES, Path("adapter"))


UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:k_proj|v_proj|q_proj)))"
)


@pytest.mark.parametrize("text", [UNSLOTH, r"((.*)\.)?q_proj", r"(?!.*mlp).*_proj", r"(layers)\.0\.mlp\..*\1?"])
def test_patterns_that_only_may_be_slow_are_tried(text):
    found = pattern(text, "target_modules")
    assert not found.quick
    check_quick([found], MODULES, Path("adapter"))


SLOW = ["(a+)+$", "(.*)*x", "(a|a)*x", "(a|aa)+x", "a?" * 40 + "a" * 40 + "x", "(a*)*b", ".*" * 12 + "x", r"(\w+\s?)*!"]


@pytest.mark.parametrize("text", SLOW)
def test_what_can_be_slow_is_never_called_quick(text):
    assert not pattern(text).quick


@pytest.mark.parametrize("key", ["rank_pattern", "target_modules", "exclude_modules", "layers_pattern"])
def test_one_that_hangs_is_refused_by_its_name(key, monkeypatch):
    monkeypatch.setattr(name_patterns, "SECONDS", 0.5)
    good = pattern(r"(q|(k|v)+)_proj")
    with pytest.raises(MidblockError, match=rf"'\(\(a\+\)\+\)x' in {key} takes more than") as raised:
        check_quick([good, pattern("((a+)+)x", key)], ["x." + "a" * 40 + ".0.", "a" * 40], Path("adapter"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[", "(", "a{1,99999999999}", "(" * 500, "(?P<a>x)(?P<a>y)"])
@pytest.mark.parametrize("key", ["rank_pattern", "target_modules", "layers_pattern", "modules_to_save"])
def test_what_is_no_pattern(text, key):
    with pytest.raises(MidblockError, match=f"in {key} is no regular expression") as raised:
        pattern(text, key)
    assert len(str(raised.value)) < 400


def test_patterns_as_long_as_a_book_or_too_many():
    with pytest.raises(MidblockError, match="1,000,000 letters, more than") as raised:
        pattern("x" * 10**6)
    assert len(str(raised.value)) < 300
    with pytest.raises(MidblockError, match="patterns of module names, more than"):
        patterns_of({"rank_pattern": {f"l{n}": 8 for n in range(10_001)}}, FILE)


@pytest.mark.parametrize("text", REAL)
def test_they_are_wrapped_as_peft_wraps_them(text):
    ours = re.compile(pattern(text).whole)
    for module in MODULES:
        assert bool(ours.match(module)) == (get_pattern_key([text], module) != module or text == module)


def test_quick_ones_are(monkeypatch):
    """The bound behind the word: the longest name there is takes a quick pattern no time that anyone feels."""
    started = time.process_time()
    for text in ("a*a*b", ".*.*x", "[^.]*.*b"):
        assert pattern(text).quick
        assert not re.match(pattern(text).whole, "a." * (name_patterns.LONGEST_NAME // 2))
    assert time.process_time() - started < 60  # no measure of speed: without the bound it takes for ever
