"""``evo convert SRC TGT`` and ``python -m evo_core.convert``: weights from one system's format to another's."""
