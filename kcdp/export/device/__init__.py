"""The network as a graph holds it: the trained model re-expressed in layers that the exact passes can rewrite."""
