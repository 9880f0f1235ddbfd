"""The files of a model, and what the headers of its weights announce; no tensor is read for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ...actors.checkpoint_files import INDEX, WHOLE, indexed_files, weight_files
from ...actors.vllm_engine import MODEL_FILES
from ...common.config.run import ModelConfig
from ...common.errors import Fault, ModelError

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for another one, which Git LFS has yet to fetch."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER = "adapter_config.json"
UNREACHABLE: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OfflineModeIsEnabled)
"""What is raised where the hub does not answer: all errors of the library that asks, too."""
ROWS = 4096
"""Rows of two tensors that are compared at a time."""
ConcerningModel = Callable[[str, str], Fault]
"""Makes a fault of a reason and a way out."""


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor as its file announces it."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors write it, such as BF16."""
    file: str


Headers = dict[str, Header]


def pointer_faults(model: ModelConfig, key: str) -> list[Fault]:
    """A fault if files of the model, or some of them, were never fetched."""
    folder = Path(model.path)
    if not folder.is_dir():
        return []
    read = {file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.suffix != ".safetensors"}
    with contextlib.suppress(ModelError):  # told by `read_headers`
        read.update(weight_files(folder))
    found = sorted(file.name for file in read if file.is_file() and _begins_with(file, POINTER))
    if not found:
        return []
    reason = f"holds {listed(found)} as Git LFS pointers, not the files themselves"
    return [Fault(key, model.path, reason, "run `git lfs pull` in it, or download it again")]


def read_headers(model: ModelConfig, key: str) -> Headers | None:
    """All tensors of the files that hold the weights; None where the hub cannot be asked.

    Raises ModelError with all that is wrong with the files.
    """
    about = partial(Fault, key, model.path)
    folder = local_copy(model)
    names = {file.name for file in folder.iterdir()} if folder is not None else _names_on_hub(model)
    if names is None:
        return None
    if ADAPTER in names:
        raise ModelError(adapter_fault(model, key))
    if fault := _file_fault(names, about):
        raise ModelError(fault)
    if folder is not None:
        return _headers(_chosen(folder, about), about)
    return _headers_on_hub(model, names, about)


def local_copy(model: ModelConfig) -> Path | None:
    """The folder itself, or what this machine has of a model on the hub if all its weights are there."""
    folder = Path(model.path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(model.path, revision=model.revision, local_files_only=True))
        return cached if all(file.is_file() for file in weight_files(cached)) else None
    except (HFValidationError, LocalEntryNotFoundError, OSError, ModelError):
        return None


def unread_files(model: ModelConfig) -> list[str]:
    """Names of safetensors files of a folder that nothing reads."""
    folder = Path(model.path)
    if not folder.is_dir():
        return []
    read = set(weight_files(folder))
    return sorted(file.name for file in folder.glob("*.safetensors") if file not in read)


def are_equal(model: ModelConfig, headers: Headers, one: str, other: str) -> bool:
    """Whether two tensors of one shape hold the same values; both are read, piece by piece.

    Of a model on the hub the files that hold them are fetched, which the run would do in any case.
    """
    import torch
    from huggingface_hub import hf_hub_download
    from safetensors import safe_open

    def place(name: str) -> str:
        folder, file = local_copy(model), headers[name].file
        return str(folder / file) if folder else hf_hub_download(model.path, file, revision=model.revision)

    with safe_open(place(one), "pt") as first, safe_open(place(other), "pt") as second:
        left, right = first.get_slice(one), second.get_slice(other)
        rows = headers[one].shape[0]
        return all(
            torch.equal(left[start:end].float(), right[start:end].float())
            for start in range(0, rows, ROWS)
            for end in [min(start + ROWS, rows)]
        )


def adapter_fault(model: ModelConfig, key: str) -> Fault:
    """What is wrong with a folder that holds an adapter."""
    reason = f"holds an adapter ({ADAPTER}), which vLLM would leave out and peft would put in"
    way_out = "merge it into its base model (peft's merge_and_unload, then save_pretrained), or move it away"
    return Fault(key, model.path, reason, way_out)


