"""The lead of a joint page: one headline and three numbered steps, put together from the runs' own headlines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from midblock.report.page.parts import FALLBACK_HEADLINE, unbroken
from midblock.report.read.joint import Joint, bases_of, data_of, labels_of
from midblock.report.read.reading import Run
from midblock.report.sections.evidence_rows import span_text
from midblock.report.suggestion import agreeing, disagreeing
from midblock.report.verb_page import Step
from midblock.report.verbs import PAGES, STEPS
from midblock.runs.finished import BASE
from midblock.runs.lenient import entries_of
from midblock.studies.evidence import Suggestion

MOST = 3  # sentences of a step
LAST = STEPS[-1].id  # the step that suggests what to do


def lead(run: Joint, found: Sequence[Suggestion]) -> str:
    """HTML of the opening: what was compared, the headline, notes, the three steps."""
    words = [subject_of(run), *_depth(run), *dict.fromkeys(filter(None, map(data_of, run.runs)))]
    eyebrow, headline = escape(" · ".join(words)), escape(unbroken(headline_of(run)))
    steps = "".join(_step(place, step, run, found) for place, step in enumerate(STEPS, 1))
    return (
        f'<section id="top" class="lead joint"><p class="eyebrow">{eyebrow}</p><h1>{headline}</h1>{notes_of(run)}'
        f'</section><ol class="story">{steps}</ol>'
    )


def _depth(run: Joint) -> list[str]:
    """How deep the models are, where the runs tell it."""
    return [f"{run.blocks} blocks"] if run.measured or run.depth else []


def verb_lead(run: Joint) -> str:
    """HTML of the opening of a single run's page."""
    words = [subject_of(run), *_depth(run), *filter(None, map(data_of, run.runs))]
    headline = str(run.summary.get("headline") or f"A run of midblock {run.runs[0].verb}")
    eyebrow, headline = escape(" · ".join(words)), escape(unbroken(headline))
    return (
        f'<section id="top" class="lead"><p class="eyebrow">{eyebrow}</p><h1>{headline}</h1>{notes_of(run)}</section>'
    )


def subject_of(run: Joint) -> str:
    """What was compared, in a line."""
    entries = [entry for member in run.runs for entry in entries_of(member.record, "models")]
    names = [str(entry.get("name")) for entry in entries if entry.get("role") not in (BASE, None)]
    named = list(dict.fromkeys(names)) or run.tuned
    base = next(iter(bases_of(run.runs)), BASE)
    return f"{', '.join(named)} against {base}" if named else base


def headline_of(run: Joint) -> str:
    """The first clauses of what changed and of where it matters, as one sentence."""
    parts = [clause(said[0]) for step in STEPS[:2] if (said := told(run, step))]
    if not parts:
        parts = [clause(said[0]) for step in STEPS[2:] if (said := told(run, step))]
    if not parts:
        return FALLBACK_HEADLINE
    first, *rest = parts
    return "; ".join([first, *(_inside(part, run) for part in rest)]) + "."


def told(run: Joint, step: Step) -> list[str]:
    """The headlines of a step's runs: the first of every verb, in the order of their rank, then the second ones, …"""
    rounds: list[list[str]] = []
    for verb in verbs_of(step):
        headlines = [
            str(headline) for member in run.runs if member.verb == verb and (headline := member.summary.get("headline"))
        ]
        for place, headline in enumerate(headlines):
            rounds += [[]] if place == len(rounds) else []
            rounds[place].append(headline)
    return list(dict.fromkeys(headline for each in rounds for headline in each))


def verbs_of(step: Step) -> list[str]:
    """The verbs whose runs tell about a step, those that it quotes first in front."""
    return sorted((verb for verb, page in PAGES.items() if page.step == step.id), key=lambda verb: PAGES[verb].told)


def clause(sentence: str) -> str:
    """A sentence up to its first semicolon, without the full stop."""
    return re.split(r";\s", sentence.strip(), maxsplit=1)[0].rstrip(" .")


def _inside(part: str, run: Run) -> str:
    """Begin in lower case, as inside a sentence, unless the first word is a name."""
    first = part.split(" ", 1)[0]
    plain = first[:1].isupper() and first[1:].islower() and first not in run.table.models
    return part[:1].lower() + part[1:] if plain else part


def notes_of(run: Joint) -> str:
    """Runs that are not finished, and runs about different base models."""
    notes = []
    for member, label in zip(run.runs, labels_of(run.runs), strict=True):
        if member.record and not member.done:
            status = member.record.get("status") or "unknown"
            notes.append(f"{label} ({member.verb}) is not finished (status: {status}); what it has so far is shown.")
    bases = bases_of(run.runs)
    if len(bases) > 1:
        known = " and ".join(bases) if len(set(bases)) > 1 else f"{bases[0]} with different weights"
        notes.append(f"These runs are about different base models ({known}): compare their numbers with care.")
    return "".join(f'<p class="unfinished" role="note">{escape(note)}</p>' for note in notes)


def _step(place: int, step: Step, run: Joint, found: Sequence[Suggestion]) -> str:
    suggested = [in_words(one) for one in found] if step.id == LAST else []
    headlines = told(run, step)
    said = [*suggested, *headlines][:MOST] or [step.missing or "See which commands go on from here."]
    look = "" if suggested or headlines else ' class="open"'
    words = "".join(f"<p>{escape(unbroken(text))}</p>" for text in said)
    return (
        f'<li{look}><a href="#{step.id}"><i aria-hidden="true">{place}</i><h2>{escape(step.title)}</h2></a>{words}</li>'
    )


def in_words(found: Suggestion) -> str:
    """A suggestion as one paragraph, a disagreement first."""
    said = f"Half of {found.model}'s change inside blocks sits in {span_text(found.window)}."
    return " ".join(filter(None, (disagreeing(found), said, agreeing(found))))
