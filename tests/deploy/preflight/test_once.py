"""In one start every model is inspected once, every file read once, and every text tokenised once."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from minillm_ray.common.config.run import RunConfig
from minillm_ray.deploy.config.loader import load_eval
from minillm_ray.deploy.data.files import json_files
from minillm_ray.deploy.evaluation import runner as evaluation
from minillm_ray.deploy.evaluation.rows import Part
from minillm_ray.deploy.models.inspect import PROBE
from minillm_ray.deploy.pipeline import generate as generation
from minillm_ray.deploy.runtime.parity import Parity
from minillm_ray.deploy.training import launch
from minillm_ray.tests.tiny_models import tiny_model
from rich.console import Console
from transformers import PreTrainedTokenizerBase

NAMES = ("train", "validation", "test")


class Counts:
    """How often each model was inspected, each file read, and each text tokenised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.models: Counter[str] = Counter()
        self.tokenizers: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        opened, tokenize = json_files.open_bytes, PreTrainedTokenizerBase.__call__
        inspect = transformers.AutoModelForCausalLM.from_config
        read = transformers.AutoTokenizer.from_pretrained

        def open_bytes(path: Path) -> Any:
            self.files[path.stem] += 1
            return opened(path)

        def call(tokenizer: Any, text: Any, *given: Any, **named: Any) -> Any:
            self.texts.update([text] if isinstance(text, str) else text)
            return tokenize(tokenizer, text, *given, **named)

        def from_config(config: Any, **named: Any) -> Any:
            self.models[Path(config.name_or_path).name] += 1
            return inspect(config, **named)

        def from_pretrained(path: Any, *given: Any, **named: Any) -> Any:
            self.tokenizers[Path(path).name] += 1
            return read(path, *given, **named)

        monkeypatch.setattr(json_files, "open_bytes", open_bytes)
        monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", call)
        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", from_config)
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)

    def of_data(self) -> set[int]:
        """How often texts of the data were tokenised; the probe of tokenizers is none."""
        return {count for text, count in self.texts.items() if text != PROBE}


@pytest.fixture
def counts(monkeypatch) -> Counts:
    monkeypatch.setattr(Parity, "ask_referee", lambda *_: None)  # it reads the models once more, elsewhere
    return Counts(monkeypatch)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two models, and three data sets in which no text comes twice."""
    folder = tmp_path_factory.mktemp("once")
    for name in ("teacher", "student"):
        tiny_model("llama", folder / name, seed=len(name))
    for name in NAMES:
        rows = [{"instruction": f"say {name} {n}", "output": f"{name}{n}"} for n in range(8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(files: Path, out: Path) -> dict[str, Any]:
    """A run in which every record of data.train is both answered and learned from."""
    data = {name: {"path": str(files / f"{name}.jsonl")} for name in NAMES}
    return {
        "student": {"path": str(files / "student")},
        "teacher": {"path": str(files / "teacher")},
        "data": {**data, "template": "plain", "max_prompt_tokens": 32},
        "objective": {"kind": "kd", "sampled_share": 0.5},
        "rollout": {"rollout_batch_size": 8, "max_new_tokens": 16, "kv_cache_gib": 0.02, "teacher_mix": 0},
        "learner": {"batch_size": 8, "micro_batch_size": 2, "max_steps": 1},
        "cluster": {"cpus": 4},
        "output_dir": str(out),
    }


@contextmanager
def no_workers(*_: Any, **__: Any):
    yield SimpleNamespace(facts=[], readings=lambda probes: [])


def test_a_training_run_reads_and_tokenises_everything_once(files, tmp_path, counts, monkeypatch):
    class Driver:
        def __init__(self, config: Any, streams: Any, *_: Any):
            self._streams = streams

        def run(self) -> list[str]:
            answered = [prompt.id for prompt in self._streams.take_prompts(8)]
            given = [passage.prompt_id for passage in self._streams._answers.take(8)]
            return [*answered, *given, *(p.id for p in self._streams.validation), *self._streams.cursors()]

    monkeypatch.setattr(launch, "Driver", Driver)
    monkeypatch.setattr(launch, "start_workers", no_workers)
    monkeypatch.setattr(launch, "cluster", lambda settings: nullcontext(""))
    monkeypatch.setattr(launch, "plot_run", lambda *_: None)
    monkeypatch.setattr(launch, "read_metrics", lambda *_: [])
    run: Any = launch.start_run(
        RunConfig.model_validate(settings(files, tmp_path / "run")), Console(quiet=True)
    )
    assert Counter(run)["train/3"] == 2
    assert counts.models == counts.tokenizers == {"student": 1, "teacher": 1}
    assert counts.files == dict.fromkeys(NAMES, 1)
    assert counts.of_data() == {1}
    assert sum(counts.texts.values()) == 2 + 4 * 8  # the probe, prompts of three files, answers of one


def test_a_generation_reads_and_tokenises_everything_once(files, tmp_path, counts, monkeypatch):
    asked = []

    def draw(config: Any, plan: Any, left: list[range], *_: Any) -> None:
        asked.extend(plan.data.questions(plan.prompts[:]))
        raise KeyboardInterrupt

    (tmp_path / "run.yaml").write_text(json.dumps(settings(files, tmp_path / "run")))
    config = generation.load_generation(tmp_path / "run.yaml", [], output_dir=tmp_path / "answers")
    monkeypatch.setattr(generation, "_draw", draw)
    with pytest.raises(KeyboardInterrupt):
        generation.generate(config, Console(quiet=True))
    assert asked == [f"train/{n}" for n in range(8)]
    assert counts.models == counts.tokenizers == {"teacher": 1}
    assert counts.files == {"train": 1}
    assert (counts.of_data(), len(counts.texts)) == ({1}, 8)


def test_an_evaluation_reads_every_file_once_and_tokenises_it_once_for_each_model(
    files, tmp_path, counts, monkeypatch
):
    class NoEval:
        def __init__(self, config: Any, folder: Any, model: str, task: Any, *_: Any, **__: Any):
            self._part = Part(model=model, data=task.name, metrics=("rouge_l", "lm_loss"))
            self._part.words = {prompt.id: 1 for prompt in task.prompts}

        def run(self) -> Part:
            return self._part

    monkeypatch.setattr(evaluation, "ModelEval", NoEval)
    monkeypatch.setattr(evaluation, "start_eval_workers", no_workers)
    monkeypatch.setattr(evaluation, "cluster", lambda settings: nullcontext(""))
    monkeypatch.setattr(evaluation, "compare", lambda *_: None)
    config = load_eval(
        None,
        ["max_prompt_tokens=64", "engine.max_new_tokens=8", "engine.kv_cache_gib=0.02"],
        {
            "models": [str(files / "student"), str(files / "teacher")],
            "teacher": str(files / "teacher"),
            "data": [str(files / f"{name}.jsonl") for name in NAMES],
            "metrics": ["rouge_l", "lm_loss", "reverse_kl"],
            "output_dir": tmp_path / "eval",
        },
    )
    evaluation.evaluate(config, Console(quiet=True))
    assert counts.models == counts.tokenizers == {"student": 1, "teacher": 1}
    assert counts.files == dict.fromkeys(NAMES, 1)
    assert counts.of_data() == {2}  # by each of two models
    assert sum(counts.texts.values()) == 2 + 2 * 6 * 8
