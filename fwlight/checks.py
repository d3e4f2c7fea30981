"""Checks of constructor arguments; a user's mistake is a ValueError with the offending value."""


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError if `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is none of {', '.join(choices)}")
