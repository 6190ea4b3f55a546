-- migrate:up
-- Recovery: the original behind a token, for a privacy officer, on record. Originals are kept sealed with a public key
-- whose private half never comes near the database: who steals the whole of it opens none of them. What is not on
-- record before, in a transaction committed before, is not handed out: a caller's rollback cannot take it back.

grant usage on schema extensions to pipeline_owner;

set local role masker;
grant usage on schema masking to pipeline_owner;
grant execute on all functions in schema masking to pipeline_owner;  -- a view's functions run with the caller's rights
alter default privileges in schema masking grant execute on functions to pipeline_owner;

set local role pipeline_owner;
grant usage on schema privacy to masker, transformer, privacy_officer;

create table privacy.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    login name not null default session_user,
    xid xid8 not null default pg_current_xact_id(),
    action text not null,
    about bigint references privacy.audit,
    token text,
    reason text,
    removed integer
);
comment on table privacy.audit is 'Who lifted or ended whose pseudonymity, and why. Rows are added, never changed.';
comment on column privacy.audit.login is 'The login itself, whatever role it has taken on.';
comment on column privacy.audit.xid is 'The transaction: a recovery may not be requested and handed out in one.';
comment on column privacy.audit.about is 'The request that is approved or carried out.';
comment on column privacy.audit.removed is 'Messages that an erasure removed from raw.';

create function privacy.refuse_change() returns trigger
language plpgsql as $$
begin
    raise exception 'privacy.audit is append-only';
end $$;

create trigger append_only before update or delete or truncate on privacy.audit
execute function privacy.refuse_change();

-- The one way to write the audit. The server's log has a second copy, which no rollback takes back.
create function privacy.record(
    action text,
    about bigint default null,
    token text default null,
    reason text default null,
    removed integer default null
) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    new_id bigint;
begin
    insert into privacy.audit (action, about, token, reason, removed)
    values (action, about, token, reason, removed)
    returning id into new_id;
    raise log 'privacy.audit %: % by %, about %', new_id, action, session_user, about;
    return new_id;
end $$;

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
    two_persons boolean not null default false
);
insert into privacy.settings default values;
comment on column privacy.settings.sealed_to is
'The last load whose originals are sealed. The row is also the lock of who seals, rotates or erases.';
comment on column privacy.settings.two_persons is 'Whether another officer has to approve each recovery.';

