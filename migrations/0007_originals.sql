-- migrate:up
-- A sample of these would be kept in pg_statistic: there a sealed original would outlive an erasure, and a token of an
-- old key a rotation.

set local role pipeline_owner;

alter table privacy.originals
    alter column token type text, alter column sealed type bytea,  -- as they are; it removes the samples
    alter column token set statistics 0, alter column sealed set statistics 0;

reset role;

-- migrate:down
-- none: the way back is a backup
