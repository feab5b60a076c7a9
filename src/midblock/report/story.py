"""The lead of a joint page: one headline and three numbered steps, put together from the runs' own headlines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from midblock.report.joint_run import Joint, bases_of, data_of, entries_of, labels_of
from midblock.report.parts import FALLBACK_HEADLINE, unbroken
from midblock.report.reading import BASE, Run
from midblock.report.suggestion import Suggestion
from midblock.report.verbs import STEPS, Step

MOST = 3  # sentences of a step
# What a step quotes first: swaps change the model, a probe only reads it.
TOLD = ("analyze", "flow", "swap", "probe", "steer", "tune", "merge")


def lead(run: Joint, found: Sequence[Suggestion]) -> str:
    """HTML of the opening: what was compared, the headline, notes, the three steps."""
    words = [subject_of(run), f"{run.blocks} blocks", *dict.fromkeys(filter(None, map(data_of, run.runs)))]
    eyebrow, headline = escape(" · ".join(words)), escape(unbroken(headline_of(run)))
    steps = "".join(_step(place, step, run, found) for place, step in enumerate(STEPS, 1))
    return (
        f'<section id="top" class="lead joint"><p class="eyebrow">{eyebrow}</p><h1>{headline}</h1>{notes_of(run)}'
        f'</section><ol class="story">{steps}</ol>'
    )


def verb_lead(run: Joint) -> str:
    """HTML of the opening of a single run's page."""
    words = [subject_of(run), f"{run.blocks} blocks", *filter(None, map(data_of, run.runs))]
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
    """The headlines of a step's runs, in the order a story wants them: one of each verb, then second ones."""
    members = [member for member in run.runs if member.verb in step.verbs and member.summary.get("headline")]
    members = sorted(members, key=lambda member: TOLD.index(member.verb))
    places = [sum(other.verb == member.verb for other in members[:at]) for at, member in enumerate(members)]
    members = [members[at] for at in sorted(range(len(members)), key=lambda at: places[at])]
    return list(dict.fromkeys(str(member.summary["headline"]) for member in members))


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
    said = told(run, step)
    if step.id == "do":
        suggested = [
            (one.disagreeing, f"Half of {one.model}'s change inside blocks sits in {one.blocks}.", one.agreeing)
            for one in found
        ]
        said = [" ".join(filter(None, words)) for words in suggested] + said
    said = said[:MOST] or ([step.missing] if step.missing else ["See which commands go on from here."])
    look = "" if told(run, step) or (found and step.id == "do") else ' class="open"'
    words = "".join(f"<p>{escape(unbroken(text))}</p>" for text in said)
    return (
        f'<li{look}><a href="#{step.id}"><i aria-hidden="true">{place}</i><h2>{escape(step.title)}</h2></a>{words}</li>'
    )
