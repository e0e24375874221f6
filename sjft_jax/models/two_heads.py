"""One trunk, two classifiers: the network that is trained jointly."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sjft_jax.models.convention import CAFFE, Convention

# Images of a joint batch whose first t are the target's.
AVERAGES = {
  'both': lambda t: None,
  'target': lambda t: slice(t),
  'source': lambda t: slice(t, None),
}


class TwoHeads(nn.Module):
  """A shared trunk whose feature goes to the classifier of each half.

  Attributes:
    trunk: module of (float32 [n, h, w, 3], train) to a feature [n, f].
    target_classes: outputs of the target classifier.
    source_classes: outputs of the source classifier.
    averages: which images of a joint batch enter the running averages of
      batch normalisation: 'target', 'source' or 'both'. Only a trunk that has
      a third argument, a slice of the images, can take less than both.
    convention: what the trunk is fed; that of its weights, if it has any. The
      release's has no division: the batch normalisation behind the first
      convolution makes the network blind to the scale of its input.

  Source: Ge & Yu, CVPR 2017, section 3.1; gaussian 0.01 from the release.
  """

  trunk: nn.Module
  target_classes: int
  source_classes: int
  averages: str = 'both'
  convention: Convention = CAFFE

  @nn.compact
  def __call__(
    self, target_image: jax.Array, source_image: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Logits of both halves after one pass of the trunk over all images.

    Args:
      target_image: RGB, uint8 [t, h, w, 3]; t may be 0.
      source_image: RGB, uint8 [s, h, w, 3]; s may be 0, t + s may not.
      train: batch statistics, over both halves together, if true; else the
        running averages.

    Returns:
      (target logits float32 [t, target_classes],
       source logits float32 [s, source_classes]).
    """
    image_nhwc = jnp.concatenate([target_image, source_image])
    t = len(target_image)
    some = ()
    if self.averages != 'both' and 0 < t < len(image_nhwc):
      some = (AVERAGES[self.averages](t),)
    feature_nf = self.trunk(self.convention(image_nhwc), train, *some)
    target_tf, source_sf = jnp.split(feature_nf, [t])
    return (
      self._head(self.target_classes, 'target_head')(target_tf),
      self._head(self.source_classes, 'source_head')(source_sf),
    )

  def _head(self, classes, name):
    init = nn.initializers.normal(0.01)
    return nn.Dense(classes, kernel_init=init, name=name)
