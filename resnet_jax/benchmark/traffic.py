"""What a compiled program asks of memory."""

from typing import Any


def planned_bytes(compiled: Any) -> int:
    """Device memory that the program takes: arguments, results that are no arguments reused, and temporary buffers."""
    plan = compiled.memory_analysis()
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return kept + plan.temp_size_in_bytes


def step_bytes(compiled: Any) -> float:
    """Bytes that the kernels read and write, as if no cache held anything; of a loop, of one turn."""
    return compiled.cost_analysis()["bytes accessed"]
