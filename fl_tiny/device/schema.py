# SPDX-License-Identifier: Apache-2.0
"""The tables of a device's database, and how those of older versions become them.

What is long is written once and stays in place; what changes in a round are numbers that name it.
"""

from __future__ import annotations

SCHEMA_VERSION = 8
HINT = "move DIR away and enrol anew; the gateway's operator then revokes the old identity"  # of a damaged file
CHOICE = (  # columns that kept and slot share
    "chosen_at, kind, fitted, digest, start, previous, fleet, personal, patch, judged, groups, chosen_on"
)
_CHOICE = """chosen_at INT NOT NULL, kind TEXT NOT NULL, fitted INT NOT NULL, digest BLOB NOT NULL,
  start INT NOT NULL, previous REAL, fleet REAL, personal REAL"""

_FACTS = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE sample(id INTEGER PRIMARY KEY AUTOINCREMENT, label INT NOT NULL, held INT NOT NULL,
  features BLOB NOT NULL, target BLOB, model BLOB NOT NULL DEFAULT x'') STRICT;
CREATE INDEX sample_model ON sample(model, label, held);
"""
# head: each that a fact, the choice or the other slot names, once; meta `head` is the one held, kept.start what the
# choice began with. residual: the journal's (rest) and the one carried, meta `residual`; a receipt makes one the other,
# by that number alone: a journal whose residual is the one carried is settled.
# slot: the one not in use, with all that goes with its model (device/slots.py).
_STATE = f"""
CREATE TABLE head(id INTEGER PRIMARY KEY, version INT NOT NULL, signed BLOB NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE residual(id INTEGER PRIMARY KEY, residual BLOB NOT NULL, steps BLOB NOT NULL) STRICT;
CREATE TABLE journal(only INTEGER PRIMARY KEY CHECK(only=1), number INT NOT NULL, signed BLOB NOT NULL,
  codes BLOB NOT NULL, rest INT NOT NULL) STRICT;
CREATE TABLE kept(only INTEGER PRIMARY KEY CHECK(only=1), {_CHOICE}) STRICT;
CREATE TABLE slot(only INTEGER PRIMARY KEY CHECK(only=1), name TEXT NOT NULL, manifest BLOB NOT NULL,
  model_pk BLOB NOT NULL, features BLOB NOT NULL, head INT NOT NULL, {_CHOICE}) STRICT;
"""
# patch: what makes model/current.tflite of the slot's file (device/derived.py); none: it is that file.
# residual.size: of the residual when it is deflated, as it is since version 5.
_DERIVED = """
CREATE TABLE patch(id INTEGER PRIMARY KEY, runs BLOB NOT NULL) STRICT;
ALTER TABLE kept ADD COLUMN patch INT;
ALTER TABLE slot ADD COLUMN patch INT;
ALTER TABLE residual ADD COLUMN size INT;
"""
# residual.planes: 1 since version 6, with all its lower bytes first, and the codes of its journal deflated; a patch may
# need the body of the head that the choice began with from then on.
_PLANES = "ALTER TABLE residual ADD COLUMN planes INT;"
# head.near: the head whose whole body this one's is stored as a difference to (device/packing.py); none: it is whole
# itself. residual.planes: 2 since version 7, which counts in 1/16 of a step.
_NEAR = "ALTER TABLE head ADD COLUMN near INT;"
# sent: bodies that left this board, no index: 256 rows are read once an offer, and each index costs a page a round.
# summed: the one set of samples that sums are of, by their features; digest: of the sums for a manifest.
# refusal: what this board would not do, once a reason and head.
_PRIVACY = """
CREATE TABLE sent(id INTEGER PRIMARY KEY, rid BLOB NOT NULL, number INT NOT NULL, kind TEXT NOT NULL,
  size INT NOT NULL, samples INT NOT NULL) STRICT;
CREATE TABLE summed(manifest BLOB PRIMARY KEY, features BLOB NOT NULL, last INT NOT NULL, samples INT NOT NULL,
  digest BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE refusal(number INT NOT NULL, why TEXT NOT NULL, PRIMARY KEY(number, why)) STRICT;
"""
# sample.grp: the first row of the group that it belongs to, none: its own; groups are held out as a whole
# (device/intake.py).
# hash: of the features, to find the same again. judged, groups, chosen_on: samples behind a choice and its figures.
_GROUPS = """
ALTER TABLE sample ADD COLUMN grp INT;
ALTER TABLE sample ADD COLUMN hash INT;
CREATE INDEX sample_hash ON sample(hash);
CREATE INDEX sample_group ON sample(grp) WHERE grp IS NOT NULL;
ALTER TABLE kept ADD COLUMN judged INT;
ALTER TABLE kept ADD COLUMN groups INT;
ALTER TABLE kept ADD COLUMN chosen_on INT;
ALTER TABLE slot ADD COLUMN judged INT;
ALTER TABLE slot ADD COLUMN groups INT;
ALTER TABLE slot ADD COLUMN chosen_on INT;
"""
# Of version 7: samples are hashed, and not joined into groups before something with numpy runs (device/worker.py). What
# is held out stays so. Figures measured on samples that heads were trained on are dropped.
_JOIN_7 = """
UPDATE sample SET hash=feature_hash(features);
INSERT OR REPLACE INTO meta SELECT 'unjoined', id FROM sample ORDER BY id DESC LIMIT 1;
UPDATE kept SET previous=NULL, fleet=NULL, personal=NULL;
UPDATE slot SET previous=NULL, fleet=NULL, personal=NULL;
"""
SCHEMA = _FACTS + _STATE + _DERIVED + _PLANES + _NEAR + _PRIVACY + _GROUPS

UNUSED = (  # of what is stored once and named by others
    "WITH used(id) AS (SELECT value FROM meta WHERE key='head' UNION SELECT start FROM kept"
    " UNION SELECT head FROM slot UNION SELECT start FROM slot) DELETE FROM head WHERE id NOT IN used"
    " AND id NOT IN (SELECT near FROM head JOIN used USING(id) WHERE near IS NOT NULL)",
    "DELETE FROM patch WHERE id NOT IN (SELECT patch FROM kept WHERE patch IS NOT NULL"
    " UNION SELECT patch FROM slot WHERE patch IS NOT NULL)",
)

_SLOT_3 = """
CREATE TABLE slot(only INTEGER PRIMARY KEY CHECK(only=1), name TEXT NOT NULL, manifest BLOB NOT NULL,
  model_pk BLOB NOT NULL, features BLOB NOT NULL, head_version INT NOT NULL, head_signed BLOB NOT NULL,
  head_body BLOB NOT NULL, chosen_at INT NOT NULL, kind TEXT NOT NULL, fitted INT NOT NULL, digest BLOB NOT NULL,
  version INT NOT NULL, signed BLOB NOT NULL, body BLOB NOT NULL, previous REAL, fleet REAL, personal REAL) STRICT;
"""
_TABLES_3 = ("head", "journal", "residual", "kept", "slot")
_COPY_3 = """
INSERT INTO head(version, signed, body) SELECT version, signed, body FROM head_3
  UNION SELECT version, signed, body FROM kept_3 UNION SELECT head_version, head_signed, head_body FROM slot_3
  UNION SELECT version, signed, body FROM slot_3;
INSERT INTO meta SELECT 'head', id FROM head_3 JOIN head USING(version, signed, body);
INSERT INTO kept SELECT 1, chosen_at, kind, fitted, digest, id, previous, fleet, personal
  FROM kept_3 JOIN head USING(version, signed, body);
INSERT INTO slot SELECT 1, name, manifest, model_pk, features, held.id, chosen_at, kind, fitted, digest, start.id,
  previous, fleet, personal FROM slot_3 AS old
  JOIN head AS held ON (held.version, held.signed, held.body)=(head_version, head_signed, head_body)
  JOIN head AS start ON (start.version, start.signed, start.body)=(old.version, old.signed, old.body);
INSERT INTO residual SELECT 1, residual, steps FROM residual_3;
INSERT INTO meta SELECT 'residual', 1 FROM residual_3;
INSERT INTO residual SELECT 2, residual, steps FROM journal_3;
INSERT INTO journal SELECT 1, number, signed, codes, 2 FROM journal_3;
"""
MIGRATIONS = {  # from a version to the next
    1: "ALTER TABLE sample ADD COLUMN target BLOB;",
    2: "ALTER TABLE sample ADD COLUMN model BLOB NOT NULL DEFAULT x''; DROP INDEX IF EXISTS sample_label;"
    f"CREATE INDEX sample_model ON sample(model, label, held); {_SLOT_3}",
    3: "".join(f"ALTER TABLE {name} RENAME TO {name}_3;" for name in _TABLES_3)
    + _STATE
    + _COPY_3
    + "".join(f"DROP TABLE {name}_3;" for name in _TABLES_3),
    4: _DERIVED,
    5: _PLANES,
    6: _NEAR,
    7: _PRIVACY + _GROUPS + _JOIN_7,
}
