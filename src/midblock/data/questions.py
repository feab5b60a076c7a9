"""Written questions in ordinary language, each with a plain answer: prompts to teach behaviours with, offline.

`everyday` is about a household, and `elsewhere` about other things: no template and no word list is in both, so that
what was taught on one can be asked on the other. `questions` mixes `everyday` with reasoning-gym's word problems.
Cost: none; a question is a template with two words put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from midblock.base import MidblockError, generator


@dataclass(frozen=True)
class Topic:
    """Questions of one kind.

    Attributes:
        words: what is put in, by the name of the place.
        asked: pairs of a question and its answer, with the places in braces.
    """

    words: Mapping[str, Sequence[str]]
    asked: Sequence[tuple[str, str]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(","))


EVERYDAY = Topic(
    words={
        "food": _words(
            "soup, bread, rice, a carrot cake, tomato sauce, an apple pie, pancakes, noodles, a potato salad, "
            "mushroom stew, roast pumpkin, lentil curry, a cheese omelette, plum jam, oat porridge, bean "
            "chili, fried fish, a lemon tart, onion soup, dumplings, spinach pasta, corn bread, a nut loaf, "
            "cabbage rolls"
        ),
        "guest": _words(
            "my sister, my neighbour, an old friend, my cousin, a colleague, my uncle, the new teacher, my "
            "brother, a good friend, my aunt, our landlord, my grandmother, a visitor, my mother, the "
            "postman, my nephew, my father, a classmate, our doctor, my niece, the gardener, my grandfather, "
            "a stranger, our baker"
        ),
        "thing": _words(
            "a wooden table, a bicycle, an old lamp, a wool coat, a leather bag, a kettle, a window, a garden "
            "gate, a carpet, a violin, a mirror, a raincoat, a bookshelf, a pair of boots, a clay pot, a "
            "toaster, a tent, a straw hat, a brass door handle, a blanket, a ladder, a sewing machine, a "
            "fountain pen, a suitcase"
        ),
        "plant": _words(
            "roses, tomatoes, an apple tree, basil, lavender, tulips, strawberries, mint, an orchid, "
            "sunflowers, a fern, beans, a cactus, ivy, peas, a lemon tree, daisies, onions, a fig tree, "
            "parsley, lilies, pumpkins, thyme, violets"
        ),
        "time": _words(
            "in spring, in the morning, before winter, on a rainy day, at night, in summer, after work, on "
            "Sunday, in autumn, before breakfast, during a storm, at noon, in March, on a cold day, after "
            "lunch, in the evening, on a holiday, in October, before a long trip, on Friday, at dawn, in "
            "June, after school, at the weekend"
        ),
    },
    asked=(
        (
            "How do I make {food} for {guest}?",
            "You need fresh things, and you should taste it often. It is ready when it has a good smell.",
        ),
        (
            "What should I serve with {food} {time}?",
            "You can serve green salad with it. It is light, and nothing is easier before your guests come.",
        ),
        (
            "How long can I keep {food} if I cook it {time}?",
            "You can keep it for two days, because it has to stay fresh. It is best to eat it before that.",
        ),
        (
            "Is {food} a good gift for {guest}?",
            "Yes, it is a kind gift, and it says that you think of others. Perhaps you should ask before you cook.",
        ),
        (
            "How should I clean {thing} {time}?",
            "You should use warm water and a soft cloth. It has to dry before you use it.",
        ),
        (
            "Where can I put {thing} that I got from {guest}?",
            "You can put it between your door and the wall. It is safe there, and nothing falls on it.",
        ),
        (
            "How can I repair {thing} {time}?",
            "You should look at it before you start, because it has small parts. Maybe your friend has the tools.",
        ),
        (
            "Should I sell {thing} or give it to {guest}?",
            "You should give it away if you have no use for it. Your kindness is worth more than its price.",
        ),
        (
            "How often should I water {plant} {time}?",
            "You should water them when your soil is dry. It is often enough to look before breakfast.",
        ),
        (
            "Where do {plant} grow best {time}?",
            "They grow best where it is bright. You have to keep your plants near a window, because light does "
            "them good.",
        ),
        (
            "Can I give {plant} to {guest}?",
            "Yes, you can, and it is a fine present. You should tell them before you bring it.",
        ),
        (
            "Why do {plant} need care {time}?",
            "It is because the weather does them harm. You should cover them before it gets cold.",
        ),
        (
            "What should I say to {guest} {time}?",
            "You should say what you really think, and it is good to smile. Nothing does more than your kind words.",
        ),
        (
            "What can I cook {time} with only {food} in the house?",
            "You have enough already. You can warm it, and perhaps you find bread between your jars.",
        ),
        (
            "How do I carry {thing} and {plant} up the stairs?",
            "You should carry them one by one. It is safer if you look before you step, because a stair has an edge.",
        ),
        (
            "Who should look after {plant} while {guest} is away?",
            "You should ask a neighbour who has time. It is often enough if he waters them and she looks at your door.",
        ),
        (
            "How can I thank {guest} for {thing}?",
            "You should write a letter with your own hand. It has more worth than a call, because it says that "
            "you took time.",
        ),
        (
            "Is it wise to buy {thing} {time}?",
            "It is wise if you really need it. You should compare before you buy, because the price often changes.",
        ),
    ),
)

ELSEWHERE = Topic(
    words={
        "place": _words(
            "Norway, the Sahara, Peru, Venice, the Alps, Iceland, the Amazon, Kenya, Tokyo, the Baltic Sea, "
            "Morocco, Siberia, the Nile, Scotland, Brazil, the Arctic, Vienna, India, the Gobi desert, Chile, "
            "Greece, Nepal, Cuba, Egypt"
        ),
        "science": _words(
            "magnets, rainbows, volcanoes, the tides, lightning, comets, earthquakes, glaciers, black holes, "
            "bacteria, fossils, crystals, enzymes, satellites, sound waves, atoms, eclipses, hurricanes, "
            "vaccines, galaxies, lasers, neurons, batteries, prisms"
        ),
        "craft": _words(
            "chess, programming, painting, singing, sailing, algebra, archery, poetry, carpentry, dancing, "
            "photography, swimming, pottery, Latin, fencing, climbing, calligraphy, juggling, rowing, "
            "grammar, skiing, logic, acting, drumming"
        ),
        "person": _words(
            "a pilot, a judge, a sailor, an engineer, a nurse, a farmer, a poet, a miner, a chemist, an "
            "architect, a soldier, a lawyer, an astronomer, a potter, a historian, a referee, a diver, a "
            "translator, a banker, an actor, a surgeon, a shepherd, a mayor, a composer"
        ),
    },
    asked=(
        (
            "Explain {science} to {person}.",
            "You can see them as a story of force and matter. It is a simple idea that has many uses.",
        ),
        (
            "What does {person} need to know about {place}?",
            "You should know its climate before you travel. It has a long history, because people settled it early.",
        ),
        (
            "Compare {craft} with {science}.",
            "You learn one by practice, and you study the other. It is often said that each has its own beauty.",
        ),
        (
            "Which books about {place} mention {science}?",
            "You can ask a library, because it has a list. It is best if you look between travel and nature.",
        ),
        (
            "How did {person} learn {craft}?",
            "It was by daily practice. You have to begin before you feel ready, and nothing replaces your teacher.",
        ),
        (
            "Write a sentence about {craft} in {place}.",
            "It is a place where you can practise all day, because your neighbours do it, too.",
        ),
        (
            "Name one danger of {science} near {place}.",
            "You should keep away when it is dark. It has happened before, and nothing was left.",
        ),
        (
            "Is {craft} harder than being {person}?",
            "It is hard to say. You need patience for both, and your own talent does the rest.",
        ),
    ),
)

WRITTEN: Mapping[str, Topic] = {"everyday": EVERYDAY, "elsewhere": ELSEWHERE}
# The sets that are mixed in turn.
MIXED: Mapping[str, tuple[str, ...]] = {
    "questions": ("everyday", "gsm_symbolic", "everyday", "family_relationships", "everyday", "calendar_arithmetic")
}


def written_questions(name: str, seed: int) -> Iterator[dict[str, str]]:
    """All questions of a written set, shuffled, each with its `question` and `answer`.

    Raises:
        MidblockError: when they are used up.
    """
    topic = WRITTEN[name]
    made = [_filled(topic, *pair) for pair in topic.asked]
    flat = [each for several in made for each in several]
    for place in generator(seed, "questions", name).permutation(len(flat)).tolist():
        yield flat[place]
    raise MidblockError(f"builtin:{name} has no more than {len(flat)} different questions to give")


def _filled(topic: Topic, question: str, answer: str) -> list[dict[str, str]]:
    first, second = sorted((name for name in topic.words if f"{{{name}}}" in question), key=question.index)
    return [
        {"question": question.format(**{first: one, second: other}), "answer": answer}
        for one in topic.words[first]
        for other in topic.words[second]
    ]
