"""Templates of strangers: each of these hung, filled the memory or ended in a traceback."""

import os
import sys

import pytest

from midblock.base import MidblockError
from midblock.data import encode_renderable
from midblock.data.sandbox import RunawayTemplateError, Sandbox, TemplateFailedError
from midblock.data.templates import LARGEST, render

from .conftest import CHATML, train_byte_level

ASKED = {"conversations": [[{"role": "user", "content": "Hi"}]]}
HANGS = "{% for each in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLES = "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


@pytest.fixture(scope="module")
def sandbox():
    found = Sandbox(seconds=1.0)
    yield found
    found.close()


def test_an_honest_template(sandbox):
    text, spans = sandbox.render(CHATML, {**ASKED, "add_generation_prompt": True})
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert spans == []


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ messages[0].content.foo.bar }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'x' + 1 }}",
        "{{ messages | int | join }}",
        "{{ ''.format_map }}{{ '{}'.format() }}",
        "{{ '%d' % 'x' }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
        "{% for i in x %}" * 30 + "{% endfor %}" * 30,
        "{{ 10 ** 5000 }}",
        "{{ tools.x.y }}",
        "{% include 'other' %}",
        "{{ messages[0].__class__.__mro__ }}",
    ],
)
def test_whatever_a_template_raises_is_a_reason(sandbox, source):
    with pytest.raises(TemplateFailedError) as raised:
        sandbox.render(source, ASKED)
    assert 0 < len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux alone")
@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'x' | center(10**10) }}",
        "{{ ([0] * 10**9) | length }}",
        "{{ 'x' * 3000000 }}",
        DOUBLES,
    ],
)
def test_texts_and_numbers_too_large(sandbox, source):
    with pytest.raises(RunawayTemplateError, match=r"the chat template takes (too much memory|more than)"):
        sandbox.render(source, ASKED)


@pytest.mark.parametrize("source", [HANGS, "{{ 7 ** (10 ** 9) }}"])
def test_what_never_ends_is_ended_and_not_tried_again(sandbox, source):
    with pytest.raises(RunawayTemplateError, match=r"takes more than 1\.0 s"):
        sandbox.render(source, ASKED)
    with pytest.raises(RunawayTemplateError, match="takes too long or too much"):
        sandbox.render(source, ASKED)
    assert sandbox.render("fine", ASKED) == ("fine", [])


def test_it_starts_anew_when_it_was_ended(sandbox):
    sandbox.render("fine", ASKED)
    sandbox._process.kill()
    sandbox._process.wait()
    assert sandbox.render("fine", ASKED) == ("fine", [])


def test_a_conversation_may_be_long(sandbox):
    long = [{"role": "user", "content": "x" * 3_000_000}]
    assert len(sandbox.render("{{ messages[0].content }}", {"conversations": [long]})[0]) == 3_000_000


def test_a_runaway_ends_all_and_names_the_sample(byte_level, answered, example_set, tmp_path):
    path = tmp_path / "late.jinja"
    path.write_text(CHATML + "{% if messages[0].content == 'B' %}{{ 'x' * 5000000 }}{% endif %}")
    examples = example_set(answered("A", "a"), answered("B", "b"), answered("C", "c"))
    with pytest.raises(RunawayTemplateError, match=r"takes more than [\d,]+ letters on sample 1 \(use --template raw"):
        encode_renderable(examples, byte_level, template=str(path))


def test_half_a_surrogate_pair_is_told(byte_level, answered, tmp_path):
    path = tmp_path / "half.jinja"
    path.write_text("{{ '\\ud800' }}" + CHATML)
    with pytest.raises(MidblockError, match="no valid Unicode"):
        render([answered("Hi", "Hello")], byte_level, str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_template_files_that_are_none(byte_level, answered, tmp_path):
    os.mkfifo(tmp_path / "pipe.jinja")
    (tmp_path / "zero.jinja").symlink_to("/dev/zero")
    (tmp_path / "large.jinja").write_text("x" * (LARGEST + 1))
    for name, message in (("pipe", "is a pipe"), ("zero", "is a device"), ("large", "is larger than 1.0 MiB")):
        with pytest.raises(MidblockError, match=message):
            render([answered("Hi", "Hello")], byte_level, str(tmp_path / f"{name}.jinja"))


def test_a_tokenizer_whose_template_is_none(answered):
    several = train_byte_level(chat_template={"one": "a", "two": "b"})
    with pytest.raises(MidblockError, match="chat template cannot be had"):
        render([answered("Hi", "Hello")], several, "chat")


def test_nothing_is_left_running():
    own = Sandbox()
    own.render("fine", ASKED)
    number = own._process.pid
    own.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
