"""The model: single-step diffusion features, feature pyramid, mixture-of-experts head."""
