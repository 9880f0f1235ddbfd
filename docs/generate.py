"""Pages of the site that are written from the code: settings, command line, metrics and the Python face.

MkDocs loads this file as a hook. Nothing here imports torch, ray or vllm: settings come from the pydantic
classes, commands from typer, metrics from their catalogue, and Python objects from their source text.
"""

from __future__ import annotations

import ast
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "actors", "learner", "deploy")
EXPORTS = {
    "Training": ("train", "sft", "resume"),
    "Callbacks": ("Callback", "TrainState", "STOP"),
    "Everything else": ("generate", "evaluate", "compare", "check"),
    "Settings": ("RunConfig", "EvalConfig"),
}
"""What `import minillm_ray` offers, in the order of the page; what is not named comes last."""
_sources: list[Path] = []


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give mkdocstrings a folder that holds our modules and nothing else.

    The root of the repository is the package, and a search through it would walk .venv too.
    """
    folder = Path(tempfile.mkdtemp(prefix="minillm-docs-"))
    _sources.append(folder)
    package = folder / "minillm_ray"
    package.mkdir()
    shutil.copy(ROOT / "__init__.py", package)
    for name in PACKAGES:
        for source in (ROOT / name).rglob("*.py"):
            target = package / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages: dict[str, Callable[[], str]] = {
        "reference/settings.md": run_settings,
        "reference/eval-settings.md": eval_settings,
        "reference/command-line.md": command_line,
        "reference/metrics.md": metrics,
        "reference/python.md": python_face,
        "development/contributing.md": lambda: from_root("CONTRIBUTING.md"),
        "development/changelog.md": lambda: from_root("CHANGELOG.md"),
    }
    for path, write in pages.items():
        files.append(File.generated(config, path, content=write()))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Remove the copies of our modules."""
    _remove_sources()


def on_build_error(error: Exception) -> None:
    """Remove the copies of our modules."""
    _remove_sources()


def _remove_sources() -> None:
    while _sources:
        shutil.rmtree(_sources.pop(), ignore_errors=True)


def from_root(name: str) -> str:
    """A page that lies in the root of the repository, its links into docs/ made relative."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")


# Settings


def run_settings() -> str:
    """Every setting of a run file."""
    from minillm_ray import RunConfig

    return "\n".join(
        [
            "# Settings of a run",
            "",
            "Written from the code. `minillm settings` prints the same in a terminal. Unknown names are"
            " refused with a suggestion, and all faults of a file are told at once.",
            "",
            *sections_of(RunConfig, "Run"),
        ]
    )


def eval_settings() -> str:
    """Every setting of an evaluation file."""
    from minillm_ray import EvalConfig

    return "\n".join(
        [
            "# Settings of an evaluation",
            "",
            "Written from the code. `minillm settings --of eval` prints the same in a terminal. Where a table"
            " says *list of*, its entries have the settings below it, and a bare path will do for an entry.",
            "",
            *sections_of(EvalConfig, "Evaluation"),
        ]
    )


def sections_of(
    section: type[BaseModel], title: str, path: str = "", meaning: str = "", level: int = 2
) -> Iterator[str]:
    """The settings of `section` as a table, then its own sections; `meaning` is that of its own name."""
    yield f"{'#' * level} {title}"
    yield ""
    yield " ".join(cell(text) for text in (section.__doc__ or "", meaning) if text)
    yield ""
    below: list[tuple[str, type[BaseModel], str]] = []
    rows: list[str] = []
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            many = "[...]" if get_origin(field.annotation) is tuple else ""
            optional = "" if field.is_required() or field.default is not None else " May be left out."
            below.append((f"{path}{name}{many}", inner, (field.description or "") + optional))
            if not many:
                continue
        shown = f"list of {inner.__name__}" if inner else words(field.annotation, field.metadata)
        meant = cell(field.description or "")
        rows.append(f"| `{path}{name}` | {shown} | {default_of(field.get_default())} | {meant} |")
    if rows:
        yield from ("| setting | value | default | meaning |", "| --- | --- | --- | --- |", *rows, "")
    for name, inner, told in below:
        yield from sections_of(inner, f"`{name}`", f"{name}.", told, 4 if path else 3)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section of settings that a field holds, alone, in a tuple or as an option; else None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def words(annotation: Any, metadata: Any = ()) -> str:
    """What a setting may be, in words."""
    if hasattr(annotation, "__metadata__"):
        return words(annotation.__origin__, annotation.__metadata__)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return " or ".join(words(part, metadata) for part in get_args(annotation))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (tuple, list):
        parts = [part for part in get_args(annotation) if part is not Ellipsis]
        return "list of " + ", ".join(words(part) for part in parts)
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
    limits = limits_of(metadata) if annotation in (int, float) else ""
    return names.get(annotation, "path") + limits


def limits_of(metadata: Any) -> str:
    """The bounds of a number, such as " ≥ 1"."""
    found = []
    for entry in metadata:
        for part in getattr(entry, "metadata", None) or [entry]:
            for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
                if (bound := getattr(part, name, None)) is not None:
                    found.append(f" {sign} {bound}")
    return ",".join(found)


def default_of(value: Any) -> str:
    """A default as one would write it in a run file."""
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if str(value) else ""


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# Metrics


def metrics() -> str:
    """Every metric of the catalogue."""
    from minillm_ray.common.metrics import CATALOGUE

    lines = [
        "# Metrics",
        "",
        "Written from the code. Each name is `part/quantity`. They are in `metrics.jsonl` and TensorBoard"
        " under these names, and at Ray's metrics endpoint as `ray_minillm_part_quantity`; other places are"
        " [sinks](../extend/metrics-sink.md). A metric travels between processes as (total, count), so a mean"
        " over ranks or actors is exact.",
        "",
        "What to look at first: [Diagnose a run](../guides/diagnose.md).",
    ]
    part = ""
    for name, meaning in CATALOGUE.items():
        if name.split("/")[0] != part:
            part = name.split("/")[0]
            lines += ["", f"## {part}", "", "| metric | meaning |", "| --- | --- |"]
        lines.append(f"| `{name}` | {cell(str(meaning))} |")
    return "\n".join([*lines, ""])


# Command line


def command_line() -> str:
    """Every command with its arguments and options."""
    import typer
    from minillm_ray.deploy.cli.main import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "Written from the code. `minillm COMMAND --help` prints the same in a terminal. A setting behind a"
        " run file, such as `learner.max_steps=200`, replaces that of the file; values are YAML.",
    ]
    for name, command in group.commands.items():
        lines += ["", f"## minillm {name}", "", "```text", usage_of(name, command), "```", ""]
        lines += [paragraphs(command.help or ""), ""]
        rows = [row_of(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| argument | default | meaning |", "| --- | --- | --- |", *rows]
    return "\n".join([*lines, ""])


def usage_of(name: str, command: Any) -> str:
    """The first line of a command's help."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    shown = " ".join(metavar_of(p) if p.required else f"[{metavar_of(p)}]" for p in arguments)
    options = " [OPTIONS]" if len(arguments) < len(command.params) else ""
    return f"minillm {name}{options} {shown}".replace("[[", "[").replace("]]", "]").strip()


