"""The figures of a run, as files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from amortized.fit.data import first_batch
from amortized.fit.folder import write_bytes
from amortized.fit.history import History
from amortized.fit.pictures import codes, imagined, reconstructed
from amortized.fit.program import Program
from amortized.fit.svi import SVI

_IMAGES: Final = 10
_ROWS: Final = 5
_CODES: Final = 2000


def write_figures(svi: SVI, program: Program, history: History, folder: Path) -> None:
    """Curves; where data points are images also reconstructions, samples and a map of codes."""
    # matplotlib is slow to import, and only needed here.
    import matplotlib.pyplot as plt

    # as above
    from amortized import plots

    def save(name: str) -> None:
        # in one piece, and a full disk is a sentence
        picture = io.BytesIO()
        plt.savefig(picture, dpi=150, format="png")
        plt.close()
        write_bytes(folder / name, picture.getvalue())

    plt.close("all")
    history.plot()
    save("curves.png")
    if program.image_shape is None or program.test is None:
        return
    shape, rows = program.image_shape, _IMAGES * _ROWS
    few, some, many = (first_batch(program.test, size) for size in (_IMAGES, rows, _CODES))
    with svi.scope():
        pictures = reconstructed(program.model, program.guide, few, shape)
        samples = imagined(program.model, some, shape)
        points = codes(program.model, program.guide, many)
    if pictures is not None and samples is not None:
        plots.reconstructions(*pictures)
        save("reconstructions.png")
        plots.image_grid(samples, columns=_IMAGES, limits=plots.image_limits(pictures[0]))
        save("samples.png")
    if points is not None:
        labels = None if program.labels is None else program.labels[: len(points)]
        plots.latent_map(points, labels)
        save("latent.png")
