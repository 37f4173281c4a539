"""Training of the nets of "Deep Residual Learning for Image Recognition" (He et al. 2015) in JAX and Flax.

Names are loaded when first used, so that importing the package starts no device and takes no time.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "ResNet": "models.resnet",
    "convert": "pretrained.convert",
    "create_model": "models.registry",
    "evaluate": "evaluation.run",
    "evaluate_workdir": "evaluation.run",
    "export_inference": "pretrained.export",
    "fold_batch_norm": "pretrained.folding",
    "freeze_batch_norm": "models.normalization",
    "initialize": "models.registry",
    "layer_responses": "analysis.responses",
    "list_models": "models.registry",
    "list_pretrained": "pretrained.zoo",
    "load_config": "config_files",
    "load_partial": "pretrained.loading",
    "load_pretrained": "pretrained.loading",
    "load_weights": "pretrained.reading",
    "load_workdir": "evaluation.run",
    "measure": "data.statistics",
    "plot_curves": "analysis.curves",
    "plot_responses": "analysis.responses",
    "predict": "evaluation.predict",
    "prepare": "data.prepare",
    "recompute_statistics": "training.batch_statistics",
    "report": "analysis.report",
    "save_pretrained": "pretrained.weights",
    "stack_blocks": "models.stacking",
    "summarize": "models.summary",
    "train": "training.loop",
    "train_seeds": "training.loop",
    "unstack_blocks": "models.stacking",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
