"""The configuration: one YAML file per choosable thing, and what composes and checks them."""
