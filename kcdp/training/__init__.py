"""Training, evaluation and their reports. Imports neither the runtime nor the export."""

#: What training cannot do without, all of it brought by ``kcdp[train]``: the commands ask for it before they begin.
PACKAGES = ("torch", "safetensors", "tqdm", "torchvision", "sklearn", "diffusers")
