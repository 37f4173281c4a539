"""The commands of the command line.

Each is a module with a function that declares its flags and one that calls the package. The latter imports whatever is
heavy, so that `resnet-jax --help` and a misspelt flag answer at once.
"""
