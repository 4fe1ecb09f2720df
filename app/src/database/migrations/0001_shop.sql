CREATE TABLE toy (
    id       BIGINT PRIMARY KEY,
    name     TEXT NOT NULL,
    category TEXT NOT NULL,
    text     TEXT NOT NULL,
    picture  TEXT NOT NULL
);
CREATE INDEX toy_by_category ON toy (category, id);
CREATE TABLE price (
    toy   BIGINT PRIMARY KEY REFERENCES toy (id),
    cents BIGINT NOT NULL CHECK (cents >= 0)
);
CREATE TABLE inventory (
    toy    BIGINT PRIMARY KEY REFERENCES toy (id),
    pieces BIGINT NOT NULL CHECK (pieces >= 0)
);
CREATE TABLE session (
    id         TEXT PRIMARY KEY,
    version    BIGINT NOT NULL,
    name       TEXT NOT NULL,
    email      TEXT NOT NULL,
    changed_ms BIGINT NOT NULL
);
CREATE INDEX session_by_age ON session (changed_ms);
CREATE TABLE cart_line (
    session  TEXT NOT NULL REFERENCES session (id),
    toy      BIGINT NOT NULL REFERENCES toy (id),
    quantity BIGINT NOT NULL CHECK (quantity BETWEEN 1 AND 99),
    PRIMARY KEY (session, toy)
);
CREATE TABLE shop_order (
    id        TEXT PRIMARY KEY,
    session   TEXT NOT NULL,
    name      TEXT NOT NULL,
    email     TEXT NOT NULL,
    card      TEXT NOT NULL,
    cents     BIGINT NOT NULL CHECK (cents >= 0),
    state     TEXT NOT NULL,
    placed_ms BIGINT NOT NULL
);
CREATE TABLE order_line (
    shop_order TEXT NOT NULL REFERENCES shop_order (id),
    toy        BIGINT NOT NULL,
    name       TEXT NOT NULL,
    quantity   BIGINT NOT NULL CHECK (quantity > 0),
    cents      BIGINT NOT NULL,
    PRIMARY KEY (shop_order, toy)
);
CREATE TABLE outbox (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    shop_order TEXT NOT NULL REFERENCES shop_order (id),
    written_ms BIGINT NOT NULL
);
CREATE INDEX outbox_by_age ON outbox (written_ms);
CREATE TABLE delivery (
    event            TEXT NOT NULL REFERENCES outbox (id),
    subscriber       TEXT NOT NULL,
    is_done          BIGINT NOT NULL,
    claimed_until_ms BIGINT NOT NULL,
    tries            BIGINT NOT NULL,
    PRIMARY KEY (event, subscriber)
);
