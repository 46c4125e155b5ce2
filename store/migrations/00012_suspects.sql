-- Suspects: tasks that run in a process of their own because they were running in crashes. How many workers died while that
-- was so: it proves nothing against the task, which then only waits longer, but it must end some day.
--
-- Deploy story: additive. A worker of the version before runs suspects like any other task.

-- +goose Up
ALTER TABLE tasks ADD COLUMN losses integer NOT NULL DEFAULT 0 CHECK (losses >= 0);

-- +goose Down
ALTER TABLE tasks DROP COLUMN losses;
