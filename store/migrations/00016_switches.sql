-- The operators' switches, which act while processes run. The only one so far pauses the autoscaler.
--
-- Deploy story: additive. Schedulers of the version before do not read it; pause them with AUTOSCALE_MODE=paused.

-- +goose Up
CREATE TABLE switches (
    name   text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 100), -- a row while it is on
    by     text NOT NULL CHECK (length(by) BETWEEN 1 AND 255),
    reason text NOT NULL DEFAULT '' CHECK (length(reason) <= 1000),
    set_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, DELETE ON switches TO muster_system;

-- +goose Down
DROP TABLE switches;
