"""The modules of experiments' folders, which are scripts beside each other and no package."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType


@contextlib.contextmanager
def experiment_modules(*folders: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Gives the function that imports one by name; afterwards none of them is known any more."""
    names = {path.stem for folder in folders for path in folder.glob("*.py")}
    sys.path[:0] = map(str, folders)
    try:
        yield importlib.import_module
    finally:
        for folder in folders:
            sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
