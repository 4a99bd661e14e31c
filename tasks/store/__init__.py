"""The store: artifacts, the commit that makes them visible, claims, refs."""

from tasks.store.artifact import Artifact
from tasks.store.store import Store, open_store

__all__ = ["Artifact", "Store", "open_store"]
