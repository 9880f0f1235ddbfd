"""Short instruction tasks with one right answer each, and the data files of the demonstration made of them.

A task draws the words of its prompt at random and solves it from the prompt's text alone, so that every
record can be checked again. A prompt that was never seen is a new combination, not a new fact.
`python -m minillm_ray.benchmarks.demo.tasks` writes the files.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from . import draws as d
from . import words as w

Record = dict[str, str]
"""Columns instruction, input, output, task."""
PROMPT_COLUMNS = ("instruction", "input")

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "demo"
"""Where the demonstration finds its data and models."""
SEED = 20260
NUM_HELDOUT = 210
NUM_VALIDATION = 105
NUM_TRAIN = 3000
"""Prompts with answers: what the student was fine-tuned on, and the control goes on with."""
NUM_PROMPTS = 9000
"""Prompts without answers: all that on-policy distillation asks for."""
NUM_TEXTS = 1500
DRAWS = 200
"""Draws in search of a prompt that is new; some tasks have only hundreds of them."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of task: its wordings, and how a prompt is drawn and solved."""

    name: str
    wordings: tuple[str, ...]
    """Instructions that mean the same; {0}, {1} ... stand for the keys of the prompt, one word each."""
    draw: d.Draw
    solve: d.Solve

    def keys_of(self, instruction: str) -> d.Keys | None:
        """The keys in an instruction of this task, or None if it belongs to another task."""
        for wording in self.wordings:
            pattern = re.sub(r"\\\{(\d)\\\}", r"(?P<k\1>\\w+)", re.escape(wording))
            if found := re.fullmatch(pattern, instruction):
                return tuple(found[f"k{i}"] for i in range(len(found.groupdict())))
        return None


def solve(instruction: str, text: str) -> str:
    """The one right answer to a prompt, from its instruction and input alone.

    Raises ValueError if the instruction belongs to no task, or to more than one.
    """
    owners = [(task, keys) for task in TASKS if (keys := task.keys_of(instruction)) is not None]
    if len(owners) != 1:
        raise ValueError(f"instruction = {instruction!r} belongs to {len(owners)} tasks instead of one")
    task, keys = owners[0]
    return _answer(task, keys, text)


def draw_record(task: Task, rng: Random) -> Record:
    """One prompt of a task with its answer."""
    keys, text = task.draw(rng)
    instruction = rng.choice(task.wordings).format(*keys)
    return {"instruction": instruction, "input": text, "output": _answer(task, keys, text), "task": task.name}


def draw_text(rng: Random) -> str:
    """A little plain text: three to six sentences of the kind that the tasks answer with."""
    kinds = rng.sample(_SENTENCES, rng.randint(3, 6))
    return " ".join(draw_record(task, rng)["output"] + "." for task in kinds)


def records(rng: Random, taken: set[str]) -> Iterator[Record]:
    """Records without end, the tasks in turn, none with a prompt that is taken or was drawn before.

    A task that has no other prompt to offer, as far as many draws can tell, is left out.
    """
    while True:
        for task in TASKS:
            for _ in range(DRAWS):
                record = draw_record(task, rng)
                if (key := prompt_of(record)) not in taken:
                    taken.add(key)
                    yield record
                    break


def prompt_of(record: Record) -> str:
    """The words of the user: the instruction and, on a line of its own, the input if there is one."""
    return f"{record['instruction']}\n{record['input']}" if record["input"] else record["instruction"]


def write_files(folder: Path) -> None:
    """Draw all records and texts from the seed and write them as JSON Lines."""
    rng, taken = Random(SEED), set[str]()
    source = records(rng, taken)
    for name, count in (("heldout", NUM_HELDOUT), ("validation", NUM_VALIDATION), ("train", NUM_TRAIN)):
        chosen = [next(source) for _ in range(count)]
        rng.shuffle(chosen)
        _write(folder / f"{name}.jsonl", chosen)
    _write(folder / "text.jsonl", [{"text": draw_text(rng)} for _ in range(NUM_TEXTS)])
    asked = [next(source) for _ in range(NUM_PROMPTS)]
    rng.shuffle(asked)
    _write(folder / "prompts.jsonl", [{key: row[key] for key in PROMPT_COLUMNS} for row in asked])


