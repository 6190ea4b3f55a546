-- migrate:up
-- The keys. Keys apply in order: a token of version 2 is the token, under key 2, of the token of version 1. So what was
-- masked before can be carried over from the tokens alone, also when raw has been purged, and equal values keep equal
-- tokens. Keys are never deleted: each is a link of the chain. Which kinds there are, dbt_project declares, and
-- `make migrate` makes the keys that are missing.

set local role masker;

create table masking.keys (
    kind text,
    version integer check (version > 0),
    key bytea not null check (octet_length(key) >= 32),  -- pgcrypto takes an empty key in silence
    created_at timestamptz not null default now(),
    created_by name not null default session_user,
    origin text not null default 'generated' check (origin in ('generated', 'imported')),
    primary key (kind, version)
);
alter table masking.keys alter column key set statistics 0;
comment on table masking.keys is 'HMAC keys, one per kind of value and version. Readable by masker alone.';
comment on column masking.keys.origin is 'Generated in this database, or imported by `make rotate-key IMPORT=1`.';

reset role;

-- migrate:down
-- none: the way back is a backup
