"""The nets: blocks, families, names, summaries, and the parts they are made of."""
