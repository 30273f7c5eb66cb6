"""What tests of exports share: graphs of networks that were traced already, and a run that bears any precision."""

from __future__ import annotations

import pytest

from kcdp.cli import main
from kcdp.export import exporter


@pytest.fixture(scope="session", autouse=True)
def traced_once():
    """torch's exporter takes most of an export's time: the same network is traced once for all tests here."""
    known, trace = {}, exporter.trace

    def remembering(device, size, *, opset, batch):
        weights = [float(parameter.double().abs().sum()) for parameter in device.parameters()]
        key = (size, opset, batch, repr(device), *weights)
        if key not in known:
            known[key] = trace(device, size, opset=opset, batch=batch)
        return known[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", remembering)
        yield


@pytest.fixture(scope="session")
def steady(tmp_path_factory):
    """A run of the preset tiny for half precision: all experts answer, and what they get is not normalised.

    Choosing two of them, and taking off what all pictures of a model as weak as this have in common, makes a hundred
    times more of a rounding.
    """
    folder = tmp_path_factory.mktemp("steady") / "run"
    settings = ("model.head.normalize_v=false", "model.head.top_k=4", "model.head.hidden=128", "training.epochs=12")
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    data = "synthetic:photos?n=300&size=48"
    assert main(["train", "--preset", "tiny", "--source", data, *arguments, "--out", str(folder)]) == 0
    return folder
