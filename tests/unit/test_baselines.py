"""The steps of what the method is compared with: their formulas by hand, what they train, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from baseline_parts import EVEN, STEPS, Told, gradients, hidden, item, one_of_two, tiny
from tiny_runs import fails
from torch import nn

from kcdp.data.loader import Item
from kcdp.models.build import build_model
from kcdp.models.moe import MoEOutput
from kcdp.models.network import NetworkOutput, one_expert
from kcdp.training.baselines import adversary
from kcdp.training.baselines.adversary import Discriminator, domain_loss, reversal_ramp, reverse_gradient
from kcdp.training.baselines.both import certainty
from kcdp.training.baselines.cdan import CdanStep, MultilinearMap
from kcdp.training.baselines.fixmatch import FixMatchStep
from kcdp.training.baselines.mcc import MccStep, class_confusion
from kcdp.training.methods import BASELINES, make_step
from kcdp.training.steps.source import SourceStep
from kcdp.training.steps.step import Step, StepResult


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "HIDDEN", 16)
    torch.manual_seed(0)


def run(step: Step, model: nn.Module, progress: float = 0.5, seed: int = 0) -> StepResult:
    target = hidden(item(4, seed + 1, strong=step.config.training.method == "fixmatch"))
    return step(model, model, item(6, seed), target, progress)


# --- gradient reversal ------------------------------------------------------------------------------------------------


def test_the_ramp_is_the_published_one():
    assert reversal_ramp(0.0) == 0.0
    assert reversal_ramp(0.1) == pytest.approx(2 / (1 + math.exp(-1)) - 1) == pytest.approx(0.46211716)
    assert reversal_ramp(1.0) == pytest.approx(0.9999092)
    values = [reversal_ramp(i / 20) for i in range(21)]
    assert values == sorted(values)


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_reversal_changes_nothing_forward_and_the_sign_backward(factor):
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    y = reverse_gradient(x, factor)
    assert torch.equal(y, x)
    (y * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert torch.equal(x.grad, -factor * torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


class Fixed(nn.Module):
    """A discriminator whose logit is the first entry."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


def test_the_domain_loss_by_hand():
    """Source logits 0 and ln 3 (probabilities 1/2 and 3/4), target logit ln 3: half of each domain's mean."""
    source, target = torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[math.log(3)]])
    loss, told = domain_loss(Fixed(), source, target)
    here, there = (math.log(2) + math.log(4 / 3)) / 2, math.log(4)
    assert loss.item() == pytest.approx((here + there) / 2, rel=1e-6)
    assert told.item() == pytest.approx(1 / 3)  # the second of the source; 0 is no source
    weighted, _ = domain_loss(Fixed(), source, target, (torch.tensor([1.0, 3.0]), torch.tensor([7.0])))
    assert weighted.item() == pytest.approx(((math.log(2) + 3 * math.log(4 / 3)) / 4 + there) / 2, rel=1e-6)


def test_a_discriminator_learns_domains_that_differ():
    net = Discriminator(4)
    assert [type(part).__name__ for part in net] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    source, target = torch.randn(16, 4) + 1, torch.randn(16, 4) - 1
    first = domain_loss(net, source, target)[0].item()
    for _ in range(20):
        optimizer.zero_grad()
        loss, told = domain_loss(net, source, target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first and told.item() > 0.9


# --- CDAN -------------------------------------------------------------------------------------------------------------


def test_the_outer_product_by_hand():
    product = MultilinearMap(2, 3)
    assert not product.randomised and product.width == 6 and not list(product.state_dict())
    mapped = product(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.2, 0.3]]))
    assert torch.allclose(mapped, torch.tensor([[1.0, -0.5, 0.4, -0.2, 0.6, -0.3]]))


def test_the_product_is_randomised_where_it_is_large():
    assert not MultilinearMap(682).randomised  # 4,092 entries
    product = MultilinearMap(683)
    assert product.randomised and product.width == 1024
    assert set(product.state_dict()) == {"of_features", "of_classes"} and not list(product.parameters())
    f, p = torch.randn(2, 683), torch.softmax(torch.randn(2, 6), dim=1)
    by_hand = (f @ product.of_features) * (p @ product.of_classes) / 32.0  # sqrt of 1,024
    assert torch.allclose(product(f, p), by_hand)


