"""Compiled simulation of users, one after the other, each from random numbers of its own.

Legend of shape suffixes: N events of the block; U users of the block; M topics of a user; D events of rest;
H lengths of short histories; S splits; G groups of impressions; B bins of the score.
"""

from __future__ import annotations

import math

import numpy as np

from data_prep.synthetic.draws import normal, rank_share, ranked, stream, uniform
from data_prep.synthetic.world import DAY_MS, MAX_USER_SHARE, RECENT_EVENTS
from laser.seqvault.jit import kernel

HOUR_MS = 3_600_000
SESSION_EVENTS = 10
SLATE = 4
"""Topics among which the ranker chooses."""
WHOLE_BINS, SHORT_BINS = 8192, 256
"""Equal bins of the probability, and of what the formula gives for a short history."""
GROUPS = 10
SCENARIO_EFFECT = np.array([0.0, 0.2, 0.5])
SCENARIO_BIAS = np.array([1.0, 0.5, 2.0])
"""How much of the ranker's bias acts in each scenario."""
ACTIVITY, SIMULATION, QUALITY = 1, 2, 3
"""Purposes of random streams."""
(COUNT, CLICKS, PROBABILITY, ENTROPY, NOISE, WITH_EVIDENCE) = range(6)
"""Columns of the sums."""


@kernel
def events_of_users(constants, first, stop):
    """Events of each user [U], int64: log-normal around the mean."""
    found = np.empty(stop - first, np.int64)
    state = np.empty(1, np.uint64)
    for user in range(first, stop):
        state[0] = stream(constants.seed, ACTIVITY, user)
        share = math.exp(constants.activity * normal(state) - constants.activity**2 / 2)
        found[user - first] = max(1, round(constants.mean_events * min(share, MAX_USER_SHARE)))
    return found


@kernel
def item_quality(constants, item):
    """Log-odds that an item brings of itself."""
    state = np.empty(1, np.uint64)
    state[0] = stream(constants.seed, QUALITY, item)
    return constants.quality * normal(state)


