"""Pure tensor functions: no module, no model."""
