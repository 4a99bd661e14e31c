"""The runs that tensorboard shows: one link per model, to the folder its training wrote."""

from __future__ import annotations

from pathlib import Path

from tasks.store import Store


def link_models(store: Store, folder: Path) -> list[str]:
    """Link every training of the store into `folder`, finished or running; returns the names of the links.

    A finished model is named ``<step>-<key>``. Of one that is being trained the newest attempt is shown, under the
    same name, so that its curves stay where they are when it is done.
    """
    names = []
    for home in sorted((store.root / "artifacts").glob("*")):
        logs = _tensorboard_of(home)
        if logs is None:
            continue
        names.append(home.name)
        link = folder / home.name
        if link.is_symlink() and link.readlink() == logs:
            continue
        fresh = folder / f".{home.name}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(logs, target_is_directory=True)
        fresh.replace(link)
    return names


def _tensorboard_of(home: Path) -> Path | None:
    """The tensorboard folder of the committed attempt, else of the newest one."""
    from tasks.store import Artifact

    artifact = Artifact(home)
    if artifact.exists:
        folder = artifact.path / "tensorboard"
        return folder if folder.is_dir() else None
    running = sorted((home / "work").glob("run-*/tensorboard"), key=lambda p: int(p.parent.name.removeprefix("run-")))
    return running[-1] if running else None
