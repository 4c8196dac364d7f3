import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.effect import AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam
from torch import nn

from amortized.errors import ProgramError
from amortized.fit.parameters import Bound, Parameters, evaluation_mode
from tests.fit import tiny

LOSS = nn.Identity()


def ready(model, guide, loss: nn.Module = LOSS) -> Parameters:
    """The parameters of a pair that ran once."""
    found = Parameters(model, guide, loss)
    x = tiny.data(4)
    with found.scope():
        guide(x)
        model(x)
    found.attribute((x,), {})
    return found


def sizes(parameters: Parameters) -> dict[str, int]:
    return {name: len(leaves) for name, leaves in parameters.groups().items()}


def test_modules_and_their_pyroparams_once_each() -> None:
    model, guide = tiny.ModuleModel(), tiny.ModuleGuide()
    parameters = ready(model, guide, nn.Linear(2, 1))
    assert sizes(parameters) == {"model": 1, "guide": 3, "estimators": 2}
    assert parameters.groups()["model"][0] is model.noise_unconstrained


def test_param_statements_are_told_apart() -> None:
    def model(x):
        tiny.local_model(x + pyro.param("shift", torch.zeros(())))

    parameters = ready(model, tiny.param_guide)
    assert sizes(parameters) == {"model": 1, "guide": 2, "estimators": 0}
    assert len(pyro.get_param_store()) == 0


def test_a_module_registered_by_a_function_belongs_to_that_function() -> None:
    net, head = nn.Linear(1, 1), nn.Linear(1, 2)

    def model(x):
        pyro.module("net", net)
        tiny.local_model(x)

    def guide(x):
        pyro.module("head", head)
        tiny.exact_guide(x)

    groups = ready(model, guide).groups()
    assert {id(p) for p in groups["model"]} == {id(p) for p in net.parameters()}
    assert {id(p) for p in groups["guide"]} == {id(p) for p in head.parameters()}


def test_a_plain_module_needs_no_registration() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, x):
            tiny.local_model(self.net(x.unsqueeze(-1)).squeeze(-1))

    assert sizes(ready(Plain(), tiny.exact_guide))["model"] == 2


@pytest.mark.parametrize("auto", [AutoNormal, AutoNormalMessenger])
def test_lazy_guides_are_complete_after_a_run(auto) -> None:
    parameters = ready(tiny.global_model, auto(tiny.global_model))
    assert sizes(parameters) == {"model": 0, "guide": 2, "estimators": 0}


def test_frozen_parameters_stay_frozen() -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x):
            tiny.local_model(x + self.shift)

    model = Model()
    parameters = ready(model, tiny.exact_guide)
    assert sizes(parameters)["model"] == 0 and not model.shift.requires_grad


def test_shared_weights_are_trained_once() -> None:
    model = tiny.ModuleModel()
    guide = tiny.ModuleGuide()
    guide.friend = model
    assert sizes(ready(model, guide)) == {"model": 1, "guide": 3, "estimators": 0}


def test_pyroparams_that_pyro_would_merge_are_refused() -> None:
    class Clash(PyroModule):
        def __init__(self, name: str = "") -> None:
            super().__init__(name)
            self.scale = PyroParam(torch.tensor(2.0))

    with pytest.raises(ProgramError, match="each have a PyroParam 'scale'"):
        Parameters(Clash(), Clash(), LOSS)
    Parameters(Clash(), Clash("guide"), LOSS)
    shared = Clash()
    Parameters(shared, shared, LOSS)


def test_two_pairs_never_meet() -> None:
    first, second = (ready(tiny.local_model, tiny.param_guide) for _ in range(2))
    ids = [{id(leaf) for leaf in p.groups()["guide"]} for p in (first, second)]
    assert not ids[0] & ids[1]


def test_the_scope_nests_and_survives_errors() -> None:
    parameters = Parameters(tiny.local_model, tiny.param_guide, LOSS)
    with pytest.raises(KeyError), parameters.scope():
        pyro.param("a", torch.tensor(1.0))
        with parameters.scope():
            pyro.param("b", torch.tensor(2.0))
        raise KeyError
    assert len(pyro.get_param_store()) == 0
    with parameters.scope():
        assert set(pyro.get_param_store().keys()) == {"a", "b"}


def test_new_parameters_are_counted_inside_and_outside_the_scope() -> None:
    parameters = ready(tiny.local_model, tiny.param_guide)
    before = parameters.count()
    with parameters.scope():
        pyro.param("late", torch.tensor(1.0))
        assert parameters.count() == before + 1
    assert parameters.count() == before + 1


