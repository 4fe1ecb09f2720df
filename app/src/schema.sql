-- A product in pieces that change at different speeds, and are cached for as long as each may.
CREATE TABLE IF NOT EXISTS toy (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL,
    theme   TEXT NOT NULL,
    text    TEXT NOT NULL,
    picture TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS price (
    toy   INTEGER PRIMARY KEY REFERENCES toy (id),
    cents INTEGER NOT NULL CHECK (cents >= 0)
) STRICT;

CREATE TABLE IF NOT EXISTS inventory (
    toy    INTEGER PRIMARY KEY REFERENCES toy (id),
    pieces INTEGER NOT NULL CHECK (pieces >= 0)
) STRICT;
