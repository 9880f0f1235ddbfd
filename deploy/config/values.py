"""Settings that come from Python: checked ones, a mapping, or a YAML file, and data given with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.config.generate import Author, GenerateConfig
from ...common.config.run import RunConfig
from ...common.errors import ConfigError, Fault
from ..data.given import Data, paths_of
from .loader import Change, Values, as_written, read_mapping, read_settings, validated
from .presets import generation_of

RunSettings = RunConfig | Mapping[str, Any] | Path | str
"""A run's settings: checked, or as a mapping, or a YAML file."""
DEFAULT_OUTPUT_DIR = RunConfig.model_fields["output_dir"].default


def run_config(
    config: RunSettings,
    change: Change = as_written,
    *,
    data: Data | None = None,
) -> RunConfig:
    """One checked configuration. Raises ConfigError with every fault.

    `data` takes the place of the paths of its splits: it will lie in the run's folder.
    """
    if isinstance(config, RunConfig) and change is as_written and data is None:
        return config.resolved()
    faults: list[Fault] = []
    values = change(_values(config, data, None, faults), faults)
    checked = validated(values, faults)
    if faults or checked is None:
        raise ConfigError(*faults, source=_source(config))
    return checked


def generate_config(
    config: RunSettings,
    *,
    by: Author,
    keep_cut: bool,
    output_dir: Path,
    data: Data | None = None,
) -> GenerateConfig:
    """What the settings of a run say of a generation into `output_dir`. Raises ConfigError likewise."""
    faults: list[Fault] = []
    values = _values(config, data, output_dir, faults)
    checked = generation_of(values, by, keep_cut, faults)
    if faults or checked is None:
        raise ConfigError(*faults, source=_source(config))
    return checked


def _source(config: RunSettings) -> str:
    return f"run file {config}" if isinstance(config, Path | str) else "this run"


def _values(config: RunSettings, data: Data | None, output_dir: Path | None, faults: list[Fault]) -> Values:
    """The settings, not yet checked, with the files of `data` and another folder in their place."""
    values: Values
    if isinstance(config, RunConfig):
        # What was not set stays open, so that `sft` and presets put their own defaults there.
        values = config.model_dump(mode="json", exclude_unset=True)
    elif isinstance(config, Mapping):
        values = read_mapping(config, _source(config), faults)
    else:
        values = read_settings(Path(config), (), _source(config), faults)
    if output_dir is not None:
        values = values | {"output_dir": str(output_dir)}
    if data is not None:
        folder = Path(str(values.get("output_dir") or DEFAULT_OUTPUT_DIR)).expanduser().resolve()
        values = values | {"data": _with_data(values.get("data"), paths_of(data, folder))}
    return values


def _with_data(section: Any, paths: Mapping[str, Path]) -> Any:
    """The section `data` with each given split's file in place of what it names; its columns stay."""
    if section is not None and not isinstance(section, Mapping):
        return section  # a fault once the settings are checked
    merged = dict(section or {})
    for split, path in paths.items():
        own = merged.get(split) or {}
        if isinstance(own, Mapping):  # else a fault once the settings are checked
            columns = {key: own[key] for key in own if key not in ("path", "split", "subset")}
            merged[split] = {**columns, "path": str(path)}
    return merged
