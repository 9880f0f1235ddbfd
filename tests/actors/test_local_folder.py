"""All processes of a run read one revision of a model, and the check before it too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minillm_ray.actors.vllm_engine import end_of_sequence_ids, local_folder
from minillm_ray.common.config.run import ModelConfig
from minillm_ray.common.errors import ModelError
from minillm_ray.deploy.data.tokenize import Limit
from minillm_ray.deploy.preflight.rules import end_faults


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A cache as the hub's library leaves it behind: one model with two revisions."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--someone--small"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (model / "refs").mkdir(parents=True, exist_ok=True)
        (model / "refs" / revision).write_text(commit)
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "snapshots" / commit / "config.json").write_text("{}")
    return model


def test_a_folder_is_taken_as_it_is(tmp_path):
    assert local_folder(ModelConfig(path=str(tmp_path))) == str(tmp_path)


@pytest.mark.parametrize(("revision", "commit"), [(None, "a"), ("v2", "b")])
def test_a_name_on_the_hub_becomes_the_files_of_its_revision(hub, revision, commit):
    found = local_folder(ModelConfig(path="someone/small", revision=revision))
    assert found == str(hub / "snapshots" / (commit * 40))


def test_a_revision_that_is_not_there_is_named_in_the_error(hub):
    with pytest.raises(ModelError, match="v3"):
        local_folder(ModelConfig(path="someone/small", revision="v3"))


def test_the_tokens_that_end_an_answer_are_those_of_the_revision(hub):
    llama = json.dumps({"model_type": "llama", "eos_token_id": 2})
    for commit, ends in (("a", [9000]), ("b", [5, 7])):
        snapshot = hub / "snapshots" / (commit * 40)
        (snapshot / "config.json").write_text(llama)
        (snapshot / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    name, limit = "someone/small", Limit("rollout.max_new_tokens", 8)
    for revision, ends, faults in ((None, [9000], 1), ("main", [9000], 1), ("v2", [5, 7], 0)):
        assert end_of_sequence_ids(name, revision) == ends
        student = ModelConfig(path=name, revision=revision)
        assert len(end_faults("student", student, 100, limit)) == faults
    (hub / "snapshots" / ("b" * 40) / "generation_config.json").unlink()
    assert end_of_sequence_ids(name, "v2") == [2]  # of its config
