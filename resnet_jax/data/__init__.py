"""Data sets: where they live, how they are made, and how they reach the device."""
