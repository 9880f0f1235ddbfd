"""The catalogue of metrics holds what is recorded, and nothing else."""

from __future__ import annotations

from minillm_ray.common.metrics import CATALOGUE


def test_every_metric_of_the_catalogue_is_recorded_by_somebody(repo):
    """A name counts as recorded where it stands in quotes outside the catalogue and the pictures."""
    written = "".join(
        file.read_text()
        for folder in ("actors", "learner", "deploy")
        for file in (repo / folder).rglob("*.py")
        if file.name not in ("plots.py", "compare.py", "collapse.py", "sources.py")
    )
    names = [name for name in CATALOGUE if f'"{name}"' not in written]
    assert names in ([], ["learner/forward_kl"])  # which is written as learner/ + its name
