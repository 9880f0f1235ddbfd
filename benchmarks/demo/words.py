"""The word lists that the demonstration's tasks and texts are made of."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words("cat dog cow horse pig sheep hen duck lion wolf mouse frog")
FOODS = _words("bread milk rice soup cake apple egg nut")
COLOURS = _words("red blue green yellow white black brown pink")
THINGS = _words("cup hat book ball box lamp chair key bag shoe tree car")
NAMES = _words("Tom Ann Ben Eva Sam Lea Max Mia")
WORDS = ANIMALS + FOODS + COLOURS + THINGS

KIND_OF = (
    dict.fromkeys(ANIMALS, "animal")
    | dict.fromkeys(FOODS, "food")
    | dict.fromkeys(COLOURS, "colour")
    | dict.fromkeys(THINGS, "thing")
)

PLURALS = {
    "cat": "cats",
    "dog": "dogs",
    "cow": "cows",
    "pig": "pigs",
    "sheep": "sheep",
    "fox": "foxes",
    "wolf": "wolves",
    "mouse": "mice",
    "egg": "eggs",
    "cup": "cups",
    "hat": "hats",
    "book": "books",
    "ball": "balls",
    "box": "boxes",
    "key": "keys",
    "bag": "bags",
    "shoe": "shoes",
    "tree": "trees",
    "leaf": "leaves",
    "knife": "knives",
    "bus": "buses",
    "baby": "babies",
    "city": "cities",
    "child": "children",
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "tooth": "teeth",
}
"""Singular to plural, regular and not."""

COUNTED = tuple(PLURALS[word] for word in ("cup", "hat", "book", "ball", "box", "key", "bag", "shoe", "egg"))

_OPPOSITE_PAIRS = (
    "big small|hot cold|old new|fast slow|long short|wet dry|light dark|hard soft|high low|full empty"
    "|early late|loud quiet|rich poor|open shut|clean dirty|good bad|happy sad|up down|left right|in out"
)
OPPOSITES = {a: b for pair in _OPPOSITE_PAIRS.split("|") for a, b in (pair.split(), reversed(pair.split()))}
"""Each word of twenty pairs to the other one."""

STATES = _words("big small hot cold old fast slow wet dry dark loud quiet clean dirty happy sad")
"""Adjectives that fit before a noun and after "is"."""

FORMS = {
    "big": ("bigger", "biggest"),
    "small": ("smaller", "smallest"),
    "hot": ("hotter", "hottest"),
    "cold": ("colder", "coldest"),
    "old": ("older", "oldest"),
    "fast": ("faster", "fastest"),
    "slow": ("slower", "slowest"),
    "long": ("longer", "longest"),
    "short": ("shorter", "shortest"),
    "wet": ("wetter", "wettest"),
    "dark": ("darker", "darkest"),
    "hard": ("harder", "hardest"),
    "soft": ("softer", "softest"),
    "high": ("higher", "highest"),
    "low": ("lower", "lowest"),
    "loud": ("louder", "loudest"),
    "rich": ("richer", "richest"),
    "poor": ("poorer", "poorest"),
    "clean": ("cleaner", "cleanest"),
    "happy": ("happier", "happiest"),
    "good": ("better", "best"),
    "bad": ("worse", "worst"),
}
"""Adjective to comparative and superlative."""

VERBS = {
    "see": ("sees", "saw", "seen"),
    "find": ("finds", "found", "found"),
    "hold": ("holds", "held", "held"),
    "take": ("takes", "took", "taken"),
    "draw": ("draws", "drew", "drawn"),
    "help": ("helps", "helped", "helped"),
    "wash": ("washes", "washed", "washed"),
    "push": ("pushes", "pushed", "pushed"),
    "pull": ("pulls", "pulled", "pulled"),
    "call": ("calls", "called", "called"),
    "paint": ("paints", "painted", "painted"),
    "follow": ("follows", "followed", "followed"),
    "like": ("likes", "liked", "liked"),
    "know": ("knows", "knew", "known"),
}
"""Verb to third person, past and participle."""

PAST_OF = {third: past for third, past, _ in VERBS.values()}
PARTICIPLE_OF = {past: participle for _, past, participle in VERBS.values()}
THIRD_OF = {verb: forms[0] for verb, forms in VERBS.items()}

COLOUR_OF = {
    "banana": "yellow",
    "lemon": "yellow",
    "sun": "yellow",
    "grass": "green",
    "leaf": "green",
    "frog": "green",
    "snow": "white",
    "milk": "white",
    "rice": "white",
    "coal": "black",
    "night": "black",
    "sky": "blue",
    "sea": "blue",
    "blood": "red",
    "fire": "red",
    "tomato": "red",
    "bread": "brown",
    "wood": "brown",
    "pig": "pink",
}

SOUND_OF = {
    "dog": "barks",
    "cat": "purrs",
    "cow": "moos",
    "horse": "neighs",
    "pig": "grunts",
    "sheep": "bleats",
    "hen": "clucks",
    "duck": "quacks",
    "lion": "roars",
    "wolf": "howls",
    "bee": "buzzes",
    "owl": "hoots",
    "mouse": "squeaks",
    "frog": "croaks",
}

YOUNG_OF = {
    "dog": "puppy",
    "cat": "kitten",
    "cow": "calf",
    "horse": "foal",
    "pig": "piglet",
    "sheep": "lamb",
    "hen": "chick",
    "duck": "duckling",
    "goat": "kid",
    "lion": "cub",
    "frog": "tadpole",
}

NUMBER_WORDS = _words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen twenty"
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
LARGEST = 30
"""Largest number in any prompt or answer."""
