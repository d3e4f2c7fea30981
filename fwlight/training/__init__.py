"""LightningModules: loss, metrics, optimiser and logging around any network."""
