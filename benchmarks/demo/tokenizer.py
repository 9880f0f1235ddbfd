"""The tokenizer that the demonstration's teacher and student share.

Every word of the tasks is one token, written with the space before it; whatever else a user types falls
apart into bytes. Nothing is trained: the words are known.
"""

from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .tasks import TASKS, draw_record, prompt_of

SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<answer>")
PAD, BOS, EOS = 0, 1, 2
"""Ids of the first three special tokens."""
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<answer>' + message['content'] + eos_token }}"
    "{% else %}"
    # The space lets the first word of a line be the same token as elsewhere.
    "{{ '<user>' + message['content'].replace('\n', '\n ') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer>' }}{% endif %}"
)
_DRAWS_PER_TASK = 4000


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The shared tokenizer: special tokens, all 256 bytes, all words of the tasks."""
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    words = sorted({piece for text in _texts() for piece, _ in by_byte.pre_tokenize_str(text)})
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [word for word in words if word not in pieces]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    # ignore_merges takes a word that is in the vocabulary whole; there are no merges, so others become bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = by_byte
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])  # type: ignore[attr-defined]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<answer>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def _texts() -> list[str]:
    rng = Random(0)
    drawn = [draw_record(task, rng) for task in TASKS for _ in range(_DRAWS_PER_TASK)]
    return [text for record in drawn for text in (prompt_of(record).replace("\n", "\n "), record["output"])]