def test_a_randomised_map_keeps_inner_products_in_expectation():
    f, p = torch.randn(2, 3), torch.softmax(torch.randn(2, 2), dim=1)
    exact = ((f[0] @ f[1]) * (p[0] @ p[1])).item()
    found = []
    for _ in range(60):
        product = MultilinearMap(683)
        product.of_features, product.of_classes = product.of_features[:3], product.of_classes[:2]
        mapped = product(f, p)
        found.append((mapped[0] @ mapped[1]).item())
    assert sum(found) / len(found) == pytest.approx(exact, rel=0.05)


def test_certainty_by_hand():
    weights = certainty(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert torch.allclose(weights, torch.tensor([2.0, 1.5, 1 + math.exp(-entropy)]))


def test_cdan_sees_what_was_conditioned_and_weighs_by_certainty(monkeypatch):
    model = Told()
    step = CdanStep(tiny("cdan"), EVEN, model)
    seen = []

    def looking(*given):
        seen.append(given)
        return domain_loss(*given)

    monkeypatch.setattr("kcdp.training.baselines.cdan.domain_loss", looking)
    source, target = item(6), hidden(item(4, 1))
    step(model, model, source, target, 0.5)
    _, here, there, weights = seen[0]
    for batch, features, weight in ((source, here, weights[0]), (target, there, weights[1])):
        output = model(batch.images)
        p = torch.softmax(output.logits, dim=1)
        assert torch.allclose(features, torch.einsum("nc,nf->ncf", p, output.v).flatten(1))
        assert torch.allclose(weight, certainty(p)) and not weight.requires_grad


# --- MCC --------------------------------------------------------------------------------------------------------------


def test_class_confusion_by_hand():
    """Two pictures, two classes, temperature 1: probabilities (3/4, 1/4) and (1/2, 1/2)."""
    p = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    w0, w1 = 1 + math.exp(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 1.5
    w0, w1 = 2 * w0 / (w0 + w1), 2 * w1 / (w0 + w1)
    c00, c01, c11 = w0 * 9 / 16 + w1 / 4, w0 * 3 / 16 + w1 / 4, w0 / 16 + w1 / 4
    by_hand = (c01 / (c00 + c01) + c01 / (c01 + c11)) / 2
    assert class_confusion(p.log(), 1.0).item() == pytest.approx(by_hand, rel=1e-6)
    assert class_confusion(2.5 * p.log()).item() == pytest.approx(by_hand, rel=1e-6)  # the paper's temperature


def test_the_ends_of_class_confusion():
    one_hot = 1e3 * torch.eye(6)
    assert class_confusion(one_hot).item() == pytest.approx(0.0, abs=1e-6)
    assert class_confusion(torch.zeros(5, 6)).item() == pytest.approx(5 / 6, rel=1e-6)
    logits = torch.zeros(3, 6, requires_grad=True)
    class_confusion(logits + torch.eye(3, 6)).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.any()
    certain = (1e3 * torch.eye(6)).requires_grad_()
    class_confusion(certain).backward()
    assert torch.isfinite(certain.grad).all()


# --- FixMatch ---------------------------------------------------------------------------------------------------------


class Sure(Told):
    """Answers by the first byte: it is sure where that is 0 (class 2) or 1 (class 4), else undecided; strong: even."""

    def forward(self, images, knowledge=None, align=False, latents=None) -> NetworkOutput:
        self.modes = [*getattr(self, "modes", []), self.training]
        first = images[:, 0, 0, 0]
        logits = torch.zeros(len(images), 6)
        logits[first == 0, 2] = logits[first == 1, 4] = 10.0
        return NetworkOutput(logits, torch.zeros(len(images), 3), one_expert(logits))


def test_the_mask_counts_the_sure_ones_and_the_mean_is_over_all():
    weak = torch.full((4, 32, 32, 3), 9, dtype=torch.uint8)
    weak[0], weak[1] = 0, 1
    strong = torch.full_like(weak, 9)
    strong[1] = 1
    step, model = FixMatchStep(tiny("fixmatch"), EVEN, Sure()), Sure()
    result = step(model, model, item(6), Item(weak, torch.empty(0), strong), 0.5)
    assert result.pseudo_labels.tolist()[:2] == [2, 4] and result.counted.tolist() == [1.0, 1.0, 0.0, 0.0]
    sure = math.log(1 + 5 * math.exp(-10))  # of the second, whose strong view says the same
    assert result.parts["pseudo"].item() == pytest.approx((math.log(6) + sure) / 4, rel=1e-5)
    assert result.parts["pseudo_share"].item() == 0.5
    assert model.modes == [True, False] and model.training  # labels are those of evaluation mode
    expected = result.parts["classification"] + 0.01 * result.parts["balance"] + result.parts["pseudo"]
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_threshold_is_at_least(monkeypatch):
    step, model = FixMatchStep(tiny("fixmatch"), EVEN, Told()), Told()
    odds = 19.0 * 5  # the first class has 0.95 of the whole
    weak = torch.log(torch.tensor([[odds, 1, 1, 1, 1, 1], [odds + 0.5, 1, 1, 1, 1, 1], [odds - 0.5, 1, 1, 1, 1, 1]]))
    answer = lambda *_: NetworkOutput(weak, torch.zeros(3, 3), one_expert(weak))  # noqa: E731
    monkeypatch.setattr("kcdp.training.baselines.fixmatch.in_evaluation", answer)
    batch = item(3, strong=True)
    result = step(model, model, batch, hidden(batch), 0.5)
    assert result.counted.tolist()[1:] == [1.0, 0.0]
    assert result.counted[0] == float(torch.softmax(weak[0], 0)[0] >= 0.95)


def test_fixmatch_is_adaptation_with_its_settings():
    """The method's own step, set as the profile says, gives the same loss."""
    config = tiny("fixmatch", "training.pseudo_labels.confidence=0.17")
    model = build_model(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    own = make_step(config, EVEN, EVEN / 6, model, True)
    assert type(own) is FixMatchStep
    batches = item(6), hidden(item(4, 1, strong=True))
    first = own(model, model, *batches, 0.5)
    assert first.parts["pseudo_share"].item() > 0 and first.parts["pseudo"].item() > 0
    model.load_state_dict(state)
    plain = replace(config, training=replace(config.training, method="kcdp"))
    second = make_step(plain, EVEN, EVEN / 6, model, True)(model, model, *batches, 0.5)
    assert second.parts.keys() == first.parts.keys()
    assert torch.equal(first.pseudo_labels, second.pseudo_labels) and torch.equal(first.counted, second.counted)
    assert first.loss.item() == pytest.approx(second.loss.item(), rel=1e-6)


# --- what each of them trains -----------------------------------------------------------------------------------------


def with_gradient(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("name", STEPS)
def test_losses_add_up_and_reach_the_model(name):
    config = tiny(name, "training.baseline_weight=0.5")
    model = build_model(config)
    step = make_step(config, EVEN, EVEN / 6, model, True)
    assert type(step) is STEPS[name] and step.needs_target
    result = run(step, model)
    added = result.parts[{"dann": "domain", "cdan": "domain", "mcc": "confusion", "fixmatch": "pseudo"}[name]]
    expected = result.parts["classification"] + 0.01 * result.parts["balance"] + 0.5 * added
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    result.loss.backward()
    assert {p.split(".")[0] for p in with_gradient(model)} == {"features", "knowledge", "pyramid", "norm", "moe"}
    assert with_gradient(step) == {name for name, _ in step.named_parameters()}


def only_added(step: Step, model: nn.Module, progress: float) -> dict[str, torch.Tensor]:
    """The gradients of what the baseline adds, without the source's losses."""
    step.config = replace(step.config, training=replace(
        step.config.training, classification_weight=0.0, balance_weight=0.0))  # fmt: skip
    model.zero_grad(set_to_none=True)
    step.zero_grad(set_to_none=True)
    run(step, model, progress).loss.backward()
    named = (*model.named_parameters(), *step.named_parameters())
    return {name: p.grad.clone() for name, p in named if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("name", ["dann", "cdan"])
def test_the_reversed_gradient_reaches_v_alone_and_the_discriminator_whole(name):
    model, config = Told(), tiny(name)
    step = STEPS[name](config, EVEN, model)
    start = only_added(step, model, 0.0)
    assert not {"scale", "classes"} & set(start) and any(k.startswith("discriminator") for k in start)
    later = only_added(step, model, 0.5)
    assert "scale" in later and "classes" not in later  # probabilities are given, not learned
    for key in start:
        assert torch.allclose(start[key], later[key], atol=1e-7), key  # its own factor is 1 throughout
    # Uphill: the same loss without reversal has the opposite gradient, divided by the ramp's factor.
    import kcdp.training.baselines.cdan as cdan
    import kcdp.training.baselines.dann as dann

    plain = lambda x, factor: x  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dann, "reverse_gradient", plain)
        patch.setattr(cdan, "reverse_gradient", plain)
        downhill = only_added(step, model, 0.5)
    assert torch.allclose(later["scale"], -reversal_ramp(0.5) * downhill["scale"], rtol=1e-4)


def test_the_confusion_trains_the_classifier_on_the_target_alone():
    model, step = Told(), MccStep(tiny("mcc"), EVEN, Told())
    grads = only_added(step, model, 0.5)
    assert set(grads) == {"scale", "classes"}
    model.zero_grad()
    class_confusion(model(item(4, 1).images).logits).backward()
    assert torch.allclose(model.classes.grad, grads["classes"])  # the source's pictures have no part in it


def test_the_source_is_trained_as_source_only_trains_it():
    config = tiny("source-only")
    assert type(make_step(config, EVEN, EVEN / 6, build_model(config), False)) is SourceStep
    assert config.model.alignment.kind == "none"
    for name in STEPS:
        other = tiny(name)
        assert other.training.baseline_weight == (0.1 if name in ("dann", "cdan") else 1.0)
        same = replace(other.training, method="source-only", pseudo_labels=config.training.pseudo_labels,
                       baseline_weight=config.training.baseline_weight)  # fmt: skip
        assert same == config.training and other.model == config.model and other.preprocess == config.preprocess


def test_the_step_holds_what_it_trains_and_no_model():
    for name, step in STEPS.items():
        made = step(tiny(name), EVEN, Told())
        parts = {key.partition(".")[0] for key in made.state_dict()}
        assert parts == ({"discriminator"} if name in ("dann", "cdan") else set()), name
    wide = CdanStep(tiny("cdan"), EVEN, Told(1024))
    assert {"map.of_features", "map.of_classes"} <= set(wide.state_dict())
    assert set(BASELINES) == set(STEPS)


def test_outputs_of_a_network_without_experts():
    logits = torch.randn(3, 6)
    moe = one_expert(logits)
    assert isinstance(moe, MoEOutput) and moe.gates.tolist() == moe.chosen.tolist() == [[1.0]] * 3


# --- several processes ------------------------------------------------------------------------------------------------


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest distance of a tensor from what it should be, by its size."""
    assert found.keys() == expected.keys() and len(found) > 1
    return max(((found[key] - value).norm() / value.norm()).item() for key, value in expected.items() if value.any())


def test_two_processes_are_one(tmp_path):
    """All that looks at a batch sees both halves of it: confusion, domains, statistics of the discriminator."""
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name in STEPS:
        alone = gradients(name)
        assert all(apart(found[name], alone) < 1e-4 for found in both), name
    # The twin: the confusion of each process's own rows is another one.
    assert apart(both[0]["alone"], gradients("mcc")) > 1e-3


# --- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_the_targets_pictures_must_be_those_of_the_method(name):
    right, wrong = ("weak-strong", "same") if name == "fixmatch" else ("same", "weak-strong")
    config = tiny(name, f"training.pseudo_labels.views={wrong}")
    assert fails(lambda: STEPS[name](config, EVEN, Told())) == (
        f"training.method is {name!r} and training.pseudo_labels.views {wrong!r}; expected {right!r}; "
        f"choose it with --profile {name}, or add --set training.pseudo_labels.views={right}"
    )


@pytest.mark.parametrize("name", STEPS)
def test_a_target_is_needed(name):
    assert fails(lambda: make_step(tiny(name), EVEN, EVEN / 6, Told(), False)) == (
        f"training.method is {name!r} and no target is given; expected unlabelled pictures to adapt to; "
        "add --target SPEC"
    )


def test_source_only_takes_no_target():
    assert fails(lambda: make_step(tiny("source-only"), EVEN, EVEN / 6, Told(), True)) == (
        "training.method is 'source-only' and a target is given; expected labelled source pictures alone; "
        "leave out --target, or choose another method"
    )


@pytest.mark.parametrize("name", ["dann", "cdan"])
def test_an_adversary_needs_features_that_train(name):
    model = Told()
    model.scale.requires_grad_(False)
    step = STEPS[name](tiny(name), EVEN, model)
    assert fails(lambda: run(step, model)) == (
        f"training.method is {name!r} and nothing in front of the visual feature trains; expected a tower that "
        "trains; add --set model.train_backbone=true"
    )
    with torch.no_grad():  # measuring only is no mistake
        run(step, model)


def test_the_weight_has_a_range():
    assert "training.baseline_weight is -1.0; expected 0 or more" in fails(
        lambda: tiny("dann", "training.baseline_weight=-1.0")
    )
