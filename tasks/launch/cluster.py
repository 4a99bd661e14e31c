"""Cluster files: what a runtime's ``cluster: NAME`` stands for.

A cluster file says how jobs get onto machines and nothing about what they compute, so it is never part of an
artifact's identity. NAME is ``configs/clusters/NAME.yaml`` in the current folder, else beside Evo's own packages; a
path to such a file does as well.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from evo_core.config.resolve import Document, read_document
from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError
from tasks.launch.environment import SET_BY_EVO
from tasks.launch.shell import incomplete

OWN_OPTIONS = {
    "parsable", "job-name", "J", "output", "o", "error", "e", "open-mode", "requeue", "no-requeue", "signal", "nodes",
    "N", "ntasks", "n", "ntasks-per-node", "cpus-per-task", "c", "chdir", "D", "export", "array", "a", "wait", "W",
    "wrap", "clusters", "M", "cluster", "help", "h", "usage", "version", "V", "test-only",
}  # fmt: skip
"""Options of `sbatch` that Evo gives itself, that would make its own meaningless, or that submit nothing."""

NAMED_OPTIONS = {
    "partition": "partition", "p": "partition", "account": "account", "A": "account", "qos": "qos", "q": "qos",
    "exclude": "exclude", "x": "exclude", "time": "runtime.time", "t": "runtime.time",
}  # fmt: skip
"""Options of `sbatch` that have a key of their own."""


_WITHOUT_VALUE = set("hHkOQsuvVW")
"""Short options of `sbatch` that need no value: another may follow in the same word."""

_READ_ONLY = {"UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO"}


def _exportable(name: str) -> str:
    """A name of a variable that bash can export and that nothing of Evo's own stands in.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name of a variable: letters without accents, digits and _, no digit first")
    if name in _READ_ONLY:
        raise ValueError(f"{name} cannot be set in bash")
    if name in SET_BY_EVO:
        raise ValueError(f"{name} is set by Evo itself for every job")
    return name


