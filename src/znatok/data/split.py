"""Training and validation pairs that share no fact.

Pairs are tied when they share a fact id, or their prompts or long answers are equal or similar; what is tied, directly
or through others, is a group. If no fact is to stand on both sides and no pair is to be lost, each side is a union of
whole groups: there is no other such split. So the only choice is which groups to take, and the best one is the union
whose size is nearest to the share asked for. Real answers cite several facts, which ties most of a file into one large
group; it goes to training, validation is drawn from the small ones, and where these are too few the validation set is
smaller and a note says why. Cutting the large group apart would either leak facts or throw training pairs away.

Groups are tried in the order of a hash of their texts and the seed, so that neither the order of the file nor its line
numbers matter, and a pair added to the file moves few others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from znatok.data.clean import comparable, similar
from znatok.data.schema import Pair
from znatok.errors import _

FEWEST = 3  # pairs that can be split: with fewer, one side could teach or prove nothing
COMPARED = 20_000  # pairs whose texts are compared for likeness: 7 s for 10,000, and it grows faster than their number


@dataclass(frozen=True)
class Split:
    """Two disjoint sets of pairs, both in file order.

    Attributes:
        train: What to learn from.
        validation: What to measure on while training; may be empty, then a note says why.
        notes: Remarks, translated, one line each.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of pairs that really went to validation."""
        return len(self.validation) / max(1, len(self.train) + len(self.validation))


def split(pairs: Sequence[Pair], share: float, seed: int) -> Split:
    """Split pairs so that no fact, and no equal or similar text, is on both sides.

    Args:
        pairs: All pairs.
        share: The share wanted for validation, in [0, 1).
        seed: Chooses between splits of the same quality.

    Returns:
        Every pair on exactly one side. The validation set is never larger than twice what was asked for, and is empty
        where there are fewer than three pairs or the smallest group is too large.
    """
    assert 0 <= share < 1, share
    if share == 0:
        return Split(tuple(pairs), ())
    if len(pairs) < FEWEST:
        return Split(tuple(pairs), (), (_("validation is off: {count} pairs are too few to split", count=len(pairs)),))
    target = max(1, round(share * len(pairs)))
    parts = groups(pairs)
    ordered = sorted(parts, key=lambda part: _digest(pairs, part, seed))
    taken = {place for which in _choose([len(part) for part in ordered], target) for place in ordered[which]}
    return Split(
        train=tuple(pair for place, pair in enumerate(pairs) if place not in taken),
        validation=tuple(pair for place, pair in enumerate(pairs) if place in taken),
        notes=(*_unlike(len(pairs)), *_remarks(len(taken), target, max(map(len, parts)), len(pairs))),
    )


def groups(pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the groups of tied pairs as lists of places, largest first.

    In more than ``COMPARED`` pairs only shared facts and equal texts tie.
    """
    parent = list(range(len(pairs)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    holder: dict[tuple[str, str], int] = {}
    for place, pair in enumerate(pairs):
        for key in (*comparable(pair).items(), *(("fact", fact) for fact in pair.fact_ids)):
            parent[root(place)] = root(holder.setdefault(key, place))
    for part in ("prompt", "response") if len(pairs) <= COMPARED else ():
        firsts = {text: place for (kind, text), place in holder.items() if kind == part}
        for i, j in _similar_places(firsts, root):
            parent[root(j)] = root(i)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place in range(len(pairs)):
        members[root(place)].append(place)
    return sorted(members.values(), key=len, reverse=True)


def _similar_places(firsts: Mapping[str, int], root: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Yield places of similar texts that have different roots so far."""
    places = list(firsts.values())
    for i, j, _similarity in similar(list(firsts), skip=lambda i, j: root(places[i]) == root(places[j])):
        yield places[i], places[j]


def _digest(pairs: Sequence[Pair], part: Sequence[int], seed: int) -> str:
    texts = sorted(f"{len(pairs[place].prompt)} {pairs[place].prompt}{pairs[place].response}" for place in part)
    return hashlib.sha256("\0".join([str(seed), *texts]).encode()).hexdigest()


def _choose(sizes: Sequence[int], target: int) -> list[int]:
    """Return places in ``sizes`` whose sum is nearest to ``target``, the smaller of two equally near.

    The sum stays within (0, 2 target] and leaves something for training; there is none where no size fits.
    """
    limit = min(2 * target, sum(sizes) - 1)
    reached = 1  # bit s is set when some sizes seen so far add up to s
    added: dict[int, int] = {}  # sum: the place that first made it
    for place, size in enumerate(sizes):
        new = (reached << size) & ~reached & ((1 << (limit + 1)) - 1)
        reached |= new
        while new:
            added[new.bit_length() - 1] = place
            new ^= 1 << (new.bit_length() - 1)
        if target in added:
            break
    total = min(added, key=lambda s: (abs(s - target), s), default=0)
    chosen = []
    while total:  # a sum was first made from one that was made by an earlier place, so no place comes twice
        chosen.append(added[total])
        total -= sizes[added[total]]
    return chosen


def _unlike(total: int) -> tuple[str, ...]:
    if total <= COMPARED:
        return ()
    return (
        _(
            "{total} pairs: only equal texts and shared facts keep pairs together; likeness is looked for up to {n}",
            total=total,
            n=COMPARED,
        ),
    )


def _remarks(taken: int, target: int, largest: int, total: int) -> tuple[str, ...]:
    if taken == target:
        return ()
    if not taken:
        return (
            _(
                "validation is off: {largest} of {total} pairs are tied by shared facts or similar texts; "
                "keep a test file of other facts",
                largest=largest,
                total=total,
            ),
        )
    return (
        _(
            "validation has {taken} pairs instead of {target}: {largest} of {total} are tied by shared facts or "
            "similar texts and stay together",
            taken=taken,
            target=target,
            largest=largest,
            total=total,
        ),
    )
