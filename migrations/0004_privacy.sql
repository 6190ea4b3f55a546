-- migrate:up
-- Recovery, erasure, and the record of both.

set local role pipeline_owner;

create table privacy.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    login name not null default session_user,
    xid xid8 not null default pg_current_xact_id(),
    action text not null,
    about bigint references privacy.audit,
    token text,
    reason text,
    removed bigint
);
comment on table privacy.audit is 'Who lifted or ended whose pseudonymity, and why. Rows are added, never changed.';
comment on column privacy.audit.login is 'The login itself, whatever role it has taken on.';
comment on column privacy.audit.xid is 'The transaction: a recovery may not be requested and handed out in one.';
comment on column privacy.audit.about is 'The request that is approved or carried out.';
comment on column privacy.audit.removed is 'Messages that an erasure or a purge removed from raw.';

create table privacy.public_keys (
    id integer generated always as identity primary key,  -- the newest seals
    key bytea not null,
    added_at timestamptz not null default now()
);
comment on table privacy.public_keys is 'OpenPGP public keys of the officers. Originals are sealed with the newest.';

create table privacy.originals (
    kind text,
    token text,
    key_version integer not null,
    sealed bytea not null,
    primary key (kind, token)
);
alter table privacy.originals alter column sealed set storage external;  -- what is encrypted does not compress
comment on table privacy.originals is 'The canonical value behind each token, sealed with the officers'' public key.';

create table privacy.settings (
    only_row boolean primary key default true check (only_row),
    sealed_to bigint not null default 0,
    returned_to bigint not null default 0,
    two_persons boolean not null default false
);
insert into privacy.settings default values;
comment on column privacy.settings.sealed_to is
'The last load whose originals are sealed. The row is also the lock of who seals, rotates or erases.';
comment on column privacy.settings.returned_to is
'On Citus: the last load in which erased messages that came back have been erased again.';
comment on column privacy.settings.two_persons is 'Whether another officer has to approve each recovery.';

create table privacy.erased_messages (
    message_id text,
    load_id bigint,
    body_mac text,  -- null when raw had been purged before
    erased_at timestamptz not null default now(),
    erasure bigint not null references privacy.audit,
    primary key (message_id, load_id)  -- a message that comes back is erased again
);
create index on privacy.erased_messages (body_mac);
alter table privacy.erased_messages alter column body_mac set statistics 0;
comment on table privacy.erased_messages is 'Tombstones: the ids of erased messages and nothing about the person.';
comment on column privacy.erased_messages.load_id is 'The load that had landed it, for the conservation test.';
comment on column privacy.erased_messages.body_mac is 'Keyed hash of the body: SQS redrives a message under a new id.';

create table privacy.tombstone_key (
    only_row boolean primary key default true check (only_row),
    key bytea not null default extensions.gen_random_bytes(32)
);
insert into privacy.tombstone_key default values;
alter table privacy.tombstone_key alter column key set statistics 0;
comment on table privacy.tombstone_key is 'Key of privacy.erased_messages.body_mac. Read by pipeline_owner alone.';

grant select on privacy.audit to privacy_officer;
-- transformer removes from its own tables what is erased (dbt_project/macros/erasure.sql), and counts it.
grant select (message_id, load_id) on privacy.erased_messages to transformer;
-- A rotation gives the sealed originals their new tokens too.
grant select, update on privacy.originals, privacy.settings to masker;

reset role;

-- migrate:down
-- none: the way back is a backup
