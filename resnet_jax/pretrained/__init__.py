"""Trained nets as files that stand alone: the parameters, and what the net is and expects."""
