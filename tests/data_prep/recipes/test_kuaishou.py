"""KuaiRand, KuaiRec and the two LongCTR data sets in their published layouts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from .conftest import csv_text

RAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
RAND_VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
RAND_USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
APRIL_8, MAY_6, MAY_7 = 1649347200000, 1651766400000, 1651852800000


def rand_row(user: int, video: int, time: int, clicked: int, *, rand: int = 0, tab: int = 1) -> tuple:
    watched = 9000 if clicked else 500
    return (user, video, 20220408, 400, time, clicked, 0, 0, 0, 0, 0, clicked, watched, 10000, 0, 0, 0, rand, tab)


@pytest.mark.parametrize(("suffix", "parts"), [("pure", [""]), ("1k", [""]), ("27k", ["_part1", "_part2"])])
def test_kuairand(ready, suffix, parts):
    early = [rand_row(u, v, APRIL_8 + 1000 * v, (u + v) % 2, tab=v % 3) for u in (0, 1) for v in range(12)]
    late = [rand_row(u, v, MAY_6 + 1000 * v, v % 2, tab=4) for u in (0, 1) for v in range(3)]
    late += [rand_row(u, v, MAY_7 + 1000 * v, v % 2, tab=5) for u in (0, 1) for v in range(3)]
    shown_at_random = [rand_row(0, 11, MAY_6 + 500, 1, rand=1, tab=0)]
    cuts = np.array_split(np.arange(len(early)), len(parts))
    files = {
        f"data/log_standard_4_08_to_4_21_{suffix}{part}.csv": csv_text(RAND_LOG, [early[i] for i in cut])
        for part, cut in zip(parts, cuts)
    }
    files |= {
        f"data/log_standard_4_22_to_5_08_{suffix}.csv": csv_text(RAND_LOG, late),
        f"data/log_random_4_22_to_5_08_{suffix}.csv": csv_text(RAND_LOG, shown_at_random),
        f"data/video_features_basic_{suffix}.csv": csv_text(
            RAND_VIDEO,
            [
                (v, 100 + v % 4, "NORMAL", "2022-03-01", "Web", 1, "17200.0", 720, 1280, 9, 4.0, "12,65")
                for v in range(11)
            ]
            + [(11, 103, "AD", "2022-03-01", "", 1, "", 720, 1280, "", "", "")],
        ),
        f"data/user_features_{suffix}.csv": csv_text(
            RAND_USER,
            [(0, "full_active", 0, 0, 1, 5, "(0,10]", 312, "[100,1k)", 0, "0", 3624, "730+", *range(18))],
        ),
    }
    found = ready("kuairand", files)
    assert found.report["rows"] == {"read": 37, "accepted": 37, "rejected": {}}
    assert [found.report["samples"][split]["samples"] for split in ("train", "val", "test")] == [24, 7, 6]
    assert "counts are not those of KuaiRand-Pure" in found.warnings
    items = found.items()
    assert items[3] == {
        "author": ["103"],
        "video_type": ["NORMAL"],
        "upload_type": ["Web"],
        "music": ["9"],
        "tags": ["12", "65"],
    }
    assert (items[11]["tags"], items[11]["video_type"]) == ([], ["AD"])
    first_random = next(
        row for row in found.samples("val") if found.raw("shown_at_random")[row["shown_at_random"]] == 1
    )
    assert (first_random["user"], first_random["video"], found.raw("target_tab")[first_random["target_tab"]]) == (
        0,
        11,
        0,
    )
    assert found.raw("active_degree")[first_random["active_degree"]] == "full_active"
    unknown = next(row for row in found.samples("train") if row["user"] == 1)
    assert unknown["registered"] == 0, "user 1 stands in no user table"
    history = found.history(0, before=MAY_6 + 501)
    assert [event["video"] for event in history[-2:]] == [0, 11]
    assert [event["tab"] for event in history[-2:]] == [4, 0]


def test_kuairec(ready):
    header = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio"
    start, validation, test = 1593878903.438, 1598198400.5, 1598716800.25

    def row(user: int, video: int, time: float | str, ratio: float) -> tuple:
        return (user, video, int(ratio * 10867), 10867, "2020-07-05 00:08:23.438", 20200705, time, ratio)

    big = [row(user, video, start + video, 0.5 + video % 3) for user in (0, 1) for video in range(9)]
    big += [row(0, 9, validation, 2.5), row(1, 9, validation, 0.1)]
    small = [row(0, video, test + video, 0.5 + video % 3) for video in range(5)] + [row(0, 7, "", 0.4)]
    users = (
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
        "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
        "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
    )
    found = ready(
        "kuairec",
        {
            "big_matrix.csv": csv_text(header, big),
            "small_matrix.csv": csv_text(header, small),
            "item_categories.csv": csv_text("video_id,feat", [(v, f"[{v}, 9]") for v in range(10)]),
            "user_features.csv": csv_text(
                users,
                [(u, "UNKNOWN", 0, 0, 0, 5, "(0,10]", 3, "[1,10)", 0, "0", 107, "91-180", *range(18)) for u in (0, 1)],
            ),
        },
    )
    assert found.report["rows"] == {"read": 26, "accepted": 25, "rejected": {"timestamp is missing": 1}}
    assert [found.report["samples"][split]["samples"] for split in ("train", "val", "test")] == [18, 2, 5]
    assert found.samples("train")[0]["timestamp"] == 1593878903438
    assert sorted(found.items()[4]["tags"]) == ["4", "9"]
    assert [row["label"] for row in found.samples("test")] == [0, 0, 1, 0, 0]
    assert {found.raw("target_matrix")[row["target_matrix"]] for row in found.samples("test")} == {"small"}
    assert found.samples("val")[0]["active_degree"] == 0
    assert [event["matrix"] for event in found.history(0)] == ["big"] * 10 + ["small"] * 5


@pytest.mark.parametrize(("name", "columns"), [("microvideo17m", ["cate_id"]), ("kuaivideo", [])])
def test_longctr(ready, name, columns):
    """A sample sees the first seq_len entries of its user's row, and no more."""
    sequences = [[1, 2, 3, 4, 5], [6, 5, 4], []]
    samples = {
        "train": [(0, 2, 1, 1), (0, 9, 2, 0), (1, 5, 0, 1)],
        "valid": [(0, 4, 3, 1), (2, 1, 0, 0)],
        "test": [(0, 8, 5, 0), (1, 7, 3, 1)],
    }
    names = ("user_index", "item_index", "seq_len", "is_click")
    files = {
        f"{split}.parquet": pa.table({n: list(v) for n, v in zip(names, zip(*rows))}) for split, rows in samples.items()
    }
    files["user_info.parquet"] = pa.table({"full_item_seq": pa.array(sequences, pa.list_(pa.int64()))})
    items = {"item_index": list(range(10)), "item_id": [0, *range(1, 9), 1], "image_emb_dim64": [[0.5] * 64] * 10}
    files["item_info.parquet"] = pa.table(items | {column: [i % 4 for i in range(10)] for column in columns})
    found = ready(name, files)
    assert found.report["events"] == 8
    for split, rows in samples.items():
        got = found.samples({"valid": "val"}.get(split, split))
        assert sorted((row["user"], row["video"], row["timestamp"], row["label"]) for row in got) == sorted(rows)
    for user, _, length, _ in (row for rows in samples.values() for row in rows):
        assert [event["video"] for event in found.history(user, before=length)] == sequences[user][:length]
    assert found.items()[9]["published_id"] == [1]
