"""torch's exporter takes most of an export's time: in here, the same network is traced once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kcdp.export import exporter


@contextmanager
def traced_once() -> Iterator[None]:
    """In the block, exports of one process share their traces."""
    known, trace = {}, exporter.trace

    def remembering(device, size, *, opset, batch):
        weights = sum(float(parameter.abs().sum()) for parameter in device.parameters())
        key = (size, opset, batch, repr(device), weights)
        if key not in known:
            known[key] = trace(device, size, opset=opset, batch=batch)
        return known[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", remembering)
        yield
