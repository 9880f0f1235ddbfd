"""The settings of the objective: every choice in which paper and reference code differ, by name.

"Paper" is arXiv 2306.08543, "reference" the authors' released code; docs/equations.md says where each
setting enters the maths. `preset: reference` reproduces the reference number for number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Weight = Literal["per_token", "per_decision", "none"]


class Section(BaseModel):
    """A part of the configuration tree: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


REFERENCE: dict[str, Any] = {
    "gamma": 0.95,
    "reward_scaling": 0.5,
    "reward_clip": 100.0,
    "advantage": "from_current",
    "whiten": True,
    "single_step_weight": "none",
    "clip": "ppo",
    "reward_temperature": "one",
    "text_teacher_share": 0.5,
}
"""What the reference code does where it departs from the paper."""


class ObjectiveConfig(Section):
    """What the student learns by. Defaults follow the paper."""

    kind: Literal["minillm", "lm", "forward_kl"] = "minillm"
    """minillm = reverse-KL policy gradient on sampled answers (equation 7); lm = plain fine-tuning on
    given answers; forward_kl = KL(teacher || student) at each position of given answers."""
    preset: Literal["paper", "reference"] = "paper"
    """Where the other settings start from; a setting that is written out wins."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of rewards ahead. Paper 1, reference 0.95."""
    reward_scaling: Annotated[float, Field(gt=0)] = 1.0
    """Rewards log p - log q are divided by this. Reference 0.5; whitening takes it out again."""
    reward_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest absolute reward after scaling, nats; null = none. Reference 100."""
    advantage: Literal["ahead", "from_current"] = "ahead"
    """ahead = R_{t+1} (equation 3); from_current = R_t, which counts the token's own reward a second
    time beside the single-step term, as the reference does."""
    length_norm: bool = True
    """Divide rewards ahead by the number of their terms (equation 6)."""
    whiten: bool = False
    """Centre and scale advantages over all slots of the optimiser step, padding included. Reference only."""
    long_term: bool = True
    """The sampled term of equation 3. false leaves the single-step term alone."""
    single_step: bool = True
    """The exact sum over the vocabulary of equation 3."""
    single_step_weight: Weight = "per_token"
    """Importance weight of the single-step term. Paper per_token (w_t of equation 5), reference none."""
    importance_weight: Weight = "per_token"
    """Importance weight of the long-term term: per_token = the paper's q/p~ of the token itself,
    per_decision = exactly unbiased products over the tokens before each reward, none = answers count as the
    student's own, q over q at sampling: 1 on fresh answers."""
    importance_cap: Annotated[float, Field(gt=0)] | None = None
    """Largest importance weight; null = none. Less variance for some bias."""
    clip: Literal["upper", "ppo", "none"] = "upper"
    """upper = min(ratio, clipped ratio) whatever the sign (the paper's Algorithm 1); ppo = the pessimistic
    one (reference)."""
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    """epsilon: ratios beyond 1 +- epsilon get no gradient."""
    clip_centre: Literal["behaviour", "student_at_sampling"] = "behaviour"
    """What the clipped ratio compares with: the mixture p~ (paper and reference; then fresh samples can be
    clipped already), or the student that sampled."""
    reduction: Literal["tokens", "sequences"] = "tokens"
    """tokens = mean over all answer tokens of the optimiser step (reference); sequences = sum over an
    answer's tokens, mean over answers (the paper's expectation)."""
    reward_temperature: Literal["sampling", "one"] = "sampling"
    """Temperature of the teacher's log-prob in the reward: the sampling temperature, or 1 (reference)."""
    lm_coef: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the language-model term on `text`; no effect without `text`."""
    text_teacher_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the teacher's cross-entropy in the language-model term. Paper 0, reference 0.5."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "reference":
            return {**REFERENCE, **values}
        return values

    @property
    def needs_teacher_hidden(self) -> bool:
        """Whether the loss on answers sums over the teacher's whole vocabulary."""
        return self.kind == "forward_kl" or (self.kind == "minillm" and self.single_step)

    def faults(self) -> list[str]:
        """What is wrong only together, each with key, value and way out."""
        found: list[str] = []
        if "per_decision" in (self.importance_weight, self.single_step_weight):
            if self.length_norm:
                found.append(
                    "objective.length_norm = true cannot stand beside per_decision weights, which are exact"
                    " only without it; set objective.length_norm=false or per_token weights"
                )
            if self.whiten:
                found.append(
                    "objective.whiten = true cannot stand beside per_decision weights;"
                    " set objective.whiten=false"
                )
            if self.clip != "none":
                found.append(
                    f"objective.clip = {self.clip} cannot stand beside per_decision weights;"
                    " set objective.clip=none"
                )
        if self.kind == "minillm" and not (self.single_step or self.long_term):
            found.append(
                "objective.single_step = false and objective.long_term = false leave nothing to learn;"
                " turn one on"
            )
        return found
