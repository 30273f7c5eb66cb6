"""Nodes of the exporter joined into operators that ONNX Runtime's CUDA provider has as one kernel."""
