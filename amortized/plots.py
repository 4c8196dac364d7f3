"""Figures: functions that draw on an ``ax`` (or make one) and return it; nothing is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

_TRAIN, _VAL = "#4878a8", "#c8553d"


def training_curves(
    history: Mapping[str, Sequence[float]], ax: Axes | None = None, *, per_datum: bool = True
) -> Axes:
    """The bound on training and validation data against epochs, in nats per data point.

    Where the first tenth of the epochs would squeeze all the others, the axis leaves it out.
    """
    ax = _axes(ax)
    curves = {"train": ("train_elbo", _TRAIN), "validation": ("val_elbo", _VAL)}
    drawn: list[np.ndarray] = []
    for label, (key, colour) in curves.items():
        values = np.asarray(history.get(key, ()), dtype=float)
        if values.size and np.isfinite(values).any():
            epochs = np.arange(1, len(values) + 1)
            ax.plot(epochs, values, color=colour, label=label, marker="." * (len(values) < 30))
            drawn.append(values[np.isfinite(values)])
    ax.set_xlabel("epoch")
    ax.set_ylabel("ELBO (nats per data point)" if per_datum else "ELBO (nats)")
    # one epoch is one tick, and not eight fractions of it
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.set_xlim(left=max(ax.get_xlim()[0], 0.5), auto=None)  # there is no epoch 0
    ax.ticklabel_format(axis="y", useOffset=False)
    _tidy(ax)
    if drawn:
        _cut(ax, drawn)
        ax.legend(frameon=False)
    return ax


def reconstructions(
    originals: ArrayLike, means: ArrayLike, axes: np.ndarray | None = None
) -> np.ndarray:
    """Images above their reconstructions, arrays ``[n, height, width]``, in one grey scale.

    It is that of `image_limits` of the images. Returns the axes, shape ``[2, n]``.
    """
    rows = np.stack([np.asarray(originals), np.asarray(means)])
    limits = image_limits(rows[0])
    axes = _grid(2, rows.shape[1], axes)
    for row, images, label in zip(axes, rows, ("data", "mean of\np(x | z)"), strict=True):
        for ax, image in zip(row, images, strict=True):
            _image(ax, image, limits)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
    return axes


def image_grid(
    images: ArrayLike,
    columns: int | None = None,
    axes: np.ndarray | None = None,
    *,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Images in a grid, ``[n, height, width]``, in one grey scale; the axes come back.

    It runs over ``limits``, by default the `image_limits` of these images.
    """
    stack = np.asarray(images)
    limits = image_limits(stack) if limits is None else limits
    columns = columns or int(np.ceil(np.sqrt(len(stack))))
    axes = _grid(-(-len(stack) // columns), columns, axes)
    for index, ax in enumerate(axes.flat):
        if index < len(stack):
            _image(ax, stack[index], limits)
        else:
            ax.set_axis_off()
    return axes


def image_limits(images: ArrayLike) -> tuple[float, float]:
    """The values that are shown as white and black: 0 and 1, or the range of what leaves [0, 1].

    >>> image_limits([[0.2, 0.7]]), image_limits([[0.0, 255.0]]), image_limits([[-2.0, 1.0]])
    ((0.0, 1.0), (0.0, 255.0), (-2.0, 1.0))
    """
    values = np.asarray(images, dtype=float)
    values = values[np.isfinite(values)]
    if not values.size or (values.min() >= 0.0 and values.max() <= 1.0):
        return 0.0, 1.0
    return float(values.min()), float(values.max())


def latent_map(codes: ArrayLike, labels: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """A scatter of codes ``[n, d]``, coloured by integer ``labels`` ``[n]``.

    With ``d > 2`` the plane of the first two principal components is shown, with one number for
    the share of the variance that it holds.
    """
    ax = _axes(ax)
    points = np.asarray(codes, dtype=float)
    names, share = ("$z_1$", "$z_2$"), None
    if points.shape[1] > 2:
        points, share = _principal_plane(points)
        names = ("first principal component of z", "second principal component of z")
    if points.shape[1] == 1:
        points = np.column_stack([points[:, 0], np.zeros(len(points))])
    if labels is None:
        ax.scatter(points[:, 0], points[:, 1], s=8, alpha=0.6, color=_TRAIN, linewidths=0)
    else:
        _scatter(ax, points, np.asarray(labels).astype(int))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    if share is not None:
        ax.set_title(f"{share:.0%} of the variance of the codes", fontsize="medium")
    ax.set_aspect("equal", adjustable="datalim")
    _tidy(ax)
    return ax


def _scatter(ax: Axes, points: np.ndarray, labels: np.ndarray) -> None:
    classes = np.unique(labels)
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    edges = np.arange(len(classes) + 1) - 0.5
    order = np.random.default_rng(0).permutation(len(points))  # no class always on top
    dots = ax.scatter(
        points[order, 0],
        points[order, 1],
        c=np.searchsorted(classes, labels[order]),
        cmap=colours.resampled(len(classes)) if len(classes) > 20 else colours,
        norm=BoundaryNorm(edges, max(len(classes), 1)),
        s=10,
        alpha=0.75,
        linewidths=0,
    )
    bar = ax.figure.colorbar(dots, ax=ax, ticks=np.arange(len(classes)), label="label")
    bar.ax.set_yticklabels([str(c) for c in classes])
    if bar.solids is not None:
        bar.solids.set_alpha(1)


def _principal_plane(points: np.ndarray) -> tuple[np.ndarray, float]:
    centred = points - points.mean(0)
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    total = float((scales**2).sum())
    return centred @ directions[:2].T, float((scales[:2] ** 2).sum()) / total if total else 1.0


def _cut(ax: Axes, curves: list[np.ndarray]) -> None:
    """Starts the axis where the curves have left their first steep climb."""
    top = max(curve.max() for curve in curves)
    bottom = min(float(np.quantile(curve, 0.1)) for curve in curves)
    lowest = min(curve.min() for curve in curves)
    span = top - bottom
    if span > 0 and bottom - lowest > span:
        ax.set_ylim(bottom - 0.1 * span, top + 0.1 * span)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    _, made = plt.subplots(figsize=(5, 4), layout="constrained")
    return made


def _grid(rows: int, columns: int, axes: np.ndarray | None) -> np.ndarray:
    if axes is not None:
        return np.asarray(axes).reshape(rows, columns)
    size = (0.8 * columns + 0.6, 0.8 * rows + 0.2)
    _, made = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return made


def _image(ax: Axes, image: np.ndarray, limits: tuple[float, float]) -> None:
    low, high = limits
    ax.imshow(image, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("0.8")


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="0.92")
    ax.set_axisbelow(True)
