"""Whether ONNX Runtime and one of its providers are here."""

from __future__ import annotations

from importlib import import_module

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError, require
from kcdp.gpu import find_gpu
from kcdp.runtime.backends.base import ABSENT, UNUSABLE, USABLE, Backend, Status, broken
from kcdp.runtime.backends.options import SessionOptions
from kcdp.runtime.backends.provider_session import OnnxRuntimeSession
from kcdp.runtime.backends.providers import Provider, plugin_devices, unfit
from kcdp.runtime.session import Session


class OnnxRuntimeBackend(Backend):
    """A row of ``PROVIDERS`` as a backend."""

    def __init__(self, row: Provider) -> None:
        self.row = row
        self.name, self.what, self.options, self.verified = row.name, row.what, row.options, row.verified

    def status(self, options: SessionOptions) -> Status:
        row, version = self.row, ""
        try:
            library = require("onnxruntime", "runtime")
            version = str(library.__version__)
            no_card = Status(UNUSABLE, version, f"no NVIDIA GPU {options.device} was found", "install NVIDIA's driver")
            if row.plugin:
                plugin = import_module(row.plugin)
                if row.nvidia and find_gpu(options.device) is None:  # without a driver the package does not load
                    return no_card
                if not plugin_devices(library, row, plugin, options):
                    return Status(UNUSABLE, version, f"{row.plugin} finds no device", row.fix)
        except (KcdpError, ModuleNotFoundError) as error:
            name = getattr(error, "name", None) or "onnxruntime"
            return Status(ABSENT, version, f"the package {name!r} is not installed", row.fix)
        except Exception as error:
            return Status(UNUSABLE, version, broken(error), row.fix)
        if not row.plugin and row.provider not in library.get_available_providers():
            return Status(ABSENT, version, f"ONNX Runtime {version} is installed without {row.provider}", row.fix)
        if row.nvidia and find_gpu(options.device) is None:
            return no_card
        return Status(USABLE, version)

    def unfit(self, bundle: Bundle, options: SessionOptions) -> KcdpError | None:
        return unfit(self.row, bundle, options)

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        return OnnxRuntimeSession(bundle, options, self.row.name)
