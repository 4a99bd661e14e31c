"""Task files in lm-eval's YAML form, with their data in local JSON lines.

A file describes one task, or a group of tasks by their names; ``include`` and ``!function`` work as in lm-eval (a
task file can therefore run code: read one before you use it). The data are files beside it:

    task: capitals_en
    dataset_path: json
    dataset_kwargs: {data_files: {test: capitals_en.jsonl}}     # relative to this file
    test_split: test
    output_type: multiple_choice
    doc_to_text: "The capital of {{country}} is"
    doc_to_choice: "{{choices}}"
    doc_to_target: "{{answer}}"

A file without ``task`` is a part that others include.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import orjson
from lm_eval.api.group import Group
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.group import GroupConfig
from lm_eval.tasks._yaml_loader import load_yaml

from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError, DataError, UserError

SUFFIXES = (".yaml", ".yml")
_FEWSHOT_SEED = 1234


def load_tasks(place: Path) -> dict[str, Any]:
    """The tasks of a file, or of all YAML files below a folder, as `lm_eval.evaluator.evaluate` takes them.

    Of a single file that is a group the members are looked up in its folder.

    Raises:
        ConfigError: there is no such place, no task in it, or a file is no task that can be read here.
        DataError: data that a task names are missing or malformed.
    """
    if not place.exists():
        raise ConfigError("there is no such task file or folder", file=place, hint="tasks are read from local files")
    folder = place if place.is_dir() else place.parent
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file()):
        wanted = place.is_dir() or file == place
        config = _read(file, tolerant=not wanted)
        name = config.get("group") or config.get("task")
        if not isinstance(name, str):
            if wanted and not place.is_dir():
                raise ConfigError("names no task", file=file, hint="write task: a_name")
            continue
        if name in known and (wanted or known[name][0] == place):
            raise ConfigError(f"the task {name} is in {known[name][0]} too", file=file, key="task")
        known[name] = (file, config)
    chosen = [name for name, (file, _) in known.items() if place.is_dir() or file == place]
    if not chosen:
        raise ConfigError("no task in this folder", file=place, hint=f"task files end in {' or '.join(SUFFIXES)}")
    loader = _Loader(known)
    for name in chosen:
        loader.load(name, ())
    return {
        "tasks": loader.tasks,
        "groups": loader.groups,
        "group_map": {name: group.child_names for name, group in loader.groups.items()},
    }


class _Loader:
    """Makes each task once, whether it is asked for by itself or as a group's member."""

    def __init__(self, known: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
        self._known = known
        self.tasks: dict[str, Task] = {}
        self.groups: dict[str, Group] = {}

    def load(self, name: str, above: tuple[str, ...]) -> Task | Group:
        """The task or group of that name."""
        made = self.tasks.get(name) or self.groups.get(name)
        if made is not None:
            return made
        file, config = self._known[name]
        if "group" not in config:
            self.tasks[name] = _task(file, config)
            return self.tasks[name]
        if name in above:
            raise ConfigError(f"the group {name} is its own member", file=file, key="task")
        try:
            group_config = GroupConfig(**config)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"not a group of lm-eval: {error}", file=file) from error
        group = Group.from_config(group_config)
        for member in group_config.task or []:
            if not isinstance(member, str) or member not in self._known:
                message = f"the group's member {member!r} is no task of this folder{suggest(str(member), self._known)}"
                raise ConfigError(message, file=file, key="task")
            group.add(self.load(member, (*above, name)))
        self.groups[name] = group
        return group


def _read(file: Path, *, tolerant: bool) -> dict[str, Any]:
    try:
        return load_yaml(file)
    except Exception as error:  # YAML errors, missing includes, whatever a !function's module raises
        if tolerant:
            return {}
        raise ConfigError(f"cannot be read: {error}", file=file) from error


def _task(file: Path, config: Mapping[str, Any]) -> Task:
    if "class" in config:
        raise ConfigError(
            "task classes in Python are not read here", file=file, key="class", hint="describe it in YAML"
        )
    config = dict(config)
    if "dataset_path" in config or "custom_dataset" not in config:
        config["custom_dataset"] = _dataset(file, config)
        for name in ("dataset_path", "dataset_name", "dataset_kwargs"):
            config.pop(name, None)
    for number, metric in enumerate(config.get("metric_list") or []):
        wanted = metric.get("metric") if isinstance(metric, dict) else metric
        if not callable(wanted) and wanted not in metric_registry and "process_results" not in config:
            message = f"unknown metric {wanted!r}{suggest(str(wanted), metric_registry)}"
            raise ConfigError(message, file=file, key=f"metric_list[{number}]")
    try:
        task = ConfigurableTask(config=config)
    except UserError:
        raise
    except Exception as error:  # lm-eval lets whatever happens inside its templates through
        raise ConfigError(f"not a task that lm-eval accepts: {type(error).__name__}: {error}", file=file) from error
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return task


def _dataset(file: Path, config: Mapping[str, Any]) -> Callable[..., Any]:
    """Reads the files that ``dataset_kwargs.data_files`` names."""
    path, options = config.get("dataset_path"), dict(config.get("dataset_kwargs") or {})
    hint = "put the data in JSON lines beside it: dataset_path: json, dataset_kwargs: {data_files: {test: x.jsonl}}"
    if path != "json" or not options.get("data_files"):
        where = "dataset_kwargs.data_files" if path == "json" else "dataset_path"
        raise ConfigError("tasks are read from local files only", file=file, key=where, hint=hint)
    given = options["data_files"]
    splits = given if isinstance(given, dict) else {"train": given}

    def read(**_: Any) -> datasets.DatasetDict:
        found = {}
        for split, names in splits.items():
            paths = [file.parent / name for name in ([names] if isinstance(names, str) else names)]
            rows = [row for path in paths for row in _rows(path)]
            try:
                found[split] = datasets.Dataset.from_list(rows)
            except Exception as error:  # pyarrow's errors have no common base that says "mixed types"
                raise DataError(f"rows of different form: {error}", file=paths[0]) from error
        return datasets.DatasetDict(found)

    return read


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"not JSON: {error}", file=path, line=number) from error
        if not isinstance(row, dict):
            raise DataError("not an object with named fields", file=path, line=number)
        rows.append(row)
    if not rows:
        raise DataError("there are no documents in it", file=path)
    return rows
