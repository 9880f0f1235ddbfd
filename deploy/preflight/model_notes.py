"""What is not wrong with the models of a run, but worth knowing before it starts."""

from __future__ import annotations

from collections.abc import Collection

from ...actors.vllm_engine import end_of_sequence_ids
from ...common.config.run import RunConfig
from ..models.checkpoint import unread_files
from ..models.token_ids import unsaved_settings
from ..runtime.placement import needs_rollouts


def model_notes(config: RunConfig, ends: Collection[int]) -> list[str]:
    """Files that nobody reads, settings that nobody uses, and ends that the two do not share.

    `ends` are the ids that end an answer by the data.
    """
    notes = []
    for name, model in (("student", config.student), ("teacher", config.teacher)):
        if model is not None and (unread := unread_files(model)):
            notes.append(f"{name}.path = {model.path}: {', '.join(unread)} is not read")
    if unsaved := unsaved_settings(config.student):
        notes.append(
            f"student.path = {config.student.path}: its generation_config.json sets {', '.join(unsaved)} in a"
            " way that transformers ignores and does not save; the trained student keeps it as it is"
        )
    if config.teacher is not None and needs_rollouts(config):
        student, teacher = config.student, config.teacher
        known = {*end_of_sequence_ids(student.path, student.revision), *ends}
        if foreign := set(end_of_sequence_ids(teacher.path, teacher.revision)) - known:
            notes.append(
                f"teacher.path = {config.teacher.path} ends an answer with token {_either(foreign)}, and the"
                f" student's end only with {_either(known)}: answers may grow to rollout.max_new_tokens; name"
                " the same eos_token_id in both models' generation_config.json"
            )
    return notes


def _either(ids: Collection[int]) -> str:
    return " or ".join(map(str, sorted(ids))) or "none"
