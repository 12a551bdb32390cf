"""What a cache holds, entry by entry and kind by kind; verified and shrunk where asked."""

from __future__ import annotations

from typing import Any

from compress.recipe.options import read_bytes
from compress.store.cache import Cache


def cache_report(store: Cache, *, verify: bool = False, max_size: str = "") -> dict[str, Any]:
    """The cache's root, its entries, its other kinds, and the keys of what was evicted.

    Args:
        verify: hash every file of every entry again.
        max_size: evict what was least recently used down to this, such as "20GB".

    Raises:
        UserError: `max_size` is no size.
    """
    limit = read_bytes(max_size) if max_size else None
    store.prepare()
    evicted = store.evict(limit) if limit is not None else ()
    rows = [
        {
            "key": entry.key,
            "stage": entry.facts.get("stage", ""),
            "size_bytes": entry.size_bytes,
            "problem": store.problem(entry.key, thorough=verify),
        }
        for entry in store.entries()
    ]
    kinds = {name: {"count": count, "size_bytes": size} for name, (count, size) in store.kinds().items()}
    return {"root": str(store.root), "entries": rows, "kinds": kinds, "evicted": [entry.key for entry in evicted]}


def shown(found: dict[str, Any]) -> str:
    """A report as text."""
    lines = [
        f"{row['key'][:12]}  {row['stage']:<20} {row['size_bytes'] / 1e6:9.1f} MB  {row['problem'] or 'good'}"
        for row in found["entries"]
    ]
    lines += [f"{n:<12}  {kind['count']:<20} {kind['size_bytes'] / 1e6:9.1f} MB" for n, kind in found["kinds"].items()]
    total = sum(kind["size_bytes"] for kind in found["kinds"].values())
    evicted = f", {len(found['evicted'])} evicted" if found["evicted"] else ""
    return "\n".join((*lines, f"{found['root']}: {len(found['entries'])} entries, {total / 1e6:.1f} MB{evicted}"))


def is_sound(found: dict[str, Any]) -> bool:
    """Whether no entry of a report has a problem."""
    return not any(row["problem"] for row in found["entries"])
