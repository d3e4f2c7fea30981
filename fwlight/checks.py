"""Checks of constructor arguments; a user's mistake is a ValueError with the offending value."""


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def check_probabilities(**probabilities: float) -> None:
    """Raise ValueError for the first that is none."""
    for name, p in probabilities.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name}={p} must lie between 0 and 1")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is none of {', '.join(choices)}")


def check_factory(**factories: object) -> None:
    """Raise ValueError for the first that makes no module, or is one, which layers would share."""
    for name, make in factories.items():
        is_module = hasattr(make, "forward") and not isinstance(make, type)
        if is_module or not callable(make):
            raise ValueError(
                f"{name} must be what makes one, a class or functools.partial(class, ...), not "
                f"{'the module' if is_module else 'the'} {type(make).__name__} itself"
            )


def check_rule(rule: object) -> None:
    """Raise ValueError if an update rule is no function, options bound or not."""
    if not callable(rule):
        raise ValueError(
            "update_rule must be a function like fwlight.ops.delta_rule, "
            f"not a {type(rule).__name__}"
        )
