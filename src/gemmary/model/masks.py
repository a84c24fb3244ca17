"""Which keys a query sees. Every attention mask of the family is an interval of positions, so a mask is two integers.

A query at position i of its sequence sees the keys of that sequence at `first..last`, both included:

    causal                      0 .. i
    causal, window of W         i - W + 1 .. i              W keys, the query's own included
    prefix-LM                   0 .. max(i, prefix - 1)     the prompt sees itself whole, window or not; then causal
    pictures among text         0 .. max(i, last of its picture's tokens)      (Gemma 3; text is causal)
    bidirectional, length n     0 .. n - 1
    … with window W             i - W/2 .. i + W/2          cut to the sequence (EmbeddingGemma)

A bidirectional sequence is a prefix-LM one whose prefix is the whole sequence, with the window on both sides. Where a
layer has a window, it ends what a picture's token sees on the left, as for any other (transformers 5; Gemma 3's windows
are four times as long as a picture).
"""

from __future__ import annotations


def visible(
    position: int, whole: int, window: int | None, two_sided: bool, *, in_prefix: bool = False
) -> tuple[int, int]:
    """First and last key position that the query at `position` sees.

    whole: where what sees itself whole around the position ends: one past the last of its prefix or its picture (0:
    there is no such thing, purely causal).
    window: None where the layer sees everything. two_sided: the window reaches W/2 to each side of the query.
    in_prefix: the position is in a prefix, which sees itself whatever the window (transformers' PaliGemma 2).
    """
    last = max(position, whole - 1)
    if window is None or in_prefix:
        return 0, last
    if two_sided:
        return max(0, position - window // 2), min(last, position + window // 2)
    return max(0, position - window + 1), last
