"""Where normalization, ReLU and the addition stand in a block, without jax: a table, which the blocks read.

He et al. 2016, "Identity mappings in deep residual networks", compares the five of its Figure 4. Each is four places,
and each place holds steps, which follow one another: "norm", "norm+relu", "relu", "scale" (times one trained number)
and "shift" (plus one trained number).
"""

from typing import NamedTuple

Steps = tuple[str, ...]


class Arrangement(NamedTuple):
    """What stands between the convolutions of a block.

    A net's ends follow from it: its stem is a convolution and `after`, as if it were a layer of a block; the last block
    and the average have `before` between them, as every sum and the convolution that takes it.

    Attributes:
      before: each convolution of the branch. A projection takes what the branch's first convolution does.
      after: each convolution of the branch but the last.
      last: stands after the branch's last convolution, before the addition. A projection has a normalization where
        this begins with one.
      of_sum: stands after the addition.
    """

    before: Steps
    after: Steps
    last: Steps
    of_sum: Steps


# Figure 4 of He et al. 2016, (a) to (e).
ORDERS = {
    "post": Arrangement((), ("norm+relu",), ("norm",), ("relu",)),
    "norm_after_addition": Arrangement((), ("norm+relu",), (), ("norm+relu",)),
    "relu_before_addition": Arrangement((), ("norm+relu",), ("norm+relu",), ()),
    "relu_only_pre": Arrangement(("relu",), ("norm",), ("norm",), ()),
    "pre": Arrangement(("norm+relu",), (), (), ()),
}
# Figure 1, right, of Zhang et al. 2019, whose normalizations are one trained number to be added.
_FIXUP = Arrangement(("shift",), ("norm+relu",), ("scale", "norm"), ("relu",))

NORMS = ("batch", "frozen", "none", "skipinit", "fixup")
# Those that have statistics.
NORMALIZING = ("batch", "frozen")


def arrangement_of(activation_order: str, norm: str) -> Arrangement:
    """The arrangement of a net's blocks.

    Args:
      activation_order: of `ORDERS`; of norm="fixup", "post" alone.
      norm: of `NORMS`; "skipinit" (De and Smith 2020) has its scale at the very end of the branch.
    """
    if norm == "fixup":
        return _FIXUP
    order = ORDERS[activation_order]
    return order._replace(last=(*order.last, "scale")) if norm == "skipinit" else order
