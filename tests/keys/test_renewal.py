"""Values that pass sealed under an older version: renewed where the keyset says so, untouched everywhere else."""

from __future__ import annotations

from meshguard.fields.transforms import Transformed
from tests.fields.parts import KEY, OTHER_KEY, RULE, Counter, keyset, reader, transform


def response(body: bytes, roles: tuple[str, ...], versions: object) -> Transformed:
    return transform(RULE, keysets=(versions,)).apply(body, "application/json", reader(*roles), Counter(), 0.0)  # type: ignore[arg-type]


def test_what_passes_sealed_is_renewed_only_where_the_keyset_says_so() -> None:
    old, new = keyset("orders-pii", KEY), keyset("orders-pii", KEY, OTHER_KEY)
    body = b'{"payment":{"card": "4111" }}'
    sealed = response(body, (), old).body
    assert response(sealed, (), new).body == sealed
    new.renews = True
    renewed = response(sealed, (), new)
    assert renewed.body != sealed
    assert [(act.operation, act.version, act.count) for act in renewed.operations] == [("rewrap", 2, 1)]
    assert response(renewed.body, (), new).body == renewed.body
    assert response(renewed.body, ("billing",), new).body == body
