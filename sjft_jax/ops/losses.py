"""The summed cross-entropy of the two tasks."""

import jax
import jax.numpy as jnp


def cross_entropy(
  logits_nc: jax.Array, label_n: jax.Array, smoothing: float = 0.0
) -> jax.Array:
  """Mean softmax cross-entropy; 0 over no examples.

  L = -1/n sum_i (1 - e) log softmax(logits_i)[label_i]
                 + e/c sum_j log softmax(logits_i)[j]

  Args:
    logits_nc: float [n, c].
    label_n: int [n], 0..c-1.
    smoothing: e, the part of every label that is spread over all classes.

  Returns:
    Nats, scalar.

  Raises:
    ValueError: if the two lengths n differ.
  """
  if logits_nc.shape[:1] != label_n.shape:
    raise ValueError(f'A label a row: {logits_nc.shape=}, {label_n.shape=}.')
  log_nc = jax.nn.log_softmax(logits_nc)
  log_n1 = jnp.take_along_axis(log_nc, label_n[:, None], axis=1)
  total = -log_n1.sum()
  if smoothing:
    total = (1 - smoothing) * total - smoothing * log_nc.mean(axis=1).sum()
  return total / max(len(label_n), 1)


def soft_cross_entropy(
  logits_nc: jax.Array, probability_nc: jax.Array, temperature: float
) -> jax.Array:
  """Mean cross-entropy towards a teacher's probabilities, both softened.

  L = -T^2/n sum_i <q_i, log softmax(logits_i / T)>, q ~ p^(1/T)

  which is the softmax of the teacher's logits divided by T, whatever those
  were; T^2 keeps gradients of one size.

  Args:
    logits_nc: float [n, c].
    probability_nc: p of the teacher, float [n, c].
    temperature: T, above 0.

  Returns:
    Nats, scalar; 0 over no examples.

  Raises:
    ValueError: if the shapes differ.

  Source: Hinton et al., 2015, arXiv 1503.02531, section 2.
  """
  if logits_nc.shape != probability_nc.shape:
    raise ValueError(
      f'A probability a logit: {logits_nc.shape=}, {probability_nc.shape=}.'
    )
  tiny = jnp.finfo(probability_nc.dtype).tiny
  log_nc = jnp.log(jnp.maximum(probability_nc, tiny))
  soft_nc = jax.nn.softmax(log_nc / temperature)
  answer_nc = jax.nn.log_softmax(logits_nc / temperature)
  total = -(soft_nc * answer_nc).sum()
  return temperature**2 * total / max(len(logits_nc), 1)


def joint(
  target_logits_tc: jax.Array,
  target_label_t: jax.Array,
  source_logits_sc: jax.Array,
  source_label_s: jax.Array,
  *,
  target_weight: float = 1.0,
  source_weight: float = 1.0,
  smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Loss of a joint batch; an empty half adds nothing.

  L = target_weight L_target + source_weight L_source

  Args:
    target_logits_tc: float [t, classes of the target].
    target_label_t: int [t].
    source_logits_sc: float [s, classes of the source].
    source_label_s: int [s].
    target_weight: 1 in the paper, 0.5 in the release.
    source_weight: as target_weight.
    smoothing: as in `cross_entropy`, of both halves.

  Returns:
    (L, L_target, L_source) in nats, scalars.

  Raises:
    ValueError: if labels and logits differ in length.

  Source: Ge & Yu, CVPR 2017, section 3.1.
  """
  target = cross_entropy(target_logits_tc, target_label_t, smoothing)
  source = cross_entropy(source_logits_sc, source_label_s, smoothing)
  return target_weight * target + source_weight * source, target, source
