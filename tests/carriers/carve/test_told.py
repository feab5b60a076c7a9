"""What carve prints of verdicts: each sentence, but what none can say, once."""

from midblock.carriers.carve.verdicts import NO, NOTHING, UNTAUGHT, YES, told_once


def verdict(candidate, answer, question="necessary"):
    return {
        "question": question,
        "candidate": candidate,
        "answer": answer,
        "words": f"{candidate}: {answer}, {UNTAUGHT}",
    }


def test_what_can_be_said_is_said_of_each():
    verdicts = [verdict("carrier", YES), verdict("pruned", NO)]
    assert told_once(verdicts) == [each["words"] for each in verdicts]


def test_that_nothing_was_taught_is_said_once():
    said = told_once(
        [verdict(name, NOTHING, asked) for name in ("carrier", "svd") for asked in ("necessary", "special")]
    )
    assert said == [
        f"Whether it is necessary or sufficient cannot be said of any, since {UNTAUGHT}: the carrier; the rival 'svd'."
    ]
