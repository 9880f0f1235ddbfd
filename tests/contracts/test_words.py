"""Words and names that were given up stay away: from every tracked text, and from the identifiers of Python.

Each list says what took the place of an entry. Files that must name the old words are listed with a reason.
"""

from __future__ import annotations

import io
import keyword
import re
import subprocess
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

WORDS = {
    r"(?i)\b(?:house|floor|wing)s?\b": "package, folder, layer",
    r"(?i)\bdoors?\b": "import contract, socket",
    r"(?i)\bplayers?\b": "workers",
    r"(?i)\b(?:(?:the|a|its|whole|our) cast(?! (?:to|from)\b)|casts? of)\b": "worker group",
}
"""Words that no text may use (regular expressions) -> what to write."""
SETTINGS = {
    r"(?:rollout|engine)\.actors": "num_engines",
    r"rollout\.(?:answers|samples)": "rollout_batch_size, num_generations",
    r"(?:rollout|engine|learner|scoring)\.precision|hidden_precision": "dtype, hidden_dtype",
    r"max_sequences": "max_num_seqs",
    r"(?:rollout|engine)\.cache_gib|(?<!kv_)cache_gib[\"']?: ?\d": "kv_cache_gib",
    r"(?:rollout|engine)\.eager": "enforce_eager",
    r"scoring\.\w+|scoring: *(?:\{|$)|config\.scoring": "teacher_server",
    r"learner\.(?:ranks|steps)(?!\w)": "world_size, max_steps",
    r"learner\.micro_batch(?!_)|micro_batch[\"']?: ?\d": "micro_batch_size",
    r"inner_epochs?": "num_iterations",
    r"optimizer\.clip_norm|clip_norm[\"']?: ?\d": "learner.max_grad_norm",
    r"clip_range": "epsilon",
    r"kind[\"']?(?: ?[:=]=? ?| is )[\"'`]?lm\b": "kind: sft",
    r"validation\.(?:every|samples)|heldout_samples": "eval_steps, num_generations, test_num_generations",
    r"checkpoint_every|keep_checkpoints": "save_steps, save_total_limit",
    r"data\.heldout|heldout: *\{": "data.test",
    r"heldout_reverse_kl": "test_reverse_kl",
    r"\$\{out\}|(?<![\w.-])out(?:=|: )(?:runs/|\.\.\.)": "output_dir, ${output_dir}",
    r"(?<![\w-])--(?:out|seeds)(?![\w-])": "--output-dir, --num-seeds",
}
"""Settings and flags by their old names (regular expressions) -> the present ones."""
NAMES = {
    "Cast": "WorkerGroup",
    "cast": "worker_group",
    "players": "workers",
    "come_up": "wait_ready",
    "roll": "generate",
    "spread": "map",
    "tell_all": "broadcast",
    "_bury": "_drop_dead",
    "nobody": "no_op",
    "_nobody": "_all_dead_error",
    "pieces_of": "chunked",
    "Feed": "DataStreams",
    "apart": "offset_samples",
    "attempt": "collect_error",
    "together": "merge_errors, max_packed_len",
    "look": "preflight",
    "_Look": "preflight",
    "beneath": "merge_defaults",
    "settled": "resolve_path",
    "_Found": "ResultStore",
    "_Stage": "WorkerReuse",
    "Examination": "ModelEval",
    "at_all": "run",
    "begun": "find_existing",
    "go_on": "resume",
    "go": "run",
    "deal": "shard_batch",
    "Hand": "RankItems",
    "Share": "RankBatch",
    "Arrivals": "WeightPrefetcher",
    "expect": "prefetch",
    "become": "swap_model",
    "adopt": "load_weights",
    "forget": "release",
    "Walk": "DivergenceFn",
    "Slope": "GradFn",
    "Reading": "PackedBatch",
    "KeptRows": "TeacherLogprobCache",
    "KeptLogprobs": "TeacherLogprobCache",
    "share": "enable_packing",
    "Place": "Bundle",
    "places": "bundles, position_ids",
    "door": "listen_socket",
    "meet": "rendezvous",
    "PartLost": "WorkerDied",
}
"""Identifiers that no Python file may use -> the present ones."""

ITSELF = "tests/contracts/test_words.py"
EXEMPT = {
    ITSELF: "it lists them",
    "deploy/config/other_names.py": "it leads from old names to the present ones",
    "tests/deploy/config/test_suggestions.py": "it tests that",
    "*.json": "data and recorded numbers",
}
"""Files (patterns) in which old words and settings may stand -> why."""
ALLOWED_NAMES: dict[str, set[str]] = {}
"""File -> identifiers of NAMES that it may use, each for a reason that the file shows."""
FOREIGN = {
    ("typing", "cast"),
    ("torch", "roll"),
    ("np", "roll"),
}
"""Names of other libraries that look like ours: module -> name, imported from it or read off it."""


def tracked_text(repo: Path) -> dict[str, str]:
    """Path -> text of every tracked file that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("not a git clone, so nobody knows which files are tracked")
    found = {}
    for name in listed.stdout.decode().split("\0"):
        path = repo / name
        if name and path.is_file() and not path.is_symlink() and b"\0" not in (data := path.read_bytes()):
            found[name] = data.decode("utf-8")
    return found


def exempt(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in EXEMPT)


def hits(rules: dict[str, str], texts: dict[str, str]) -> list[str]:
    """Every place where a text, or its file's name (line 0), breaks a rule, with what to write."""
    compiled = {re.compile(pattern): instead for pattern, instead in rules.items()}
    return [
        f"{name}:{number}: {found[0]!r}, write {instead}"
        for name, text in texts.items()
        if not exempt(name)
        for number, line in enumerate([name, *text.splitlines()])
        for pattern, instead in compiled.items()
        for found in pattern.finditer(line)
    ]


