"""Small operations whose value and gradient stay finite, shared by the losses."""

import jax
import jax.numpy as jnp


def mean_where(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the values that `mask` [first axes of values] selects; 0 if none."""
    trailing = values.size // max(mask.size, 1)
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1) * trailing
    return jnp.sum(jnp.where(mask, values, 0)) / count


def safe_sqrt(squared: jax.Array) -> jax.Array:
    """Square root whose value and gradient are 0 at 0 and below (rounding)."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def magnitude(x: jax.Array) -> jax.Array:
    """|x| with gradient 0 at 0, as on flat background (jnp.abs has gradient 1)."""
    return x * jax.lax.stop_gradient(jnp.sign(x))
