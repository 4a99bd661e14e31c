"""The runs that tensorboard shows: one link per model, to the folder its training wrote."""

from __future__ import annotations

from pathlib import Path

from evo_core.errors import UserError
from evo_core.storage.files import replacing
from tasks.store import Artifact, Store


def link_models(store: Store, folder: Path) -> list[str]:
    """Link every training of the store into `folder`, finished or running; returns the names of the links.

    A model is named ``<step>-<key>`` while it is trained, by its newest attempt, and when it is done: its curves stay
    where they are. A link whose model is gone or goes by another name now is removed.
    """
    steps = {key[:12]: step for key, step in store.step_names().items()}
    names = []
    for home in sorted((store.root / "artifacts").glob("*")):
        logs = _tensorboard_of(home)
        if logs is None:
            continue
        kind, _, key = home.name.rpartition("-")
        name = f"{steps.get(key, kind)}-{key}"
        names.append(name)
        link = folder / name
        if link.is_symlink() and link.readlink() == logs:
            continue
        with replacing(link, durable=False) as draft:
            draft.symlink_to(logs, target_is_directory=True)
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in names:
            link.unlink()
    return names


def _tensorboard_of(home: Path) -> Path | None:
    """The tensorboard folder of the committed attempt, else of the newest one. None for a damaged artifact."""
    artifact = Artifact(home)
    try:
        if artifact.exists:
            folder = artifact.path / "tensorboard"
            return folder if folder.is_dir() else None
    except UserError:
        return None
    running = sorted((home / "work").glob("run-*/tensorboard"), key=lambda p: int(p.parent.name.removeprefix("run-")))
    return running[-1] if running else None
