"""Runs the tested blocks of one page, in their order, in a folder that stands for a clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from minillm_ray.deploy.config.loader import load_eval, load_run
from minillm_ray.deploy.pipeline.chain import is_chain, load_chain
from minillm_ray.tests.docs.fences import Fence

STAND_INS = {
    "Qwen/Qwen2.5-0.5B-Instruct": "models/student",
    "Qwen/Qwen2.5-7B-Instruct": "models/teacher",
    "my-small": "models/student",
    "my-large": "models/teacher",
}
"""Models that documents name -> tiny ones with which their commands can be run here."""
POSITIONS = 4096
"""Of the tiny models: enough for every setting that the documents show."""
DATA = ("prompts.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl")


def make_stand_ins(folder: Path) -> Path:
    """Write tiny models that take the place of those in `STAND_INS`."""
    from minillm_ray.tests.tiny_models import tiny_model

    for seed, name in enumerate(("student", "teacher")):
        made = tiny_model("llama", folder / name, seed=seed)
        config = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


def prepare(folder: Path, repo: Path, models: Path | None = None) -> None:
    """What a reader has before the first block: the project's `deploy`, data by their usual names, models."""
    (folder / "deploy").symlink_to(repo / "deploy")
    if models is not None:
        (folder / "models").symlink_to(models)
    rows = [{"instruction": f"Repeat the word w{n}.", "output": f"w{n}"} for n in range(40)]
    for name in DATA:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_blocks(blocks: Sequence[Fence], folder: Path, repo: Path) -> None:
    """Execute blocks: YAML is checked, commands and Python are run, and what has a name is written under it.

    Raises AssertionError at the first block that fails, with the place it stands at and what it said.
    """
    for block in blocks:
        if block.language == "yaml":
            check_settings(block, folder)
        elif block.language == "python":
            if block.name:
                (folder / block.name).write_text(block.text, encoding="utf-8")
            _run([sys.executable, "-c", block.text], block, folder, repo)
        else:
            _run(["bash", "-euo", "pipefail", "-c", block.text], block, folder, repo)


def check_settings(block: Fence, folder: Path) -> None:
    """Write the file, with models that exist, and read it as the command would; paths may be absent."""
    assert block.name, f"{block.where}: a run file begins with its name, such as `# run.yaml`"
    text = block.text
    for named, stand_in in STAND_INS.items():
        text = text.replace(named, stand_in)
    file = folder / block.name
    file.write_text(text, encoding="utf-8")
    if is_chain(file):
        load_chain(file)
    elif "models" in yaml.safe_load(text):
        load_eval(file, [], {})
    else:
        sys.path.insert(0, str(folder))  # where the page has put its plugins
        try:
            load_run(file)
        finally:
            sys.path.remove(str(folder))


def _run(command: Sequence[str], block: Fence, folder: Path, repo: Path) -> None:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(repo / ".typing"), os.environ.get("PYTHONPATH", "")]).strip(
            os.pathsep
        ),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{block.where} failed:\n{block.text}\n{said}"
