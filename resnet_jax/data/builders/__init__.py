"""TFDS builders that make data sets in ArrayRecord form without TensorFlow."""
