"""Every estimator captures, in training and in validation: its replays are bit for bit.

The rule for what is added later: an estimator that is exported and not in this table fails a test,
and one in the table that cannot be captured fails in its cells.
"""

import inspect
import warnings

import pyro
import pytest
import torch

import amortized as am
from amortized.errors import ProgramError
from amortized.estimators.base import Estimator
from amortized.objectives.base import Objective
from tests.laws.structures import EVERY
from tests.laws.test_unbiased import DISCRETE, PATHWISE, SCORE

ESTIMATORS = {
    **{(name, "bernoulli"): make for name, make in DISCRETE.items()},
    **{(name, "normal"): make for name, make in (PATHWISE | SCORE).items()},
    ("doubly reparameterized", "normal"): am.DoublyReparameterized,
    ("arm", "bernoulli"): am.ARM,
    ("disarm", "bernoulli"): am.DisARM,
    ("rebar", "bernoulli"): am.REBAR,
    ("relax", "bernoulli"): am.RELAX,
    ("relax", "normal"): am.RELAX,
    ("muprop", "bernoulli"): am.MuProp,
    ("measure valued", "bernoulli"): am.MeasureValued,
    ("measure valued", "normal"): am.MeasureValued,
    ("sum and sample", "bernoulli"): am.SumAndSample,
    ("unordered set", "bernoulli"): am.UnorderedSet,
    ("relaxed", "bernoulli"): lambda: am.Relaxed(terms="relaxed", learned=True),
    ("straight through", "bernoulli"): am.StraightThrough,
    ("reinmax", "bernoulli"): lambda: am.StraightThrough("reinmax"),
}
OBJECTIVES = {
    "two particles": lambda: am.ELBO(num_particles=2),
    "closed forms": lambda: am.ELBO(kl="analytic"),
    "importance weights": lambda: am.IWAE(num_particles=3),
    "Renyi": lambda: am.Renyi(0.5, num_particles=2),
    "beta and free bits": lambda: am.ELBO(beta=lambda step: 1.0 / (1 + step), free_bits=0.1),
    "wake": lambda: am.ReweightedWakeSleep(3),
    "wake and sleep": lambda: am.ReweightedWakeSleep(3, 0.5, observed=lambda sites: {}),
    "thermodynamic": lambda: am.TVO(3, partition=3),
    "simulations": lambda: am.ForwardKL(lambda sites: {}),
}
# it reads a value: a branch on a latent
READS_VALUES = ("control_flow",)

Run = tuple[list[float], dict[str, torch.Tensor]]


def trained(structure: str, kind: str, make, objective, compile: str) -> Run:
    """Losses of five steps and of validation after each, and everything that they moved."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = EVERY[structure](kind)
    named = objective is None or objective.site_estimators
    estimators = {name: make() for name in pair.latents} if named else None
    loss = am.VariationalLoss(objective, estimators)
    svi = am.SVI(pair.model, pair.guide, loss, lr=0.1, compile=compile)
    history = svi.fit((), (), max_epochs=5, progress=False, check=False)
    keys = ("train_loss", "val_loss", "val_elbo", "val_reconstruction", "val_kl")
    found = [value for key in keys for value in history.get(key, ())]
    return found, svi._stepper.parameters.snapshot()


def compare(structure: str, kind: str, make, objective=None) -> None:
    try:
        losses, moved = trained(structure, kind, make, objective, "off")
    except am.AmortizedError:
        pytest.skip("not served: see the laws")
    if structure in READS_VALUES:
        with warnings.catch_warnings(), pytest.raises(ProgramError, match="read the value of a"):
            warnings.simplefilter("ignore", am.CheckWarning)  # validation says it first
            trained(structure, kind, make, objective, "graph")
        return
    found, captured = trained(structure, kind, make, objective, "graph")
    assert found == losses
    assert captured.keys() == moved.keys()
    assert all(torch.equal(tensor, captured[name]) for name, tensor in moved.items())


@pytest.mark.float64
@pytest.mark.parametrize(("estimator", "kind"), sorted(ESTIMATORS))
@pytest.mark.parametrize("structure", sorted(EVERY))
def test_every_estimator_in_every_structure(structure: str, kind: str, estimator: str) -> None:
    compare(structure, kind, ESTIMATORS[estimator, kind])


@pytest.mark.float64
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize(("estimator", "kind"), [("pathwise", "normal"), ("plain", "bernoulli")])
@pytest.mark.parametrize("structure", ["plate", "nested_plates", "masked", "chain", "subsampled"])
def test_objectives(structure: str, kind: str, estimator: str, objective: str) -> None:
    compare(structure, kind, ESTIMATORS[estimator, kind], OBJECTIVES[objective]())


def exported(base: type) -> set[type]:
    """The classes of a kind that the package offers."""
    every = [value for value in vars(am).values() if inspect.isclass(value)]
    return {value for value in every if issubclass(value, base) and not inspect.isabstract(value)}


def test_the_tables_hold_everything_that_is_offered() -> None:
    assert exported(Estimator) == {type(make()) for make in ESTIMATORS.values()}
    assert exported(Objective) == {type(make()) for make in OBJECTIVES.values()}
