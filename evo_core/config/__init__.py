"""Training configurations: their schema, how they are read, checked and written.

Importing this package imports neither torch nor omegaconf: planning stays fast.
"""

from evo_core.config.errors import ConfigErrors
from evo_core.config.load import load_config, load_saved_config
from evo_core.config.references import as_literal
from evo_core.config.resolve import line_of, load_yaml
from evo_core.config.schema import ModelConfig, TrainConfig
from evo_core.config.suggest import suggest
from evo_core.config.write import save_config
from evo_core.config.yaml_file import dump_yaml
from evo_core.storage.location import is_remote, local_path

__all__ = [
    "ConfigErrors",
    "ModelConfig",
    "TrainConfig",
    "as_literal",
    "dump_yaml",
    "is_remote",
    "line_of",
    "load_config",
    "load_saved_config",
    "load_yaml",
    "local_path",
    "save_config",
    "suggest",
]
