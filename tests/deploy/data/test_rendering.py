"""Chats are rendered as apply_chat_template renders them, answers end as the template ends a turn."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minillm_ray.common.config.data import PromptData, PromptSection, PromptSettings
from minillm_ray.common.errors import DataError
from minillm_ray.deploy.data.readers import read_rows
from minillm_ray.deploy.data.tokenize import Limit, TokenizedData, tokenize_rows

from .chat_tokenizers import SPECIAL, TEMPLATES, chat_tokenizer, shipped_templates

ALL = TEMPLATES | shipped_templates()
STARTED = datetime(2026, 1, 2, 3, 4, 5)
MOST = Limit("rollout.max_new_tokens", 500)
WORDS = st.text("ab \n.?é'\"{}", min_size=1, max_size=12).filter(str.strip)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def tokenized(
    folder: Path,
    template: str,
    chats: list[Any],
    tools: Any = None,
    /,
    started: datetime = STARTED,
    **how: Any,
) -> TokenizedData:
    rows = [{"chat": chat} | ({"tools": tools} if tools else {}) for chat in chats]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows_read = read_rows(PromptData(path=str(path), messages="chat"), "data.train")
    settings = PromptSettings(how=PromptSection(max_prompt_tokens=2000, **how), section="data.")
    return tokenize_rows(rows_read, "train", settings, chat_tokenizer(template), started)


def rendered(data: TokenizedData, chat: list[Any], *, generation: bool, **more: Any) -> list[int]:
    """By transformers itself."""
    more = {"strftime_now": STARTED.strftime} | more
    found: Any = data.tokenizer.apply_chat_template(chat, add_generation_prompt=generation, **more)
    return list(found["input_ids"])


def given_ids(data: TokenizedData) -> tuple[list[int], list[int]]:
    (passage,) = data.passages(MOST)
    return passage.prompt_ids.tolist(), passage.answer_ids.tolist()


def decoded(data: TokenizedData, ids: Any) -> str:
    return str(data.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", sorted(ALL))
@settings(max_examples=12, deadline=None)
@given(first=WORDS, said=WORDS, second=WORDS, answer=WORDS)
def test_ids_are_those_of_apply_chat_template(tmp_path_factory, name, first, said, second, answer):
    chat = [user(first), assistant(said), user(second), assistant(answer)]
    data = tokenized(tmp_path_factory.mktemp("chat"), ALL[name], [chat])
    prompt = rendered(data, chat[:-1], generation=True)
    assert data.prompts()[0].token_ids.tolist() == prompt
    ids, behind = given_ids(data)
    whole = rendered(data, chat, generation=False)
    ended = data.renderer.ending is not None
    known = [*ids, *behind] if ended else [*ids, *behind[:-1]]
    if ended:
        assert whole[: len(known)] == known
    else:  # nothing separates the answer from what comes behind it, and a token may be of both
        assert decoded(data, whole).startswith(decoded(data, known))
    assert prompt[: len(ids)] == ids
    assert behind[-1] in data.end_ids()
    rest = decoded(data, whole).removeprefix(decoded(data, known)).replace("<eos>", "").strip()
    assert rest == ""
    assert answer.strip() in decoded(data, behind)


def test_an_answer_ends_with_the_token_that_the_template_closes_turns_with(tmp_path):
    ends = {}
    for name, template in TEMPLATES.items():
        data = tokenized(tmp_path, template, [[user("hi"), assistant("yes")]])
        _, behind = given_ids(data)
        ends[name] = data.tokenizer.convert_ids_to_tokens(behind[-1])
        assert behind[-1] in data.end_ids()
        assert data.tokenizer.eos_token_id in data.end_ids()
        assert bool(data.notes) == (name in ("no marks at all", "opens a thought, drops earlier ones"))
    assert ends.pop("no marks at all") == "<eos>"
    assert ends.pop("trims, closes with eos, bos first") == "<eos>"
    assert ends.pop("an end of the turn, then eos") == "<|end|>"
    assert set(ends.values()) == {"<|im_end|>"}


def test_a_template_without_an_end_of_its_own_is_said(tmp_path):
    data = tokenized(tmp_path, TEMPLATES["no marks at all"], [[user("hi"), assistant("yes")]])
    data.passages(MOST)
    assert data.notes == [
        "data.train: the chat template closes an answer with no token of its own; the student learns to end"
        " with <eos>"
    ]


def test_an_answer_begins_where_a_chat_with_it_leaves_the_sampling_prompt(tmp_path):
    data = tokenized(
        tmp_path, TEMPLATES["opens a thought, drops earlier ones"], [[user("hi"), assistant("yes")]]
    )
    ids, behind = given_ids(data)
    assert decoded(data, ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert decoded(data, behind) == "yes<|im_end|>"
    assert decoded(data, data.prompts()[0].token_ids).endswith("assistant\n<think>\n")
    assert "1 given answers begin before the end of the prompt" in data.notes[0]


def test_a_template_that_rewrites_earlier_turns_behind_an_answer_is_refused(tmp_path):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content if messages[-1].role != 'assistant' or loop.last"
        " else m.content | upper }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    data = tokenized(tmp_path, template, [[user("hello"), assistant("yes")]])
    with pytest.raises(DataError, match=r"leaves out the text of turn 1 \(user\) \(line 1 of chats\.jsonl\)"):
        data.passages(MOST)


def test_calls_tools_results_and_reasoning_are_rendered(tmp_path):
    chat = [
        user("Weather?"),
        assistant(None, tool_calls=[CALL], reasoning_content="Ask."),
        {"role": "tool", "name": "weather", "content": "sun"},
        assistant("Sunny.", reasoning_content="Done."),
    ]
    data = tokenized(tmp_path, TEMPLATES["tools and reasoning"], [chat], TOOLS)
    prompt = decoded(data, data.prompts()[0].token_ids)
    for part in ('"name": "weather"', "<think>Ask.</think>", '{"city": "Paris"}', "tool\nsun"):
        assert part in prompt
    assert decoded(data, given_ids(data)[1]) == "<think>Done.</think>Sunny.<|im_end|>"
    assert data.prompts()[0].references == ("Sunny.",)


def test_a_call_may_be_the_answer_and_its_text_the_reference(tmp_path):
    chat = [user("Weather?"), assistant("", tool_calls=[CALL])]
    data = tokenized(tmp_path, TEMPLATES["tools and reasoning"], [chat], TOOLS)
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert decoded(data, given_ids(data)[1]) == f"{call}<|im_end|>"
    assert data.prompts()[0].references == (call,)


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
@pytest.mark.parametrize("name", ["tools and reasoning", "arguments as they are"])
def test_arguments_are_json_whether_given_as_text_or_object(tmp_path, name, arguments):
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    chat = [user("Weather?"), assistant("", tool_calls=[call]), user("Thanks"), assistant("Bye")]
    data = tokenized(tmp_path, TEMPLATES[name], [chat])
    assert '{"city": "Paris"}' in decoded(data, data.prompts()[0].token_ids)


@pytest.mark.parametrize(
    ("chat", "tools", "missing"),
    [
        ([user("a"), assistant("", tool_calls=[CALL]), user("b")], None, "the call of weather in turn 2"),
        ([user("a")], TOOLS, "the tool weather"),
        ([user("a"), assistant("b", reasoning_content="why")], None, "reasoning_content of turn 2"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(tmp_path, chat, tools, missing):
    with pytest.raises(DataError, match=rf"leaves out {missing} \(line 1 of chats\.jsonl\)"):
        tokenized(tmp_path, TEMPLATES["default system turn"], [chat], tools).passages(MOST)


def test_a_role_that_a_template_passes_over_is_refused(tmp_path):
    known = "{% if m.role in ('user', 'assistant') %}{{ m.content }}{% endif %}"
    template = "{% for m in messages %}" + known + "{% endfor %}"
    with pytest.raises(DataError, match=r"leaves out the text of turn 1 \(critic\)"):
        tokenized(tmp_path, template, [[{"role": "critic", "content": "hm"}, user("a")]])


def test_what_is_not_text_is_refused_by_its_type(tmp_path):
    picture = user([{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": "x.png"}])
    with pytest.raises(DataError, match=r"line 1 of chats\.jsonl has a part of type image_url in turn 1"):
        tokenized(tmp_path, TEMPLATES["takes parts"], [[picture]])


def test_parts_are_rendered_by_templates_that_take_them_and_joined_for_those_that_do_not(tmp_path):
    chat = [user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])]
    by_parts = tokenized(tmp_path, TEMPLATES["takes parts"], [chat])
    assert by_parts.prompts()[0].token_ids.tolist() == rendered(by_parts, chat, generation=True)
    joined = tokenized(tmp_path, TEMPLATES["default system turn"], [chat])
    assert "one\ntwo<|im_end|>" in decoded(joined, joined.prompts()[0].token_ids)
    assert joined.prompts()[0].text == "one\ntwo"


def test_sharegpt_and_other_role_names_are_read_and_a_last_turn_of_the_model_is_an_answer(tmp_path):
    sharegpt = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    other = [{"role": "Human", "content": "hi"}, {"role": "model", "content": "yes"}]
    standard = [user("hi"), assistant("yes")]
    data = tokenized(tmp_path, TEMPLATES["default system turn"], [sharegpt, other, standard])
    ids = [prompt.token_ids.tolist() for prompt in data.prompts()]
    assert ids[0] == ids[1] == ids[2]
    assert {prompt.references for prompt in data.prompts()} == {("yes",)}
    called = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": "sun"},
    ]
    data = tokenized(tmp_path, TEMPLATES["tools and reasoning"], [called])
    assert "tool\nsun" in decoded(data, data.prompts()[0].token_ids)


def test_every_turn_of_the_assistant_can_be_learned_and_no_other(tmp_path):
    chat = [user("a"), assistant("one"), user("b"), assistant("two")]
    data = tokenized(tmp_path, TEMPLATES["default system turn"], [chat])
    learned = data.passages(MOST, all_turns=True)
    assert [p.prompt_id for p in learned] == ["train/0@1", "train/0@3"]
    assert [decoded(data, p.answer_ids) for p in learned] == ["one<|im_end|>", "two<|im_end|>"]
    assert np.array_equal(learned[1].prompt_ids, data.prompts()[0].token_ids)
    whole = rendered(data, chat, generation=False)
    for passage in learned:
        known = [*passage.prompt_ids, *passage.answer_ids]
        assert whole[: len(known)] == known


def test_a_record_brings_its_system_prompt_in_a_column_of_its_own(tmp_path):
    rows = [
        {"instruction": "hi", "system_prompt": "own", "chat": [user("hi")]},
        {"instruction": "hi", "system_prompt": None, "chat": [user("hi")]},
        {
            "instruction": "hi",
            "system_prompt": "x",
            "chat": [{"role": "system", "content": "turn"}, user("hi")],
        },
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = PromptSettings(how=PromptSection(system_prompt="of all"))
    for column, third in ((None, "x"), ("chat", "turn")):
        source = PromptData(path=str(tmp_path / "a.jsonl"), system="system_prompt", messages=column)
        data = tokenize_rows(
            read_rows(source, "data.train"), "train", how, chat_tokenizer(ALL["template_chatml"])
        )
        first = [decoded(data, p.token_ids).partition("<|im_end|>")[0] for p in data.prompts()]
        assert first == [f"<|im_start|>system\n{text}" for text in ("own", "of all", third)]


# Variables and time


def test_a_template_is_told_the_time_when_the_run_began(tmp_path):
    chat = [[user("hi")]]
    data = tokenized(tmp_path, TEMPLATES["tells the day"], chat)
    assert "Today is 02 Jan 2026, 03:04:05" in decoded(data, data.prompts()[0].token_ids)
    later = tokenized(tmp_path, TEMPLATES["tells the day"], chat, None, started=datetime(2027, 1, 1))
    assert "01 Jan 2027, 00:00:00" in decoded(later, later.prompts()[0].token_ids)


def test_variables_of_the_template_are_handed_on(tmp_path):
    template = TEMPLATES["closes a thought at once where thinking is off"]
    chats = [[user("hi"), assistant("yes")]]
    off, on = (
        tokenized(tmp_path, template, chats, None, chat_template_kwargs=k) for k in ({}, {"thinking": True})
    )
    assert decoded(off, off.prompts()[0].token_ids).endswith("<think>\n\n</think>\n\n")
    assert decoded(on, on.prompts()[0].token_ids).endswith("assistant\n")


def test_a_template_of_a_file_stands_in_for_the_tokenizer_s_own(tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}({{ m.content }}){% endfor %}")
    data = tokenized(
        tmp_path, TEMPLATES["tells the day"], [[user("hi")]], None, chat_template=str(tmp_path / "own.jinja")
    )
    assert decoded(data, data.prompts()[0].token_ids) == "(hi)"
    with pytest.raises(DataError, match=r"data\.chat_template = .*none\.jinja cannot be read"):
        tokenized(tmp_path, "x", [[user("hi")]], None, chat_template=str(tmp_path / "none.jinja"))


# Control tokens


@pytest.mark.parametrize("mark", [text for text in SPECIAL if text != "<unk>"])
def test_control_tokens_written_in_a_question_stay_text(tmp_path, mark):
    chat = [user(f"what does {mark} do"), assistant("it ends")]
    template = TEMPLATES["default system turn"]
    data = tokenized(tmp_path, template, [chat])
    ids = data.prompts()[0].token_ids
    plain = tokenized(tmp_path, template, [[user("what does X do")]])
    assert decoded(data, ids) == decoded(plain, plain.prompts()[0].token_ids).replace("X", mark)
    marks = [data.tokenizer.get_vocab()[text] for text in SPECIAL]
    assert sum(i in marks for i in ids.tolist()) == sum(
        i in marks for i in plain.prompts()[0].token_ids.tolist()
    )
    allowed = tokenized(tmp_path, template, [chat], None, allow_control_tokens=True)
    assert allowed.prompts()[0].token_ids.tolist() == rendered(allowed, chat[:1], generation=True)
    assert data.prompts()[0].text == f"what does {mark} do"


@pytest.mark.parametrize("end", ["<eos>", "<|im_end|>", "<|im_end|>\n"])
def test_one_end_written_behind_an_answer_is_the_end_and_no_second_is_added(tmp_path, end):
    template = TEMPLATES["default system turn"]
    data = tokenized(tmp_path, template, [[user("hi"), assistant(f"yes{end}")]])
    clean = tokenized(tmp_path, template, [[user("hi"), assistant("yes")]])
    assert given_ids(data) == given_ids(clean)
    twice = tokenized(tmp_path, template, [[user("hi"), assistant(f"yes{end.strip()}{end}")]])
    ends = [i for i in given_ids(twice)[1] if i in twice.end_ids()]
    assert len(ends) == 1
    assert decoded(twice, given_ids(twice)[1]) == f"yes{end.strip()}<|im_end|>"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_the_same_holds_without_a_chat_template(tmp_path, template):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "what is <eos>?", "output": "an end<eos>"}) + "\n")
    section = PromptSection(template=template, max_prompt_tokens=500)
    rows = read_rows(PromptData(path=str(path)), "data.train")
    data = tokenize_rows(rows, "train", PromptSettings(how=section), chat_tokenizer())
    prompt, answer = given_ids(data)
    eos = data.tokenizer.get_vocab()["<eos>"]
    assert eos not in prompt
    assert "what is <eos>?" in decoded(data, prompt)
    assert answer.count(eos) == 1
    assert decoded(data, answer) == "an end<eos>"


def test_words_that_a_model_says_are_tokens_in_its_answers(tmp_path):
    data = tokenized(
        tmp_path, TEMPLATES["default system turn"], [[user("hi"), assistant("<think>a</think>b")]]
    )
    assert data.tokenizer.convert_tokens_to_ids("<think>") in given_ids(data)[1]


# Size


def test_a_far_too_long_record_is_dropped_without_being_tokenised_whole(tmp_path):
    chats = [
        [user("a. " * 4_000_000), assistant("b")],
        [user("hi"), assistant("c " * 4_000_000)],
        [user("hi"), assistant("x")],
    ]
    data = tokenized(tmp_path, TEMPLATES["default system turn"], chats)
    prompts, passages = data.prompts(), data.passages(MOST)
    assert [p.id for p in prompts] == ["train/1", "train/2"]
    assert prompts.dropped[0].reason == "prompt_too_long"
    assert prompts.dropped[0].detail.startswith("at least ")
    assert [(d.prompt_id, d.reason) for d in passages.dropped] == [
        ("train/0", "prompt_too_long"),
        ("train/1", "answer_too_long"),
    ]
