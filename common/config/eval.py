"""The settings of an evaluation: which models, which data, which metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..errors import ABSENT, Fault
from .base import Count
from .data import PromptData, PromptSection, PromptSettings
from .run import ClusterConfig, EngineConfig, ModelConfig, TeacherServerConfig, VerifyConfig

METRICS: dict[str, str] = {
    "rouge_l": "ROUGE-L F-measure with stemming, best reference, x 100; by length too",
    "exact_match": "answers equal to a reference but for case and punctuation, %; by length too",
    "accuracy": "answers that settle on the right one by the data set's extraction rule, %",
    "answer_tokens": "tokens of an answer, the end-of-sequence token included",
    "eos_rate": "share of answers that end by themselves, %",
    "repetition": "share of an answer's 4-grams of words that it had said before, %",
    "distinct_4": "distinct 4-grams of words among all of a seed's answers, %",
    "lm_loss": "-log q of the given answers, nats per token",
    "reverse_kl": "KL(model || teacher) on the model's own answers, exact, at temperature 1, nats per token",
    "forward_kl": "KL(teacher || model) on the model's own answers, exact, at temperature 1, nats per token",
    "ex_acc_err": "excess accumulated error by length (exposure bias), %",
    "calibration": "by label words: label_accuracy (%), ece, label_mass, and the reliability diagram",
}
"""Name -> what it is. `ex_acc_err` brings accumulated_kl and per_step_kl with it."""
NEED_TEACHER = ("reverse_kl", "forward_kl", "ex_acc_err")
NEED_REFERENCES = ("rouge_l", "exact_match", "accuracy", "lm_loss")
NEED_ANSWERS = tuple(name for name in METRICS if name not in ("lm_loss", "calibration"))
"""Those for which answers are sampled."""
Rule = Literal["last_number", "option_letter", "exact"]


def _named(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class EvalModel(ModelConfig):
    """One model to evaluate; in a list, its path is enough."""

    name: str = ""
    """What tables call it; empty = its path as written."""


class EvalData(PromptData):
    """One data set to answer; in a list, its path is enough."""

    name: str = ""
    """What tables call it; empty = the file's name without its ending."""
    choices: str | None = "choices"
    """Column with the label words of a classification task, of which `output` names the right one. Where the
    data set has it, models choose among them by probability and no answer is sampled."""
    extract: Rule | None = None
    """How an answer's verdict is found for `accuracy`: its last number, the letter of an option, or all of
    it. null = the task has no one right answer."""


Model = Annotated[EvalModel, BeforeValidator(_named)]
Data = Annotated[EvalData, BeforeValidator(_named)]


class EvalConfig(PromptSection):
    """An evaluation of several models on several data sets."""

    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    """Folders or hub names."""
    teacher: Model | None = None
    """Compared with, for exposure bias and divergences; its tokenizer must be the models'."""
    data: Annotated[tuple[Data, ...], Field(min_length=1)]
    """Files, folders or hub data sets."""
    metrics: tuple[str, ...] | None = None
    """Which metrics; null = all that models and data allow."""
    num_seeds: Count = 5
    """Answers to each prompt, each with another seed: 10, 20, 30 ... as in the paper."""
    max_reference_tokens: Count = 1024
    """Given answers longer than this are left out of lm_loss, with a message."""
    ended: Literal["left_out", "as_zero"] = "left_out"
    """How answers that have ended count in exposure bias at greater lengths: left out of the mean, or as 0
    (as in the authors' code, which flattens the curve of a model with short answers)."""
    engine: EngineConfig = EngineConfig()
    teacher_server: TeacherServerConfig = TeacherServerConfig()
    verify: VerifyConfig = VerifyConfig()
    cluster: ClusterConfig = ClusterConfig()
    plugins: tuple[str, ...] = ()
    """Python modules that offer data readers."""
    output_dir: Path = Path("runs/eval")
    """Folder of results.json, results.parquet, answers/ and plots/."""

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """10, 20, 30 ..."""
        return tuple(10 * (i + 1) for i in range(self.num_seeds))

    def wants(self, metric: str) -> bool:
        """Whether `metric` is asked for, as far as the settings say."""
        if metric in NEED_TEACHER and self.teacher is None:
            return False
        return self.metrics is None or metric in self.metrics

    @property
    def prompts(self) -> PromptSettings:
        """How records become prompts."""
        return PromptSettings(how=self)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.max_prompt_tokens + self.engine.max_new_tokens

    @property
    def samples_answers(self) -> bool:
        """Whether any metric that is asked for is taken from sampled answers."""
        return any(self.wants(metric) for metric in NEED_ANSWERS)

    def compares(self, model: ModelConfig) -> bool:
        """Whether metrics that need the teacher are taken of this model: not of the teacher itself."""
        if self.teacher is None or (model.path, model.revision) == (self.teacher.path, self.teacher.revision):
            return False
        return any(self.wants(metric) for metric in NEED_TEACHER)

    def resolved(self) -> EvalConfig:
        """The same evaluation with an absolute folder."""
        return self.model_copy(update={"output_dir": self.output_dir.expanduser().resolve()})

    def faults(self) -> list[Fault]:
        """What is wrong between settings, each with key, value and way out."""
        found = []
        for name in self.metrics or ():
            if name not in METRICS:
                found.append(Fault("metrics", name, "is unknown", f"known are {', '.join(METRICS)}"))
            elif name in NEED_TEACHER and self.teacher is None:
                found.append(
                    Fault(
                        "metrics",
                        name,
                        "compares with a teacher, and none is set",
                        "set teacher.path, or leave it out",
                        also=("teacher",),
                    )
                )
        sources = {f"data[{name}]": data for name, data in zip(self.data_names(), self.data, strict=True)}
        found += self.prompts.faults(sources)
        for key, names in (("models", self.model_names()), ("data", self.data_names())):
            for name in sorted({n for n in names if names.count(n) > 1}):
                found.append(
                    Fault(key, ABSENT, f"has two that are called {name}", f"give each a {key}[...].name")
                )
        return found

    def model_names(self) -> list[str]:
        """What tables call the models, in their order."""
        return [model.name or model.path for model in self.models]

    def data_names(self) -> list[str]:
        """What tables call the data sets, in their order."""
        return [data.name or Path(data.path).stem for data in self.data]


def plain_model(model: ModelConfig) -> ModelConfig:
    """The model without the name that an evaluation gives it."""
    return ModelConfig(path=model.path, revision=model.revision)
