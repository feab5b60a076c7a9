"""Turns: how a row's list of messages is read, in any of the ways that data sets write one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from midblock.base import MidblockError
from midblock.data.examples import Message
from midblock.data.records import Record, text_in

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words for them
# What a turn may say besides its content: chat templates know these by name.
REASONING = ("reasoning_content", "reasoning", "thinking")
SAID = ("tool_calls", *REASONING)
TOLD = ("name", "tool_call_id")


def turns_in(row: Record, column: str) -> tuple[Message, ...]:
    """Read a list of {role, content}, or ShareGPT's {from, value}.

    Raises:
        MidblockError: no such list, or a message that cannot be given to a model as text.
    """
    value = row.get(column)
    if not isinstance(value, list | tuple) or not value:
        raise MidblockError(f"column {column!r} holds no list of messages")
    messages = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise MidblockError(f"column {column!r}, message {number} has no role and content")
        try:
            messages.append(_message(turn))
        except MidblockError as error:
            raise MidblockError(f"column {column!r}, message {number}: {error.what}") from error
    return tuple(messages)


def tools_in(row: Record) -> tuple[Any, ...]:
    """The functions that a conversation may call, as a list or as JSON text of one; none where there is no such list.

    Raises:
        MidblockError: text that is no JSON list.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise MidblockError(f"column 'tools' is no valid JSON: {error}") from error
        if not isinstance(tools, list):
            raise MidblockError("column 'tools' is no JSON list")
    return tuple(without_null(tool) for tool in tools) if isinstance(tools, list) else ()


def _message(turn: Mapping[str, Any]) -> Message:
    role, content = ("role", "content") if "role" in turn else ("from", "value")
    speaker = text_in(turn, role)
    fields = {key: without_null(turn[key]) for key in (*SAID, *TOLD) if turn.get(key) not in (None, "", [])}
    said = turn.get(content)
    if isinstance(said, list | tuple):
        said = _joined(said)
    if not any(key in fields for key in SAID):
        return Message(ROLES.get(speaker, speaker), text_in({**turn, content: said}, content), fields)
    if said is None:
        fields["content"] = None  # some templates ask whether it is null
    text = "" if said is None or said == "" else text_in({**turn, content: said}, content)
    return Message(ROLES.get(speaker, speaker), text, fields)


def _joined(parts: list[Any] | tuple[Any, ...]) -> str:
    """The text of a content in parts, joined as chat templates join them: with nothing between."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "input_text", "output_text"):
            raise MidblockError(f"its content holds a part of the type {kind!r}, which is no text")
        texts.append(text_in(part, "text"))
    return "".join(texts)


def without_null(value: Any) -> Any:
    """Nested values without the keys that are null: Parquet gives every record the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_null(each) for key, each in value.items() if each is not None}
    return [without_null(each) for each in value] if isinstance(value, list | tuple) else value
