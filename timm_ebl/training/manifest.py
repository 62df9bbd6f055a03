"""``manifest.json`` of a checkpoint: its settings, and the SHA-256 of its files and of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MANIFEST", "find_damage", "read_settings", "render_manifest"]

MANIFEST = "manifest.json"
_FORMAT = 1


def render_manifest(settings: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
    """The file's content.

    Args:
        settings: What decides the run's result.
        files: SHA-256 of the checkpoint's other files, by their names.
    """
    content = {"format": _FORMAT, "settings": settings, "files": files}
    return json.dumps(content | {"sha256": _digest(content)}, indent=1).encode()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of an undamaged checkpoint."""
    return json.loads((folder / MANIFEST).read_text())["settings"]


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, if anything is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest.get("format") != _FORMAT:
            return f"{MANIFEST} has the format {manifest.get('format')}, and this version reads {_FORMAT}"
        if manifest.pop("sha256") != _digest(manifest):
            return f"{MANIFEST} is not what was written"
        processes = manifest["settings"]["processes"]
        names = ("run.pt", *(f"process-{rank}.pt" for rank in range(len(manifest["files"]) - 1)))
        if len(names) != processes + 1 or manifest["files"].keys() != {*names}:
            return f"{MANIFEST} does not list its files"
        for name, digest in manifest["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is not what was written"
    return None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
