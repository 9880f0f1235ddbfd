"""The command `minillm`. Heavy parts are imported by the command that needs them, so that help is quick."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from ... import __version__
from ...common.errors import ABSENT, ConfigError, Fault, MinillmError
from ...common.logs import LogLevel, set_defaults
from .model_commands import Overrides, cut_model, fetch_model, pretrain_tiny
from .multi_value import SETTING, ManyValues

app = typer.Typer(
    help="On-policy distillation of large language models on a Ray cluster (the MiniLLM method).",
    epilog="Start with `minillm demo`, then copy the run file that it leaves: runs/demo/config.yaml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console()

RunFile = Annotated[Path, typer.Argument(help="YAML run file.", metavar="RUN.yaml")]
Log = Annotated[
    LogLevel,
    typer.Option(
        "--log-level",
        callback=lambda level: set_defaults(level=level, owns_process=True) or level,
        help="Least severe lines of OUTPUT_DIR/logs.",
    ),
]


@app.command()
def train(run: RunFile, overrides: Overrides = None, log_level: Log = "info") -> None:
    """Distil a teacher into a student as RUN.yaml says.

    The smallest run file:

        student: {path: my-small-model}
        teacher: {path: my-large-model}
        data:
          train: {path: prompts.jsonl}
        output_dir: runs/first

    Any setting can be replaced behind it: `minillm train run.yaml learner.max_steps=200 seed=3`. `minillm
    settings` lists all of them. The run's folder gets config.yaml, metrics.jsonl, logs/, plots/, rollouts/
    (Parquet), checkpoints/, best/ and last/ (Hugging Face folders). Stopped? `minillm resume FOLDER`.
    A file with `phases` is a chain, such as fine-tuning, MiniLLM, evaluation: one after the other, each in a
    folder of its own; the same command again goes on with it. See deploy/recipes/baselines/whole.yaml.
    On a cluster: `ray job submit --address http://HEAD:8265 -- minillm train run.yaml`.
    """
    from ..config.loader import load_run
    from ..pipeline.chain import is_chain, load_chain
    from ..pipeline.runner import report_chain, run_chain
    from ..training.launch import start_run

    if is_chain(run):
        done = run_chain(load_chain(run, overrides or []), console)
        console.print(report_chain(done), highlight=False, soft_wrap=True)
    else:
        _report(start_run(load_run(run, overrides or []), console))


@app.command()
def sft(
    run: RunFile,
    overrides: Overrides = None,
    model: Annotated[
        Literal["student", "teacher"], typer.Option(help="Which of the run file's models to fine-tune.")
    ] = "student",
    log_level: Log = "info",
) -> None:
    """Fine-tune the student, or the teacher, of RUN.yaml on the answers of data.train.

    The loss is on answers only; with a data.validation the best checkpoint is the one of the lowest loss
    there. It is `minillm train` with other defaults beneath the run file's own settings: objective.kind=sft,
    validation.metric=loss, and learner.optimizer lr=5e-5, schedule=cosine, weight_decay=0.01. So one file
    serves both phases; give each a folder:

        minillm sft run.yaml output_dir=runs/teacher --model teacher
        minillm sft run.yaml output_dir=runs/sft
        minillm train run.yaml output_dir=runs/minillm teacher.path=runs/teacher/best \\
            student.path=runs/sft/best

    The teacher is started only where data.test or validation.metric ask for the reverse KL. Stopped?
    `minillm resume FOLDER`.
    """
    from ..config.presets import load_sft
    from ..training.launch import start_run

    _report(start_run(load_sft(run, overrides or [], model), console))


@app.command()
def generate(
    run: RunFile,
    overrides: Overrides = None,
    output_dir: Annotated[Path, typer.Option(help="Folder to write answers.jsonl into.")] = Path(
        "runs/answers"
    ),
    by: Annotated[
        Literal["teacher", "student"], typer.Option(help="Which of the run file's models answers.")
    ] = "teacher",
    keep_cut: Annotated[bool, typer.Option("--keep-cut", help="Keep answers that were cut, too.")] = False,
    log_level: Log = "info",
) -> None:
    """Have the teacher of RUN.yaml answer data.train: sequence-level distillation data.

    vLLM draws rollout.num_generations answers to each prompt on rollout.num_engines engines, from the model
    alone, at rollout.temperature, top_p and top_k. --output-dir gets answers.jsonl with the columns
    instruction, input and output (or messages) and prompt_id, sample, tokens, finish: a data.train:

        minillm generate run.yaml --output-dir runs/answers rollout.num_engines=2
        minillm sft run.yaml data.train.path=runs/answers/answers.jsonl output_dir=runs/seqkd

    Stopped? The same command goes on where it was, and refuses other settings. Answers that were cut at
    rollout.max_new_tokens stay in --output-dir/parts and are left out of answers.jsonl.
    """
    from ..pipeline.generate import generate as run_generate
    from ..pipeline.generate import load_generation
    from .report import report_answers

    asked = load_generation(run, overrides or [], output_dir=output_dir, by=by, keep_cut=keep_cut)
    console.print(report_answers(run_generate(asked, console)), highlight=False, soft_wrap=True)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of the run.", metavar="RUN_DIR")],
    log_level: Log = "info",
) -> None:
    """Go on with a stopped run from its newest checkpoint, as if it had never stopped.

    A chain goes on with the phase that was stopped, and skips those that are finished; `minillm generate`
    goes on with the questions that are not answered yet.
    """
    from ..pipeline.resume import report_resumed, resume_any

    console.print(report_resumed(resume_any(folder, console)), highlight=False)


@app.command(name="eval", cls=ManyValues)
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML file with these settings and more, and settings that replace its.",
            metavar="[EVAL.yaml] [key.sub=value ...]",
        ),
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Models to look at: folders or hub names.", metavar="A B ...")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Compare with this model: exposure bias, divergences.", metavar="T")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Data sets: files, folders or hub names.", metavar="FILE ...")
    ] = None,
    num_seeds: Annotated[int | None, typer.Option(help="Answers to each prompt, one by each seed.")] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Only these figures; all that can be had by default.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder to write; add to one by the same call.")
    ] = None,
    log_level: Log = "info",
) -> None:
    """Say how well models answer, with intervals: text scores, exposure bias, calibration, diversity.

        minillm eval --models runs/sft/best runs/minillm/best --teacher my-large --data dev.jsonl

    Each model answers each data set alone, by vLLM, once for each seed. From the answers come ROUGE-L, exact
    match (also by length of the reference), length, share of finished answers, repetition and distinct-4;
    with a teacher, both KL divergences and the excess accumulated error at every length; from given answers
    the LM loss. A data set with a column `choices` is a classification task: accuracy, calibration error and
    reliability by the probabilities of the label words. Columns with other names, an extraction rule for
    `accuracy`, and more: in EVAL.yaml, whose settings `minillm settings --of eval` lists.

    OUTPUT_DIR gets results.json (rows of model, data, metric, bucket, seed, value, low, high, n; seed null is
    the mean over seeds; [low, high] a 95 % bootstrap interval over prompts), results.parquet,
    comparisons.json (paired tests between models), every answer as Parquet, and plots. What is there is not
    measured again.
    """
    from ..config.loader import load_eval
    from ..evaluation.runner import evaluate as run_evaluation
    from ..evaluation.runner import report_evaluation

    files = [word for word in arguments or [] if not SETTING.match(word)]
    if len(files) > 1:
        raise typer.BadParameter(f"one EVAL.yaml at most, not {', '.join(files)}")
    flags = {
        "models": models,
        "teacher": teacher,
        "data": data,
        "num_seeds": num_seeds,
        "metrics": metrics,
        "output_dir": output_dir,
    }
    overrides = [word for word in arguments or [] if SETTING.match(word)]
    evaluation = run_evaluation(load_eval(files[0] if files else None, overrides, flags), console)
    console.print(report_evaluation(evaluation))


@app.command(cls=ManyValues)
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs and of evaluations.", metavar="FOLDER...")
    ],
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the pictures; those of an older comparison are replaced.")
    ] = Path("runs/compare"),
    label: Annotated[
        list[str] | None, typer.Option(help="What to call the folders, in their order.", metavar="NAME ...")
    ] = None,
) -> None:
    """Put runs and evaluations side by side: tables here, and PNG pictures in --output-dir.

    Of runs (folders of `minillm train` and the like): steps, seconds, tokens per second, first, last and best
    validation values, and learning curves. Of evaluations (folders of `minillm eval`): every metric with its
    95 % interval, scores by length of the reference, paired tests; and pictures of exposure bias by length,
    reliability and length buckets. A model is called by its name, with the evaluation's folder behind it
    where two evaluations have it. Each model has one colour in all pictures.

        minillm compare runs/minillm runs/control
        minillm compare runs/eval-before runs/eval-after --label before after
    """
    from ..reporting.compare import compare as put_side_by_side
    from ..reporting.compare import render

    console.print(render(put_side_by_side(folders, output_dir, label or [])))


@app.command()
def check(run: RunFile, overrides: Overrides = None) -> None:
    """Say whether RUN.yaml can work, what will run where, and what memory each process needs.

    Everything that can be checked without machines is checked: settings, models, tokenizers, data, room for
    answers, and the declared CPUs and GPUs. Of a chain, every phase that is not finished.
    """
    from ..config.loader import load_run
    from ..pipeline.chain import is_chain, load_chain
    from ..pipeline.runner import check_chain
    from ..preflight.check import check_run
    from ..preflight.plan_table import render

    if is_chain(run):
        for name, plan in check_chain(load_chain(run, overrides or [])).items():
            console.rule(name)
            console.print(render(plan))
        return
    console.print(render(check_run(load_run(run, overrides or []))))


@app.command()
def verify(
    run: RunFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each row, alone.")] = False,
) -> None:
    """Check that all processes of RUN.yaml compute the same log-probs: engines, teachers and learner ranks.

    They read the same probe answers (ordinary ones, one twice, a very short one, and ones beyond every
    sliding window), at the start and after two weight updates, and are held against a plain forward pass of
    transformers. `minillm train` does so at every start and stops where they disagree; this shows the
    numbers. Exit code 0 where all agree, else 1.
    """
    import json

    from ..config.loader import load_run
    from ..training.verify import as_json as rows_of
    from ..training.verify import render, verify_run

    shown = Console(stderr=True) if as_json else console
    rounds = verify_run(load_run(run, overrides or []), shown)
    if as_json:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows_of(rounds))
    else:
        console.print(render(rounds))
    if not all(gap.agrees for gaps in rounds.values() for gap in gaps):
        raise typer.Exit(1)


@app.command()
def data(
    run: RunFile,
    overrides: Overrides = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Which data set of the run file.")
    ] = "train",
    head: Annotated[
        int | None, typer.Option(help="Records to show; 3 by default, all with --json.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each record, alone.")] = False,
) -> None:
    """Show what RUN.yaml reads: the first records as text and ids, what is dropped, how long the rest is.

        minillm data run.yaml
        minillm data run.yaml --split validation --head 10 data.template=alpaca
        minillm data run.yaml --json | head -1 | python -m json.tool

    A prompt is shown as the model reads it, marks of the template included; what is learned of a given
    answer is bold and green. --json writes id, prompt, answer, prompt_ids, answer_ids and references of each
    record that is used, and nothing else, to the standard output.
    """
    from ..config.loader import load_run
    from ..data.view import view_data
    from ..pipeline.chain import is_chain
    from .data_view import render_data, write_json

    if is_chain(run):
        reason = "makes this a chain, each phase of which reads data of its own"
        fault = Fault(
            "phases", ABSENT, reason, "name the run file of one phase, such as FOLDER/PHASE/config.yaml"
        )
        raise ConfigError(fault, source=f"run file {run}")
    view = view_data(load_run(run, overrides or []), split)
    if as_json:
        write_json(view, head, sys.stdout)
    else:
        console.print(render_data(view, 3 if head is None else head), highlight=False)


@app.command()
def settings(
    prefix: Annotated[str, typer.Argument(help="Only settings that begin so, e.g. rollout")] = "",
    of: Annotated[Literal["run", "eval"], typer.Option(help="Of run files, or of evaluations.")] = "run",
) -> None:
    """List every setting with its default and its meaning."""
    from .settings_table import settings_table

    console.print(settings_table(prefix, of))


app.command(name="pretrain-tiny", cls=ManyValues)(pretrain_tiny)
app.command(name="fetch-model")(fetch_model)
app.command(name="cut-model")(cut_model)


@app.command()
def demo(
    output_dir: Annotated[
        Path, typer.Option(help="Folder to write; an older demo there is replaced.")
    ] = Path("runs/demo"),
    keep: Annotated[
        bool, typer.Option(help="Leave Ray and its dashboard up afterwards.", envvar="KEEP")
    ] = False,
) -> None:
    """Run the whole job in 5 to 12 minutes on two cores, with a control, and show what came of it."""
    from ..demo.run import run_demo

    run_demo(output_dir, keep, console)


def _report(result) -> None:
    from .report import report

    console.print(report(result))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        console.print(f"minillm-ray {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors that a person is meant to read come without a trace."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except MinillmError as error:
        # An error may quote a file's text, which is not to be read as markup.
        text = f"[bold red]{type(error).__name__}[/] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
