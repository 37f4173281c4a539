"""How a quantity grows with a net's size."""

import math
import statistics
from collections.abc import Sequence


def power_law(sizes: Sequence[float], values: Sequence[float], at: float) -> dict[str, float]:
    """The least-squares line through the logarithms: its exponent, and its value at another size."""
    logs = [[math.log(number) for number in numbers] for numbers in (sizes, values)]
    exponent, constant = statistics.linear_regression(*logs)
    return {"exponent": exponent, "size": at, "value": math.exp(constant + exponent * math.log(at))}
