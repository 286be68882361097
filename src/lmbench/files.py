"""Files that are whole or not there, whatever happens while they are written."""

import os
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Brings a file's content, or the new names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text under another name first; the file of before stays until it is there."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
