"""The settings of the objective: every choice in which paper and reference code differ, by name.

"Paper" is arXiv 2306.08543, "reference" the authors' released code; docs/concepts/equations.md says where
each setting enters the maths. `preset: reference` reproduces the reference number for number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..errors import Fault
from .base import Section

Weight = Literal["per_token", "per_decision", "none"]
DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "akl",
    "atkd",
)
"""Those that the package brings; plugins may offer more."""
OTHER_NAMES = {
    "kl": "forward_kl", "fkl": "forward_kl", "rkl": "reverse_kl", "js": "jsd", "tvd": "total_variation",
    "sfkl": "skew_kl", "srkl": "skew_reverse_kl",
}  # fmt: skip
"""What other software calls them."""
KD_ONLY = ("divergence", "jsd_beta", "skew", "akl_mass", "atkd_easy_weight", "lm_share")
"""Settings that only kd reads."""
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
OPD: dict[str, Any] = {
    "gamma": 0.0,
    "advantage": "from_current",
    "length_norm": False,
    "single_step": False,
    "single_step_weight": "none",
    "importance_weight": "none",
    "clip": "none",
}
"""Per-token on-policy distillation (Thinking Machines, 2025); it samples from the student only."""
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "reference": REFERENCE, "opd": OPD}
"""What each preset sets; the paper's settings are the defaults."""