def names_in(source: str) -> Iterator[tuple[str, int]]:
    """(identifier, line) of the NAME tokens of a Python text, those of other libraries left out."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    imported = {
        name
        for module, name in FOREIGN
        if re.search(rf"^\s*from {module} import \(?[^)\n]*\b{name}\b", source, re.M)
    }
    for place, token in enumerate(tokens):
        if token.type != tokenize.NAME or keyword.iskeyword(token.string) or token.string in imported:
            continue
        owner = tokens[place - 2].string if place > 1 and tokens[place - 1].string == "." else ""
        if (owner, token.string) not in FOREIGN:
            yield token.string, token.start[0]


def name_hits(texts: dict[str, str]) -> list[str]:
    """Every identifier of NAMES in a Python file, with what took its place."""
    return [
        f"{file}:{line}: {name}, write {NAMES[name]}"
        for file, text in texts.items()
        if file.endswith(".py") and file != ITSELF
        for name, line in names_in(text)
        if name in NAMES and name not in ALLOWED_NAMES.get(file, ())
    ]


def test_no_text_uses_a_word_that_was_given_up(repo: Path):
    assert hits(WORDS, tracked_text(repo)) == []


def test_no_text_uses_the_old_name_of_a_setting(repo: Path):
    assert hits(SETTINGS, tracked_text(repo)) == []


def test_no_python_file_uses_a_name_that_was_given_up(repo: Path):
    assert name_hits(tracked_text(repo)) == []


def test_every_exception_is_needed(repo: Path):
    """An exception for a file that is gone, or that no longer needs it, would hide what comes next."""
    texts = tracked_text(repo)
    held = {f"{name}, if it were not exempt": f"{name}\n{text}" for name, text in texts.items()}
    files = [
        pattern
        for pattern in EXEMPT
        if not hits(
            WORDS | SETTINGS, {name: held[name] for name in held if fnmatch(name.split(",")[0], pattern)}
        )
    ]
    unused = [
        (file, name)
        for file, names in ALLOWED_NAMES.items()
        for name in names
        if name not in dict(names_in(texts.get(file, "")))
    ]
    assert (files, unused) == ([], [])


@pytest.mark.parametrize(
    "line",
    [
        "tests hold the floors",
        "A house of actors",
        "two wings, no door",
        "the cast of a run",
        "Players come up",
    ],
)
def test_a_word_is_caught(line: str):
    assert hits(WORDS, {"docs/a.md": f"first\n{line}\n"})[0].startswith("docs/a.md:2")
    assert hits(WORDS, {"results.json": line}) == []


def test_a_word_in_the_name_of_a_file_is_caught():
    assert hits(WORDS, {"tests/house/test_a.py": ""})[0].startswith("tests/house/test_a.py:0")


@pytest.mark.parametrize("line", ["cast to float32", "indoors", "knowing", "flooring", "a typecast of it"])
def test_an_ordinary_word_is_not_caught(line: str):
    assert hits(WORDS, {"docs/a.md": line}) == []


@pytest.mark.parametrize(
    "line",
    [
        "rollout.answers=8",
        "set scoring.reuse=false",
        "scoring: {actors: 2}",
        "learner.steps=4",
        "learner: {micro_batch: 8}",
        "inner_epochs: 4",
        "kind: lm",
        '"kind": "lm"',
        "objective.kind = lm",
        "minillm eval --seeds 5",
        "--out runs/a",
        "minillm sft run.yaml out=runs/sft",
        "out: runs/first",
        "cache_gib: 2",
        "${out}/sft/best",
    ],
)
def test_an_old_setting_is_caught(line: str):
    assert hits(SETTINGS, {"docs/a.md": line})


@pytest.mark.parametrize(
    "line",
    [
        "rollout.rollout_batch_size=8",
        "learner.max_steps=4",
        "micro_batch_size: 8",
        "for micro_batch in micro_batches",
        "learner.micro_batch_size",
        "kv_cache_gib: 2",
        "--output-dir runs/a --num-seeds 5 output_dir=runs/a",
        "scoring: sampling, scoring and learning",
        "kind: sft",
    ],
)
def test_a_present_setting_is_not_caught(line: str):
    assert hits(SETTINGS, {"docs/a.md": line}) == []


@pytest.mark.parametrize(
    "source",
    ["class Cast:\n    pass\n", "x = config.share()\n", "def f(look):\n    return look\n", "a.roll(1)\n"],
)
def test_a_name_is_caught(source: str):
    assert name_hits({"common/a.py": source})


@pytest.mark.parametrize(
    "source",
    [
        "from typing import Any, cast\nx = cast(int, 1)\n",
        "import torch\ny = torch.roll(x, 1)\n",
        "# look at a share\nx = 'together'\n",
        "shares = {'go': 1}\n",
    ],
)
def test_words_in_strings_and_names_of_other_libraries_are_not_caught(source: str):
    assert name_hits({"common/a.py": source}) == []
