# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cache: each artefact is in a folder that is named after all its inputs. It is complete or absent."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from . import limits
from .errors import LabError
from .run import say

PARTIAL = ".partial"


def root() -> Path:
    """This user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path.home() / ".cache"
    path = folder / "kvm-liveupdate"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(inputs: Mapping[str, str]) -> str:
    """The hash of these inputs, for names."""
    text = json.dumps(dict(inputs), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def recipe(*files: str) -> str:
    """The hash of the code in these Python files: an input of what they build."""
    text = "\n".join(code(Path(file).read_text()) for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def code(text: str) -> str:
    """A Python file without comments, docstrings and imports. A change to only these needs no new build. Pure."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [statement for statement in node.body if not _says_nothing(statement)] or [ast.Pass()]
    return ast.unparse(tree)


def _says_nothing(statement: ast.stmt) -> bool:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, (ast.Import, ast.ImportFrom))


def place(kind: str, inputs: Mapping[str, str]) -> Path:
    """The folder for the artefact of these inputs, whether it exists or not."""
    return root() / f"{kind}-{key(inputs)}"


def log_of(kind: str, inputs: Mapping[str, str]) -> Path:
    """The build log of an artefact. It is kept after a failure."""
    return root() / "logs" / f"{kind}-{key(inputs)}.log"


def artefact(kind: str, inputs: Mapping[str, str], build: Callable[[Path, Path], None]) -> Path:
    """The artefact of these inputs. If it does not exist, build(folder, log) builds it.

    The folder is renamed to its final name at the end, in one step. So a folder with that name is always complete.
    """
    final = place(kind, inputs)
    if final.is_dir():
        _touch(final)
        return final
    with locked(final.name):
        if final.is_dir():  # another run has built it while this one waited
            return final
        remove_stale()
        partial = final.with_name(final.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)  # we hold the lock, so no other run uses it
        partial.mkdir()
        log = log_of(kind, inputs)
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        try:
            build(partial, log)
            (partial / "inputs.json").write_text(json.dumps(dict(inputs), sort_keys=True, indent=1) + "\n")
            _flush(partial)  # after a power cut the name must not exist without the content
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


@contextmanager
def locked(name: str, limit_s: float = limits.LOCK) -> Iterator[None]:
    """Hold the lock with this name. The kernel releases it if this process dies."""
    folder = root() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as stream:
        started = time.monotonic()
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told and limit_s > 0:
                    say(f"  waiting: another run holds the lock {name}")
                    told = True
                if time.monotonic() - started > limit_s:
                    raise LabError(
                        f"another run has held the lock {name} for more than {limit_s:.0f} s; try again when it has ended"
                    ) from None
                time.sleep(0.5)
        yield


def remove_stale() -> None:
    """Remove the folders of interrupted builds. A running build holds its lock, so its folder stays."""
    for partial in root().glob("*" + PARTIAL):
        name = partial.name.removesuffix(PARTIAL)
        try:
            with locked(name, limit_s=-1.0):
                shutil.rmtree(partial, ignore_errors=True)
        except LabError:
            continue


def prune(kind: str, keep: int) -> None:
    """Keep the most recently used artefacts of a kind, remove the others."""
    finished = [path for path in root().glob(kind + "-*") if path.is_dir() and path.suffix != PARTIAL]
    finished.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in finished[keep:]:
        doomed = path.with_name(path.name + PARTIAL)
        path.rename(doomed)  # rename first: a half-removed artefact must not have the final name
        shutil.rmtree(doomed, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Flush every file of a folder to the disk."""
    for path in (*(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _touch(path: Path) -> None:
    """Record the time of use for prune."""
    with suppress(OSError):
        os.utime(path)
