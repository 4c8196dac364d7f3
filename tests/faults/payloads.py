"""Pickles that run code when they are loaded: all of them would make a marker file."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


class Calls:
    """An object whose pickle asks for a function to be called."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def calls(marker: Path) -> dict[str, Calls]:
    """By name, calls that make the marker."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch '{marker}'"),
        "popen": Calls(subprocess.check_call, ["touch", str(marker)]),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "copy": Calls(shutil.copyfile, __file__, str(marker)),
        "mkdir": Calls(os.mkdir, str(marker)),
        "path": Calls(Path.touch, marker),
        "partial": Calls(partial.__call__, partial(eval, code)),
        "getattr": Calls(eval, f"getattr(__import__('os'), 'mkdir')({str(marker)!r})"),
    }


CALLS = tuple(calls(Path("marker")))


def raw(value: Any, protocol: int) -> bytes:
    """Only the pickle, in the place of the whole file."""
    return pickle.dumps({"x": value}, protocol=protocol)


def saved(value: Any) -> bytes:
    """As torch saves it, beside a tensor."""
    file = io.BytesIO()
    torch.save({"parameters": {"w": torch.ones(3)}, "x": value}, file)
    return file.getvalue()


def saved_legacy(value: Any) -> bytes:
    """As torch saved it before it used zip files."""
    file = io.BytesIO()
    torch.save({"x": value}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def hand_made(value: Any, protocol: int) -> bytes:
    """A zip file like torch's, with a pickle of another protocol."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", raw(value, protocol))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def scripted(value: Any) -> bytes:
    """What torch takes for a TorchScript program, which may run anything."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", raw(value, 2))
        archive.writestr("archive/constants.pkl", raw(value, 2))
        archive.writestr("archive/version", "3")
    return file.getvalue()


WRAPPERS: dict[str, Callable[[Any], bytes]] = {
    "raw0": partial(raw, protocol=0),
    "raw2": partial(raw, protocol=2),
    "raw5": partial(raw, protocol=5),
    "saved": saved,
    "legacy": saved_legacy,
    "zip2": partial(hand_made, protocol=2),
    "zip4": partial(hand_made, protocol=4),
    "scripted": scripted,
}