def metavar_of(parameter: Any) -> str:
    """What stands for a parameter's value."""
    return str(parameter.metavar or parameter.name.upper())


def row_of(parameter: Any) -> str:
    """One argument or option of a command, as a row of a table."""
    if parameter.param_type_name == "argument":
        shown = f"`{metavar_of(parameter)}`"
    else:
        flags = "`, `".join([*parameter.opts, *parameter.secondary_opts])
        shown = f"`{flags}`" + (f" `{parameter.metavar}`" if parameter.metavar else "")
    value = parameter.default
    plain = value is not None and not callable(value) and not isinstance(value, list | tuple)
    default = "required" if parameter.required else default_of(value) if plain and str(value) else ""
    return f"| {shown} | {default} | {cell(getattr(parameter, 'help', '') or '')} |"


def paragraphs(text: str) -> str:
    """A command's help: Markdown already, but for the marks of typer."""
    return text.replace("\b", "").replace("\f", "").strip()


# Python


def python_face() -> str:
    """The objects that `import minillm_ray` offers, documented by mkdocstrings from their docstrings."""
    import minillm_ray

    named = {name for names in EXPORTS.values() for name in names}
    rest = tuple(name for name in minillm_ray.__all__ if name not in named)
    lines = [
        "# Python",
        "",
        "`import minillm_ray` takes as long as an empty Python: each name below is loaded at its first use.",
    ]
    for title, names in (EXPORTS | ({"More": rest} if rest else {})).items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", f"::: {definition_of(ROOT / '__init__.py', name)}"]
            if title == "Settings":
                page = {"RunConfig": "settings", "EvalConfig": "eval-settings"}[name]
                lines += ["    options:", "      members: false", "", f"[All settings]({page}.md)."]
    return "\n".join([*lines, ""])


def definition_of(file: Path, name: str) -> str:
    """The dotted path of what the module `file` calls `name`: defined in it, or imported from one of ours.

    Read off the source text, so nothing is imported for it.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if defines(tree, name):
        dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        return f"minillm_ray.{dotted}.{name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        for alias in node.names:
            if (alias.asname or alias.name) == name:
                return definition_of(imported_from(file, node), alias.name)
    raise LookupError(f"{name} is exported, and {file.relative_to(ROOT)} neither defines nor imports it")


def imported_from(file: Path, node: ast.ImportFrom) -> Path:
    """The module that a relative import in `file` names."""
    place = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def defines(tree: ast.Module, name: str) -> bool:
    """Whether a module defines `name` at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return True
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return False
