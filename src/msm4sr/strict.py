"""The base of settings and of stored records."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Values are validated once and do not change afterwards; an unknown name, infinity and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
