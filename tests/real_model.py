"""The real model, for tests marked `model`: pulled once into the user's own store, as any user would do it."""

from functools import cache

import trio

from p2pgrid.services.weights import pull
from p2pgrid.storage.models import ModelStore
from p2pgrid.storage.paths import data_dir

NAME = "smollm2-135m-instruct"


@cache
def real_store() -> ModelStore:
    """A store that has the model. Call it from a synchronous test or fixture."""
    store = ModelStore(data_dir())
    trio.run(pull, NAME, store, lambda done, total: None)
    return store
