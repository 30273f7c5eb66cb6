"""TensorRT engines: one builder over the packages ``tensorrt`` (10 and 11) and ``tensorrt-rtx``.

What comes from either package is annotated ``Native``. A test follows these annotations and compares every attribute
that is used with the names inside NVIDIA's binding wheels, which is all that can be checked of the package
``tensorrt`` where there is no GPU.
"""
