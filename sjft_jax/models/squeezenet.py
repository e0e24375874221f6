"""SqueezeNet v1.0 without its classifier."""

from sjft_jax.models.frozen import Conv, Fire, Network, Pool

# Source: Iandola et al., 2016; the Caffe model of v1.0.
V1_0 = Network(
  (
    Conv('conv1', 96, 7, stride=2),
    Pool(ceil=True),
    Fire('fire2', 16, 64),
    Fire('fire3', 16, 64),
    Fire('fire4', 32, 128),
    Pool(ceil=True),
    Fire('fire5', 32, 128),
    Fire('fire6', 48, 192),
    Fire('fire7', 48, 192),
    Fire('fire8', 64, 256),
    Pool(ceil=True),
    Fire('fire9', 64, 256),
  ),
  default=('conv1',),
)
