"""Imported by the server that forks the workers of `tests.strategies.cells`; their parent is that server."""

import flrl.backends.local.backend
import flrl.recipe
import flrl.strategies
import flrl.trainers  # noqa: F401
from flrl.backends.pool import watch

_die_with_parent = watch.die_with_parent
watch.die_with_parent = lambda parent=None: _die_with_parent()