@kernel
def season_of(constants, time):
    """Log-odds of the hour of the day and of the weekend."""
    hour = (time % DAY_MS) // HOUR_MS
    weekday = ((time - constants.start) // DAY_MS) % 7
    return constants.season * (math.cos(2.0 * math.pi * (hour - 20) / 24.0) + (0.5 if weekday >= 5 else 0.0))


@kernel
def session_starts(constants, count, state):
    """Rising times [count]: more in the evening and at weekends."""
    found = np.empty(count, np.int64)
    for place in range(count):
        while True:
            time = constants.start + int(uniform(state) * constants.span)
            hour = (time % DAY_MS) // HOUR_MS
            weekday = ((time - constants.start) // DAY_MS) % 7
            crowd = 0.5 + 0.35 * math.cos(2.0 * math.pi * (hour - 20) / 24.0) + (0.15 if weekday >= 5 else 0.0)
            if uniform(state) < crowd:
                break
        found[place] = time
    return np.sort(found)


@kernel
def choose_topics(constants, state):
    """The user's M distinct topics, popular ones more often."""
    pool = np.empty(constants.pool, np.int64)
    taken = np.zeros(constants.topics, np.bool_)
    for place in range(constants.pool):
        while True:
            topic = ranked(state, constants.topics, constants.skew)
            if not taken[topic]:
                break
        taken[topic] = True
        pool[place] = topic
    return pool


@kernel
def choose_from_slate(ready, num_ready, evidence, bias, state):
    """Place in ``ready`` of the topic that the ranker shows, and the probability of that choice in its slate."""
    slate = np.empty(SLATE, np.int64)
    weight = np.empty(SLATE)
    total = 0.0
    for place in range(SLATE):
        slate[place] = int(uniform(state) * num_ready)
        weight[place] = math.exp(bias * evidence[ready[slate[place]]])
        total += weight[place]
    threshold = uniform(state) * total
    chosen = 0
    while chosen < SLATE - 1 and threshold >= weight[chosen]:
        threshold -= weight[chosen]
        chosen += 1
    return slate[chosen], weight[chosen] / total


@kernel
def sigmoid(value):
    """1 / (1 + exp(-value))."""
    return 1.0 / (1.0 + math.exp(-value))


@kernel
def group_of(noise, scenario, near):
    """What else a short history tells: noise, or the scenario and the sign of the recent evidence."""
    if noise:
        return 0
    return 1 + 3 * scenario + (1 if near == 0.0 else (2 if near > 0.0 else 0))


@kernel
def add_to_truth(cells, predicted, probability):
    """Count one impression in the bin of what is predicted: ``cells`` [2, B] takes p and 1 - p."""
    place = min(cells.shape[1] - 1, int(predicted * cells.shape[1]))
    cells[0, place] += probability
    cells[1, place] += 1.0 - probability


@kernel
def simulate_user(
    constants,
    horizons,
    user,
    at,
    count,
    times,
    items,
    topics,
    clicks,
    scenarios,
    shown,
    chances,
    ages,
    short,
    whole,
    sums,
):
    """Fill places [at, at + count); add to ``short`` [S, H, G, 2, B], ``whole`` [S, 2, B] and ``sums`` [S, 6]."""
    state = np.empty(1, np.uint64)
    state[0] = stream(constants.seed, SIMULATION, user)
    pool = choose_topics(constants, state)
    distance, num_horizons = constants.distance, len(horizons)
    ready, num_ready = np.arange(constants.pool), constants.pool
    resting = np.full(distance, -1)
    evidence, last = np.zeros(constants.pool), np.full(constants.pool, -1)
    previous, gains, category = np.empty(count, np.int64), np.empty(count), np.full(count, -1)
    num_sessions = (count + SESSION_EVENTS - 1) // SESSION_EVENTS
    starts = session_starts(constants, num_sessions, state)
    pause = min(40_000.0, constants.span / (4.0 * count))
    partial = np.empty(num_horizons)
    time, scenario = constants.start, 0
    for event in range(count):
        if event % SESSION_EVENTS == 0:
            time = max(time + 1, starts[event // SESSION_EVENTS])
            scenario = min(2, int(3.0 * uniform(state) ** 1.3))
        else:
            time += 1 + int(-pause * math.log(uniform(state) + 1e-12))
        slot = resting[event % distance]
        if slot >= 0:
            ready[num_ready] = slot
            num_ready += 1
        noise = uniform(state) < constants.noise
        propensity, slot, age, far, near = 1.0 / constants.background_topics, -1, 0, 0.0, 0.0
        partial[:] = 0.0
        if noise:
            topic = constants.topics + int(uniform(state) * constants.background_topics)
        else:
            bias = constants.bias * SCENARIO_BIAS[scenario]
            place, propensity = choose_from_slate(ready, num_ready, evidence, bias, state)
            slot = ready[place]
            num_ready -= 1
            ready[place] = ready[num_ready]
            topic, far = pool[slot], evidence[slot]
            category[event] = topic % constants.categories
            age = event - last[slot] if last[slot] >= 0 else 0
            earlier, weight = last[slot], 1.0
            while earlier >= 0 and event - earlier <= horizons[num_horizons - 1]:
                for h in range(num_horizons):
                    if event - earlier <= horizons[h]:
                        partial[h] += weight * gains[earlier]
                weight *= constants.fading
                earlier = previous[earlier]
            for earlier in range(max(0, event - RECENT_EVENTS), event):
                if category[earlier] == category[event]:
                    near += gains[earlier]
        resting[event % distance] = slot
        rank = ranked(state, constants.items_per_topic, constants.skew)
        item = topic * constants.items_per_topic + rank
        propensity *= rank_share(rank, constants.items_per_topic, constants.skew)
        known = constants.base + item_quality(constants, item) + season_of(constants, time) + SCENARIO_EFFECT[scenario]
        known += constants.recent * near
        odds = known + constants.strength * far
        whim = 0.0 if noise else constants.whim
        probability = (1.0 - whim) * sigmoid(odds) + whim * sigmoid(constants.base)
        click = uniform(state) < probability
        gains[event] = 1.0 if click else -constants.miss
        if not noise:
            previous[event], last[slot] = last[slot], event
            evidence[slot] = constants.fading * far + gains[event]
        times[at + event], items[at + event], topics[at + event] = time, item, topic
        clicks[at + event], scenarios[at + event] = click, scenario
        shown[at + event], chances[at + event], ages[at + event] = propensity, probability, age
        split = 0 if time < constants.validation else (1 if time < constants.test else 2)
        row = sums[split]
        group = group_of(noise, scenario, near)
        for h in range(num_horizons):
            predicted = sigmoid(known + constants.strength * partial[h])
            add_to_truth(short[split, h, group], predicted, probability)
        add_to_truth(whole[split], probability, probability)
        row[COUNT] += 1.0
        row[CLICKS] += click
        row[PROBABILITY] += probability
        row[ENTROPY] -= probability * math.log(probability) + (1.0 - probability) * math.log(1.0 - probability)
        row[NOISE] += noise
        row[WITH_EVIDENCE] += age > 0


@kernel
def simulate(
    constants,
    horizons,
    first,
    counts,
    times,
    items,
    topics,
    clicks,
    scenarios,
    shown,
    chances,
    ages,
    short,
    whole,
    sums,
):
    """Simulate the users ``first`` … with ``counts`` [U] events each into columns of N places."""
    at = 0
    for place in range(len(counts)):
        simulate_user(
            constants,
            horizons,
            first + place,
            at,
            counts[place],
            times,
            items,
            topics,
            clicks,
            scenarios,
            shown,
            chances,
            ages,
            short,
            whole,
            sums,
        )
        at += counts[place]
