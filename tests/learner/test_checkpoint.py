"""What a learner leaves on disk, and goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from minillm_ray.common.config.run import ModelConfig
from minillm_ray.common.errors import DataError
from minillm_ray.common.types import AnswerFormat
from minillm_ray.learner import checkpoint
from minillm_ray.tests.learner.scenes import Scene, make_scene, model_of, run_config
from minillm_ray.tests.learner.worlds import World, exported_and_adopted
from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig


class Notes:
    """An engine whose state is one line of text."""

    def __init__(self, text: str, *, dies: bool = False):
        self.text, self.stage, self._dies = text, 1, dies

    def save(self, folder: Path) -> None:
        (folder / "state").write_text(self.text)
        if self._dies:
            raise KeyboardInterrupt

    def load(self, folder: Path) -> None:
        self.text = (folder / "state").read_text()

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


def save(text: str, folder: Path, **how: Any) -> None:
    checkpoint.save(Notes(text, **how), folder, step=7, rank=0, world=1)  # pyright: ignore[reportArgumentType]


def restore(engine: Notes, folder: Path, world: int = 1) -> int:
    return checkpoint.restore(engine, folder, rank=0, world=world)  # pyright: ignore[reportArgumentType]


def test_a_save_that_is_killed_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    save("old", tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        save("new", tmp_path / "kept", dies=True)
    engine = Notes("")
    assert restore(engine, tmp_path / "kept") == 7
    assert engine.text == "old"
    save("newer", tmp_path / "kept")
    restore(engine, tmp_path / "kept")
    assert engine.text == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_unfinished_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    save("text", tmp_path / "kept")
    (tmp_path / "kept" / checkpoint.MARKER).unlink()
    with pytest.raises(DataError, match="no finished checkpoint"):
        restore(Notes(""), tmp_path / "kept")


def test_a_checkpoint_of_other_ranks_or_another_stage_names_the_setting(tmp_path: Path) -> None:
    save("text", tmp_path / "kept")
    with pytest.raises(DataError, match=r"go on with learner\.world_size=1"):
        restore(Notes(""), tmp_path / "kept", world=2)
    other = Notes("")
    other.stage = 3
    with pytest.raises(DataError, match=r"go on with learner\.zero_stage=1"):
        restore(other, tmp_path / "kept")


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save("text", tmp_path / "kept")
    want = torch.rand(4)
    restore(Notes(""), tmp_path / "kept")
    assert torch.equal(torch.rand(4), want)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_exported_student_opens_as_any_model_does_and_can_be_taken_on_again(
    worlds: dict[int, World], tmp_path: Path, stage: int
) -> None:
    scene = make_scene(tmp_path, "gpt2", padding=16)
    folder = tmp_path / "student_after"
    sgd = {"name": "sgd", "lr": 0.01, "betas": (0.0, 0.0)}  # has no memory
    config = run_config(scene, world_size=2, zero_stage=stage, optimizer=sgd)
    (weights, losses), _ = worlds[2].run(exported_and_adopted, config, scene, folder)
    exported, later, adopted = weights
    opened = model_of(folder)
    for name, parameter in opened.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), exported[name])
        assert np.array_equal(adopted[name], exported[name])
    assert any(not np.array_equal(later[name], exported[name]) for name in exported)
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)  # the second step: of the optimiser's copies too
    assert_all_else_is_as_it_started(scene, folder)


def assert_all_else_is_as_it_started(scene: Scene, folder: Path) -> None:
    start, end = (AutoTokenizer.from_pretrained(path) for path in (scene.student, folder))
    assert end.get_vocab() == start.get_vocab()
    assert end.chat_template == start.chat_template
    generation = [GenerationConfig.from_pretrained(path).to_diff_dict() for path in (scene.student, folder)]
    assert generation[0] == generation[1]
    configs = [json.loads((path / "config.json").read_text()) for path in (scene.student, folder)]
    assert configs[0] == configs[1]  # dropout too, though it was off while training
    assert list(folder.glob("*.bin")) == []


class OneRank:
    """An engine of one rank that has loaded a model and trained nothing."""

    def __init__(self, folder: Path):
        self.student = AutoModelForCausalLM.from_pretrained(folder)
        self.student_config = AutoConfig.from_pretrained(folder)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(one.shape) for name, one in self.student.named_parameters()}

    @contextmanager
    def gathered(self, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
        parameters = dict(self.student.named_parameters())
        yield {name: parameters[name] for name in names}

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


def test_settings_that_transformers_refuses_to_save_do_not_end_an_export(tmp_path: Path) -> None:
    start = tiny_model("llama", tmp_path / "start")
    kept = json.loads((start / "generation_config.json").read_text()) | {"temperature": 0.6, "top_k": 7}
    (start / "generation_config.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig.from_pretrained(start).save_pretrained(tmp_path)
    checkpoint.export_student(
        OneRank(start),  # pyright: ignore[reportArgumentType]
        tmp_path / "best",
        ModelConfig(path=str(start)),
        AnswerFormat(end_ids=(77,)),
        rank=0,
    )
    written = json.loads((tmp_path / "best" / "generation_config.json").read_text())
    assert (written["temperature"], written["top_k"], written["eos_token_id"]) == (0.6, 7, [1, 77])
    AutoModelForCausalLM.from_pretrained(tmp_path / "best")
