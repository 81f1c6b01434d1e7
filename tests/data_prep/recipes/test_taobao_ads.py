"""Taobao display ads in their published layout."""

from __future__ import annotations

from .conftest import csv_text

MAY_6, MAY_12, MAY_13 = 1494000000, 1494518400, 1494604800


def test_ads(ready):
    shown = [(user, time + user, 10 + user % 2, "430548_1007", 1, 0) for user in (1, 2) for time in (MAY_6, MAY_6 + 50)]
    shown += [
        (1, MAY_12, 11, "430539_1007", 0, 1),
        (1, MAY_13, 10, "430539_1007", 1, 0),
        (9, MAY_13, 12, "430548_1007", 0, 1),
    ]
    behaviour = [(1, MAY_6 - 1000, "pv", 6250, 91286), (1, MAY_6 + 20, "buy", 5, 95471), (2, MAY_6 - 3, "fav", 5, "")]
    found = ready(
        "taobao_ads",
        {
            "raw_sample.csv": csv_text("user,time_stamp,adgroup_id,pid,nonclk,clk", shown),
            "behavior_log.csv": csv_text("user,time_stamp,btag,cate,brand", behaviour),
            "ad_feature.csv": csv_text(
                "adgroup_id,cate_id,campaign_id,customer,brand,price",
                [(10, 5, 100, 1000, "NULL", 9.9), (11, 5, 101, 1001, 95471, 170.0)],
            ),
            # The published header ends in a space.
            "user_profile.csv": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
            "occupation,new_user_class_level \n1,0,5,2,5,,3,0,3\n2,0,5,2,5,2,3,0,\n",
        },
    )
    assert [found.report["samples"][split]["samples"] for split in ("train", "val", "test")] == [4, 1, 2]
    items = found.items()
    assert set(items) == {"ad 10", "ad 11", "ad 12", "goods 6250 91286", "goods 5 95471", "goods 5 -"}
    assert items["ad 11"] | {"price": None} == {
        "category": ["5"],
        "maker": ["95471"],
        "campaign": [101],
        "advertiser": [1001],
        "price": None,
    }
    assert (items["ad 10"]["maker"], items["ad 12"]["category"]) == ([], [])
    assert (items["goods 5 95471"]["category"], items["goods 5 95471"]["campaign"]) == (["5"], [])
    seen = [(event["item"], event["action"]) for event in found.history(1, before=MAY_12 + 1)]
    assert seen == [
        ("goods 6250 91286", "pv"),
        ("ad 11", "ad shown"),
        ("goods 5 95471", "buy"),
        ("ad 11", "ad shown"),
        ("ad 11", "ad click"),
    ]
    clicked = found.samples("val")[0]
    assert (clicked["user"], clicked["item"], clicked["label"]) == (1, "ad 11", 1)
    assert (found.raw("gender")[clicked["gender"]], clicked["spending"]) == (2, 0)
    assert {row["label"] for row in found.samples("train")} == {0}