def _file_fault(names: set[str], about: ConcerningModel) -> Fault | None:
    """What the names of the files alone tell."""
    if WHOLE in names or INDEX in names:
        return None
    if pickles := sorted(name for name in names if name.endswith(PICKLES)):
        reason = f"has its weights only as {pickles[0]}, a pickle, which could run foreign code"
        return about(reason, "load it once yourself and save_pretrained it, which writes safetensors")
    if others := sorted(name for name in names if name.endswith(".safetensors")):
        reason = f"holds {listed(others)}, and only {WHOLE} or the files of {INDEX} are read"
        return about(reason, f"rename it to {WHOLE}" if len(others) == 1 else "add the index")
    return about("holds no weights (no .safetensors file)", "give a folder that does")


def _chosen(folder: Path, about: ConcerningModel) -> list[Path]:
    if (folder / WHOLE).is_file():
        return weight_files(folder)
    files = [folder / name for name in _indexed(folder / INDEX, about)]
    if absent := [file.name for file in files if not file.is_file()]:
        reason = f"lacks {listed(absent)}, which {INDEX} names"
        raise ModelError(about(reason, "download it again, or copy the whole folder"))
    return files


def _indexed(index: Path, about: ConcerningModel) -> list[str]:
    try:
        return indexed_files(index.read_text(encoding="utf-8"))
    except ValueError as fault:
        reason = f"has an index that cannot be used: {INDEX} {fault}"
        raise ModelError(about(reason, "save the model again")) from fault


def _headers(files: Iterable[Path], about: ConcerningModel) -> Headers:
    from safetensors import SafetensorError, safe_open

    headers: Headers = {}
    found: list[Fault] = []
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                read = {n: Header(tuple(p.get_shape()), p.get_dtype(), file.name) for n, p in parts.items()}
        except (SafetensorError, OSError) as error:
            reason = f"has weights that cannot be read: {file.name}: {error}"
            found.append(about(reason, "copy or download the file again"))
            continue
        found += _twice(headers, read, about)
        headers |= read
    if found:
        raise ModelError(*found)
    return headers


def _headers_on_hub(model: ModelConfig, names: Iterable[str], about: ConcerningModel) -> Headers | None:
    """Headers alone, by requests for the beginning of each file."""
    from huggingface_hub import hf_hub_download, parse_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    headers: Headers = {}
    found: list[Fault] = []
    try:
        files = [WHOLE]
        if WHOLE not in names:
            index = Path(hf_hub_download(model.path, INDEX, revision=model.revision))
            files = _indexed(index, about)
        for file in files:
            told = parse_safetensors_file_metadata(model.path, file, revision=model.revision)
            read = {name: Header(tuple(one.shape), one.dtype, file) for name, one in told.tensors.items()}
            found += _twice(headers, read, about)
            headers |= read
    except SafetensorsParsingError as error:
        raise ModelError(
            about(f"has weights that cannot be read: {error}", "give another revision")
        ) from error
    except UNREACHABLE:
        return None
    if found:
        raise ModelError(*found)
    return headers


def _twice(headers: Headers, more: Headers, about: ConcerningModel) -> list[Fault]:
    names = sorted(headers.keys() & more.keys())
    if not names:
        return []
    both = f"in {headers[names[0]].file} and in {more[names[0]].file}"
    return [about(f"has {listed(names)} twice, {both}", "save the model again")]


def _names_on_hub(model: ModelConfig) -> set[str] | None:
    """Files of a model on the hub; None where it cannot be asked."""
    from huggingface_hub import list_repo_files

    try:
        return set(list_repo_files(model.path, revision=model.revision))
    except UNREACHABLE:
        return None


def _begins_with(file: Path, beginning: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(beginning)) == beginning


def listed(names: Sequence[str]) -> str:
    """The first names in words, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
