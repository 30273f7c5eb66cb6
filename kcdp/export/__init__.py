"""Export: from a trained run to a bundle, through a parity gate."""
