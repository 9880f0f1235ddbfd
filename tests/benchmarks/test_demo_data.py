"""The demonstration's data, tokenizer and shipped models are what the run takes them for."""

import json
import shutil
from collections import Counter
from random import Random

import pytest
from minillm_ray.benchmarks.demo import tasks
from minillm_ray.benchmarks.demo.tokenizer import BOS, EOS, PAD, build_tokenizer

SETS = ("train", "validation", "heldout")
LARGEST_PROMPT_TOKENS = 32
LARGEST_ANSWER_TOKENS = 16
BY_HAND = {
    "copy": ("Repeat the words.", "cat red cup", "cat red cup"),
    "reverse": ("Turn the order around.", "cat red cup", "cup red cat"),
    "double": ("Write each word twice.", "cat red", "cat cat red red"),
    "join": ("Join the words with and.", "cat red cup", "cat and red and cup"),
    "number": ("Number the words.", "cat red cup", "1 cat 2 red 3 cup"),
    "initials": ("Write the first letter of each word.", "cat red hen", "c r h"),
    "lengths": ("Count the letters of each word.", "cat horse", "3 5"),
    "how_many": (
        "How many words are there, and which is the last?",
        "cat red cup",
        "there are 3 words and the last is cup",
    ),
    "once": ("Write each word once.", "cat cat red cup cup", "cat red cup"),
    "sort_words": ("Sort the words.", "red cup apple", "apple cup red"),
    "sort_up": ("Sort the numbers from small to large.", "12 3 40", "3 12 40"),
    "range": (
        "Name the smallest and the largest number.",
        "12 3 40",
        "the smallest is 3 and the largest is 40",
    ),
    "compare": ("Compare the two numbers.", "9 12", "9 is less than 12"),
    "count": ("Count from 8 to 5.", "", "8 7 6 5"),
    "sum": ("Work it out.", "17 - 9", "17 minus 9 is 8"),
    "pattern": ("Go on with the pattern, four more words.", "cat red cup cat red", "cup cat red cup"),
    "in_words": ("Write the numbers as words.", "3 12", "three twelve"),
    "in_digits": ("Write the words as numbers.", "three twelve", "3 12"),
    "plural": ("Write the plural of each word.", "cat mouse box", "cats mice boxes"),
    "opposite": ("Write the opposite of each word.", "big new left", "small old right"),
    "colour": ("Write the colour of each thing.", "snow coal", "white black"),
    "young": ("Name the young of each animal.", "dog sheep", "puppy lamb"),
    "kind": ("Write the kind of each word.", "cat red soup cup", "animal colour food thing"),
    "next_letter": ("Write the next letter for each.", "c m z", "d n a"),
    "sound": ("Say what each animal does.", "cow bee", "the cow moos and the bee buzzes"),
    "forms": ("Compare these words in three steps.", "big good", "big bigger biggest good better best"),
    "spell": ("Spell the words.", "cat hen", "c a t h e n"),
    "past": (
        "Write the sentence in the past.",
        "the old dog sees the red cat",
        "the old dog saw the red cat",
    ),
    "exchange": (
        "Let the two animals change places.",
        "the old dog sees the red cat",
        "the red cat sees the old dog",
    ),
    "passive": (
        "Begin with the other animal, keep the meaning.",
        "the red dog saw the cat",
        "the cat was seen by the red dog",
    ),
    "negate": ("Say that it is not so.", "the old cup is wet", "the old cup is not wet"),
    "question": ("Make it a question.", "the old cup is wet", "is the old cup wet?"),
    "about": (
        "Tell it about Eva.",
        "I see the red cat and I hold the cup",
        "Eva sees the red cat and Eva holds the cup",
    ),
    "story": ("How does it end?", "Tom had 8 hats and lost 3", "Tom has 5 hats now"),
    "ages": (
        "Name the people from old to young.",
        "Ann is older than Tom. Ben is older than Ann",
        "Ben Ann Tom",
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def rows():
    return {name: tasks.read(name) for name in (*SETS, "prompts")}


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_a_task_is_solved_as_by_hand(task):
    instruction, text, answer = BY_HAND[task.name]
    assert task.keys_of(instruction) is not None
    assert tasks.solve(instruction, text) == answer


def test_every_answer_follows_from_its_prompt_alone(rows):
    for row in (row for name in SETS for row in rows[name]):
        assert tasks.solve(row["instruction"], row["input"]) == row["output"]


def test_no_prompt_stands_twice_in_any_of_the_sets(rows):
    prompts = Counter(tasks.prompt_of(row) for name in (*SETS, "prompts") for row in rows[name])
    assert prompts.most_common(1)[0][1] == 1


def test_the_prompts_to_sample_from_hold_no_answers(rows):
    assert len(rows["prompts"]) == tasks.NUM_PROMPTS
    assert {frozenset(row) for row in rows["prompts"]} == {frozenset(tasks.PROMPT_COLUMNS)}


def test_every_task_is_held_out_as_often_as_the_others(rows):
    assert Counter(row["task"] for row in rows["heldout"]) == dict.fromkeys(
        (task.name for task in tasks.TASKS), tasks.NUM_HELDOUT // len(tasks.TASKS)
    )


def test_the_seed_gives_the_committed_files_byte_for_byte(tmp_path):
    tasks.write_files(tmp_path)
    for name in (*SETS, "text", "prompts"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (tasks.FOLDER / f"{name}.jsonl").read_bytes()


def test_another_seed_gives_other_records():
    a, b = (next(tasks.records(Random(seed), set())) for seed in (1, 2))
    assert a != b


def test_a_wording_that_two_tasks_share_or_none_knows_is_refused():
    with pytest.raises(ValueError, match="0 tasks"):
        tasks.solve("Sing a song.", "cat")


def test_prompts_and_answers_keep_to_their_token_limits(rows, tokenizer):
    for row in (row for name in SETS for row in rows[name]):
        chat = [{"role": "user", "content": tasks.prompt_of(row)}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        answer = [*tokenizer(row["output"])["input_ids"], EOS]
        assert len(prompt) <= LARGEST_PROMPT_TOKENS
        assert len(answer) <= LARGEST_ANSWER_TOKENS


def test_prompt_and_answer_apart_are_the_whole_chat(rows, tokenizer):
    for row in rows["heldout"]:
        chat = [{"role": "user", "content": tasks.prompt_of(row)}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": row["output"]}])
        assert whole["input_ids"] == [*prompt, *tokenizer(row["output"])["input_ids"], EOS]
        assert tokenizer.decode(whole["input_ids"][len(prompt) :], skip_special_tokens=True) == row["output"]


@pytest.mark.parametrize("text", ["red cat?", "Zebra, 1234!", "naïve café"])
def test_the_tokenizer_gives_back_what_it_took(text, tokenizer):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_word_of_the_data_is_one_token(rows, tokenizer):
    words = {word for row in rows["train"] for word in row["output"].replace("?", "").split()}
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in words)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_shipped_model_loads_and_holds_the_tokenizer_of_the_script(name, tokenizer):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tasks.FOLDER / name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shipped = transformers.AutoTokenizer.from_pretrained(folder)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert shipped("Zebra cat?")["input_ids"] == tokenizer("Zebra cat?")["input_ids"]
    assert model.config.vocab_size == len(shipped)
    assert model.config.head_dim >= 32
    assert (shipped.pad_token_id, shipped.bos_token_id, shipped.eos_token_id) == (PAD, BOS, EOS)
    assert model.generation_config.eos_token_id == EOS


def test_both_models_together_are_at_most_three_megabytes():
    weights = [tasks.FOLDER / name / "model.safetensors" for name in ("teacher", "student")]
    assert sum(path.stat().st_size for path in weights) <= 3_000_000


def test_the_shipped_teacher_answers_held_out_prompts_and_the_student_less_often(rows):
    transformers = pytest.importorskip("transformers")
    teacher, student = (_share_right(transformers, name, rows["heldout"]) for name in ("teacher", "student"))
    assert teacher >= 0.85
    assert student <= teacher - 0.2


def _share_right(transformers, name, rows):
    """Share of prompts whose most likely answer is the right one."""
    folder = tasks.FOLDER / name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    chats = [[{"role": "user", "content": tasks.prompt_of(row)}] for row in rows]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**batch, do_sample=False, max_new_tokens=20)
    answers = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(a == row["output"] for a, row in zip(answers, rows, strict=True)) / len(rows)


def test_the_model_script_makes_a_student_and_saves_it(tmp_path, tokenizer):
    models = pytest.importorskip("minillm_ray.benchmarks.demo.models")
    student = models.new_model(models.STUDENT_SHAPE, tokenizer, 1)
    batches = models.epochs(models.encode_records(tasks.read("validation"), tokenizer), 8, 1)
    models.train(student, batches, steps=3, name="student")
    models.save(student, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    shutil.rmtree(tmp_path)
