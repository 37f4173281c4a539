"""Localization of one class's objects (appendix C): per-class regression of anchors, then of warped regions."""
