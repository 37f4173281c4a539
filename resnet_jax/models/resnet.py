"""Residual nets and their plain twins, for ImageNet (Table 1) and CIFAR (section 4.2)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from resnet_jax.models.blocks import POST_ACTIVATION, PRE_ACTIVATION, Stem, he_normal
from resnet_jax.models.dense import Fill, Sizes, average, check_padding, filled_norm, keep, padding_filler
from resnet_jax.models.normalization import BatchNorm, FrozenBatchNorm


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
      activation_order: "post" (the paper) or "pre" (He et al. 2016).
      norm: "batch" or "frozen".
      bn_group_size: examples per group of batch statistics; None takes the whole batch.
      bn_momentum: weight of the old value in the running statistics.
      zero_init_residual: start every block's last gamma at 0 (Goyal et al. 2017) instead of 1.
      dropout_rate: before the classifier; needs a "dropout" key in training.
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
    width: int = 64
    scan: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def total_stride(self) -> int:
        """Pixels of the image from one position of the last stage to the next: 32 on ImageNet, 4 on CIFAR."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.stage_sizes) - 1)

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
          train: turns dropout on, and is the default of the two switches of batch normalization:
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
        for stage, size in enumerate(self.stage_sizes, 1):
            x = self.apply_stage(x, stage, size, norm)
            features[f"stage{stage}"] = fill(x)
        if self.activation_order == "pre":
            x = norm(name="final_norm", relu=True)(x)
        x = average(x.astype(jnp.float32), pool_window=pool_window, sizes=sizes, padded_shape=padded_shape)
        features["pooled"] = x
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.num_classes is not None:
            x = nn.Dense(self.num_classes, kernel_init=he_normal, name="classifier")(x)
        return (x, features) if return_features else x

    @nn.nowrap
    def make_norm(self, *, use_running_average: bool, update_statistics: bool):
        """Returns the constructor of the net's normalization layers."""
        if self.norm == "frozen":
            return partial(_frozen_norm, dtype=self.dtype)
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
        norm = norm if self.activation_order == "post" else None
        return Stem(self.stem, self.width, norm, self.pool_padding, self.dtype, fill, name="stem")

    @nn.nowrap
    def apply_stage(self, x, stage: int, size: int, norm):
        """The first block, then size - 1 identical ones, unrolled or as a loop over their stacked parameters."""

        def apply(block, x):
            return block(x)

        run = nn.remat(apply) if self.remat else apply
        x = run(self.make_block(stage, norm, first=True, name=f"stage{stage}_block1"), x)
        if not self.scan:
            for index in range(2, size + 1):
                x = run(self.make_block(stage, norm, first=False, name=f"stage{stage}_block{index}"), x)
        elif size > 1:
            # In a loop the compiler cannot merge the second forward pass with the first, so nothing has to prevent it.
            body = nn.remat(apply, prevent_cse=False) if self.remat else apply
            loop = nn.scan(
                lambda block, x, _: (body(block, x), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=size - 1,
            )
            x, _ = loop(self.make_block(stage, norm, first=False, name=f"stage{stage}_blocks"), x, None)
        return x

    @nn.nowrap
    def make_block(self, stage: int, norm, *, first: bool, name: str | None = None) -> nn.Module:
        """The first or any other block of a stage (counted from 1)."""
        pre = self.activation_order == "pre"
        options: dict[str, Any] = {}
        if self.block == "bottleneck":
            options["stride_in"] = self.stride_in
        if self.zero_init_residual and not pre:
            options["last_scale_init"] = nn.initializers.zeros
        return (PRE_ACTIVATION if pre else POST_ACTIVATION)[self.block](
            features=self.width * 2 ** (stage - 1),
            stride=2 if first and stage > 1 else 1,
            norm=norm,
            shortcut=self.shortcut,
            dtype=self.dtype,
            name=name,
            **options,
        )


def _frozen_norm(*, name: str, dtype, relu: bool = False, scale_init=None) -> FrozenBatchNorm:
    del scale_init  # A frozen layer holds what a trained net brought along.
    return FrozenBatchNorm(dtype=dtype, relu=relu, name=name)
