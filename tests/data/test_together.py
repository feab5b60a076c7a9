"""Many conversations in one exchange: what is told is what would be told of one after the other."""

import signal

import pytest

from midblock.base import MidblockError
from midblock.data import Example, Message
from midblock.data.chat import Chat
from midblock.data.sandbox import EXCHANGE, RunawayTemplateError, Sandbox, TemplateFailedError
from midblock.data.together import MOST, write_together

from .conftest import CHATML

HANGS = "{% for each in range(99999) %}" * 3 + "{% endfor %}" * 3
REFUSES = "{{ raise_exception('refused') }}"
MARKS = CHATML.replace("{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}")
THINKS = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")  # its answers need three more renderings
CALLS = CHATML.replace("<|im_end|>", "{{ message.tool_calls }}<|im_end|>")


@pytest.fixture(scope="module")
def sandbox():
    found = Sandbox(seconds=0.5)
    yield found
    found.close()


def planted(place, what, also=""):
    return f"{{% if messages[0].content == 'Question {place}' {also} %}}{what}{{% endif %}}"


def conversation(place, content=""):
    messages = (Message("user", f"Question {place}"), Message("assistant", content or f"Answer {place}"))
    return Example(messages[0].content, messages[1].content, messages)


def among(*others, count=60):
    """Conversations, of which each seventh is another."""
    found = [conversation(place) for place in range(count)]
    for number, other in enumerate(others, start=1):
        found[7 * number] = other
    return found


def one_by_one(chat, examples, sandbox, stop):
    found = []
    for place, example in enumerate(examples):
        found.append(alone(chat._render(place, example), chat.source, sandbox))
        if stop and isinstance(found[-1], MidblockError):
            break
    return found


def alone(writing, source, sandbox):
    try:
        asked = next(writing)
        while True:
            try:
                written = sandbox.render(source, asked)
            except (TemplateFailedError, RunawayTemplateError) as error:
                asked = writing.throw(error)
            else:
                asked = writing.send(written)
    except StopIteration as ended:
        return ended.value
    except MidblockError as error:
        return error


def together(chat, examples, sandbox, stop):
    def begin(place):
        return chat._render(place, examples[place])

    return write_together(begin, len(examples), chat.source, stop=stop, sandbox=sandbox)


def told(outcomes):
    return [(type(each).__name__, str(each)) if isinstance(each, MidblockError) else each for each in outcomes]


CALL = Message("assistant", "", {"content": None, "tool_calls": [{"function": {"name": "add"}}]})
TOOLS = Example("What?", "", (Message("user", "What?"), CALL))
NO_DATA = Example("a", "b", (Message("user", "a", {"name": lambda: 0}), Message("assistant", "b")))
LONG = [conversation(place, "x" * (EXCHANGE // 2)) for place in range(3)]


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize(
    ("source", "examples", "failing"),
    [
        (CHATML, among(count=2 * MOST + 3), 0),
        (CHATML, among(Example("plain text"), NO_DATA, Example("Hi", messages=(Message("user", "Hi"),)), *LONG), 2),
        (CALLS, among(TOOLS), 0),
        (planted(4, REFUSES) + CHATML, among(), 1),
        (planted(4, REFUSES, "and add_generation_prompt") + planted(30, "{{ 1 / 0 }}") + CHATML, among(), 2),
        (REFUSES, among(), 60),
        (planted(20, "{{ 'x' * 5000000 }}") + CHATML, among(), 40),
        (planted(4, REFUSES) + planted(20, "{{ 'x' * 5000000 }}") + planted(30, REFUSES) + CHATML, among(), 41),
        (planted(4, REFUSES, "and add_generation_prompt") + planted(20, "{{ 'x' * 5000000 }}") + CHATML, among(), 41),
        (THINKS, among(), 0),
        (THINKS + planted(4, REFUSES, "and messages[-1].content == 'kelp'"), among(), 1),
        (MARKS, among(), 0),
        (MARKS + planted(4, REFUSES), among(TOOLS), 2),
        ("{{ messages | length }}{{ add_generation_prompt }}", among(), 60),
    ],
)
def test_what_is_told_is_what_one_after_the_other_would_be(source, examples, failing, stop, sandbox, byte_level):
    one, other = (f"{{# {name} {stop:d} #}}{source}" for name in "ab")  # what ran away is tried on nothing else
    expected = told(one_by_one(Chat(byte_level, one), examples, sandbox, stop))
    assert told(together(Chat(byte_level, other), examples, sandbox, stop)) == expected
    failures = sum(isinstance(each[0], str) and each[0].endswith("Error") for each in expected)
    assert failures == (min(failing, 1) if stop else failing)


def test_a_template_that_hangs_on_one_is_told_once(sandbox, byte_level):
    chat = Chat(byte_level, planted(36, HANGS) + CHATML)
    *before, failure = together(chat, among(), sandbox, stop=True)
    assert [text for text, _, _ in before] == [
        f"<|im_start|>user\nQuestion {place}<|im_end|>\n<|im_start|>assistant\nAnswer {place}<|im_end|>\n"
        for place in range(36)
    ]
    assert isinstance(failure, RunawayTemplateError)
    assert failure.what == "the chat template takes more than 0.5 s on sample 36"
    number = sandbox._process.pid
    for place, again in enumerate(together(chat, among(), sandbox, stop=False)):
        assert isinstance(again, RunawayTemplateError)
        assert again.what == f"the chat template takes too long or too much on sample {place}"
    assert sandbox._process.pid == number


def test_a_failure_before_a_hanging_one_is_told_and_the_hanging_one_not_tried_again(sandbox, byte_level):
    chat = Chat(byte_level, planted(4, REFUSES, "and add_generation_prompt") + planted(36, HANGS) + CHATML)
    *before, failure = together(chat, among(), sandbox, stop=True)
    assert len(before) == 4
    assert failure.what == "the chat template fails on sample 4 (turns: user, assistant): refused"
    number = sandbox._process.pid
    outcomes = together(chat, among(), sandbox, stop=False)
    assert sandbox._process.pid == number
    assert [place for place, each in enumerate(outcomes) if isinstance(each, MidblockError)] == [4, *range(36, 60)]
    assert outcomes[36].what == "the chat template takes more than 0.5 s on sample 36"
    assert outcomes[37].what == "the chat template takes too long or too much on sample 37"


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms")
def test_whoever_started_it_may_ignore_alarms(byte_level):
    own = Sandbox(seconds=0.5)
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        with pytest.raises(RunawayTemplateError, match=r"takes more than 0\.5 s"):
            own.render(HANGS, {"conversations": [[]]})
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, before)
        own.close()


def test_answers_that_nobody_waited_for_are_not_taken_for_others(sandbox, monkeypatch):
    asked = [{"conversations": [[{"role": "user", "content": f"Question {place}"}]]} for place in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr("midblock.data.sandbox._as_answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sandbox.render_some(CHATML, asked)
    assert sandbox.render_some("fine", asked) == [("fine", [])] * 3


def interrupt(found):
    raise KeyboardInterrupt


def test_exchanges_are_few(sandbox, byte_level, monkeypatch):
    ask, asked = sandbox._ask, []
    monkeypatch.setattr(sandbox, "_ask", lambda request: (asked.append(len(request["conversations"])), ask(request)))
    together(Chat(byte_level, CHATML), among(count=2 * MOST), sandbox, stop=True)
    assert asked == [MOST] * 4
