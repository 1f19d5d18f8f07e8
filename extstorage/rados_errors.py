# SPDX-License-Identifier: BSD-2-Clause
"""What the parts of the RADOS store tell each other; without python3-rados, so that everybody can import it."""

from __future__ import annotations

from extstorage.errors import FencedClientError, StoreError
from ganeti_plugin.errors import IntegrityError, StateError


class NoObjectError(IntegrityError):
    template = "{store}: the object {key!r} is missing"


class NoAttributeError(IntegrityError):
    template = "{store}: the object {key!r} lacks an attribute"


class ChangedObjectError(StateError):
    """A condition of a `Change` did not hold, so that nothing was changed."""

    template = "{store}: somebody else changed the object {key!r}"


class RadosError(StoreError):
    """An error number that means none of the others."""


class LostLockError(FencedClientError):
    template = "the lock {key} was taken over by somebody else"


class ReplacedMapError(StateError):
    template = "the body of the map of {name!r} in {store} is missing: the map was replaced meanwhile, or is damaged"
