"""A comparison as one HTML file, which needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from amortized.compare.result import GradientComparison
from amortized.compare.tables import Tabled
from amortized.compare.training.result import TrainingComparison
from amortized.errors import UsageError
from amortized.fit.folder import write_text

_DPI: Final = 200
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .4rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; width: 40rem; }
figcaption { font-size: .9rem; color: #444; max-width: 40rem; }
"""


def refuse_unwritable(path: Path) -> None:
    """Before anything is measured.

    Raises:
        UsageError: there is no such folder.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--report {path}: expected the name of a file in a folder that exists")


def write_report(
    path: Path, found: GradientComparison | TrainingComparison, title: str, asked: Mapping[str, Any]
) -> None:
    """Write tables and figures with what was asked for.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_text(path, page(found, title, asked))


def page(
    found: GradientComparison | TrainingComparison, title: str, asked: Mapping[str, Any]
) -> str:
    """The text of the file."""
    trained = isinstance(found, TrainingComparison)
    figures = _of_training(found) if trained else _of_gradients(found)
    lead = (
        "Learning curves of several candidates, from equal starts, over several seeds."
        if trained
        else "Estimates of the gradient at the initial parameters, which stay as they are."
    )
    made = f"amortized {metadata.version('amortized')}, torch {torch.__version__}"
    about = {**asked, "made with": f"{made}, Python {platform.python_version()}"}
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{lead}</p>",
        *_table(found),
        "<h2>Figures</h2>",
        *figures,
        "<h2>What was asked for</h2>",
        _definitions({name: str(value) for name, value in about.items()}),
    ]
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>'
    head += '\n<meta name="viewport" content="width=device-width, initial-scale=1">'
    # a browser would ask for an icon otherwise
    head += f'\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>'
    body = "\n".join(parts)
    whole = f"<head>\n{head}\n</head>\n<body>\n{body}\n</body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n{whole}\n</html>\n'


def _table(found: Tabled) -> list[str]:
    sheet = found.sheet()
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes())
    return [
        "<h2>Table</h2>",
        f'<div class="wide">{sheet.html()}</div>',
        f"<ul>{notes}</ul>",
        "<h2>What the columns mean</h2>",
        _definitions(dict(sheet.legend)),
    ]


def _of_gradients(found: GradientComparison) -> list[str]:
    caption = (
        "Variance of one draw of the gradient with its 95 % bootstrap interval, on a log scale; "
        "the leftmost of the unbiased is the best. Biased candidates are hollow squares."
    )
    return [
        _figure(
            lambda group=group: found.plot(group=group),
            f"Parameters of the group {group!r}. {caption}",
        )
        for group in found.groups
    ]


def _of_training(found: TrainingComparison) -> list[str]:
    caption = "Mean over seeds with a 95 % band (Student); higher is better."
    clock = "Seconds are those of the processor, of training alone."
    made = [_figure(lambda: found.plot(against="steps"), f"Against optimizer steps. {caption}")]
    seconds = f"Against seconds. {caption} {clock}"
    made.append(_figure(lambda: found.plot(against="seconds"), seconds))
    if any(trial.log_evidence for trial in found.trials):
        evidence = f"Importance-weighted bound of the log evidence. {caption}"
        made.append(_figure(lambda: found.plot(metric="log_evidence"), evidence))
    return made


def _figure(draw: Callable[[], Any], caption: str) -> str:
    # slow to import
    import matplotlib.pyplot as plt

    text, before = html.escape(caption), set(plt.get_fignums())
    picture = io.BytesIO()
    try:
        draw().figure.savefig(picture, format="png", dpi=_DPI)
    except Exception as error:  # what was measured is worth more than one figure
        why = html.escape(f"{type(error).__name__}: {error}")
        text = f"This figure could not be drawn ({why}). {text}"
        return f"<figure><figcaption>{text}</figcaption></figure>"
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    data = base64.b64encode(picture.getvalue()).decode()
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _definitions(pairs: Mapping[str, str]) -> str:
    lines = (f"<dt>{html.escape(n)}</dt><dd>{html.escape(text)}</dd>" for n, text in pairs.items())
    return f"<dl>{''.join(lines)}</dl>"
