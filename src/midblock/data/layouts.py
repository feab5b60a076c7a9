"""LAYOUTS: the column layouts of the ecosystem, and how a row of each becomes an Example."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from midblock.base import MidblockError, nearest
from midblock.base.json_file import shown
from midblock.data.examples import Example, Message
from midblock.data.records import Record, Records, text_in
from midblock.data.turns import tools_in, turns_in

SHOWN = 20  # columns in a message
LETTERS, ASKED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "Answer:"  # of a question with choices
QUESTION = ("question_id", "original_id")  # columns that say what a row is a variant of, the first one counts
# columns that a row of some layout may have besides
READ_TOO = ("input", "tools", "task_id", "entry_point", "test", *QUESTION)


@dataclass(frozen=True)
class Layout:
    """One way to write a dataset.

    Attributes:
        columns: a row has this layout when it has all of them.
        read: turns a row into an Example; raises MidblockError about the row's content.
        keep: which rows count as samples at all; None for every row.
    """

    columns: tuple[str, ...]
    read: Callable[[Record], Example]
    keep: Callable[[Record], bool] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column that it looks at."""
        return (*self.columns, *READ_TOO)


def detect_layout(rows: Records) -> str:
    """Return the name of the first layout of `LAYOUTS` whose columns are all there.

    Raises:
        MidblockError: when none fits; it names the columns seen, the layouts accepted and a near miss.
    """
    for name, layout in LAYOUTS.items():
        if set(layout.columns) <= set(rows.columns) and name not in NEVER_GUESSED:
            return name
    known = {column for layout in LAYOUTS.values() for column in layout.columns}
    close = [(column, nearest(column, known)) for column in rows.columns if column not in known]
    meant = "".join(f"rename {column!r} to {near!r}? " for column, near in close[:3] if near)
    accepted = " · ".join(", ".join(layout.columns) for name, layout in LAYOUTS.items() if name not in NEVER_GUESSED)
    more = ", …" if len(rows.columns) > SHOWN else ""
    seen = ", ".join(map(shown, rows.columns[:SHOWN])) + more or "no columns"
    raise MidblockError(f"{rows.name}: no known column layout in {seen}", hint=f"{meant}accepted: {accepted}")


def unread_note(rows: Records, layout: str) -> tuple[str, ...]:
    """That rows hold what looks like an answer, and the layout has none; nothing where the source is known to be so."""
    unread = [column for column in rows.columns if column in ANSWERS]
    if rows.layout or layout not in WITHOUT_ANSWER or not unread:
        return ()
    named = ", ".join(map(repr, unread))
    return (
        f"Of each row only {layout!r} is read, and not {named}: to have an answer read, call the columns "
        "'prompt' and 'completion'.",
    )


def read_examples(rows: Records, layout: str, chosen: Sequence[int]) -> tuple[Example, ...]:
    """Read the chosen rows.

    Raises:
        MidblockError: when a cell is missing, null, empty or no text; it names the row, counted from 1.
    """
    found = try_examples(rows, layout, chosen)
    for each in found:
        if isinstance(each, MidblockError):
            raise each
    return tuple(each for each in found if isinstance(each, Example))


def try_examples(rows: Records, layout: str, chosen: Sequence[int]) -> list[Example | MidblockError]:
    """Each of the chosen rows, or what is wrong with it."""
    read, columns = LAYOUTS[layout].read, LAYOUTS[layout].reads
    found: list[Example | MidblockError] = []
    for index, row in zip(chosen, rows.take(chosen, columns), strict=True):
        try:
            example = read(row)
            found.append(replace(example, question=question) if (question := _question(row)) else example)
        except RecursionError:
            found.append(MidblockError(f"{rows.name}, row {index + 1} is nested too deeply"))
        except MidblockError as error:
            found.append(MidblockError(f"{rows.name}, row {index + 1}: {error.what}", hint=error.hint))
    return found


def _question(row: Record) -> str:
    """What a row is a variant of; empty where that is not said."""
    said = (row.get(column) for column in QUESTION)
    return next((str(value) for value in said if type(value) in (str, int) and str(value).strip()), "")


def _answered(prompt: str, completion: str, *, separator: str = "\n", **extra: str) -> Example:
    turns = (Message("user", prompt), Message("assistant", completion))
    return Example(prompt, completion, turns, separator, extra)


def _conversation(messages: tuple[Message, ...], tools: tuple[Any, ...] = ()) -> Example:
    """The last turn is the completion if it is the assistant's and something came before it."""
    ends = len(messages) > 1 and messages[-1].role == "assistant"
    before = messages[:-1] if ends else messages
    completion = messages[-1].content if ends else ""
    return Example("\n".join(turn.content for turn in before), completion, messages, tools=tools)


