import pytest
import torch

from amortized.fit.terms import Averager, Terms


def test_averages_are_weighted_by_data_and_absent_sites_count_as_zero() -> None:
    averager = Averager()
    averager.add(Terms({"loss": torch.tensor(1.0)}, True), 3)
    averager.add(Terms({"loss": torch.tensor(5.0), "kl/z": torch.tensor(2.0)}, True), 1)
    assert averager.means() == {"loss": 2.0, "kl/z": 0.5} and averager.per_datum
    averager.add(Terms({"loss": torch.tensor(2.0)}, False), 4)
    assert not averager.per_datum


def test_the_mean_of_many_equal_numbers_is_that_number() -> None:
    averager, value = Averager(), torch.tensor(0.1)
    for _ in range(30_000):
        averager.add(Terms({"loss": value}, True), 128)
    assert averager.means()["loss"] == pytest.approx(float(value), rel=1e-9)


def test_a_state_goes_on_where_it_was() -> None:
    whole, first, again = Averager(), Averager(), Averager()
    parts = [Terms({"loss": torch.tensor(float(n))}, True, frozenset("z")) for n in range(4)]
    for number, terms in enumerate(parts):
        whole.add(terms, number + 1)
        (first if number < 2 else again).add(terms, number + 1)
        if number == 1:
            again.load_state_dict(first.state_dict())
    assert whole.means() == again.means() and again.local == {"z"}


@pytest.mark.float64
def test_stacked_terms_give_the_same_means_bit_for_bit() -> None:
    """As where some steps of an epoch are replays and others are not, and it is saved between."""
    torch.manual_seed(0)
    names = ("loss", "elbo", "kl")
    plain, mixed = Averager(), Averager()
    for number in range(60):
        stacked, weight = torch.randn(3), 1 + number % 7
        one_by_one = Terms(dict(zip(names, stacked.unbind(), strict=True)), True)
        plain.add(one_by_one, weight)
        of_a_graph = Terms.from_stack(names, stacked, True, frozenset())
        mixed.add(of_a_graph if number % 5 else one_by_one, weight)
        if number % 11 == 0:
            saved, mixed = mixed.state_dict(), Averager()
            mixed.load_state_dict(saved)
    assert plain.means() == mixed.means()
