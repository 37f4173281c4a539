"""Several processes as one run: how they find each other, agree on what they run, and notice that one went astray."""