class ObjectiveConfig(Section):
    """What the student learns by. Defaults follow the paper."""

    kind: Literal["minillm", "sft", "kd"] = "minillm"
    """minillm = reverse-KL policy gradient on sampled answers (equation 7); sft = plain fine-tuning on given
    answers; kd = a divergence between teacher and student at each position of given or sampled answers."""
    preset: Literal["paper", "reference", "opd"] = "paper"
    """Where the other settings start from; a setting that is written out wins. opd = on-policy distillation
    by the sampled tokens only: advantage = log p - log q of the token itself, nothing else."""
    divergence: str = "forward_kl"
    """What kd minimises. jsd is GKD's, skew_kl and skew_reverse_kl are DistiLLM's, akl weighs both KLs by
    where student and teacher differ, atkd treats tokens by how sure the teacher is of them; any other name is
    one that a plugin offers."""
    sampled_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of each set that is sampled, the rest being the data's answers: GKD's lambda, but exact in every
    set. null = all for minillm, none for the others. Sampled by the student only at rollout.teacher_mix = 0,
    by the teacher only at 1."""
    jsd_beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher in the mixture that jsd compares both with."""
    skew: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the other network in what skew_kl and skew_reverse_kl compare with; 0 = the plain KL."""
    akl_mass: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Mass of the teacher's likeliest words that akl calls the head."""
    atkd_easy_weight: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Weight of the mean over easy tokens in atkd; the hard ones get the rest."""
    lm_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of -log q of the answers' own tokens in kd's loss; 0.5 in the paper's KD baseline."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Discount of rewards ahead. Paper 1, reference 0.95, opd 0."""
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
    """The sampled term of equation 3. false = only the single-step term."""
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
    """upper = min(ratio, clipped ratio) for either sign (the paper's Algorithm 1); ppo = the pessimistic
    one (reference)."""
    epsilon: Annotated[float, Field(gt=0)] = 0.2
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
        preset = values.get("preset") if isinstance(values, dict) else None
        start = PRESETS.get(preset) if isinstance(preset, str) else None
        return {**start, **values} if start else values

    def preset_overrides(self) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from what the preset sets: name -> (the preset's value, the value here)."""
        values = {name: (value, getattr(self, name)) for name, value in PRESETS[self.preset].items()}
        return {name: (preset, here) for name, (preset, here) in values.items() if preset != here}

    @property
    def needs_teacher_hidden(self) -> bool:
        """Whether the loss on answers sums over the teacher's whole vocabulary."""
        return self.kind == "kd" or (self.kind == "minillm" and self.single_step)

    @property
    def needs_teacher_logprobs(self) -> bool:
        """Whether the loss on answers reads the log-probs of their tokens that scoring gives."""
        return self.kind == "minillm" or self.splits_tokens

    @property
    def splits_tokens(self) -> bool:
        """Whether the loss treats tokens by their place among all tokens of the step."""
        return self.kind == "kd" and self.divergence == "atkd"

    @property
    def share_sampled(self) -> float:
        """Share of each set of answers that is sampled."""
        if self.sampled_share is None:
            return 1.0 if self.kind == "minillm" else 0.0
        return self.sampled_share

    def faults(self) -> list[Fault]:
        """What is wrong between the settings of this section."""
        return [*self._weight_faults(), *self._kind_faults(), *self._divergence_faults()]

    def _weight_faults(self) -> list[Fault]:
        """What does not go with per-decision weights."""
        weights = ("importance_weight", "single_step_weight")
        chosen = tuple(f"objective.{name}" for name in weights if getattr(self, name) == "per_decision")
        if not chosen:
            return []
        found = []
        if self.length_norm:
            found.append(
                Fault(
                    "objective.length_norm",
                    True,
                    "cannot be combined with per_decision weights, which are exact only without it",
                    "set objective.length_norm=false or per_token weights",
                    also=chosen,
                )
            )
        if self.whiten:
            found.append(
                Fault(
                    "objective.whiten",
                    True,
                    "cannot be combined with per_decision weights, which are exact only without it",
                    "set objective.whiten=false or per_token weights",
                    also=chosen,
                )
            )
        if self.clip != "none":
            found.append(
                Fault(
                    "objective.clip",
                    self.clip,
                    "cannot be combined with per_decision weights",
                    "set objective.clip=none",
                    also=chosen,
                )
            )
        return found

    def _kind_faults(self) -> list[Fault]:
        """Settings that another kind of objective reads."""
        found = []
        if self.kind != "kd" and self.sampled_share not in (None, 1.0 if self.kind == "minillm" else 0.0):
            found.append(
                Fault(
                    "objective.sampled_share",
                    self.sampled_share,
                    f"is for kd, and objective.kind = {self.kind} learns from"
                    f" {'sampled' if self.kind == 'minillm' else 'given'} answers only",
                    "remove it, or set objective.kind=kd",
                    also=("objective.kind",),
                )
            )
        for name in KD_ONLY if self.kind != "kd" else ():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                found.append(
                    Fault(
                        f"objective.{name}",
                        value,
                        f"is for kd, and objective.kind = {self.kind} does not read it",
                        "remove it, or set objective.kind=kd",
                        also=("objective.kind",),
                    )
                )
        if self.kind == "minillm" and not (self.single_step or self.long_term):
            found.append(
                Fault(
                    "objective.single_step",
                    False,
                    "with objective.long_term = false leaves nothing to learn",
                    "set one of them to true",
                    also=("objective.long_term",),
                )
            )
        return found

    def _divergence_faults(self) -> list[Fault]:
        """What a divergence of kd does not go with."""
        found = []
        if self.kind == "kd" and self.divergence == "jsd" and self.jsd_beta in (0, 1):
            limit = "forward_kl" if self.jsd_beta == 0 else "reverse_kl"
            found.append(
                Fault(
                    "objective.jsd_beta",
                    self.jsd_beta,
                    "compares each network with itself, so nothing would be learned",
                    f"set objective.divergence={limit}, the limit of jsd divided by its weight",
                    also=("objective.divergence",),
                )
            )
        if self.kind == "kd" and self.divergence == "atkd" and self.reduction != "tokens":
            found.append(
                Fault(
                    "objective.reduction",
                    self.reduction,
                    "cannot be combined with atkd, which is made of means over tokens",
                    "set objective.reduction=tokens",
                    also=("objective.divergence",),
                )
            )
        return found
