"""The training step, what it carries along, and the loop around it."""
