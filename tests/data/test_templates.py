import pytest

from midblock.base import MidblockError
from midblock.data import Example, Message
from midblock.data.templates import render

from .conftest import CHATML, train_byte_level


def test_raw_text_and_its_boundary(byte_level, answered):
    examples = [answered("Hi", "Hello"), Example("def f():\n", "    pass", separator=""), Example("plain")]
    rendering = render(examples, byte_level, "raw")
    assert rendering.texts == ("Hi\nHello", "def f():\n    pass", "plain")
    assert rendering.boundaries == (3, 9, 5)
    assert (rendering.template, rendering.special_tokens) == ("raw", True)


def test_chat_text_and_its_boundary(byte_level, answered):
    rendering = render([answered("Hi", "Hello")], byte_level, "chat")
    text, boundary = rendering.texts[0], rendering.boundaries[0]
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert text[boundary:] == "Hello<|im_end|>\n"
    assert (rendering.template, rendering.special_tokens) == (CHATML, False)


def test_a_prompt_without_an_answer_ends_where_the_answer_would_begin(byte_level):
    rendering = render([Example("Hi", messages=(Message("user", "Hi"),))], byte_level, "chat")
    assert rendering.texts[0].endswith("<|im_start|>assistant\n")
    assert rendering.boundaries[0] == len(rendering.texts[0])


def test_a_template_from_a_file(byte_level, answered, tmp_path):
    path = tmp_path / "plain.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    rendering = render([answered("Hi", "Hello")], byte_level, str(path))
    assert rendering.texts == ("user: Hi\nassistant: Hello\n",)
    assert rendering.template == path.read_text()


def test_todays_date_does_not_reach_the_tokens(answered):
    today = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {{ date_string }}\n{% endif %}" + CHATML
    rendering = render([answered("Hi", "Hello")], train_byte_level(chat_template=today), "chat")
    assert rendering.texts[0].startswith("26 Jul 2024 26 Jul 2024\n<|im_start|>user")
    assert rendering.template == today


def test_a_tokenizer_without_a_template(answered):
    with pytest.raises(MidblockError, match=r"brings no chat template \(use --template raw"):
        render([answered("Hi", "Hello")], train_byte_level(chat_template=None), "chat")


def test_plain_text_has_no_turns_to_render(byte_level):
    with pytest.raises(MidblockError, match="sample 0 is plain text"):
        render([Example("plain")], byte_level, "chat")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('no system role') }}", r"fails on sample 0 \(turns: user, assistant\): no system role"),
        ("{% for m in messages %}", "fails on sample 0"),
        ("{{ messages | length }}", "writes the prompt differently once the answer follows"),
    ],
)
def test_templates_that_fail(source, complaint, byte_level, answered, tmp_path):
    path = tmp_path / "bad.jinja"
    path.write_text(source)
    with pytest.raises(MidblockError, match=complaint):
        render([answered("Hi", "Hello")], byte_level, str(path))


@pytest.mark.parametrize(
    ("template", "complaint"),
    [("rwa", "unknown template 'rwa' .*'raw'"), ("nowhere.jinja", "cannot read the chat template nowhere.jinja")],
)
def test_templates_that_are_not_there(template, complaint, byte_level, answered):
    with pytest.raises(MidblockError, match=complaint):
        render([answered("Hi", "Hello")], byte_level, template)
