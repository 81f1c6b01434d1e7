"""Random numbers for compiled loops: one stream per user, the same in any block, process and machine.

SplitMix64 (Steele, Lea and Flood, 2014): a counter times an odd constant, mixed. The state is an array of one uint64.
"""

from __future__ import annotations

import math

import numpy as np

from laser.seqvault.jit import kernel

GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)
S30, S27, S31, S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
UNIT = 2.0**-53
TINY = 1e-300


@kernel
def mixed(value):
    """Scramble a uint64."""
    value = (value ^ (value >> S30)) * FIRST
    value = (value ^ (value >> S27)) * SECOND
    return value ^ (value >> S31)


@kernel
def stream(seed, purpose, number):
    """Start state of the stream of ``number`` (a user, an item) for a purpose."""
    return mixed(mixed(np.uint64(seed) * GAMMA + np.uint64(purpose)) + np.uint64(number) * GAMMA)


@kernel
def uniform(state):
    """Next number of [0, 1)."""
    state[0] += GAMMA
    return float(mixed(state[0]) >> S11) * UNIT


@kernel
def normal(state):
    """Next standard normal number (Box and Muller, 1958)."""
    radius = math.sqrt(-2.0 * math.log(uniform(state) + TINY))
    return radius * math.cos(2.0 * math.pi * uniform(state))


@kernel
def ranked(state, number, skew):
    """Rank in [0, number) with a share falling as rank ** -skew: inverse of the continuous power law."""
    return min(number - 1, int(number * uniform(state) ** (1.0 / (1.0 - skew))))


@kernel
def rank_share(rank, number, skew):
    """Probability with which ``ranked`` draws a rank."""
    power = 1.0 - skew
    return ((rank + 1) / number) ** power - (rank / number) ** power
