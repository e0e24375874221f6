"""How hard a target image is, and how many neighbours it gets next."""

import jax
import jax.numpy as jnp


def entropy(posterior_qc: jax.Array) -> jax.Array:
  """Entropy of every row, with 0 log 0 = 0.

  H[q] = - sum_c p[q, c] log p[q, c]

  Args:
    posterior_qc: class probabilities, float [q, c].

  Returns:
    Nats, float [q], 0..log c.

  Source: Ge & Yu, CVPR 2017, eq. 3.
  """
  return jax.scipy.special.entr(posterior_qc).sum(axis=-1)


def next_budget(
  budget_q: jax.Array,
  posterior_qc: jax.Array,
  label_q: jax.Array,
  *,
  add_wrong: int,
  add_unsure: int,
  min_entropy: float,
  maximum: int,
) -> jax.Array:
  """Neighbours per target image in the next round.

  K <- min(K + add_wrong, maximum)   if argmax p is not the label
  K <- min(K + add_unsure, maximum)  if it is, and H >= min_entropy
  K <- min(K, maximum)               else

  Args:
    budget_q: K of this round, int [q].
    posterior_qc: class probabilities, float [q, c].
    label_q: true classes, int [q].
    add_wrong: images; 4 K0 in the paper.
    add_unsure: images; 2 K0 in the paper.
    min_entropy: nats; 0.1 in the paper.
    maximum: cap on K; the release caps at 5 or 10 K0.

  Returns:
    K of the next round, int32 [q].

  Raises:
    ValueError: if the three lengths q differ.

  Source: Ge & Yu, CVPR 2017, eq. 4; the cap from the release.
  """
  budget_q, posterior_qc, label_q = map(
    jnp.asarray, (budget_q, posterior_qc, label_q)
  )
  if not budget_q.shape == label_q.shape == posterior_qc.shape[:1]:
    raise ValueError(
      'A budget and a label for every posterior: '
      f'{budget_q.shape=}, {posterior_qc.shape=}, {label_q.shape=}.'
    )
  wrong_q = posterior_qc.argmax(axis=-1) != label_q
  unsure_q = entropy(posterior_qc) >= min_entropy
  extra_q = jnp.where(wrong_q, add_wrong, jnp.where(unsure_q, add_unsure, 0))
  return jnp.minimum(budget_q + extra_q, maximum).astype(jnp.int32)
