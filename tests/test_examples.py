"""Every example runs, by the command line and as a script, and learns something."""

from __future__ import annotations

import gzip
import io
import json
import runpy
import urllib.request
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import amortized as am
from amortized.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("vae", "mixture_vae", "existing_pyro_svi")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names of an example, imported as Python would when running it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_fits_it(name: str, tmp_path: Path) -> None:
    arguments = ["fit", str(EXAMPLES / f"{name}.py"), "--epochs", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as found:
        main([*arguments, "--lr", "0.01"])
    assert found.value.code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    # 64 coin tosses cost 44.4 nats
    assert -44.4 < metrics["test_elbo"] <= metrics["test_log_evidence"] < -15.0
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures >= {"curves.png", "reconstructions.png", "samples.png"}
    assert ("latent.png" in pictures) is (name != "existing_pyro_svi")


@pytest.mark.parametrize("estimator", ["leave_one_out", "moving_average", "enumerate"])
def test_the_cluster_can_be_estimated_in_other_ways(
    estimator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(EXAMPLES / "mixture_vae.py")
    options = ["--set", "clusters=3", "--set", "hidden=16", "--epochs", "1", "--no-progress"]
    with pytest.raises(SystemExit) as found:
        main(["fit", path, *options, "--estimator", f"c={estimator}"])
    assert found.value.code == 0 and "mapping 'c'" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vae", "mixture_vae"])
def test_it_runs_as_a_script(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(name, monkeypatch)["main"](max_epochs=1)
    out = capsys.readouterr().out
    assert "History(epochs=1/1" in out and "'log_evidence': -" in out


def test_pyros_own_loop_learns_with_our_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script("existing_pyro_svi", monkeypatch)["main"](steps=60)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("test ELBO -") and float(last.split()[2]) > -40.0


def test_only_one_line_of_the_pyro_script_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (EXAMPLES / "existing_pyro_svi.py").read_text(encoding="utf-8")
    body = text[: text.index("def program")].split("import amortized as am", 1)[1]
    marked = [line for line in body.splitlines() if "am." in line.split('"""')[0]]
    assert len(marked) == 1 and "# was: loss = pyro.infer.Trace_ELBO()" in marked[0]


def test_clusters_are_measured_by_their_commonest_label(monkeypatch: pytest.MonkeyPatch) -> None:
    purity = script("mixture_vae", monkeypatch)["purity"]
    clusters, labels = torch.tensor([0, 0, 0, 5, 5]), torch.tensor([1, 1, 2, 3, 3])
    assert purity(clusters, labels) == pytest.approx(0.8)


def data(monkeypatch: pytest.MonkeyPatch) -> dict:
    return script("data", monkeypatch)


def idx(array: np.ndarray) -> bytes:
    sizes = np.asarray(array.shape, ">i4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def idx_files(folder: Path, zipped: bool) -> None:
    """24 training and 6 test images of 2 x 3 pixels, black or white."""
    for part, size in (("train", 24), ("t10k", 6)):
        labels = np.arange(size) % 10
        images = 255 * np.tile((labels % 2)[:, None, None], (1, 2, 3))
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


def test_the_digits_are_binary_apart_and_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = data(monkeypatch)["load"]
    images, again = load("digits"), load("digits")
    assert [len(p) for p in (images.train, images.val, images.test)] == [1257, 180, 360]
    assert len(images.labels) == 360 and images.shape == (8, 8)
    assert set(images.train.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(images.test, again.test)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_from_a_folder(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idx_files(tmp_path, zipped)
    images = data(monkeypatch)["load"]("fashion-mnist", str(tmp_path))
    assert [len(p) for p in (images.train, images.val, images.test)] == [22, 2, 6]
    assert images.shape == (2, 3) and images.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(images.test[:, 0], images.labels % 2.0)


def test_missing_or_wrong_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = data(monkeypatch)["load"]
    with pytest.raises(am.UsageError, match=r"no train-images-idx3-ubyte\.gz in"):
        load("mnist", str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"hello")
    with pytest.raises(am.UsageError, match="no IDX file"):
        load("mnist", str(tmp_path))
    with pytest.raises(am.UsageError, match="expected digits, mnist, fashion-mnist"):
        load("cifar")


@pytest.mark.parametrize("packed", [True, False])
def test_binarized_images_are_read_from_a_file(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (6, 784)).astype(np.uint8)
    held = np.packbits(bits, axis=1) if packed else bits
    file = tmp_path / "images.npz"
    np.savez(file, train=held[:3], valid=held[3:5], test=held[5:])
    images = data(monkeypatch)["load"]("binarized-mnist", str(file))
    assert [len(p) for p in (images.train, images.val, images.test)] == [3, 2, 1]
    assert np.array_equal(images.val.numpy(), bits[3:5]) and images.shape == (28, 28)
    with pytest.raises(am.UsageError, match=r"no file .*path=FILE\.npz"):
        data(monkeypatch)["load"]("binarized-mnist", str(tmp_path / "other.npz"))


@pytest.mark.parametrize("options", [[], ["--set", "layers=2", "--estimator", "b*=leave_one_out"]])
def test_a_belief_network_learns(options: list[str], tmp_path: Path) -> None:
    """Its bits have values between 0 and 1 nowhere: the map of codes is left out."""
    path = str(EXAMPLES / "sigmoid_belief_network.py")
    given = ["--epochs", "2", "--out", str(tmp_path), "--lr", "0.01", "--set", "width=20"]
    with pytest.raises(SystemExit) as found:
        main(["fit", path, *given, *options])
    assert found.value.code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert -44.4 < metrics["test_elbo"] <= metrics["test_log_evidence"] < -15.0


@pytest.mark.parametrize("estimator", ["", "y*=leave_one_out", "y*=disarm"])
def test_labels_are_learned_from_few(estimator: str, tmp_path: Path) -> None:
    path = str(EXAMPLES / "semi_supervised_vae.py")
    given = ["--epochs", "4", "--out", str(tmp_path), "--lr", "0.01", "--set", "hidden=40"]
    options = ["--estimator", estimator] if estimator else []
    with pytest.raises(SystemExit) as found:
        main(["fit", path, *given, *options])
    assert found.value.code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert -30.0 < metrics["test_elbo"] < -15.0
    assert {path.name for path in tmp_path.glob("*.png")} >= {"curves.png", "reconstructions.png"}


def test_a_label_that_is_not_known_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("semi_supervised_vae", monkeypatch)["program"](labels=50)
    images, told, known = made.train
    assert images.shape == (1257, 64) and int(known.sum()) == 50
    assert told[known].sum(0).tolist() == [5.0] * 10
    assert bool((told[~known].argmax(-1) == 0).all())
    assert not made.val[2].any() and not made.test[2].any()


def test_accuracies_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script("semi_supervised_vae", monkeypatch)["main"](max_epochs=1, seeds=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[0].startswith("weight of the classifier 0, summed: 0.")
    assert 0.7 < float(lines[-1].split(": ")[1].split(",")[0]) < 0.95


def test_a_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    idx_files(served, zipped=True)
    names = data(monkeypatch)
    load, target = names["load"], tmp_path / "kept"

    def opened(url: str, timeout: int) -> io.BytesIO:
        return io.BytesIO((served / url.rsplit("/", 1)[1]).read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    with pytest.raises(am.UsageError, match=r"md5 .* expected .*; not kept"):
        load("mnist", str(target), download=True)
    assert not list(target.iterdir())

    def sums() -> tuple[str, ...]:
        import hashlib

        files = [served / f"{name}.gz" for name in names["FILES"]]
        return tuple(hashlib.md5(file.read_bytes()).hexdigest() for file in files)

    monkeypatch.setitem(names["MD5"], "mnist", sums())
    assert len(load("mnist", str(target), download=True).test) == 6
    monkeypatch.setattr(urllib.request, "urlopen", None)  # what is there is not fetched again
    assert len(load("mnist", str(target), download=True).test) == 6


def test_no_example_leaves_parameters_behind() -> None:
    with pytest.raises(SystemExit):
        main(["fit", str(EXAMPLES / "vae.py"), "--epochs", "1", "--set", "hidden=8"])
    assert len(pyro.get_param_store()) == 0


def test_a_guide_learns_to_invert_a_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(EXAMPLES / "inference_compilation.py")
    options = ["--set", "rows=1024", "--epochs", "4", "--no-progress", "--lr", "0.01"]
    with pytest.raises(SystemExit) as found:
        main(["fit", path, *options, "--objective", "forward_kl"])
    printed = capsys.readouterr().out
    assert found.value.code == 0
    assert "none: samples are data" in printed
    loss = float(printed.split("train_loss=")[1].split(")")[0])
    # the entropy of the prior, 0.61 + 2.84 nats, is what a guide that sees nothing pays at best
    assert loss < 3.2
