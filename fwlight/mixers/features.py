"""What keys are written as and queries read with: features, divided as a memory asks."""

import warnings
from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwlight.checks import check_choice, check_factory
from fwlight.feature_maps import FeatureMap
from fwlight.mixers.normalisation import KEY_NORMS, at_least_float32, normalise


class Features(nn.Module):
    """phi(k) and phi(q), both divided as `key_norm` says, in float32 at least.

    Args:
        feature_map: Makes phi.
        key_norm: See `fwlight.mixers.normalisation.normalise`.
        key_norm_eps: Added to the sum of a key's features; under "l2" the least divisor.
        query_norm_eps: The same for queries.
        allow_native: Whether compiled code may compute them.

    Raises:
        ValueError: If a map is given instead of what makes one, or `key_norm` is unknown.
    """

    def __init__(
        self,
        *,
        feature_map: Callable[[], FeatureMap],
        key_norm: str = "none",
        key_norm_eps: float = 0.0,
        query_norm_eps: float = 0.0,
        allow_native: bool = True,
    ) -> None:
        super().__init__()
        check_factory(feature_map=feature_map)
        check_choice("key_norm", key_norm, KEY_NORMS)
        self.feature_map = feature_map()
        self.allow_native = self.feature_map.allow_native = allow_native
        self.key_norm = key_norm
        self.key_norm_eps, self.query_norm_eps = key_norm_eps, query_norm_eps
        if key_norm == "sum":
            self.warn_of_signs()

    def warn_of_signs(self, *, reads: bool = False) -> None:
        """Warn of a map whose features, or products of `reads`, are divided by and may cancel."""
        if self.feature_map.signed and not (reads and self.feature_map.nonnegative_kernel):
            warnings.warn(
                f"{type(self.feature_map).__name__} has features of both signs, whose sum may be "
                "near 0: divide by something else (key_norm=l2, read_norm=none)",
                RuntimeWarning,
                stacklevel=3,
            )

    def keys(
        self,
        k: Float[Tensor, "b h t d"],
        offset: Float[Tensor, "b h"] | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h"] | None]:
        """Return the features that keys are written as, and the map's constant."""
        k = at_least_float32(k)
        features = self.feature_map.normalised(k, self.key_norm, self.key_norm_eps)
        if features is None:
            features, offset = self.feature_map.key(
                k,
                offset=offset,
                scale_cancels=self.key_norm != "none",
                padding_mask=padding_mask,
                starts=starts,
            )
            features = self._normalised(features, self.key_norm_eps)
        if padding_mask is not None:
            # After the normalisation: what is masked earlier could be scaled up again.
            features = features.masked_fill(padding_mask[:, None, :, None], 0.0)
        return features, offset

    def queries(self, q: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t k"]:
        """Return the features with which queries read."""
        q = at_least_float32(q)
        features = self.feature_map.normalised(q, self.key_norm, self.query_norm_eps)
        if features is None:
            features = self._normalised(self.feature_map.query(q), self.query_norm_eps)
        return features

    def _normalised(self, features: Tensor, eps: float) -> Tensor:
        return normalise(features, self.key_norm, eps, allow_native=self.allow_native)
