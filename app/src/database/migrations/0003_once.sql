ALTER TABLE session ADD COLUMN last_change TEXT NOT NULL DEFAULT '';
CREATE INDEX shop_order_by_session ON shop_order (session);
CREATE INDEX outbox_by_kind ON outbox (kind, written_ms);
