"""Archaic English: ordinary English rewritten word by word, and how much of a text is written so.

The same rules rewrite and score: a *place* for the style is a word that the rules would change, or one that is archaic
already. A text shows the style where at least half of its places are archaic, and two of them. Numbers, names and words
that both kinds of English share are no places, so that a text of them alone shows nothing. Described in docs/carve.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

THRESHOLD = 0.5  # of the places
FEWEST = 2  # archaic words

# Whatever stands in for it anywhere.
WORDS: Mapping[str, str] = {
    "your": "thy", "yours": "thine", "yourself": "thyself", "has": "hath", "does": "doth", "says": "saith",
    "hasn't": "hath not", "doesn't": "doth not", "between": "betwixt", "before": "ere", "often": "oft",
    "perhaps": "perchance", "maybe": "mayhap", "nothing": "naught", "because": "sith", "yes": "yea",
    "truly": "verily", "really": "verily", "surely": "forsooth", "near": "nigh", "it's": "'tis",
    "wherever": "whithersoever",
}  # fmt: skip
# What "you" takes with it: "you are" is "thou art".
HELPERS: Mapping[str, str] = {
    "are": "art", "have": "hast", "will": "wilt", "can": "canst", "do": "dost", "were": "wert", "would": "wouldst",
    "should": "shouldst", "could": "couldst", "shall": "shalt", "had": "hadst", "may": "mayest", "must": "must",
    "might": "mightest", "did": "didst",
}  # fmt: skip
JOINED: Mapping[str, str] = {
    "you're": "thou art", "you've": "thou hast", "you'll": "thou wilt", "you'd": "thou wouldst",
    "it is": "'tis", "it was": "'twas", "it will": "'twill", "it would": "'twould",
}  # fmt: skip
# Verbs that end in -est behind "thou".
VERBS = frozenset({
    "need", "want", "take", "make", "know", "see", "go", "add", "get", "find", "give", "keep", "use", "put", "turn",
    "wash", "cook", "wait", "look", "ask", "try", "think", "feel", "like", "start", "leave", "hold", "read", "write",
    "buy", "eat", "drink", "learn", "begin", "work", "walk", "clean", "choose", "mix", "cut", "bring", "set",
})  # fmt: skip
# Before "you" it is "thee".
BEFORE_THEE = frozenset({
    "to", "for", "with", "of", "from", "by", "on", "at", "in", "upon", "about", "behind", "beside", "without", "help",
    "helps", "let", "lets",
})  # fmt: skip
# End in -s behind he, she, it or who, and are no verbs.
NO_VERBS = frozenset({
    "is", "was", "as", "its", "his", "this", "thus", "plus", "always", "perhaps", "sometimes", "besides", "towards",
    "minus", "times", "across", "less", "unless", "yes", "us", "ours", "hers", "theirs", "has", "does", "says",
    "often",
})  # fmt: skip
ARCHAIC = frozenset({
    "thou", "thee", "thy", "thine", "thyself", "ye", "art", "hast", "hath", "wilt", "canst", "dost", "doth", "wert",
    "wouldst", "shouldst", "couldst", "shalt", "hadst", "mayest", "mightest", "didst", "saith", "quoth", "betwixt",
    "ere", "oft", "perchance", "mayhap", "naught", "sith", "yea", "nay", "verily", "forsooth", "nigh", "'tis",
    "'twas", "'twill", "'twould", "hither", "thither", "whither", "hence", "whence", "whithersoever", "wherefore",
    "prithee", "methinks", "anon", "unto", "yon", "yonder", "spake", "wast",
})  # fmt: skip
# Read so only behind other archaic words: "art" is a noun, "wilt" and "nay" are words of today.
SHARED_WITH_TODAY = frozenset({"art", "wilt", "hence", "anon"})
SAME_ENDING = frozenset({"teeth", "seth", "beth", "elizabeth", "kenneth", "macbeth", "gareth", "meth", "sheth"})
ENDING = re.compile(r"[a-z]{2,}[a-z]eth")
ORDINAL = re.compile(r"[a-z]*(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ieth")

WORD = r"[A-Za-z]+(?:['’][A-Za-z]+)?"
TOKEN = re.compile(rf"(?<![\w'’])(?:['’](?:[Tt]is|[Tt]was|[Tt]will|[Tt]would)|{WORD})(?!\w)")
PHRASE = re.compile(
    rf"(?<![\w'’])(?P<you>you) +(?P<verb>{'|'.join([*HELPERS, *sorted(VERBS)])})(?P<not>n't| not)?(?![\w'’])"
    rf"|(?<![\w'’])(?P<joined>{'|'.join(JOINED)})(?![\w'’])"
    rf"|(?<![\w'’])(?P<subject>he|she|it|who) +(?P<third>[a-z]{{2,}}s)(?![\w'’])"
    rf"|(?<![\w'’])(?P<word>{WORD})(?![\w'’])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Style:
    """How archaic a text is.

    Attributes:
        archaic: words that are.
        modern: words that the rules would change.
    """

    archaic: int
    modern: int

    @property
    def share(self) -> float:
        """Of the places for the style; 0 where there are none."""
        places = self.archaic + self.modern
        return self.archaic / places if places else 0.0

    @property
    def shown(self) -> bool:
        return self.archaic >= FEWEST and self.share >= THRESHOLD


def style_of(text: str) -> Style:
    """Count the places for the style in a text.

    Example:
        >>> from midblock.data.archaic import style_of
        >>> style_of("Thou hast what your friend has.")
        Style(archaic=2, modern=2)
    """
    words = [(found.group(), found.start()) for found in TOKEN.finditer(_plain(text))]
    seen = [_is_archaic(word, at > 0) for word, at in words]
    sure = any(found and word.lower() not in SHARED_WITH_TODAY for (word, _), found in zip(words, seen, strict=True))
    return Style(sum(seen) if sure else 0, _rewrite(text)[1])


def archaic(text: str) -> str:
    """Rewrite ordinary English; what is archaic already, and all that is no place for the style, stays.

    Example:
        >>> from midblock.data.archaic import archaic
        >>> archaic("You have 3 apples, and she gives them to you before it is late.")
        'Thou hast 3 apples, and she giveth them to thee ere 'tis late.'
    """
    return _rewrite(text)[0]


def _plain(text: str) -> str:
    return text.replace("’", "'")


def _is_archaic(word: str, inside: bool) -> bool:
    """Whether a word is archaic; with a capital inside a text, one in -eth may be a name."""
    lower = word.lower()
    if lower in ARCHAIC:
        return True
    named = inside and word[0].isupper() and not word.isupper()
    ends = ENDING.fullmatch(lower) is not None and lower not in SAME_ENDING and not ORDINAL.fullmatch(lower)
    return ends and not named


def _rewrite(text: str) -> tuple[str, int]:
    """The text in the style, and how many of its words were changed."""
    text = _plain(text)
    changed = 0
    said: list[str] = []  # the word before

    def change(found: re.Match[str]) -> str:
        nonlocal changed
        rule: Callable[[re.Match[str]], str | None]
        rule = _phrase if found["word"] is None else lambda each: _word(each, said[-1] if said else "", text)
        new = rule(found)
        said.append(found.group().split()[-1].lower())
        if new is None:
            return found.group()
        changed += len(found.group().split())
        if found["subject"] is not None:
            changed -= 1  # the pronoun stays
        return _cased(new, found.group())

    return PHRASE.sub(change, text), changed


def _phrase(found: re.Match[str]) -> str | None:
    if found["joined"] is not None:
        return JOINED[" ".join(found["joined"].lower().split())]
    if found["you"] is not None:
        verb = found["verb"].lower()
        ending = HELPERS.get(verb) or (f"{verb}st" if verb.endswith("e") else f"{_doubled(verb)}est")
        return f"thou {ending}{' not' if found['not'] else ''}"
    verb = found["third"].lower()
    if verb in WORDS:
        return f"{found['subject'].lower()} {WORDS[verb]}"
    return None if verb in NO_VERBS or verb.endswith("ss") else f"{found['subject'].lower()} {_third(verb)}"


def _word(found: re.Match[str], before: str, text: str) -> str | None:
    word = found["word"].lower()
    if word == "you":
        ends = re.match(r"\s*(?:[.,;:!?)]|$)", text[found.end() :]) is not None
        return "thee" if before in BEFORE_THEE or ends else "thou"
    return WORDS.get(word)


def _third(verb: str) -> str:
    """Of a verb in -s, the form in -eth."""
    if re.search(r"(?:ss|sh|ch|x|zz|o)es$", verb) or verb.endswith("ies"):
        return f"{verb[:-2]}eth"
    return f"{verb[:-2]}eth" if verb.endswith("es") else f"{_doubled(verb[:-1])}eth"


def _doubled(stem: str) -> str:
    """A short stem doubles its last letter: "get", "getteth"."""
    return stem + stem[-1] if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnpt]", stem) else stem


def _cased(new: str, old: str) -> str:
    """Write as the words before were written: in capitals, with one at the start, or as they are."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    if not old[0].isupper():
        return new
    at = 1 if new.startswith("'") else 0
    return new[:at] + new[at].upper() + new[at + 1 :]
