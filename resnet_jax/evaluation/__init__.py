"""Test protocols, exact evaluation, prediction."""
