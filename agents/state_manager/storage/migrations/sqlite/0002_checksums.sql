-- What was written can be told from what is read: the checksum of a row of the log, null in rows of older releases.
-- Ended instances by the time of their end, for their removal when they are old.

ALTER TABLE events ADD COLUMN checksum INTEGER;
CREATE INDEX instances_ended ON instances (completed_at) WHERE completed_at IS NOT NULL;