create function privacy.require_two_persons(required boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update privacy.settings set two_persons = required;
    perform privacy.record(case when required then 'two persons required' else 'one person suffices' end);
end $$;

-- Seals what is new since the last time; dbt calls it in the transaction that makes the tokens (int_messages__masked),
-- so that no token is without its original. Tells how many. Without a public key nothing is sealed, and nothing lost.
create function privacy.seal_originals() returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    public_key bytea := (select key from privacy.public_keys order by id desc limit 1);
    last_sealed bigint;
    last_load bigint;
    newly_sealed bigint;
begin
    if public_key is null then
        return 0;
    end if;
    select sealed_to into strict last_sealed from privacy.settings for update;
    if (select mask_key_version from masking.base_sqs__logins limit 1) <> masking.key_version() then
        raise exception 'a key rotation is under way: finish it with `make rotate-key`';
    end if;
    last_load := raw.safe_load_id() - 1;

    with logins as materialized (
        select ip, device_id, masked_ip, masked_device_id, mask_key_version
        from masking.base_sqs__logins
        where load_id > last_sealed and load_id <= last_load and reason is null
    ),
    unsealed as materialized (  -- before the costly encryption
        select distinct * from (
            select 'ip' as kind, masked_ip as token, mask_key_version, regexp_replace(ip, '^raw:', '') as original
            from logins
            union all
            select 'device_id', masked_device_id, mask_key_version, device_id from logins
        ) as pairs
        where not exists (
            select from privacy.originals where originals.kind = pairs.kind and originals.token = pairs.token
        )
    )
    insert into privacy.originals (kind, token, key_version, sealed)
    select
        kind, token, mask_key_version,
        extensions.pgp_pub_encrypt(original, public_key, 'cipher-algo=aes256, compress-algo=0')
    from unsealed;
    get diagnostics newly_sealed = row_count;

    update privacy.settings set sealed_to = last_load;
    return newly_sealed;
end $$;

-- For pipeline_owner. Tried out at once: pgcrypto encrypts to one RSA or ElGamal subkey and to nothing else. What is in
-- raw is sealed at once too, so that a purge never removes an original that is not.
create function privacy.seal_with(public_key text) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    key bytea := extensions.dearmor(public_key);
begin
    if public_key not like '%-----BEGIN PGP PUBLIC KEY BLOCK-----%' or public_key like '%PRIVATE KEY%' then
        raise exception 'not an armored OpenPGP public key';
    end if;
    perform extensions.pgp_pub_encrypt('', key);
    insert into privacy.public_keys (key) values (key);
    perform privacy.record('public key added', reason => 'key id ' || extensions.pgp_key_id(key));
    perform privacy.seal_originals();
    return extensions.pgp_key_id(key);
end $$;

create function privacy.request_recovery(token text, reason text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if token !~ '^[0-9a-f]{64}$' is not false then
        raise exception 'not a token: 64 hexadecimal digits, as in masked_ip or masked_device_id';
    end if;
    if length(btrim(reason)) < 10 is not false then
        raise exception 'a reason is needed that somebody else will understand';
    end if;
    return privacy.record('recovery requested', token => token, reason => reason);
end $$;

create function privacy.approve_recovery(request bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    requested privacy.audit;
begin
    select * into requested from privacy.audit where id = request and action = 'recovery requested';
    if not found then
        raise exception 'there is no recovery request %', request;
    end if;
    if requested.login = session_user then
        raise exception 'request % needs the approval of another officer', request;
    end if;
    perform privacy.record('recovery approved', about => request, token => requested.token);
end $$;

-- The sealed original, for the officer who asked, within an hour and once. A caller who rolls back could ask again, for
-- the same token: request and approval are on record all the same.
create function privacy.sealed_original(request bigint) returns table (kind text, sealed text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    requested privacy.audit;
begin
    select * into requested from privacy.audit
    where id = request and action = 'recovery requested' and login = session_user;
    if not found then
        raise exception 'there is no recovery request % of yours', request;
    end if;
    if requested.xid = pg_current_xact_id() then
        raise exception 'commit the request first';
    end if;
    if requested.at < clock_timestamp() - interval '1 hour' and not (select two_persons from privacy.settings)
        or exists (select from privacy.audit where about = request and action = 'original handed out')
    then
        raise exception 'request % is over: make a new one', request;
    end if;
    if (select two_persons from privacy.settings) and not exists (
        select from privacy.audit
        where
            about = request and action = 'recovery approved' and login <> session_user
            and xid <> pg_current_xact_id() and at > clock_timestamp() - interval '1 hour'
    ) then
        raise exception 'request % waits for the approval of another officer, which holds for an hour', request;
    end if;

    perform privacy.record('original handed out', about => request, token => requested.token);
    return query
    select originals.kind, extensions.armor(originals.sealed)
    from privacy.originals
    where (originals.kind, originals.token) in (  -- the token may stem from a report older than the newest key
        select kinds.kind, masking.carried_over(kinds.kind, requested.token, version)
        from (values ('ip'), ('device_id')) as kinds (kind), generate_series(1, masking.key_version()) as version
    );
end $$;

grant execute on function privacy.seal_originals() to transformer;
grant select on privacy.audit to privacy_officer;
grant execute on function
    privacy.request_recovery(text, text), privacy.approve_recovery(bigint), privacy.sealed_original(bigint)
to privacy_officer;

-- A rotation gives the sealed originals their new tokens too.
grant select, update on privacy.originals, privacy.settings to masker;

set local role masker;

create or replace function masking.open_rotation() returns void
language plpgsql as $$
begin
    perform from privacy.settings for update;  -- whoever is sealing under the old keys has finished
    update privacy.originals set
        token = masking.carried_over(kind, token, key_version), key_version = masking.key_version()
    where key_version < masking.key_version();
    grant execute on function masking.carried_over to transformer;
end $$;

reset role;

-- migrate:down
-- none: the way back is a backup
