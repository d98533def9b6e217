"""Files and folders that the programs write."""

import tempfile
from contextlib import suppress
from pathlib import Path

from .program import Refusal


def check_folder(option: str, path: Path) -> None:
    """Raises Refusal if files cannot be written to a folder; makes nothing."""
    made = []
    try:
        made = [one for one in (path, *path.parents) if not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise Refusal(f"{option}: cannot write to {str(path)!r}: {error.strerror}") from None
    finally:
        for one in made:
            with suppress(OSError):
                one.rmdir()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file as a whole or not at all, since a program may be stopped at any time."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
