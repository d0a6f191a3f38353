"""Frames of a codec, whose rate need not be whole: 12.5 or 86.13 per second."""

from __future__ import annotations


def count_frames(seconds: float, sample_rate: float, hop_length: int) -> int:
    """The frames of a sound of this length, at least one; the last of them may extend past its end.

    Args:
        seconds: The length.
        sample_rate: In Hz.
        hop_length: The samples of a frame.
    """
    return max(1, -(-round(seconds * sample_rate) // hop_length))
