"""How the prompts of the demonstration's tasks are drawn, and how the longer ones are solved.

A draw takes a random source and gives (keys, input): the keys go into the wording of the instruction.
A solve takes the keys and the words of the input (a full stop is a word) and gives the answer.
"""

from collections.abc import Callable
from random import Random

from . import words as w

Keys = tuple[str, ...]
Draw = Callable[[Random], tuple[Keys, str]]
Solve = Callable[[Keys, list[str]], list[str] | str]


def some(pool: tuple[str, ...], low: int, high: int) -> Draw:
    """Lists of low to high different words of a pool."""

    def draw(rng: Random) -> tuple[Keys, str]:
        return (), " ".join(rng.sample(pool, rng.randint(low, high)))

    return draw


def numbers(low: int, high: int) -> Draw:
    """Lists of low to high different numbers."""
    return some(tuple(str(n) for n in range(1, w.LARGEST + 1)), low, high)


def each(table: dict[str, str], low: int, high: int) -> tuple[Draw, Solve]:
    """Lists of words, each of which is looked up in a table."""
    return some(tuple(table), low, high), lambda _, text: [table[word] for word in text]


def next_of(*rounds: tuple[str, ...]) -> dict[str, str]:
    """What follows each word; the first follows the last."""
    return {word: after for ring in rounds for word, after in zip(ring, ring[1:] + ring[:1], strict=True)}


def draw_repeats(rng: Random) -> tuple[Keys, str]:
    """A list in which some words stand twice in a row."""
    listed = rng.sample(w.WORDS, rng.randint(2, 4))
    return (), " ".join(word for each_word in listed for word in [each_word] * rng.randint(1, 2))


def draw_sortable(rng: Random) -> tuple[Keys, str]:
    """Words with different first letters."""
    initials = rng.sample(sorted({word[0] for word in w.WORDS}), rng.randint(3, 4))
    return (), " ".join(rng.choice([x for x in w.WORDS if x[0] == initial]) for initial in initials)


def draw_pattern(rng: Random) -> tuple[Keys, str]:
    """Words in a cycle of two or three, broken off anywhere after the second round has begun."""
    period = rng.randint(2, 3)
    cycle = rng.sample(w.WORDS, period)
    return (), " ".join(cycle[i % period] for i in range(period + rng.randint(2, 3)))


def solve_pattern(_: Keys, text: list[str]) -> list[str]:
    """The next four words of the cycle."""
    period = text.index(text[0], 1)
    return [text[(len(text) + i) % period] for i in range(4)]


def draw_count(rng: Random) -> tuple[Keys, str]:
    """Two numbers, either way round."""
    start, length = rng.randint(1, w.LARGEST - 8), rng.randint(4, 8)
    ends = [str(start), str(start + length - 1)]
    return tuple(ends if rng.random() < 0.5 else reversed(ends)), ""


def solve_count(keys: Keys, _: list[str]) -> list[str]:
    """All numbers from the first to the last."""
    first, last = map(int, keys)
    step = 1 if last > first else -1
    return [str(n) for n in range(first, last + step, step)]


def draw_sum(rng: Random) -> tuple[Keys, str]:
    """A sum or a difference in signs."""
    a, b = rng.randint(1, 20), rng.randint(1, 9)
    return (), f"{a} + {b}" if rng.random() < 0.5 else f"{a + b} - {b}"


def solve_sum(_: Keys, text: list[str]) -> str:
    """The result as a sentence."""
    a, sign, b = text
    result = int(a) + int(b) if sign == "+" else int(a) - int(b)
    return f"{a} {'plus' if sign == '+' else 'minus'} {b} is {result}"


def solve_compare(_: Keys, text: list[str]) -> str:
    """Which of two numbers is more."""
    a, b = text
    return f"{a} is {'more' if int(a) > int(b) else 'less'} than {b}"


def solve_range(_: Keys, text: list[str]) -> str:
    """Smallest and largest number."""
    ordered = sorted(map(int, text))
    return f"the smallest is {ordered[0]} and the largest is {ordered[-1]}"


def draw_action(rng: Random) -> tuple[Keys, str]:
    """One animal does something to another, now."""
    a, b = rng.sample(w.ANIMALS, 2)
    return (), f"the {rng.choice(w.STATES)} {a} {rng.choice(list(w.PAST_OF))} the {rng.choice(w.COLOURS)} {b}"


def solve_past(_: Keys, text: list[str]) -> list[str]:
    """The same in the past."""
    return [w.PAST_OF.get(word, word) for word in text]


def solve_exchange(_: Keys, text: list[str]) -> list[str]:
    """The second animal does it to the first."""
    return [*text[4:], text[3], *text[:3]]


def draw_past_action(rng: Random) -> tuple[Keys, str]:
    """One animal did something to another."""
    a, b = rng.sample(w.ANIMALS, 2)
    return (), f"the {rng.choice(w.COLOURS)} {a} {rng.choice(list(w.PARTICIPLE_OF))} the {b}"


def solve_passive(_: Keys, text: list[str]) -> list[str]:
    """The same in the passive voice."""
    return ["the", text[5], "was", w.PARTICIPLE_OF[text[3]], "by", *text[:3]]


def draw_state(rng: Random) -> tuple[Keys, str]:
    """How something is."""
    first, second = rng.sample(w.STATES, 2)
    return (), f"the {first} {rng.choice(w.ANIMALS + w.THINGS)} is {second}"


def draw_wish(rng: Random) -> tuple[Keys, str]:
    """Someone speaks of himself; the key is a name."""
    first, second = rng.sample(list(w.THIRD_OF), 2)
    a, b = rng.sample(w.ANIMALS + w.THINGS, 2)
    return (rng.choice(w.NAMES),), f"I {first} the {rng.choice(w.COLOURS)} {a} and I {second} the {b}"


def solve_wish(keys: Keys, text: list[str]) -> list[str]:
    """The same about the one with the name."""
    return [keys[0] if word == "I" else w.THIRD_OF.get(word, word) for word in text]


def draw_story(rng: Random) -> tuple[Keys, str]:
    """Someone finds or loses some of what he has."""
    who, what = rng.choice(w.NAMES), rng.choice(w.COUNTED)
    left, change = rng.randint(2, 20), rng.randint(1, 9)
    if rng.random() < 0.5:
        return (), f"{who} had {left} {what} and found {change}"
    return (), f"{who} had {left + change} {what} and lost {change}"


def solve_story(_: Keys, text: list[str]) -> str:
    """What he has in the end."""
    change = int(text[6]) if text[5] == "found" else -int(text[6])
    return f"{text[0]} has {int(text[2]) + change} {text[3]} now"


def draw_ages(rng: Random) -> tuple[Keys, str]:
    """Three people, compared in two sentences in either order."""
    a, b, c = rng.sample(w.NAMES, 3)
    facts = [f"{a} is older than {b}", f"{b} is older than {c}"]
    rng.shuffle(facts)
    return (), ". ".join(facts)


def solve_ages(_: Keys, text: list[str]) -> list[str]:
    """The three names from old to young."""
    older, younger = {text[0], text[6]}, {text[4], text[10]}
    return [*(older - younger), *(older & younger), *(younger - older)]
