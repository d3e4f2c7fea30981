"""Data of the tasks: one LightningDataModule a task. Imports of fwlight: `fwlight.types` only."""
