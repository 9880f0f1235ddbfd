"""The live lines of a long run."""

from minillm_ray.deploy.progress import live_lines


def test_all_facts_are_seen_on_a_small_terminal_and_what_one_waits_for_comes_first():
    facts = {
        "phase": "sampling 768/1,024", "drawn": "2,345 tokens/s", "step": "384/576", "reverse KL": "0.321",
        "trained": "5,678 tokens/s", "ROUGE-L": "85.2",
    }  # fmt: skip
    far, well = live_lines(facts, "ETA 3:21", "4:56")
    assert far == "sampling 768/1,024 · step 384/576 · ETA 3:21 · 4:56"
    assert well == "reverse KL 0.321 · ROUGE-L 85.2 · drawn 2,345 tokens/s · trained 5,678 tokens/s"
    assert max(len(far), len(well)) <= 80
