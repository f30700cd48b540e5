"""Golden values and gradients of the losses."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import GoldenFile

from gaitjax import losses


def check_losses(golden: GoldenFile) -> None:
    def array(name):
        return jnp.asarray(golden.arrays[name])

    for case, settings in golden.meta["cfg"].items():
        labels = f"{case}/in/labels"
        labels = array(labels) if labels in golden.arrays else None
        family = case.partition("_")[0]
        (name,) = [
            key.rpartition("/")[2]
            for key in golden.names()
            if key.startswith(f"{case}/in/") and not key.endswith("/labels")
        ]
        loss = {
            "triplet": triplet,
            "ce": cross_entropy,
            "bce": binary_cross_entropy,
            "supcon": supcon,
            "biggait": biggait,
        }[family](case, settings, labels)
        x = array(f"{case}/in/{name}")
        value, extras = jax.jit(loss)(x)
        golden.check(f"{case}/loss", value)
        for key, extra in extras.items():
            golden.check(f"{case}/{key}", extra)
        mean = jax.jit(jax.grad(lambda x, loss=loss: loss(x)[0].mean()))
        golden.check(f"{case}/grad/{name}", mean(x))
    # how the reference logs its batches; we have no such functions
    diagnostics = ("/hard_loss", "/accuracy", "/miou")
    left = [key for key in golden.unchecked() if "/in/" not in key]
    assert [key for key in left if not key.endswith(diagnostics)] == []


def triplet(case, settings, labels):
    def loss(x):  # [n c p]
        embeddings = jnp.swapaxes(x, 1, 2)  # [B S D]
        value, count = losses.batch_all_triplet_by_label(
            embeddings, labels, margin=settings["margin"]
        )
        order = np.argsort(np.asarray(labels), kind="stable")
        grouped = losses.batch_all_triplet(
            embeddings[order],
            seqs_per_id=len(labels) // len(np.unique(labels)),
            margin=settings["margin"],
        )
        distances = losses.metric.pairwise_distances(embeddings)
        extras = {"loss_num": count, "mean_dist": distances.mean((1, 2))}
        return (value + grouped) / 2, extras

    return loss


def cross_entropy(case, settings, labels):
    def loss(x):  # [n c p]
        per_strip = losses.strip_cross_entropy(
            jnp.swapaxes(x, 1, 2),
            labels,
            scale=settings["scale"],
            smoothing=settings["eps"] * settings["label_smooth"],
        )
        return per_strip.mean(), {}

    return loss


def binary_cross_entropy(case, settings, labels):
    def loss(x):
        value = losses.binary_cross_entropy(x, labels, epsilon=settings["eps"])
        return value.mean(), {}

    return loss


def supcon(case, settings, labels):
    temperature = settings["temperature"]

    def by_distance(x):  # [n c]
        return losses.supcon_loss(x, labels, temperature=temperature), {}

    def by_dot_product(x):  # [n views c]
        views = x.shape[1]
        x = x.reshape(-1, x.shape[-1])
        terms, _ = losses.contrastive.supervised_contrastive(
            x @ x.T / temperature, jnp.repeat(labels, views)
        )
        return terms.mean(), {}

    return by_dot_product if case == "supcon_re" else by_distance


def biggait(case, settings, labels):
    def loss(x):
        if case == "biggait_diversity":  # [n pixels c]
            return losses.diversity_loss(x[:, :, None]), {}
        size = settings["sils_size"]
        if case == "biggait_smooth_part":  # [n pixels c], without the last channel
            maps = x.reshape(x.shape[0], 2 * size, size, -1)[..., :-1]
        else:  # [n c pixels]; the quirk reads pixel-major memory as if it were that
            channels = x.shape[1]
            maps = x.reshape(-1, channels, 2 * size, size)
            maps = jnp.moveaxis(maps, 1, 3)
        return losses.smoothness_loss(maps, reduce="sum"), {}

    return loss


KINDS = {"losses": check_losses}
