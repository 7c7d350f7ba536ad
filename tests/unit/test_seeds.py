"""Seeds are addresses: stable across processes and versions, and apart from each other."""

from rlpost.seeds import derive


def test_values_are_pinned() -> None:
    """Changing these changes every run: sha256 of the address, its top 31 bits."""
    import hashlib

    digest = hashlib.sha256(b"0/dice/3/7").digest()
    assert derive(0, "dice", 3, 7) == int.from_bytes(digest[:4], "big") >> 1


def test_neighbours_differ() -> None:
    assert len({derive(0, "dice", i, j) for i in range(50) for j in range(50)}) == 2500
