"""Checkpoints, with all that a learner needs to resume; and the student alone, as a Hugging Face folder.

Both are written to a folder beside their own and renamed when they are whole. A checkpoint holds a marker
file that says so: a run that is killed while saving leaves the older checkpoint as it was.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from ..common.config.run import ModelConfig
from ..common.errors import DataError
from ..common.process import empty_folder, partial_path, replace_folder
from ..common.types import AnswerFormat
from .engine import TrainEngine

MARKER = "complete.json"
EXPORT_GROUP = 32
"""Parameters that ranks gather at once for an export."""


def save(engine: TrainEngine, folder: Path, *, step: int, rank: int, world: int) -> None:
    """Write a checkpoint; all ranks call, with a folder that all of them see."""
    aside = partial_path(folder)
    if rank == 0:
        empty_folder(aside)
    engine.all_gather("cleared")
    engine.save(aside)
    torch.save(_random_state(), aside / f"random-{rank}.pt")
    engine.all_gather("written")
    if rank == 0:
        marker = {"step": step, "ranks": world, "zero_stage": engine.stage}
        (aside / MARKER).write_text(json.dumps(marker) + "\n")
        replace_folder(aside, folder)
    engine.all_gather("renamed")


def restore(engine: TrainEngine, folder: Path, *, rank: int, world: int) -> int:
    """Load a checkpoint; all ranks call. Returns the optimiser steps made before it.

    Raises DataError where it is missing, was not finished, or came from other ranks or another ZeRO stage.
    """
    if not (folder / MARKER).is_file():
        raise DataError(f"{folder} is no finished checkpoint (it has no {MARKER}); name another one")
    marker = json.loads((folder / MARKER).read_text())
    for key, setting, mine in (
        ("ranks", "learner.world_size", world),
        ("zero_stage", "learner.zero_stage", engine.stage),
    ):
        if marker[key] != mine:
            raise DataError(
                f"{folder} was saved with {setting} = {marker[key]}, and this run has {mine};"
                f" go on with {setting}={marker[key]}"
            )
    engine.load(folder)
    state = torch.load(folder / f"random-{rank}.pt", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return marker["step"]


def export_student(
    engine: TrainEngine, folder: Path, start: ModelConfig, answers: AnswerFormat, *, rank: int
) -> None:
    """The student as a plain Hugging Face folder, with all else as where it started; all ranks call.

    Its generation config ends answers as the data of the run does.
    """
    aside = partial_path(folder)
    names, state = list(engine.shapes()), {}
    for first in range(0, len(names), EXPORT_GROUP):
        with engine.gathered(names[first : first + EXPORT_GROUP]) as whole:
            if rank == 0:
                state |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in whole.items()}
    if rank == 0:
        empty_folder(aside)
        _write_student(engine, aside, state, start, answers)
        replace_folder(aside, folder)
    engine.all_gather("exported")


def load_weights(engine: TrainEngine, folder: Path, *, rank: int) -> None:
    """Load the weights of an exported student; the optimiser keeps its state. All ranks call."""
    from safetensors import safe_open

    where: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")) if rank == 0 else ():
        with safe_open(path, "pt") as file:
            where |= dict.fromkeys(file.keys(), path)
    names = list(engine.shapes())
    missing = engine.all_gather([name for name in names if name not in where] if rank == 0 else [])[0]
    if missing:
        raise DataError(f"{folder} holds no weights named {', '.join(missing[:3])}; is it this student's?")
    for first in range(0, len(names), EXPORT_GROUP):
        with engine.gathered(names[first : first + EXPORT_GROUP], write=True) as whole, torch.no_grad():
            for name, tensor in whole.items() if rank == 0 else ():
                with safe_open(where[name], "pt") as file:
                    tensor.copy_(file.get_tensor(name))
    engine.parameters_changed()


def _write_student(
    engine: TrainEngine, folder: Path, state: dict[str, Tensor], start: ModelConfig, answers: AnswerFormat
) -> None:
    student, config = engine.student, engine.student_config
    kept = student.state_dict().keys()
    buffers = {name: buffer.detach().cpu() for name, buffer in student.named_buffers() if name in kept}
    # transformers would refuse to save some settings that it has read; ours are written below.
    student.generation_config = GenerationConfig()
    student.save_pretrained(folder, state_dict=state | buffers)
    config.dtype, config.architectures = student.config.dtype, student.config.architectures
    config.save_pretrained(folder)  # the one inside the student has its dropout switched off
    tokenizer = AutoTokenizer.from_pretrained(start.path, revision=start.revision)
    if answers.chat_template is not None:
        tokenizer.chat_template = answers.chat_template
    tokenizer.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(start.path, revision=start.revision or "main")
    except OSError:  # not every model has one
        generation = GenerationConfig.from_model_config(config)
    ends = _end_ids(generation.eos_token_id, answers)
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    generation.to_json_file(folder / "generation_config.json")


def _end_ids(known: int | list[int] | None, answers: AnswerFormat) -> list[int]:
    """All ids that end an answer, those that are known first."""
    before = [known] if isinstance(known, int) else list(known or ())
    return list(dict.fromkeys([*before, *answers.end_ids]))


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
