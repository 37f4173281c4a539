"""Tensors' names as a tree of modules."""

from collections.abc import Iterable
from dataclasses import dataclass

# What wrappers (DataParallel, torch.compile) put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
# A name of a million dots would have a million parents.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class ModuleNames:
    """Tensors' names, and those of the modules that they belong to.

    Attributes:
      prefix: what wrappers put before every name.
      bare: the names without it.
      modules: full names of modules, each with the names of its children.
    """

    prefix: str
    bare: list[str]
    modules: dict[str, set[str]]

    @property
    def is_huggingface(self) -> bool:
        """Whether they are spelled as in Hugging Face's ResNets."""
        return any(name.startswith("resnet.embedder.embedder.") for name in self.bare)


def module_names(tensors: Iterable[str]) -> ModuleNames:
    """Takes names apart.

    Raises:
      ValueError: there are none, or one is longer than any that a net has.
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
    modules: dict[str, set[str]] = {}
    for name in full:
        parent, _, own = name.rpartition(".")
        while parent and own not in modules.setdefault(parent, set()):
            modules[parent].add(own)
            parent, _, own = parent.rpartition(".")
    return ModuleNames(prefix, bare, modules)