def test_snapshots_bring_back_parameters_buffers_and_the_store() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x):
            tiny.local_model(self.norm(x.unsqueeze(-1)).squeeze(-1))

    parameters = ready(Normed(), tiny.param_guide)
    before = parameters.snapshot()
    assert {"model.norm.running_mean", "model.norm.weight", "store.slope"} <= set(before)
    assert len({id(tensor) for tensor in parameters.tensors().values()}) == len(before)
    with torch.no_grad():
        for tensor in parameters.tensors().values():
            tensor.add_(1)
    parameters.restore(before)
    after = parameters.snapshot()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_bound_program_runs_with_its_own_parameters() -> None:
    parameters = ready(tiny.local_model, tiny.param_guide)
    with parameters.scope(), torch.no_grad():
        pyro.get_param_store()["slope"] = torch.tensor(3.0)
    guide = Bound(tiny.param_guide, parameters)
    drawn = pyro.poutine.trace(guide).get_trace(torch.ones(2)).nodes["z"]["fn"]
    assert torch.equal(drawn.mean, torch.full((2,), 3.0))
    assert len(pyro.get_param_store()) == 0


def test_a_bound_program_has_the_attributes_and_methods_of_its_program() -> None:
    auto = AutoNormal(tiny.global_model)
    parameters = ready(tiny.global_model, auto)
    guide = Bound(auto, parameters)
    assert guide.median(tiny.data(4))["m"].shape == ()
    assert guide.prototype_trace is auto.prototype_trace
    assert list(guide.parameters()) == list(auto.parameters())
    with pytest.raises(AttributeError, match="nonsense"):
        _ = guide.nonsense
    assert len(pyro.get_param_store()) == 0


def test_evaluation_mode_restores_each_submodule() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    net[1].eval()
    with evaluation_mode(net):
        assert not net[0].training and not torch.is_grad_enabled()
    assert net.training and net[0].training and not net[1].training


def test_the_first_parameter_may_be_a_modules_or_the_stores() -> None:
    assert Parameters(tiny.local_model, tiny.exact_guide, LOSS).first() is None
    in_store = ready(tiny.local_model, tiny.param_guide)
    assert in_store.first() is in_store.tensors()["store.slope"]
    model = tiny.ModuleModel()
    assert Parameters(model, tiny.ModuleGuide(), LOSS).first() is model.noise_unconstrained


def test_the_scratch_run_does_not_move_the_global_stream() -> None:
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 1.0))

    parameters = Parameters(tiny.local_model, guide, LOSS)
    x = tiny.data(4)
    with parameters.scope():
        guide(x)
    before = torch.get_rng_state()
    parameters.attribute((x,), {})
    assert torch.equal(before, torch.get_rng_state())


class Normed(nn.Module):
    """A guide with buffers, one of them not part of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer("fleeting", torch.zeros(2), persistent=False)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc = self.norm(x.unsqueeze(-1)).squeeze(-1)
            pyro.sample("z", dist.Normal(loc, 1.0))


def closing_over(network: nn.Module):
    def guide(x):
        pyro.module("network", network)
        network(x)

    return guide


@pytest.mark.parametrize("closed_over", [False, True], ids=["module", "closed over"])
def test_every_tensor_has_a_name(closed_over: bool) -> None:
    """Parameters and buffers, also of networks that a function closes over."""
    guide = Normed()
    parameters = ready(tiny.local_model, closing_over(guide) if closed_over else guide)
    named, wanted = parameters.tensors(), {*guide.parameters(), *guide.buffers()}
    assert {id(tensor) for tensor in named.values()} == {id(tensor) for tensor in wanted}
    assert parameters.names() == {id(tensor): name for name, tensor in named.items()}
    begin = "store.network$$$norm.weight" if closed_over else "guide.norm.weight"
    assert begin in named and any(name.endswith("running_mean") for name in named)


def test_restoring_is_in_place() -> None:
    guide = Normed()
    parameters = ready(tiny.local_model, closing_over(guide))
    before = {name: id(tensor) for name, tensor in parameters.tensors().items()}
    kept = parameters.snapshot()
    with torch.no_grad():
        for tensor in parameters.tensors().values():
            tensor += 1
    places = {name: tensor.data_ptr() for name, tensor in parameters.tensors().items()}
    parameters.restore(kept)
    for name, tensor in parameters.tensors().items():
        assert tensor.data_ptr() == places[name] != kept[name].data_ptr()
        assert torch.equal(tensor, kept[name]) and id(tensor) == before[name]


def test_moving_keeps_every_parameter_the_same_object() -> None:
    """Of modules and of the store; optimizers hold them."""
    for guide in (Normed(), closing_over(Normed()), tiny.param_guide):
        parameters = ready(tiny.local_model, guide)
        before = [id(leaf) for leaves in parameters.groups().values() for leaf in leaves]
        values = parameters.snapshot()
        parameters.to(torch.device("cpu"))
        assert before == [id(leaf) for leaves in parameters.groups().values() for leaf in leaves]
        assert all(torch.equal(t, values[name]) for name, t in parameters.tensors().items())
