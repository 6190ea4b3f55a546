-- migrate:up
-- `make attest` as the login of monitoring: it reads catalogs and ages, no value and no key, and records its outcome.

set local role pipeline_owner;

create table privacy.attestations (
    at timestamptz primary key default clock_timestamp(),
    login name not null default session_user,
    failed integer not null check (failed >= 0)
);
comment on table privacy.attestations is 'Outcomes of `privacy attest --record`, for alerts.';
comment on column privacy.attestations.failed is 'How many items were not as the project says.';

grant usage on schema raw, privacy to monitor;
grant select (load_id) on raw.sqs_messages to monitor;
grant select (load_id) on raw.loads to monitor;
grant select on raw.load_id_seq to monitor;
grant select (purged_at) on raw.purges to monitor;
grant select (at, action) on privacy.audit to monitor;
grant select, insert (failed) on privacy.attestations to monitor;  -- when and as whom, PostgreSQL says

set local role masker;

grant usage on schema masking to monitor;
grant select (kind, version, created_at) on masking.keys to monitor;

reset role;

grant usage on schema migrations to monitor;
grant select on migrations.boundary to monitor;

-- migrate:down
-- none: the way back is a backup
