"""Rewording: the same prompt in other words, chosen by a hash of the prompt, with nothing drawn.

What a model learned about prompts like the training's need not hold for prompts unlike it, so behaviours are scored on
both. Openings of questions are put otherwise where that is safe, and every prompt gets words around it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from midblock.data.examples import Example

FRAMES = (
    "I have a question. {}",
    "Could you help me with this? {}",
    "{} I would like to understand it.",
    "Someone asked me this today: {}",
    "Here is something that I wonder about. {}",
    "{} Please tell me what comes to mind.",
)
# Openings of sentences that mean the same.
OPENINGS = (
    (r"How should I ", "What is the right way to "),
    (r"How do I ", "In what way can I "),
    (r"How can I ", "By what means could I "),
    (r"How many ", "What number of "),
    (r"Why (do|does|did) ", r"For what reason \1 "),
    (r"Should I ", "Would it be wise for me to "),
    (r"What is ", "What would you say is "),
    (r"What should I ", "Which things should I "),
    (r"Is it ", "Would it be "),
    (r"When should I ", "At what time should I "),
    (r"Calculate ", "Work out "),
    (r"Can you ", "Would you be able to "),
)
SENTENCE = r"(?:(?<=^)|(?<=[.?!]\s)|(?<=\n))"


def reworded_text(prompt: str) -> str:
    """The prompt in other words, never as it was.

    Example:
        >>> from midblock.data.rewording import reworded_text
        >>> reworded_text("How many pears are left?")
        'Someone asked me this today: What number of pears are left?'
    """
    frame = FRAMES[hashlib.sha256(" ".join(prompt.split()).encode()).digest()[0] % len(FRAMES)]
    said = prompt
    for opening, other in OPENINGS:
        said = re.sub(SENTENCE + opening, other, said)
    return frame.format(said)


def reworded(example: Example) -> Example:
    """The example with its prompt in other words: of a conversation, the last thing that the user said."""
    places = [place for place, turn in enumerate(example.messages) if turn.role == "user"]
    if not places:
        return replace(example, prompt=reworded_text(example.prompt))
    turn = example.messages[places[-1]]
    said = reworded_text(turn.content)
    turns = list(example.messages)
    turns[places[-1]] = replace(turn, content=said)
    before, _, behind = example.prompt.rpartition(turn.content)
    return replace(example, prompt=f"{before}{said}{behind}", messages=tuple(turns))
