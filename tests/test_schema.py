from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from laser.schema import NO_TABLE_NAMES, SCHEMA_VERSION, Feature, Kind, Schema, names

USER = Feature(name="user", kind=Kind.USER, dtype="uint32", cardinality=10)
ITEM = Feature(name="item", kind=Kind.ITEM, dtype="uint32", cardinality=50, table="item", width=16)
GENRES = Feature(name="genres", kind=Kind.ITEM_SIDE, dtype="uint8", cardinality=20, table="genre", width=8, length=3)
RATING = Feature(name="rating", kind=Kind.EVENT_SIDE, dtype="uint8", cardinality=11, table="rating", width=8)
HOUR = Feature(name="hour", kind=Kind.CONTEXT, dtype="uint8", cardinality=25, table="hour", width=8)
CLICK = Feature(name="click", kind=Kind.LABEL, dtype="uint8")
TIME = Feature(name="time", kind=Kind.TIMESTAMP, dtype="int64")
FEATURES = (CLICK, RATING, HOUR, GENRES, ITEM, TIME, USER)


@pytest.fixture
def schema() -> Schema:
    return Schema("movies", FEATURES, "ms")


def test_views_of_the_features(schema):
    assert names(schema.event) == ["time", "item", "rating"]
    assert names(schema.history) == ["item", "genres", "rating"]
    assert names(schema.target) == ["item", "genres"]
    assert names(schema.context) == ["hour"]
    assert [schema.user, schema.item, schema.label, schema.timestamp] == [USER, ITEM, CLICK, TIME]
    assert schema["hour"] is HOUR
    assert schema.seconds_per_tick == 1e-3


def test_an_embedded_user_is_context():
    schema = Schema("movies", (*FEATURES[:-1], replace(USER, table="user", width=4)))
    assert names(schema.context) == ["user", "hour"]


def test_features_share_a_table_of_one_size():
    shared = replace(GENRES, name="last_genre", kind=Kind.CONTEXT, length=1)
    tables = Schema("movies", (*FEATURES, shared)).tables
    assert tables["genre"].features == ("genres", "last_genre")
    assert (tables["genre"].rows, tables["genre"].width) == (20, 8)
    with pytest.raises(ValueError, match="'last_genre' wants table 'genre' as 21 x 8, but 'genres' has it as 20 x 8"):
        Schema("movies", (*FEATURES, replace(shared, cardinality=21)))


def test_file_round_trip(schema, tmp_path):
    schema.save(tmp_path / "schema.json")
    assert Schema.load(tmp_path / "schema.json") == schema
    assert [file.name for file in tmp_path.iterdir()] == ["schema.json"], "no temporary file is left"


def test_fingerprint_changes_with_anything(schema):
    others = [
        replace(schema, name="books"),
        replace(schema, timestamp_unit="s"),
        replace(schema, features=FEATURES[::-1]),
        replace(schema, features=(*FEATURES[:-1], replace(USER, cardinality=11))),
    ]
    assert schema.fingerprint() == Schema("movies", FEATURES, "ms").fingerprint()
    assert len({schema.fingerprint(), *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "a-b"}, "feature name 'a-b' is not an identifier"),
        ({"dtype": "object"}, "feature 'item' has dtype 'object'; expected one of"),
        ({"width": None}, "feature 'item' looks up table 'item': set its cardinality and width"),
        ({"cardinality": None}, "feature 'item' looks up table 'item'"),
        ({"table": "type"}, "feature 'item' looks up table 'type', a name that PyTorch uses; set its `table`"),
        ({"length": 0}, "feature 'item' has length 0 and cardinality 50; both must be at least 1"),
        ({"cardinality": 0}, "feature 'item' has length 1 and cardinality 0"),
        ({"kind": "movie"}, "'movie' is not a valid Kind"),
    ],
)
def test_a_contradicting_feature(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(ITEM, **changed)


@pytest.mark.parametrize("kind", [Kind.USER, Kind.ITEM, Kind.LABEL, Kind.TIMESTAMP])
def test_a_kind_that_there_must_be_once(kind):
    without = tuple(f for f in FEATURES if f.kind is not kind)
    with pytest.raises(ValueError, match=f"has 0 features of kind '{kind.value}'; expected 1"):
        Schema("movies", without)
    twice = replace(next(f for f in FEATURES if f.kind is kind), name="other")
    with pytest.raises(ValueError, match=f"has 2 features of kind '{kind.value}'; expected 1"):
        Schema("movies", (*FEATURES, twice))


def test_other_mistakes(schema):
    with pytest.raises(ValueError, match="'movies' names item more than once"):
        Schema("movies", (*FEATURES, replace(GENRES, name="item")))
    with pytest.raises(ValueError, match="timestamp_unit is 'h'; expected one of s, ms, us, step"):
        Schema("movies", FEATURES, "h")
    with pytest.raises(ValueError, match="no feature 'day' in schema 'movies'; it has click, rating"):
        schema["day"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no schema at .*; give the folder that laser-prep wrote"),
        ("{", "is not JSON"),
        ({"version": SCHEMA_VERSION + 1}, f"version {SCHEMA_VERSION + 1}, this release reads version {SCHEMA_VERSION}"),
        ({"features": [{"name": "user", "colour": 1}]}, "is not a schema"),
        ({"features": None}, "is not a schema"),
        ({"timestamp_unit": "h"}, "timestamp_unit is 'h'"),
    ],
)
def test_a_bad_file(schema, tmp_path, content, words):
    file = tmp_path / "schema.json"
    if isinstance(content, dict):
        content = json.dumps(schema.to_dict() | content)
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        Schema.load(file)
    assert "\n" not in str(caught.value)


def test_needs_no_torch():
    code = "import sys, laser.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_that_pytorch_uses_is_known():
    """A process of its own: the schema is free of torch."""
    script = "from torch import nn; print(*(name for name in dir(nn.ModuleDict()) if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= NO_TABLE_NAMES
