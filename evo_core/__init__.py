"""Evo's core: data, model, parallel runtime, optimizer, checkpoints, training and generation.

It knows nothing of pipelines or Prefect. Importing it imports no torch: each part imports what it uses.
"""

__version__ = "0.1.0"