def _read_messages(column: str) -> Callable[[Record], Example]:
    return lambda row: _conversation(turns_in(row, column), tools_in(row))


def _read_pair(prompt: str, completion: str, separator: str = "\n") -> Callable[[Record], Example]:
    """Two texts, or two lists of messages as TRL writes them."""

    def read(row: Record) -> Example:
        if isinstance(row.get(prompt), list):
            return _conversation(turns_in(row, prompt) + turns_in(row, completion), tools_in(row))
        return _answered(text_in(row, prompt), text_in(row, completion), separator=separator)

    return read


def _read_prompt(row: Record) -> Example:
    """A prompt without an answer: a text, a conversation, or a list of user turns of which the first is asked."""
    value = row.get("prompt")
    if isinstance(value, list) and value and isinstance(value[0], str):
        row = {"prompt": value[0]}
    elif isinstance(value, list):
        return _conversation(turns_in(row, "prompt"), tools_in(row))
    prompt = text_in(row, "prompt")
    return Example(prompt, messages=(Message("user", prompt),))


def _read_question(row: Record) -> Example:
    answer = text_in(row, "answer")
    # GSM8K puts the number to score behind ####; elsewhere the whole answer is it.
    return _answered(text_in(row, "question"), answer, answer=answer.rpartition("####")[2].strip())


def _read_instruction(row: Record) -> Example:
    instruction = text_in(row, "instruction")
    context = row.get("input")
    prompt = f"{instruction}\n{text_in(row, 'input')}" if context not in (None, "") else instruction
    return _answered(prompt, text_in(row, "output"))


def _read_choices(row: Record) -> Example:
    """MMLU: the choices lettered below the question, the right letter as completion."""
    choices, right = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise MidblockError("column 'choices' is no list of texts")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise MidblockError(f"column 'answer' is {right!r}, not the position of one of {len(choices)} choices")
    if len(choices) > len(LETTERS):
        raise MidblockError(f"column 'choices' has {len(choices)} choices; there are {len(LETTERS)} letters for them")
    extra = {"answer": LETTERS[right], "choices": json.dumps(choices)}
    return _answered(text_in(row, "question") + lettered(choices), LETTERS[right], separator=" ", **extra)


def lettered(choices: Sequence[str]) -> str:
    """What stands behind the question: the choices by their letters, and the word that asks for one."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n" + "\n".join([*lines, ASKED])


def _read_code(row: Record) -> Example:
    """HumanEval: the solution continues the prompt, with nothing between."""
    scoring = {name: row[name] for name in ("task_id", "entry_point", "test") if isinstance(row.get(name), str)}
    return _answered(text_in(row, "prompt"), text_in(row, "canonical_solution"), separator="", **scoring)


def _read_text(row: Record) -> Example:
    return Example(text_in(row, "text"))


def _is_paragraph(row: Record) -> bool:
    """WikiText keeps blank lines and ` = Headings = ` as rows of their own."""
    text = text_in(row, "text").strip() if row.get("text") else ""
    return bool(text) and not (text.startswith("=") and text.endswith("="))


# Tried from the top: a layout stands above those whose columns it contains.
LAYOUTS: Mapping[str, Layout] = {
    "humaneval": Layout(("prompt", "canonical_solution"), _read_code),
    "mmlu": Layout(("question", "choices", "answer"), _read_choices),
    "messages": Layout(("messages",), _read_messages("messages")),
    "conversations": Layout(("conversations",), _read_messages("conversations")),
    "prompt/completion": Layout(
        ("prompt", "completion"),
        _read_pair("prompt", "completion", separator=""),  # as TRL joins them
    ),
    "prompt/response": Layout(("prompt", "response"), _read_pair("prompt", "response")),
    "query/response": Layout(("query", "response"), _read_pair("query", "response")),  # MetaMathQA
    "question/answer": Layout(("question", "answer"), _read_question),
    "instruction/input/output": Layout(("instruction", "output"), _read_instruction),
    "text": Layout(("text",), _read_text),
    "prompt": Layout(("prompt",), _read_prompt),
    "wikitext": Layout(("text",), _read_text, keep=_is_paragraph),
}
WITHOUT_ANSWER = frozenset({"text", "prompt"})
ANSWERS = frozenset({"completion", "response", "answer", "output", "solution", "target", "chosen", "rejected"})
NEVER_GUESSED = frozenset({"wikitext"})  # a file of texts with an empty row is a mistake, unless it is WikiText
