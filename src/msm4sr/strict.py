"""The base of settings and of stored records."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Values are validated once and do not change afterwards; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
