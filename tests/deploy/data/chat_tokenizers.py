"""A tokenizer with merges and control tokens, and chat templates with every trait that matters here."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
SPOKEN = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that a model says, which are no control tokens."""
_CORPUS = [
    "user system assistant tool\n\nYou are a helpful assistant. What is the weather in Paris?\n\n\n",
    '{"name": "weather", "arguments": {"city": "Paris"}}\n\n<think>\n\n</think>\n\n',
] * 3

_EACH, _END = "{% for m in messages %}", "{% endfor %}"
_HEAD, _CLOSE = "<|im_start|>{{ m.role }}\n", "<|im_end|>\n"
_TURNS = _EACH + _HEAD + "{{ m.content }}" + _CLOSE + _END
_ASKS = "{% if add_generation_prompt %}"
_OPEN = _ASKS + "<|im_start|>assistant\n{% endif %}"
_UNTHOUGHT = "<think>\n\n</think>\n\n"

TEMPLATES: dict[str, str] = {
    "default system turn": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind."
    + _CLOSE
    + "{% endif %}"
    + _TURNS
    + _OPEN,
    "trims, closes with eos, bos first": "<bos>"
    + _EACH
    + "{% if m.role == 'assistant' %} {{ m.content | trim }}<eos>"
    + "{% else %}[INST] {{ m.content | trim }} [/INST]{% endif %}"
    + _END,
    "other role names, another end than eos": "<bos>"
    + _EACH
    + "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    + _CLOSE
    + _END
    + _ASKS
    + "<|im_start|>model\n{% endif %}",
    "opens a thought, drops earlier ones": _EACH
    + _HEAD
    + "{% set said = m.content.split('</think>')[-1] %}"
    + "{{ said.lstrip() if m.role == 'assistant' else m.content }}"
    + _CLOSE
    + _END
    + _ASKS
    + "<|im_start|>assistant\n<think>\n{% endif %}",
    "closes a thought at once where thinking is off": _EACH
    + _HEAD
    + "{% if m.role == 'assistant' and loop.last and not thinking %}"
    + _UNTHOUGHT
    + "{% endif %}{{ m.content }}"
    + _CLOSE
    + _END
    + _ASKS
    + "<|im_start|>assistant\n{% if not thinking %}"
    + _UNTHOUGHT
    + "{% endif %}{% endif %}",
    "an end of the turn, then eos": _EACH
    + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
    + _END
    + _ASKS
    + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "no marks at all": _EACH + "{{ m.role }}: {{ m.content }}\n" + _END + _ASKS + "assistant:{% endif %}",
    "tools and reasoning": "{% if tools %}<|im_start|>system\n"
    + "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    + _EACH
    + _HEAD
    + "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    + "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    + _CLOSE
    + _END
    + _OPEN,
    "takes parts": _EACH
    + _HEAD
    + "{% if m.content is string %}{{ m.content }}"
    + "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    + _CLOSE
    + _END
    + _OPEN,
    "tells the day": "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y, %H:%M:%S') }}"
    + _CLOSE
    + _TURNS
    + _OPEN,
    "arguments as they are": _EACH
    + _HEAD
    + "{{ m.content }}{% for c in m.tool_calls or [] %}"
    + "{{ c.function.name }}({{ c.function.arguments }}){% endfor %}"
    + _CLOSE
    + _END
    + _OPEN,
}


def shipped_templates() -> dict[str, str]:
    """Templates that the installed vLLM carries."""
    spec = find_spec("vllm")
    assert spec is not None, "vLLM is required"
    assert spec.origin is not None, "and is a package"
    folder = Path(spec.origin).parent / "transformers_utils" / "chat_templates"
    names = ("template_chatml", "template_basic", "template_minicpmv45")
    return {name: (folder / f"{name}.jinja").read_text(encoding="utf-8") for name in names}


@lru_cache
def chat_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges reach over line breaks. Shared: do not change it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_CORPUS, trainer)
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in SPOKEN])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer
