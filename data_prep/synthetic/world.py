"""The laws of a synthetic world: how users meet topics, and what makes them click.

A click on an item of topic k has the probability

    p = (1 - whim) * sigmoid(base + strength * e_k + recent * r + quality + scenario + season) + whim * sigmoid(base)

Evidence ``e_k`` is a fading sum over the user's earlier events on k (+1 for a click, minus the base odds for none): a
function of what the log shows. Nothing is hidden, p is the best possible score, its AUC the best possible AUC.
A topic rests for at least ``evidence_distance`` events after each event on it: interests fall asleep and re-awaken,
they drift because evidence fades, and no evidence lies nearer than that. ``r`` counts the last events of the same
category (the level above topics) and is all that a short history tells. Noise events belong to background topics, whose
clicks depend on no history.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

SCENARIOS = ("feed", "video", "search")
RECENT_EVENTS = 10
"""Newest events that count for the recent evidence of a category."""
DAY_MS = 86_400_000
START_MS = 1_704_067_200_000
"""Monday, 1 January 2024, 00:00 UTC."""
MAX_USER_SHARE = 20.0
"""No user has more than this many times the mean number of events."""


class Constants(NamedTuple):
    """The world as the compiled kernel reads it; counts are int64, the rest float64."""

    seed: int
    mean_events: float
    activity: float
    distance: int
    pool: int
    topics: int
    categories: int
    background_topics: int
    items_per_topic: int
    noise: float
    skew: float
    base: float
    miss: float
    strength: float
    fading: float
    recent: float
    quality: float
    season: float
    whim: float
    bias: float
    start: int
    span: int
    validation: int
    test: int


@dataclass(frozen=True, kw_only=True)
class World:
    """Parameters of a synthetic log.

    Args:
        events: in all, about; each user's number is drawn.
        users: number of users; default so that a mean user has eight times ``evidence_distance`` events.
        evidence_distance: how many events back, at the least, the evidence for a topic lies.
        items_per_topic: items of one topic.
        noise: share of events on background topics.
        skew: popularity skew of topics and items, 0 (none) to below 1.
        strength: weight of the distant evidence in the log-odds of a click.
        recent: weight of the recent evidence.
        fading: what is left of evidence after one more event on its topic.
        whim: share of events on which the user does not follow any interest.
        bias: how much the ranker prefers what the user clicked before.
        season: swing of the log-odds over the day, and of the weekend.
        activity: standard deviation of the logarithm of the events of a user.
        click_rate: of a user without evidence.
        days: covered by the log; the last tenth is test, the tenth before validation.
        seed: of everything.

    Raises:
        ValueError: when a parameter is out of its range.
    """

    events: int = 1_000_000
    users: int | None = None
    evidence_distance: int = 100
    items_per_topic: int = 20
    noise: float = 0.2
    skew: float = 0.6
    strength: float = 1.2
    recent: float = 0.4
    fading: float = 0.7
    whim: float = 0.05
    bias: float = 0.5
    season: float = 0.3
    activity: float = 0.6
    click_rate: float = 0.25
    days: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evidence_distance < RECENT_EVENTS:
            raise ValueError(f"evidence_distance is {self.evidence_distance}; expected at least {RECENT_EVENTS} events")
        at_least_one = {"events": self.events, "items_per_topic": self.items_per_topic, "days": self.days - 9}
        at_least_one |= {} if self.users is None else {"users": self.users}
        for name, value in at_least_one.items():
            if value < 1:
                least = 10 if name == "days" else 1
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("noise", "skew", "fading", "whim"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1")
        if not 0 < self.click_rate < 1:
            raise ValueError(f"click_rate is {self.click_rate}; expected a share between 0 and 1")
        if self.activity < 0:
            raise ValueError(f"activity is {self.activity}; expected a standard deviation of at least 0")

    @property
    def num_users(self) -> int:
        """Users in the log."""
        return self.users or max(10, round(self.events / (8 * self.evidence_distance)))

    @property
    def pool(self) -> int:
        """Topics of one user: those that rest, and a quarter more to choose from."""
        return self.evidence_distance + self.evidence_distance // 4 + 8

    @property
    def topics(self) -> int:
        """Topics that users care about; background topics come after them."""
        return 2 * self.pool

    @property
    def background_topics(self) -> int:
        """Topics of noise events."""
        return max(4, self.topics // 20)

    @property
    def categories(self) -> int:
        """Groups of topics; background topics form one more."""
        return 12

    @property
    def num_items(self) -> int:
        """Items of all topics."""
        return (self.topics + self.background_topics) * self.items_per_topic

    @property
    def horizons(self) -> tuple[int, ...]:
        """History lengths for which the truth file states what is attainable."""
        wanted = {RECENT_EVENTS} | {round(self.evidence_distance * share) for share in (0.5, 1.25, 2, 4, 8)}
        return tuple(sorted(n for n in wanted | {self.evidence_distance - 1} if n >= RECENT_EVENTS))

    @property
    def boundaries(self) -> tuple[int, int]:
        """First timestamps (ms) of validation and of test."""
        return START_MS + self.days * DAY_MS * 8 // 10, START_MS + self.days * DAY_MS * 9 // 10

    def constants(self) -> Constants:
        """For the kernel."""
        return Constants(
            seed=self.seed,
            mean_events=self.events / self.num_users,
            activity=float(self.activity),
            distance=self.evidence_distance,
            pool=self.pool,
            topics=self.topics,
            categories=self.categories,
            background_topics=self.background_topics,
            items_per_topic=self.items_per_topic,
            noise=float(self.noise),
            skew=float(self.skew),
            base=math.log(self.click_rate / (1 - self.click_rate)),
            miss=self.click_rate / (1 - self.click_rate),
            strength=float(self.strength),
            fading=float(self.fading),
            recent=float(self.recent),
            quality=0.4,
            season=float(self.season),
            whim=float(self.whim),
            bias=float(self.bias),
            start=START_MS,
            span=self.days * DAY_MS,
            validation=self.boundaries[0],
            test=self.boundaries[1],
        )

    def to_dict(self) -> dict[str, Any]:
        """Parameters for the truth file, the derived ones included."""
        derived = {"users": self.num_users, "topics": self.topics, "items": self.num_items}
        return asdict(self) | derived | {"topics_of_a_user": self.pool, "background_topics": self.background_topics}
