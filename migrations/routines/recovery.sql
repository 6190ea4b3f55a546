-- Recovery: the original behind a token, for a privacy officer, on record. Originals are kept sealed with a public key
-- whose private half never comes near the database: who steals the whole of it opens none of them. What is not on
-- record before, in a transaction committed before, is not handed out: a caller's rollback cannot take it back.

set local role pipeline_owner;

create or replace function privacy.refuse_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'privacy.audit is append-only';
end $$;

create or replace trigger append_only before update or delete or truncate on privacy.audit
execute function privacy.refuse_change();

-- The one way to write the audit. The server's log has a second copy, which no rollback takes back; and what is on
-- record is on disk when its transaction has committed, whatever the login was given.
create or replace function privacy.record(
    action text,
    about bigint default null,
    token text default null,
    reason text default null,
    removed bigint default null
) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    new_id bigint;
begin
    insert into privacy.audit (action, about, token, reason, removed)
    values (action, about, token, reason, removed)
    returning id into new_id;
    perform set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off';
    raise log 'privacy.audit %: % by %, about %', new_id, action, session_user, about;
    return new_id;
end $$;

create or replace function privacy.require_reason(reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if length(btrim(regexp_replace(reason, '[[:space:]]+', ' ', 'g'))) < 10 is not false then
        raise exception 'a reason is needed that somebody else will understand';
    end if;
end $$;

-- The lock: what the audit has after this entry has seen the rule, and what has not seen it is there before. An officer
-- could hold it up, so it gives up after a minute.
create or replace function privacy.require_two_persons(required boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '1min' as $$
begin
    lock table privacy.audit in share row exclusive mode;
    update privacy.settings set two_persons = required;
    perform privacy.record(case when required then 'two persons required' else 'one person suffices' end);
end $$;

-- In a rotation, originals get tokens of the newest key first, then what is masked anew, then dbt's tables. In between,
-- a token of one is not found in another.
create or replace function privacy.require_newest_key(version integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if version > masking.key_version() then  -- as after a restore of an older masking.keys than of dbt's tables
        raise exception 'there are tokens of key %, and masking.keys ends with key %: restore it from a newer backup',
            version, masking.key_version()
            using hint = 'A new key would give equal values other tokens. See deploy/README.md, Restore.';
    elsif version <> masking.key_version() then
        raise exception 'a key rotation is under way: finish it with `make rotate-key`';
    end if;
end $$;

-- Seals what is new since the last time, or (anew) all that is in raw and not sealed: after a field was declared. dbt
-- calls it in the transaction that makes the tokens (int_messages__masked), so that no token is without its original.
-- Tells how many. Without a public key nothing is sealed, and nothing lost.
create or replace function privacy.seal_originals(anew boolean default false) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    public_key bytea := (select key from privacy.public_keys order by id desc limit 1);
    last_sealed bigint;
    last_load bigint;
    boundary_version integer;
    newly_sealed bigint;
begin
    if public_key is null then
        return 0;
    end if;
    select case when anew then 0 else sealed_to end into strict last_sealed from privacy.settings for update;
    select mask_key_version into boundary_version from masking.base_sqs__messages limit 1;
    perform privacy.require_newest_key(boundary_version);
    last_load := privacy.erase_returned();  -- first, or somebody erased who has come back would be sealed again

    with masked_values as materialized (
        select distinct kind, token, mask_key_version, original
        from masking.base_sqs__masked_values
        where load_id > last_sealed and load_id <= last_load and is_accepted
    ),
    unsealed as materialized (  -- before the costly encryption
        select * from masked_values
        where not exists (
            select from privacy.originals
            where originals.kind = masked_values.kind and originals.token = masked_values.token
        )
    ),
    newly as materialized (
        select
            kind, token, mask_key_version,
            extensions.pgp_pub_encrypt(original, public_key, 'cipher-algo=aes256, compress-algo=0') as sealed
        from unsealed
    )
    insert into privacy.originals (kind, token, key_version, sealed)
    select kind, token, mask_key_version, sealed from newly;
    get diagnostics newly_sealed = row_count;

    update privacy.settings set sealed_to = last_load;
    return newly_sealed;
end $$;
grant execute on function privacy.seal_originals(boolean) to transformer;

-- For pipeline_owner. Tried out at once: pgcrypto encrypts to one RSA or ElGamal subkey and to nothing else. What is in
-- raw is sealed at once too, so that a purge never removes an original that is not.
create or replace function privacy.seal_with(public_key text) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    key bytea;
    sealed bytea;
begin
    if public_key not like '%-----BEGIN PGP PUBLIC KEY BLOCK-----%' or public_key like '%PRIVATE KEY%' then
        raise exception 'not an armored OpenPGP public key';
    end if;
    begin
        key := extensions.dearmor(public_key);
        sealed := extensions.pgp_pub_encrypt('', key);
    exception when external_routine_invocation_exception then
        raise exception 'pgcrypto cannot encrypt to this key (%)', sqlerrm;
    end;
    if octet_length(sealed) < 256 then  -- an RSA key of 2048 bits encrypts to as many, and there is more around it
        raise exception 'the encryption subkey is shorter than 2048 bits';
    end if;
    insert into privacy.public_keys (key) values (key);
    perform privacy.record('public key added', reason => 'key id ' || extensions.pgp_key_id(key));
    perform privacy.seal_originals();
    return extensions.pgp_key_id(key);
end $$;

-- The tokens that begin with these digits, of which a report or a screen shows no more; up to eleven, so that more than
-- ten can be told from ten. What is looked up is on record as well. Only originals are looked into: what transformer
-- owns may say anything. A token older than the newest key is found by all its digits alone (sealed_original).
create or replace function privacy.find_tokens(digits text, reason text) returns setof text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if digits !~ '^[0-9a-f]{6,64}$' is not false then
        raise exception 'not the beginning of a token: 6 or more hexadecimal digits, as in masked_ip or masked_device_id';
    end if;
    perform privacy.require_reason(reason);
    perform privacy.record('tokens looked up', token => digits, reason => reason);
    return query
    select distinct originals.token from privacy.originals
    where starts_with(originals.token, digits)
    order by originals.token
    limit 11;
end $$;
grant execute on function privacy.find_tokens(text, text) to privacy_officer;

create or replace function privacy.request_recovery(token text, reason text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if token !~ '^[0-9a-f]{64}$' is not false then
        raise exception 'not a token: 64 hexadecimal digits, as in masked_ip or masked_device_id';
    end if;
    perform privacy.require_reason(reason);
    return privacy.record('recovery requested', token => token, reason => reason);
end $$;
grant execute on function privacy.request_recovery(text, text) to privacy_officer;

-- A request is answered once. Where nobody has to approve it, it is over after an hour.
create or replace function privacy.require_open(requested privacy.audit) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if requested.at < clock_timestamp() - interval '1 hour' and not (select two_persons from privacy.settings)
        or exists (
            select from privacy.audit
            where about = requested.id and action in ('original handed out', 'no original found')
        )
    then
        raise exception 'request % is over: make a new one', requested.id;
    end if;
end $$;

create or replace function privacy.approve_recovery(request bigint) returns void
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
    perform privacy.require_open(requested);
    perform privacy.record('recovery approved', about => request, token => requested.token);
end $$;
grant execute on function privacy.approve_recovery(bigint) to privacy_officer;

-- The sealed original, for the officer who asked, within an hour and once. A caller who rolls back could ask again, for
-- the same token: request and approval are on record all the same. What is on record is what happened: a token with
-- nothing behind it gives nothing away. READ COMMITTED, because an older snapshot has neither a newer rule nor what was
-- handed out meanwhile.
create or replace function privacy.sealed_original(request bigint) returns table (kind text, sealed text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    requested privacy.audit;
    tokens text[];
begin
    perform raw.require_read_committed();
    lock table privacy.audit in row exclusive mode;  -- as writing into it does: a new rule about two persons goes first
    select * into requested from privacy.audit
    where id = request and action = 'recovery requested' and login = session_user
    for update;  -- once: who fetches it at the same time waits, and comes too late
    if not found then
        raise exception 'there is no recovery request % of yours', request;
    end if;
    if requested.xid = pg_current_xact_id() then
        raise exception 'commit the request first';
    end if;
    perform privacy.require_open(requested);
    if (select two_persons from privacy.settings) and not exists (
        select from privacy.audit
        where
            about = request and action = 'recovery approved' and login <> session_user
            and xid <> pg_current_xact_id() and at > clock_timestamp() - interval '1 hour'
    ) then
        raise exception 'request % waits for the approval of another officer, which holds for an hour', request;
    end if;

    tokens := array(  -- the token may stem from a report older than the newest key
        select masking.carried_over(kinds.kind, requested.token, version)
        from masking.kinds() as kinds (kind), generate_series(1, masking.key_version()) as version
    );
    perform privacy.record(
        case
            when exists (select from privacy.originals where originals.token = any(tokens)) then 'original handed out'
            else 'no original found'
        end,
        about => request, token => requested.token
    );
    return query
    select originals.kind, extensions.armor(originals.sealed) from privacy.originals
    where originals.token = any(tokens);
end $$;
grant execute on function privacy.sealed_original(bigint) to privacy_officer;
