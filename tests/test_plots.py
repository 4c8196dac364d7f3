import matplotlib.pyplot as plt
import numpy as np
import pytest

from amortized import plots


@pytest.fixture(autouse=True)
def closed_figures():
    before = dict(plt.rcParams)
    yield
    assert dict(plt.rcParams) == before
    plt.close("all")


def test_curves_of_training_and_validation() -> None:
    history = {"train_elbo": [-3.0, -2.0], "val_elbo": [-3.5, -2.5]}
    ax = plots.training_curves(history)
    assert [line.get_label() for line in ax.get_lines()] == ["train", "validation"]
    assert ax.get_ylabel() == "ELBO (nats per data point)" and ax.get_xlabel() == "epoch"
    assert plots.training_curves(history, per_datum=False).get_ylabel() == "ELBO (nats)"


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 30, 1000])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    ax = plots.training_curves({"train_elbo": list(np.linspace(-30.0, -20.0, epochs))})
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    shown = [
        label.get_text()
        for place, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
        if low <= place <= high
    ]
    assert shown and all(text.isdigit() and 1 <= int(text) <= epochs for text in shown)


def test_numbers_are_written_out_and_another_history_finds_room() -> None:
    ax = plots.training_curves({"train_elbo": [-100100.5, -100100.25]})
    ax.figure.canvas.draw()
    assert ax.yaxis.get_offset_text().get_text() == ""
    assert all(label.get_text()[1:].startswith("100100") for label in ax.get_yticklabels())
    plots.training_curves({"train_elbo": [-100100.0] * 50}, ax)
    low, high = ax.get_xlim()
    assert 0 < low < 1 and high >= 50


def test_a_history_without_validation_or_with_gaps_or_empty() -> None:
    ax = plots.training_curves({"train_elbo": [-3.0, -2.0], "val_elbo": [np.nan, np.nan]})
    assert len(ax.get_lines()) == 1
    assert not plots.training_curves({}).get_lines()


def test_a_steep_start_does_not_squeeze_the_rest() -> None:
    values = [-1000.0, *np.linspace(-30.0, -20.0, 40)]
    low, high = plots.training_curves({"train_elbo": values}).get_ylim()
    assert -40 < low < -30 and -20 < high < -15


def test_the_given_axes_are_used() -> None:
    _, ax = plt.subplots()
    assert plots.training_curves({"train_elbo": [1.0]}, ax) is ax
    assert plots.latent_map(np.zeros((3, 2)), ax=ax) is ax
    _, axes = plt.subplots(2, 4)
    images = np.random.default_rng(0).random((4, 5, 6))
    assert plots.reconstructions(images, images, axes)[0, 0] is axes[0, 0]
    assert plots.image_grid(np.concatenate([images, images]), 4, axes)[1, 3] is axes[1, 3]


@pytest.mark.parametrize(
    ("data", "limits"),
    [([0.2, 0.7], (0, 1)), ([0, 255], (0, 255)), ([-2.5, 1.5], (-2.5, 1.5)), ([np.nan], (0, 1))],
)
def test_one_grey_scale_for_data_and_means(data: list[float], limits: tuple[float, float]) -> None:
    originals = np.resize(np.asarray(data, dtype=float), (2, 4, 5))
    shown = plots.reconstructions(originals, originals + 0.4).flat
    grid = plots.image_grid(originals, limits=plots.image_limits(originals)).flat
    assert {ax.get_images()[0].get_clim() for ax in (*shown, *grid)} == {limits}
    own = plots.image_grid(originals + 0.1).flat[0].get_images()[0].get_clim()
    assert own == plots.image_limits(originals + 0.1)


def test_reconstructions_stand_below_their_originals() -> None:
    originals, means = np.zeros((3, 4, 5)), np.ones((3, 4, 5))
    axes = plots.reconstructions(originals, means)
    assert axes.shape == (2, 3)
    assert [ax.get_images()[0].get_array().mean() for ax in axes[:, 1]] == [0.0, 1.0]
    assert axes[0, 0].get_ylabel() == "data"


def test_a_grid_hides_what_it_does_not_need() -> None:
    axes = plots.image_grid(np.zeros((5, 3, 3)))
    assert axes.shape == (2, 3)
    assert [ax.axison for ax in axes.flat] == [True] * 5 + [False]


def test_a_map_of_two_dims_shows_them_as_they_are() -> None:
    codes = np.random.default_rng(0).normal(size=(50, 2))
    ax = plots.latent_map(codes, np.arange(50) % 3)
    offsets = np.asarray(ax.collections[0].get_offsets())
    assert sorted(map(tuple, offsets)) == sorted(map(tuple, codes))
    assert ax.get_xlabel() == "$z_1$" and ax.get_title() == ""
    ticks = ax.figure.axes[1].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ["0", "1", "2"]


def test_a_map_of_more_dims_shows_the_principal_plane() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(200, 5)) * [0.1, 3.0, 0.1, 2.0, 0.1]
    ax = plots.latent_map(codes)
    offsets = np.asarray(ax.collections[0].get_offsets())
    centred = codes - codes.mean(0)
    assert np.abs(np.corrcoef(offsets[:, 0], centred[:, 1])[0, 1]) > 0.99
    assert ax.get_title() == "100% of the variance of the codes"


@pytest.mark.parametrize("classes", [1, 10, 15, 30])
def test_any_number_of_labels(classes: int) -> None:
    labels = np.arange(60) % classes
    ax = plots.latent_map(np.random.default_rng(0).normal(size=(60, 1)), labels)
    assert len(ax.figure.axes[1].get_yticklabels()) == classes


def test_constant_codes_do_no_harm() -> None:
    plots.latent_map(np.zeros((4, 3)))
