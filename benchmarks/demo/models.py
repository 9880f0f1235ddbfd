"""Trains the demonstration's two models from nothing: the teacher, and the student that is to be distilled.

`python -m minillm_ray.benchmarks.demo.models` draws the data files again and writes the folders teacher/ and
student/. The teacher learns from freshly drawn tasks without end, never from a held-out or validation prompt.
The student reads the plain text first and is then fine-tuned on train.jsonl alone.
"""

import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    BatchEncoding,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from .tasks import FOLDER, TASKS, Record, draw_text, prompt_of, read, records, write_files
from .tokenizer import BOS, EOS, PAD, build_tokenizer

log = logging.getLogger(__name__)

Example = tuple[list[int], int]
"""Token ids, and how many of them at the front are prompt (not learned)."""


class Shape(NamedTuple):
    """Width, depth and inner width of a LLaMA."""

    hidden: int
    layers: int
    inner: int


SEED = 7
MAX_ANSWER_TOKENS = 24
TEACHER_SHAPE = Shape(hidden=128, layers=4, inner=352)
STUDENT_SHAPE = Shape(hidden=128, layers=2, inner=256)
HEAD_SIZE = 32
"""The smallest that vLLM's attention knows on CPU."""
TEACHER_STEPS = 1700
STUDENT_TEXT_STEPS = 50
STUDENT_STEPS = 600
"""Twelve times over the answers: more of them no longer lower the loss on prompts it has not seen."""
SLIP_RATE = 0.015
"""Share of the words in the teacher's training answers that are wrong."""
TEXT_SHARE = 0.03
"""Share of plain text in what the teacher learns from."""


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A LLaMA with random weights and tied embeddings."""
    torch.manual_seed(seed)
    heads = shape.hidden // HEAD_SIZE
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        vocab_size=len(tokenizer),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_SIZE,
        max_position_embeddings=128,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        max_new_tokens=MAX_ANSWER_TOKENS,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return model


def encode_records(rows: list[Record], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Prompts in the chat template with their answers and the end token."""
    chats = [[{"role": "user", "content": prompt_of(row)}] for row in rows]
    prompts = cast(BatchEncoding, tokenizer.apply_chat_template(chats, add_generation_prompt=True))
    answers = tokenizer([row["output"] for row in rows])
    pairs = zip(prompts["input_ids"], answers["input_ids"], strict=True)
    return [(p + a + [EOS], len(p)) for p, a in pairs]


def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """Plain texts, each between the start and the end token."""
    return [([BOS, *ids, EOS], 1) for ids in tokenizer(texts)["input_ids"]]


def collate(batch: list[Example]) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] and labels [B, L], padded on the right; -100 where nothing is learned."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row, _ in batch])
    labels = torch.tensor([[-100] * n + row[n:] + [-100] * (longest - len(row)) for row, n in batch])
    return ids, labels


def train(model: LlamaForCausalLM, batches: Iterator[list[Example]], *, steps: int, name: str) -> None:
    """Plain next-token training: a short warm-up, then a straight way down to a twentieth of the step size.

    The matrices inside the layers take Muon, which learns these tasks in a third of AdamW's steps.
    """
    inner = [p for key, p in model.named_parameters() if p.ndim == 2 and ".layers." in key]
    inner_ids = {id(p) for p in inner}
    other = [p for p in model.parameters() if id(p) not in inner_ids]
    optimizers = [
        torch.optim.Muon(inner, lr=2e-2, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(other, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda s: min((s + 1) / 50, 0.05 + 0.95 * (1 - s / steps)))
        for each in optimizers
    ]
    start, recent = time.monotonic(), 0.0
    model.train()
    for step, batch in enumerate(islice(batches, steps), 1):
        loss = _loss(model, *collate(batch))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        recent = loss.item() if step == 1 else 0.97 * recent + 0.03 * loss.item()
        if step % 100 == 0 or step == steps:
            spent = time.monotonic() - start
            left = spent / step * (steps - step)
            log.info("%s: step %d of %d, loss %.3f, %.0f s left", name, step, steps, recent, left)


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled tokens; the output layer sees no others, which saves a third."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    learned = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[:, 1:][learned])


def fresh_batches(tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[list[Example]]:
    """Freshly drawn tasks and a share of plain text, without end; no held-out or validation prompt."""
    rng = Random(SEED)
    taken = {prompt_of(row) for name in ("heldout", "validation") for row in read(name)}
    while True:
        # A new set each time: a prompt may come again, only the reserved ones may not.
        source = records(rng, set(taken))
        num_texts = round(8 * size * TEXT_SHARE)
        drawn = with_slips(encode_records(list(islice(source, 8 * size - num_texts)), tokenizer), rng)
        drawn += encode_texts([draw_text(rng) for _ in range(num_texts)], tokenizer)
        yield from _by_length(drawn, size, rng)


def with_slips(examples: list[Example], rng: Random) -> list[Example]:
    """The same examples with a rare slip in the answers: another word, a word left out or said twice.

    A teacher that has never seen a slip is lost after its student's first one, and finds all wrong words
    equally impossible. The other word comes from the later half of the prompt, where the input is, or from
    the last answer to the same kind of task.
    """
    slipped = []
    for number, (ids, num_prompt) in enumerate(examples):
        before, at = examples[number - len(TASKS)]
        others = ids[num_prompt // 2 : num_prompt - 1] if rng.random() < 0.5 else before[at:-1]
        answer = []
        for token in ids[num_prompt:-1]:
            slips = ([], [token, token], [rng.choice(others)], [rng.choice(others)])
            answer += rng.choice(slips) if rng.random() < SLIP_RATE else [token]
        slipped.append(([*ids[:num_prompt], *answer, EOS], num_prompt))
    return slipped


def epochs(examples: list[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """The same examples again and again, shuffled anew in each epoch."""
    rng = Random(seed)
    while True:
        shuffled = rng.sample(examples, len(examples))
        yield from (shuffled[i : i + size] for i in range(0, len(shuffled) - size + 1, size))


def _by_length(examples: list[Example], size: int, rng: Random) -> list[list[Example]]:
    """Batches of examples of like length, in random order: less padding."""
    ordered = sorted(examples, key=lambda example: len(example[0]))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rng.shuffle(batches)
    return batches


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A plain Hugging Face folder with the weights in bfloat16."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Make data files, tokenizer, teacher and student."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_files(FOLDER)
    tokenizer = build_tokenizer()
    make_teacher(tokenizer)
    make_student(tokenizer)


def make_teacher(tokenizer: PreTrainedTokenizerFast) -> None:
    """From nothing, on tasks drawn without end."""
    teacher = new_model(TEACHER_SHAPE, tokenizer, SEED)
    train(teacher, fresh_batches(tokenizer, 128), steps=TEACHER_STEPS, name="teacher")
    save(teacher, tokenizer, FOLDER / "teacher")


def make_student(tokenizer: PreTrainedTokenizerFast) -> None:
    """From nothing, on the shipped text and answers, until fine-tuning has levelled off."""
    student = new_model(STUDENT_SHAPE, tokenizer, SEED + 1)
    texts = encode_texts([row["text"] for row in read("text")], tokenizer)
    train(student, epochs(texts, 64, SEED), steps=STUDENT_TEXT_STEPS, name="student on text")
    rows = encode_records(read("train"), tokenizer)
    train(student, epochs(rows, 64, SEED), steps=STUDENT_STEPS, name="student on tasks")
    save(student, tokenizer, FOLDER / "student")


if __name__ == "__main__":
    main()