class _Cluster(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: dict[Annotated[str, AfterValidator(_exportable)], str] = Field(
        default_factory=dict,
        description="variables for every job; ${oc.env:NAME} hands one on from the submitting environment",
    )
    _document: Document | None = PrivateAttr(None)
    _name: str = PrivateAttr("local")

    @field_validator("environment", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """Variables are text, and `NCCL_IB_DISABLE: 1` is what people write."""
        if not isinstance(value, dict):
            return value
        for name, content in value.items():
            if isinstance(content, bool) or not isinstance(content, str | int | float):
                raise ValueError(f"{name} has to be text or a number; quote it")
        return {name: str(content) for name, content in value.items()}

    @property
    def name(self) -> str:
        """As the runtime names it."""
        return self._name

    @property
    def file(self) -> Path | None:
        """The file it was read from."""
        return self._document.file if self._document else None

    def variables(self) -> dict[str, str]:
        """`environment` with references to the submitting environment replaced by their values.

        Raises:
            ConfigError: a variable that is referred to is not set.
        """
        if self._document is None:
            return dict(self.environment)
        return {name: str(value) for name, value in (self._document.values().get("environment") or {}).items()}

    def references(self) -> set[str]:
        """Names in `environment` whose values come from the submitting environment: never written anywhere."""
        if self._document is None:
            return set()
        keys = self._document.environment()
        return {key.removeprefix("environment.") for key in keys if key.startswith("environment.")}

    def error(self, message: str, *, key: str | None = None, hint: str | None = None) -> ConfigError:
        """An error that names this cluster's file."""
        file, line = self._document.place(key or "kind") if self._document else (f"cluster {self.name}", None)
        return ConfigError(message, file=file, line=line, key=key, hint=hint)


class LocalCluster(_Cluster):
    """This machine: jobs are children of the run, and end with it."""

    kind: Literal["local"] = "local"
    grace_seconds: float = Field(
        30, gt=0, description="how long a job that is stopped may take to save a checkpoint before it is killed"
    )


class SlurmCluster(_Cluster):
    """A Slurm cluster, reached by its command line from where the run is started."""

    kind: Literal["slurm"]
    shared_root: Path | None = Field(None, description="folder that every node sees; the store has to be under it")
    partition: str | None = Field(None, description="default: the cluster's own default partition")
    account: str | None = None
    qos: str | None = None
    gpus: Literal["gres", "gpus_per_node", "gpus_per_task"] = Field(
        "gpus_per_node", description="how GPUs are asked for: --gres=gpu:N, --gpus-per-node or --gpus-per-task"
    )
    gpu_type: str | None = Field(None, description="as the cluster names it: a100, h100")
    exclude: list[str] = Field(default_factory=list, description="nodes that jobs must not get")
    sbatch_args: list[str] = Field(default_factory=list, description="passed to sbatch as they are")
    setup: list[str] = Field(default_factory=list, description="shell lines on the first node: module load, activate")
    container: str | None = Field(
        None, description="command prefix that runs a command inside a container: apptainer exec --nv image.sif"
    )
    python: str | None = Field(
        None, description="interpreter on the nodes; default: the submitting one, in a container `python`"
    )
    launch: Literal["torchrun", "srun"] = Field("torchrun", description="one torchrun a node, or one task a rank")
    walltime_notice: int = Field(
        180, ge=30, description="seconds before the end of the wall time at which a job is told to save and end"
    )
    poll_seconds: float = Field(15, gt=0, description="between questions to squeue")
    lost_seconds: float = Field(
        300, gt=0, description="a job that Slurm no longer knows and that left no word counts as lost after this"
    )

    @field_validator("sbatch_args")
    @classmethod
    def _not_our_own(cls, args: list[str]) -> list[str]:
        for arg in args:
            if not arg.startswith("-") or not arg.strip("-") or any(c in arg for c in "\n\0"):
                raise ValueError(f"{arg!r} is no option; write each as one item: --constraint=a100")
            for option in _meant(arg):
                if option in NAMED_OPTIONS:
                    raise ValueError(f"{arg!r}: write it as the key {NAMED_OPTIONS[option]}")
                if option in OWN_OPTIONS:
                    raise ValueError(f"{arg!r} is set by Evo itself and cannot be passed")
            if re.match(r"-[^=]*\s", arg):
                raise ValueError(f"{arg!r}: an option and its value are one word: --constraint=a100, -Ca100")
        return args

    @field_validator("setup")
    @classmethod
    def _is_whole(cls, lines: list[str]) -> list[str]:
        """An open quote or bracket would take in the rest of the batch script: the job would run nothing."""
        if problem := incomplete("\n".join(lines)):
            raise ValueError(f"these lines are no complete shell script: {problem}")
        return lines

    @field_validator("container", "python")
    @classmethod
    def _is_command(cls, value: str | None) -> str | None:
        if value is not None and not shlex.split(value):
            raise ValueError("is empty")
        return value


def _meant(arg: str) -> list[str]:
    """The options that `sbatch` takes a word for. It completes abbreviations, and reads ``-HW`` as ``-H -W``."""
    if arg.startswith("--"):
        name = "".join(arg[2:].partition("=")[0].split()[:1])
        refused = sorted({*OWN_OPTIONS, *NAMED_OPTIONS} - {name})
        return [name, *(option for option in refused if len(option) > 1 and option.startswith(name))]
    options: list[str] = []
    for letter in arg[1:]:
        options.append(letter)
        if letter not in _WITHOUT_VALUE:
            break
    return options


Cluster = LocalCluster | SlurmCluster
_SCHEMAS: dict[str, type[LocalCluster] | type[SlurmCluster]] = {"local": LocalCluster, "slurm": SlurmCluster}


def load_cluster(name_or_path: str) -> Cluster:
    """The cluster that a runtime names.

    Raises:
        ConfigError: there is no such file, or something in it is wrong.
    """
    file = _find(name_or_path)
    if file is None:
        return LocalCluster()
    document = read_document(file)
    data = document.written()
    kind = data.get("kind")
    if kind not in _SCHEMAS:
        line = document.place("kind")[1]
        meant = suggest(str(kind), _SCHEMAS)
        what = "a cluster file says its kind" if kind is None else f"{kind!r} is no kind of cluster{meant}"
        raise ConfigError(what, file=file, line=line, key="kind", hint="local or slurm")
    _refuse_other_references(document)
    try:
        cluster: Cluster = _SCHEMAS[kind].model_validate(data)
    except ValidationError as error:
        raise _explained(error, document, _SCHEMAS[kind]) from None
    cluster._document, cluster._name = document, name_or_path
    return cluster


def _refuse_other_references(document: Document) -> None:
    """What comes from the environment may be a secret, and all but `environment` is written into batch scripts."""
    for key, text in document.environment().items():
        if not key.startswith("environment."):
            file, line = document.place(key)
            raise ConfigError(
                f"{text} can be used under environment: only",
                file=file,
                line=line,
                key=key,
                hint="shell lines can use $NAME of a variable that stands there",
            )


def cluster_names() -> list[str]:
    """Clusters that can be named here."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("*.yaml")} | {"local"})


def _folders() -> list[Path]:
    return [root / "configs" / "clusters" for root in (Path.cwd(), Path(__file__).parents[2])]


def _find(name_or_path: str) -> Path | None:
    """The file of a cluster; None for the machine itself where no file says more about it."""
    if os.sep in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise ConfigError(f"there is no cluster file {name_or_path}", key="runtime.cluster")
        return path
    for folder in _folders():
        if (file := folder / f"{name_or_path}.yaml").is_file():
            return file
    if name_or_path == "local":
        return None
    names = cluster_names()
    raise ConfigError(
        f"there is no cluster {name_or_path!r}{suggest(name_or_path, names)}",
        key="runtime.cluster",
        hint=f"known: {', '.join(names)}; write configs/clusters/{name_or_path}.yaml or name a file",
    )


def _explained(error: ValidationError, document: Document, schema: type[BaseModel]) -> ConfigError:
    """The first mistake of a file, with its line and, for an unknown key, the nearest known one."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    file, line = document.place(key)
    if first["type"] == "extra_forbidden":
        message = f"unknown key{suggest(key.rpartition('.')[2], schema.model_fields)}"
    else:
        message = first["msg"].removeprefix("Value error, ")
    return ConfigError(message, file=file, line=line, key=key)
