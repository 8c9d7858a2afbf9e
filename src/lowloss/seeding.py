"""Seeds: every random stream of a study follows from its one seed and the stream's name."""

import hashlib


def derive(seed: int, *names: object) -> int:
    """An independent 63-bit seed for the stream called `names`, the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
