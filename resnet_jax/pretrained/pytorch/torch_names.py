"""Tensors' names as a tree of modules."""

from collections.abc import Iterable
from dataclasses import dataclass

# What wrappers (DataParallel, torch.compile, Lightning modules) put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_LONGEST_NAME = 200
# Each part but the last is a module to remember. Hugging Face's names have ten, without a wrapper's.
_MOST_PARTS = 12


@dataclass(frozen=True)
class ModuleNames:
    """Tensors' names, and those of the modules that they belong to.

    Attributes:
      prefix: what wrappers put before every name.
      bare: the names without it.
      modules: full names of modules, each with how many tensors and modules are in it.
    """

    prefix: str
    bare: list[str]
    modules: dict[str, int]

    @property
    def is_huggingface(self) -> bool:
        """Whether they are spelled as in Hugging Face's ResNets."""
        return any(name.startswith("resnet.embedder.embedder.") for name in self.bare)


def module_names(tensors: Iterable[str]) -> ModuleNames:
    """Takes names apart.

    Raises:
      ValueError: there are none, or one is longer or has more parts than any that a net has.
    """
    full = list(tensors)
    if not full:
        raise ValueError("there are no tensors")
    if len(longest := max(full, key=len)) > _LONGEST_NAME:
        raise ValueError(
            f"tensor {longest[:50]!r}... has a name of {len(longest)} characters, more than {_LONGEST_NAME}"
        )
    bare, prefix = full, ""
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in bare)), None):
        bare, prefix = [name.removeprefix(wrapper) for name in bare], prefix + wrapper
    deepest = max(bare, key=lambda name: name.count("."))
    if (parts := deepest.count(".") + 1) > _MOST_PARTS:
        raise ValueError(f"tensor {deepest[:50]!r}... has a name of {parts} parts, more than {_MOST_PARTS}")
    # Numbers alone: a set for each module would take many times the file's own size.
    modules: dict[str, int] = {}
    for name in full:
        parent = name.rpartition(".")[0]
        while parent:
            modules[parent] = modules.get(parent, 0) + 1
            if modules[parent] > 1:
                break
            parent = parent.rpartition(".")[0]
    return ModuleNames(prefix, bare, modules)
