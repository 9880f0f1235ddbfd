"""The live line of a long run."""

from minillm_ray.deploy.progress import live_line


def test_what_one_waits_for_is_within_the_width_of_a_small_terminal():
    facts = {
        "phase": "sampling 768/1,024", "drawn": "2,345 tokens/s", "step": "384/576", "reverse KL": "0.321",
        "trained": "5,678 tokens/s", "ROUGE-L": "85.2",
    }  # fmt: skip
    line = live_line(facts, "ETA 3:21", "4:56")
    seen = line[:80]
    assert seen.startswith("sampling 768/1,024 · step 384/576 · ETA 3:21")
    assert "2,345 tokens/s" in seen
    assert all(f"{name} {value}" in line for name, value in facts.items() if name not in ("phase",))