def read(name: str) -> list[Record]:
    """The records of one of the files: heldout, validation, train, prompts, text."""
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(path: Path, rows: list[Record]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _answer(task: Task, keys: d.Keys, text: str) -> str:
    answer = task.solve(keys, text.replace(".", " .").split())
    return answer if isinstance(answer, str) else " ".join(answer)


def _list(
    name: str, low: int, high: int, change: Callable[[list[str]], list[str] | str], *wordings: str
) -> Task:
    """A task whose prompt is a list of words and whose answer is made of that list."""
    return Task(name, wordings, d.some(w.WORDS, low, high), lambda _, text: change(text))


def _table(name: str, table: dict[str, str], low: int, high: int, *wordings: str) -> Task:
    """A task in which each word of a list is looked up."""
    return Task(name, wordings, *d.each(table, low, high))


def _sounds(_: d.Keys, text: list[str]) -> str:
    return " and ".join(f"the {animal} {w.SOUND_OF[animal]}" for animal in text)


def _forms(_: d.Keys, text: list[str]) -> list[str]:
    return [form for word in text for form in (word, *w.FORMS[word])]


_DIGITS_OF = {word: str(n) for n, word in enumerate(w.NUMBER_WORDS, 1)}
_WORD_OF = {number: word for word, number in _DIGITS_OF.items()}
_SHORT = tuple(word for word in w.WORDS if len(word) == 3)

TASKS = (
    _list("copy", 3, 6, lambda t: t, "Repeat the words.", "Write the same words again."),
    _list("reverse", 3, 5, lambda t: t[::-1], "Write the words backwards.", "Turn the order around."),
    _list("double", 2, 4, lambda t: [word for word in t for _ in range(2)], "Write each word twice."),
    _list("join", 2, 4, " and ".join, "Join the words with and."),
    _list("number", 3, 4, lambda t: " ".join(f"{n} {x}" for n, x in enumerate(t, 1)), "Number the words."),
    _list("initials", 3, 5, lambda t: [x[0] for x in t], "Write the first letter of each word."),
    _list("lengths", 3, 5, lambda t: [str(len(x)) for x in t], "Count the letters of each word."),
    _list(
        "how_many",
        3,
        6,
        lambda t: f"there are {len(t)} words and the last is {t[-1]}",
        "How many words are there, and which is the last?",
    ),
    Task("once", ("Write each word once.",), d.draw_repeats, lambda _, t: list(dict.fromkeys(t))),
    Task(
        "sort_words",
        ("Put the words in the order of the alphabet.", "Sort the words."),
        d.draw_sortable,
        lambda _, t: sorted(t),
    ),
    Task(
        "sort_up",
        ("Sort the numbers from small to large.",),
        d.numbers(3, 4),
        lambda _, t: sorted(t, key=int),
    ),
    Task("range", ("Name the smallest and the largest number.",), d.numbers(3, 4), d.solve_range),
    Task("compare", ("Compare the two numbers.",), d.numbers(2, 2), d.solve_compare),
    Task(
        "count",
        ("Count from {0} to {1}.", "List the numbers from {0} to {1}."),
        d.draw_count,
        d.solve_count,
    ),
    Task("sum", ("Write the result as a sentence.", "Work it out."), d.draw_sum, d.solve_sum),
    Task("pattern", ("Go on with the pattern, four more words.",), d.draw_pattern, d.solve_pattern),
    _table("in_words", _WORD_OF, 3, 5, "Write the numbers as words."),
    _table("in_digits", _DIGITS_OF, 3, 5, "Write the words as numbers."),
    _table("plural", w.PLURALS, 3, 5, "Write the plural of each word."),
    _table("opposite", w.OPPOSITES, 3, 5, "Write the opposite of each word."),
    _table("colour", w.COLOUR_OF, 3, 4, "Write the colour of each thing.", "What colours are these?"),
    _table("young", w.YOUNG_OF, 3, 4, "Name the young of each animal."),
    _table("kind", w.KIND_OF, 3, 5, "Write the kind of each word."),
    _table("next_letter", d.next_of(w.LETTERS), 3, 5, "Write the next letter for each."),
    Task("sound", ("Say what each animal does.",), d.some(tuple(w.SOUND_OF), 2, 3), _sounds),
    Task("forms", ("Compare these words in three steps.",), d.some(tuple(w.FORMS), 2, 3), _forms),
    Task("spell", ("Spell the words.",), d.some(_SHORT, 2, 2), lambda _, t: list("".join(t))),
    Task("past", ("Write the sentence in the past.",), d.draw_action, d.solve_past),
    Task("exchange", ("Let the two animals change places.",), d.draw_action, d.solve_exchange),
    Task(
        "passive",
        ("Begin with the other animal, keep the meaning.",),
        d.draw_past_action,
        d.solve_passive,
    ),
    Task("negate", ("Say that it is not so.",), d.draw_state, lambda _, t: [*t[:4], "not", *t[4:]]),
    Task(
        "question",
        ("Make it a question.",),
        d.draw_state,
        lambda _, t: " ".join([t[3], *t[:3], t[4]]) + "?",
    ),
    Task("about", ("Tell it about {0}.",), d.draw_wish, d.solve_wish),
    Task("story", ("How does it end?", "Say how many there are now."), d.draw_story, d.solve_story),
    Task("ages", ("Name the people from old to young.",), d.draw_ages, d.solve_ages),
)
"""All kinds of task. The order is part of what the seed determines."""

_SENTENCE_TASKS = "past exchange passive negate about story sum compare range sound join count how_many"
_SENTENCES = [task for task in TASKS if task.name in _SENTENCE_TASKS.split()]

if __name__ == "__main__":
    write_files(FOLDER)
