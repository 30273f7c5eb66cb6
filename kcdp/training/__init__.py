"""Training, evaluation and their reports. Imports neither the runtime nor the export."""
