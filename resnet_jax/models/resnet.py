"""Residual nets and their plain twins, for ImageNet (Table 1) and CIFAR (section 4.2)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.arrangements import Arrangement, arrangement_of
from resnet_jax.models.blocks import BLOCKS, Block, Stem, apply_steps, he_normal
from resnet_jax.models.dense import Fill, Sizes, average, check_padding, filled_norm, keep, padding_filler
from resnet_jax.models.normalization import BatchNorm, FrozenBatchNorm
from resnet_jax.models.stochastic_depth import draw_branch_weights
from resnet_jax.models.unnormalized import Bias, fixup_kernel_init


class ResNet(nn.Module):
    """Stem, stages of identical blocks, global average, linear classifier.

    ImageNet (Table 1): 7x7/2 convolution with 64 filters, 3x3/2 maximum, four stages of 64, 128, 256, 512 filters
    (bottlenecks put out four times as many), at 56, 28, 14 and 7 pixels. CIFAR (section 4.2): 3x3 convolution with 16
    filters, three stages of 16, 32, 64 filters at 32, 16 and 8 pixels, 6n+2 layers. Every stage but the first halves
    the size in its first block. A plain net is the same without shortcuts (section 3.3).

    Attributes:
      stage_sizes: blocks per stage.
      num_classes: of the classifier; None leaves it out, and the call returns the pooled features.
      stem: "imagenet" or "cifar".
      block: "basic" or "bottleneck".
      shortcut: "A", "B" or "C" (section 3.3); None is the plain net.
      stride_in: layer of a bottleneck that takes the stride: "1x1" (the paper) or "3x3" (v1.5).
      pool_padding: of the imagenet stem's maximum: "both" (a pixel on every side) or "end" (as in the authors' Caffe).
      activation_order: of `ORDERS`: "post" (the paper), "norm_after_addition", "relu_before_addition", "relu_only_pre"
        or "pre" (He et al. 2016, Figure 4).
      norm: "batch"; "frozen"; or one without normalization: "none" (biases alone), "skipinit" (De and Smith 2020) or
        "fixup" (Zhang et al. 2019), see models/unnormalized.py.
      bn_group_size: examples per group of batch statistics; None takes the whole batch.
      bn_momentum: weight of the old value in the running statistics.
      zero_init_residual: start every block's last gamma at 0 (Goyal et al. 2017) instead of 1.
      dropout_rate: before the classifier; needs a "dropout" key in training.
      stochastic_depth: how often an image's last branch is dropped in training (Huang et al. 2016), see
        models/stochastic_depth.py; needs a "dropout" key, too.
      width: filters of the first stage.
      scan: stack the second to last block of each stage and loop over them; needed for 1202 layers.
      remat: keep only the blocks' inputs for the backward pass.
      dtype: of the computation; parameters, statistics and logits are float32.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int | None
    stem: str = "imagenet"
    block: str = "basic"
    shortcut: str | None = "B"
    stride_in: str = "1x1"
    pool_padding: str = "both"
    activation_order: str = "post"
    norm: str = "batch"
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    zero_init_residual: bool = False
    dropout_rate: float = 0.0
    stochastic_depth: float = 0.0
    width: int = 64
    scan: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def total_stride(self) -> int:
        """Pixels of the image from one position of the last stage to the next: 32 on ImageNet, 4 on CIFAR."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.stage_sizes) - 1)

    @property
    def arrangement(self) -> Arrangement:
        """Where normalization, ReLU and addition stand in its blocks."""
        return arrangement_of(self.activation_order, self.norm)

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "n h w c"],
        *,
        train: bool,
        use_running_average: bool | None = None,
        update_statistics: bool | None = None,
        return_features: bool = False,
        sizes: Sizes | None = None,
        pool_window: int | None = None,
    ):
        """Classifies normalised images.

        Args:
          images: floats of shape [n, h, w, c].
          train: turns dropout and stochastic depth on, and is the default of the two switches of batch normalization:
          use_running_average: normalise by the running statistics (default: not train).
          update_statistics: move the running statistics (default: train); `batch_stats` must be mutable.
          return_features: also return the stages' outputs, zero beyond `sizes`.
          sizes: height and width of each image, in pixels from 1 to h and w, in a batch padded at the bottom and right
            to multiples of `total_stride`; the padding has no influence, whatever it holds. None: the whole images.
          pool_window: k averages k x k positions at stride 1 (section 3.4: 7 on ImageNet), and `valid_positions` says
            which of the results belong to an image of `sizes`. None averages all of the image.

        Returns:
          Logits [n, num_classes] in float32, or the pooled features [n, f] when num_classes is None; with pool_window
          [n, ceil(h / total_stride) - pool_window + 1, likewise for w, num_classes or f]. With `return_features` a
          pair of that and a dict of "stem", "stage1", ..., "pooled".

        Raises:
          ValueError: if images are not floats of rank 4 with the channels last, the batch does not split into groups of
            bn_group_size, pool_window does not fit the last stage, or sizes are not [n, 2], or come with batch
            statistics or an h or w that `total_stride` does not divide.
        """
        if images.ndim != 4:
            raise ValueError(f"images must have shape [n, h, w, c], found {images.shape}; add the batch axis")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be normalised floats, found {images.dtype}")
        if images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
            raise ValueError(f"images must have shape [n, h, w, c], found {images.shape}: the channels come last")
        use_running_average = not train if use_running_average is None else use_running_average
        update_statistics = train if update_statistics is None else update_statistics
        norm = self.make_norm(use_running_average=use_running_average, update_statistics=update_statistics)
        padded_shape, fill = images.shape[1:3], keep
        if sizes is not None:
            if train or update_statistics or not use_running_average:
                raise ValueError("sizes need train=False and running statistics: a batch's would count the padding")
            check_padding(sizes, images.shape[:3], self.total_stride)
            fill = padding_filler(sizes, padded_shape)
            norm = filled_norm(norm, fill)
        x = self.make_stem(norm, fill)(fill(jnp.asarray(images)))
        features = {"stem": x}
        branch_weights = self._branch_weights(x, train=train)
        for stage, size in enumerate(self.stage_sizes, 1):
            x = self.apply_stage(x, stage, size, norm, branch_weights[stage - 1])
            features[f"stage{stage}"] = fill(x)
        x = apply_steps(self.arrangement.before, x, norm=norm, name="final_{}")
        x = average(x.astype(jnp.float32), pool_window=pool_window, sizes=sizes, padded_shape=padded_shape)
        features["pooled"] = x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.num_classes is not None:
            kernel_init = nn.initializers.zeros if self.norm == "fixup" else he_normal
            x = nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(x)
        return (x, features) if return_features else x

    @nn.nowrap
    def make_norm(self, *, use_running_average: bool, update_statistics: bool):
        """Returns the constructor of the net's normalization layers."""
        if self.norm == "frozen":
            return partial(_frozen_norm, dtype=self.dtype)
        if self.norm != "batch":
            return partial(_bias, shared=self.norm == "fixup", dtype=self.dtype)
        return partial(
            BatchNorm,
            use_running_average=use_running_average,
            update_statistics=update_statistics,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            dtype=self.dtype,
        )

    @nn.nowrap
    def make_stem(self, norm, fill: Fill = keep) -> Stem:
        """The layers before the first stage."""
        after = self.arrangement.after
        norm, relu = (norm if after else None), after == ("norm+relu",)
        return Stem(self.stem, self.width, norm, self.pool_padding, self.dtype, fill, relu, name="stem")

    @nn.nowrap
    def apply_stage(self, x, stage: int, size: int, norm, branch_weights=None):
        """The first block, then size - 1 identical ones, unrolled or as a loop over their stacked parameters.

        Args:
          x: what goes in.
          stage: counted from 1.
          size: blocks of the stage.
          norm: makes a normalization layer.
          branch_weights: [size, n], see `Block`; None is 1.
        """
        weights = [None] * size if branch_weights is None else branch_weights

        def apply(block, x, weights):
            return block(x, weights)

        run = nn.remat(apply) if self.remat else apply
        x = run(self.make_block(stage, norm, first=True, name=f"stage{stage}_block1"), x, weights[0])
        if not self.scan:
            for index in range(2, size + 1):
                block = self.make_block(stage, norm, first=False, name=f"stage{stage}_block{index}")
                x = run(block, x, weights[index - 1])
        elif size > 1:
            # In a loop the compiler cannot merge the second forward pass with the first, so nothing has to prevent it.
            body = nn.remat(apply, prevent_cse=False) if self.remat else apply
            loop = nn.scan(
                lambda block, x, weights: (body(block, x, weights), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=size - 1,
            )
            rest = None if branch_weights is None else branch_weights[1:]
            x, _ = loop(self.make_block(stage, norm, first=False, name=f"stage{stage}_blocks"), x, rest)
        return x

    @nn.nowrap
    def make_block(self, stage: int, norm, *, first: bool, name: str | None = None) -> Block:
        """The first or any other block of a stage (counted from 1)."""
        options: dict[str, Any] = {}
        if self.block == "bottleneck":
            options["stride_in"] = self.stride_in
        if self.zero_init_residual or self.norm == "skipinit":
            options["last_scale_init"] = nn.initializers.zeros
        if self.norm == "fixup":
            layers = 2 if self.block == "basic" else 3
            options["kernel_init"] = fixup_kernel_init(blocks=sum(self.stage_sizes), layers=layers)
            options["last_kernel_init"] = nn.initializers.zeros
        return BLOCKS[self.block](
            features=self.width * 2 ** (stage - 1),
            stride=2 if first and stage > 1 else 1,
            norm=norm,
            shortcut=self.shortcut,
            arrangement=self.arrangement,
            dtype=self.dtype,
            name=name,
            **options,
        )

    @nn.nowrap
    def _branch_weights(self, x: Float[Array, "n h w c"], *, train: bool) -> list[Array] | list[None]:
        """By stage, what the branch of each block and image of x is multiplied by, [blocks, n]; None where it is 1."""
        if not (train and self.stochastic_depth):
            return [None] * len(self.stage_sizes)
        key, blocks = self.make_rng("dropout"), sum(self.stage_sizes)
        drawn = draw_branch_weights(key, blocks=blocks, images=len(x), drop_rate=self.stochastic_depth)
        return jnp.split(drawn, np.cumsum(self.stage_sizes)[:-1])


def _frozen_norm(*, name: str | None, dtype, relu: bool = False, scale_init=None) -> FrozenBatchNorm:
    del scale_init  # A frozen layer holds what a trained net brought along.
    return FrozenBatchNorm(dtype=dtype, relu=relu, name=name)


def _bias(*, name: str | None, shared: bool, dtype, relu: bool = False, scale_init=None) -> Bias:
    del scale_init  # A bias has no gamma.
    return Bias(shared=shared, relu=relu, dtype=dtype, name=name)
