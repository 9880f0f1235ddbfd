"""Our whole system on the race's prompts: `minillm train` on Ray, and how long its iterations took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from ..deploy.training.metrics_log import read_metrics
from .ground import MICRO_BATCH, Cell, Files, Values

REVERSE_KL: Values = {
    "objective": {"kind": "kd", "divergence": "reverse_kl", "sampled_share": 1.0},
    "rollout": {"teacher_mix": 0.0},
}
OBJECTIVES: dict[str, Values] = {
    "reverse_kl": REVERSE_KL,
    "reverse_kl_logprobs": REVERSE_KL | {"teacher_server": {"drawn_logprobs": True}},
    "minillm": {"objective": {"kind": "minillm"}, "rollout": {"teacher_mix": 0.2}},
}
"""What is learned: GKD's own text with reverse KL, as theirs do it; the same with the log-probs of drawn
tokens, which the bare loops take too; the paper's loss and mixing."""
PARTS = ("rollout/set_s", "teacher/set_s", "learner/step_s", "weights/publish_s", "weights/load_s")


def run_file(
    what: str, files: Files, out: Path, cell: Cell, *, sets: int, num_iterations: int, ranks: int
) -> Values:
    """The run that the race is about: one optimiser step on all of a set, `num_iterations` times."""
    own = OBJECTIVES[what]
    return {
        "student": {"path": str(files.student)},
        "teacher": {"path": str(files.teacher)},
        "data": {"train": {"path": str(files.prompts), "input": None, "output": None}, "template": "chat"},
        "objective": own["objective"],
        "teacher_server": own.get("teacher_server", {}),
        "rollout": {
            **own["rollout"],
            "rollout_batch_size": cell.answers,
            "max_new_tokens": cell.tokens,
            "max_num_seqs": cell.answers,
            "chunk": cell.answers,
            "kv_cache_gib": 1.0,
            "ignore_eos": True,
        },
        "learner": {
            "world_size": ranks,
            "batch_size": cell.answers,
            "micro_batch_size": MICRO_BATCH,
            "num_iterations": num_iterations,
            "max_steps": (sets + 1) * num_iterations,
            "optimizer": {"lr": 5e-6},
        },
        "cluster": {"dashboard": False},
        "save_steps": 1_000_000,
        "output_dir": str(out),
    }


def run(tree: Values) -> tuple[list[float], dict[str, list[float]]]:
    """Make the run; seconds of its iterations and of their parts, as `seconds_of` counts them."""
    out = Path(tree["output_dir"])
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "minillm"), "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return seconds_of(read_metrics(out))


def seconds_of(lines: list[Values]) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of each iteration but the first and the last, and of its parts by metric."""
    iterations: list[Values] = [{}]
    for line in lines:
        for part in PARTS:
            if part in line:
                iterations[-1][part] = iterations[-1].get(part, 0.0) + line[part]
        if "run/iteration_s" in line:
            iterations[-1]["iteration"] = line["run/iteration_s"]
            iterations.append({})
    whole = iterations[1:-2]  # behind the last is what comes after it, and it saves a checkpoint
    return (
        [one["iteration"] for one in whole],
        {part: [one.get(part, 0.0) for one in whole] for part in PARTS},
    )
