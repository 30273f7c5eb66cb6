"""Graphs run on the runtimes of the parity gate."""
