"""What each folder may import, how long a file may be, and how a file is held to it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

MAY_USE: dict[str, set[str]] = {
    "common": set(),
    "actors": {"common"},
    "learner": {"common"},
    "deploy": {"common", "actors", "learner"},
}

# Which modules may import a heavy library at all: `folder/module`, or `folder/` for all of it.
IMPORTERS: dict[str, set[str]] = {
    "vllm": {
        "actors/mixture_model",
        "actors/vllm_compat",
        "actors/vllm_engine",
    },
    "deepspeed": {"learner/deepspeed_engine"},
    "ray": {"actors/workers", "learner/worker", "deploy/"},
}

MAX_LINES = 400
MAX_MODULES = 16
"""Of one folder, its __init__ not counted."""


def imports(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """(dots, dotted name, line) of every import, those inside functions and type checks too.

    `from . import x` and `from .. import x` name their parts one by one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield node.level, name, node.lineno


def faults(path: str, source: str) -> list[str]:
    """What is wrong with the file at `path` (from the project's root, such as "deploy/runtime/pool.py")."""
    folder = path.split("/")[0]
    depth = path.count("/")
    tree = ast.parse(source)
    found = []
    if not ast.get_docstring(tree):
        found.append(f"{path}: opens without a sentence that says what it is")
    if source.count("\n") > MAX_LINES:
        found.append(f"{path}: {source.count(chr(10))} lines; at most {MAX_LINES}")
    for dots, name, line in imports(tree):
        at = f"{path}:{line}:"
        top = name.split(".")[0]
        if dots > depth + 1:
            found.append(f"{at} climbs out of the package")
        elif dots == depth + 1 and top not in MAY_USE[folder] | {folder, "__version__"}:
            found.append(f"{at} {folder} may not use {top}")
        elif dots == 0 and top in {*MAY_USE, "minillm_ray"}:
            found.append(f"{at} imports {name} by an absolute name; use dots inside the package")
        elif dots == 0 and top in IMPORTERS and not _may_import(path, top):
            found.append(f"{at} {top} is only for {', '.join(sorted(IMPORTERS[top]))}")
    return found


def _may_import(path: str, library: str) -> bool:
    return any(
        path.startswith(one) if one.endswith("/") else path == f"{one}.py" for one in IMPORTERS[library]
    )


def crowded(paths: Iterable[str]) -> dict[str, int]:
    """Folders that hold more modules than a person can take in, and how many."""
    count = Counter(path.rpartition("/")[0] for path in paths if not path.endswith("__init__.py"))
    return {folder: number for folder, number in count.items() if number > MAX_MODULES}


def edges(files: dict[str, str]) -> dict[str, set[str]]:
    """Which module of ours each module imports when it is loaded; imports inside functions do not count."""
    modules = {_dotted(path) for path in files}
    graph: dict[str, set[str]] = {}
    for path, source in files.items():
        here = _dotted(path)
        package = here.split(".") if path.endswith("__init__.py") else here.split(".")[:-1]
        graph[here] = set()
        for node in _loaded_with_module(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                target = next(
                    (m for m in (".".join([*base, alias.name]), ".".join(base)) if m in modules), None
                )
                if target and target != here:
                    graph[here].add(target)
    return graph


def _loaded_with_module(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _loaded_with_module(node)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of imports, first module repeated at the end; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := walk(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def shipped_files(repo: Path) -> dict[str, str]:
    """Path from the root -> source of every module in the four folders."""
    return {
        path.relative_to(repo).as_posix(): path.read_text(encoding="utf-8")
        for folder in MAY_USE
        for path in sorted((repo / folder).rglob("*.py"))
    }
