"""What training does inside a net: gradients, updates, activations, spectra and the loss around a solution.

Each module has functions of a net, its variables and some images, for a notebook as well as for a run, which writes
what `diagnosis` makes of them beside its other metrics.
"""
