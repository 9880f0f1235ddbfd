"""The live lines of a long run."""

from minillm_ray.deploy.cli.progress import Progress, live_lines
from rich.console import Console


def test_all_facts_are_seen_on_a_small_terminal_and_what_one_waits_for_comes_first():
    facts = {
        "phase": "sampling 768/1,024", "drawn": "2,345 tokens/s", "step": "384/576", "reverse KL": "0.321",
        "trained": "5,678 tokens/s", "ROUGE-L": "85.2",
    }  # fmt: skip
    far, well = live_lines(facts, "ETA 3:21", "4:56")
    assert far == "sampling 768/1,024 · step 384/576 · ETA 3:21 · 4:56"
    assert well == "reverse KL 0.321 · ROUGE-L 85.2 · drawn 2,345 tokens/s · trained 5,678 tokens/s"
    assert max(len(far), len(well)) <= 80


def test_where_tokens_end_the_run_they_say_how_far_it_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("minillm_ray.deploy.cli.progress.time.monotonic", lambda: now[0])
    progress = Progress(Console(quiet=True))
    progress.start_steps(0, 1000, 0.0)
    now[0] += 30
    progress.step(5, 0.25)
    assert progress._facts["step"] == "5 (25% of tokens)"
    assert progress._left == "ETA 1:30"
    progress.step(10, 1.07)
    assert progress._facts["step"] == "10 (100% of tokens)"
    assert progress._left == "ETA 0:00"
