"""EB-NeRD and Amazon Reviews 2023 in their published layouts."""

from __future__ import annotations

import gzip
import json
from datetime import datetime

import pyarrow as pa


def moment(text: str) -> datetime:
    return datetime.fromisoformat(f"2023-{text}")


def behaviors(rows: list[tuple]) -> pa.Table:
    """Impressions of one reader on a page: time, user, articles in view, articles clicked."""
    time, user, view, clicked = (list(column) for column in zip(*rows))
    count = len(rows)
    return pa.table(
        {
            "impression_id": pa.array(range(count), pa.uint32()),
            "article_id": pa.nulls(count, pa.int32()),
            "impression_time": pa.array(time, pa.timestamp("us")),
            "read_time": pa.array([7.0] * count, pa.float32()),
            "scroll_percentage": pa.nulls(count, pa.float32()),
            "device_type": pa.array([2] * count, pa.int8()),
            "article_ids_inview": pa.array(view, pa.list_(pa.int32())),
            "article_ids_clicked": pa.array(clicked, pa.list_(pa.int32())),
            "user_id": pa.array(user, pa.uint32()),
            "is_sso_user": [False] * count,
            "gender": pa.nulls(count, pa.int8()),
            "postcode": pa.nulls(count, pa.int8()),
            "age": pa.nulls(count, pa.int8()),
            "is_subscriber": [True] * count,
            "session_id": pa.array([1] * count, pa.uint32()),
            "next_read_time": pa.array([3.0] * count, pa.float32()),
            "next_scroll_percentage": pa.nulls(count, pa.float32()),
        }
    )


def history(rows: dict[int, list[tuple]]) -> pa.Table:
    """Per reader the clicks: time, article, seconds read, share scrolled."""
    columns = [[list(column) for column in zip(*clicks)] for clicks in rows.values()]
    times, articles, seconds, scrolled = zip(*columns)
    return pa.table(
        {
            "user_id": pa.array(list(rows), pa.uint32()),
            "impression_time_fixed": pa.array(times, pa.list_(pa.timestamp("us"))),
            "scroll_percentage_fixed": pa.array(scrolled, pa.list_(pa.float32())),
            "article_id_fixed": pa.array(articles, pa.list_(pa.int32())),
            "read_time_fixed": pa.array(seconds, pa.list_(pa.float32())),
        }
    )


def test_ebnerd(ready):
    early = [(moment(f"05-0{day}T10:00:00"), 20 + day, 5.0 * day, None) for day in range(1, 8)]
    later = (moment("05-20T10:00:00"), 12, 61.0, 100.0)
    articles = [11, 12, 13, *range(21, 28)]
    found = ready(
        "ebnerd",
        {
            "train/behaviors.parquet": behaviors(
                [
                    (moment("05-19T08:00:00"), 1, [11, 12, 13], [12]),
                    (moment("05-21T08:00:00"), 1, [11, 13], [11, 13]),
                    (moment("05-24T08:00:00"), 2, [11], []),
                ]
            ),
            "validation/behaviors.parquet": behaviors(
                [
                    (moment("05-26T08:00:00"), 1, [11, 12], [12]),
                    (moment("05-29T08:00:00"), 2, [13], [13]),
                    (moment("05-30T08:00:00"), 3, [13, 11], [13]),
                ]
            ),
            "train/history.parquet": history({1: early, 2: early[:1]}),
            # The second file repeats what the first one had of its three weeks.
            "validation/history.parquet": history({1: [*early[3:], later], 2: early[:1], 3: early[:2]}),
            "articles.parquet": pa.table(
                {
                    "article_id": pa.array(articles, pa.int32()),
                    "title": ["Overskrift"] * 10,
                    "premium": [False] * 10,
                    "article_type": ["article_default"] * 10,
                    "category": pa.array([118] * 10, pa.int16()),
                    "category_str": ["nyheder"] * 10,
                    "topics": [["Kriminalitet", "Kendt"], []] + [["Sport"]] * 8,
                    "total_inviews": pa.array([9] * 10, pa.int32()),
                    "sentiment_label": ["Negative"] * 10,
                }
            ),
        },
    )
    assert [found.report["samples"][split]["samples"] for split in ("train", "val", "test")] == [6, 2, 3]
    clicks = [(row["article"], row["label"]) for row in found.samples("train")]
    assert clicks == [(11, 0), (12, 1), (13, 0), (11, 1), (13, 1), (11, 0)]
    assert [event["article"] for event in found.history(1)] == [*range(21, 28), 12], "each click once"
    assert [event["article"] for event in found.history(1, before=found.samples("train")[3]["timestamp"])][-1] == 12
    assert found.samples("train")[0]["timestamp"] == 1684483200
    assert sorted(found.items()[11]["topics"]) == ["Kendt", "Kriminalitet"]
    assert found.items()[12]["topics"] == []
    assert found.history(1)[-1]["scrolled"] is not None
    assert found.history(1)[0]["scrolled"] is None


def lines(rows: list[dict]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def test_amazon_reviews(ready):
    def review(user: str, product: str, time: int, rating: float) -> dict:
        return {
            "rating": rating, "title": "Très bon, \"vraiment\"", "text": "a,b\nc", "images": [], "asin": f"{product}X",
            "parent_asin": product, "user_id": user, "timestamp": time, "helpful_vote": 0, "verified_purchase": True,
        }  # fmt: skip

    def product(name: str, store: str | None, price: float | str | None) -> dict:
        return {
            "main_category": "All Beauty", "title": name, "average_rating": 4.8, "rating_number": 10, "features": [],
            "description": [], "price": price, "images": [], "videos": [], "store": store, "categories": ["Hair"],
            "details": {"Package Dimensions": "7 x 5"}, "parent_asin": name, "bought_together": None,
        }  # fmt: skip

    validation, test = 1628643414042, 1658002729837
    reviews = [
        review(f"A{u}", f"B0{i}", validation - 10_000 + 10 * i + u, i % 5 + 1.0) for u in (1, 2) for i in range(9)
    ]
    reviews += [review("A1", "B00", validation, 5.0), review("A2", "B01", test, 2.0)]
    other = [review("A1", "B0Z", validation - 5, 4.0)]
    found = ready(
        "amazon_reviews_2023",
        {
            "All_Beauty.jsonl.gz": lines(reviews),
            "Video_Games.jsonl.gz": lines(other),
            "meta_All_Beauty.jsonl.gz": lines([product(f"B0{i}", "Howard" if i else None, None) for i in range(9)]),
            "meta_Video_Games.jsonl.gz": lines([product("B0Z", "Sega", "12.99"), product("B01", "Again", 3.5)]),
        },
    )
    assert found.report["rows"] == {"read": 21, "accepted": 21, "rejected": {}}
    assert [found.report["samples"][split]["samples"] for split in ("train", "val", "test")] == [19, 1, 1]
    assert found.items()["B01"] == {"category": ["All Beauty"], "store": ["Howard"]}, (
        "the first entry of a product counts"
    )
    assert found.items()["B00"]["store"] == []
    assert [event["product"] for event in found.history("A1")][-2:] == ["B0Z", "B00"], "categories are one history"
    assert [event["rating"] for event in found.history("A2")][-1] == 2.0
    assert (found.samples("val")[0]["label"], found.samples("test")[0]["label"]) == (1, 0)
