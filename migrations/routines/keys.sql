-- The keys at work: masking where dbt cannot write the keys into its SQL, rotation.

set local role masker;

-- The newest version, which everybody who masks must agree on; dbt writes it into the boundary. In quotes, or its
-- dependence on the table of keys would keep Citus from taking it to the workers.
create or replace function masking.key_version() returns integer
language sql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as 'select max(version) from masking.keys';
grant execute on function masking.key_version() to transformer, pipeline_owner;

create or replace function masking.kinds() returns setof text
language sql stable security definer set search_path = pg_catalog, pg_temp
as 'select distinct kind from masking.keys order by kind';
grant execute on function masking.kinds() to pipeline_owner;

-- The token that the keys up to a version make of a canonical value, or of a token of an earlier version. Whoever may
-- call it can mask every address there is and compare: so nobody but owners may. Generic plans: see masking.sql.
create or replace function masking.masked(kind text, value text, to_version integer, from_version integer default 0)
returns text
language plpgsql stable strict parallel safe security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
declare
    link record;
    version integer := from_version;
begin
    for link in
        select keys.version, keys.key from masking.keys
        where keys.kind = masked.kind and keys.version > from_version and keys.version <= to_version
        order by keys.version
    loop
        exit when link.version <> version + 1;
        version := link.version;
        value := masking.token(value, link.key);
    end loop;
    if version <> to_version then
        raise exception 'masking.keys has no key of kind %, version %', kind, version + 1
        using hint = 'A worker of Citus is brought its keys by `make migrate`.';
    end if;
    return value;
end $$;
grant execute on function masking.masked(text, text, integer, integer) to pipeline_owner;

-- For hashes of values that leave a worker of Citus. Not made of the token's function, which those hashes prove right.
create or replace function masking.secret_part() returns text
language sql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as 'select encode(sha256(key), ''hex'') from masking.keys order by kind, version limit 1';

-- The token of today for a token of an earlier version. Takes nothing but tokens, so that it cannot be asked to mask an
-- address (from version 0 it would mask: a device id that is 64 hexadecimal digits passes for a token). Still, whoever
-- stole the first key could ask with tokens of their own making. That is why transformer, who has to carry its tables
-- over, may call it only while a rotation is open.
create or replace function masking.carried_over(kind text, token text, from_version integer) returns text
language plpgsql stable strict parallel safe security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
    if from_version < 1 or token !~ '^[0-9a-f]{64}$' then
        raise exception 'masking.carried_over() takes tokens';
    end if;
    return masking.masked(kind, token, masking.key_version(), from_version);
end $$;
revoke execute on function masking.carried_over(text, text, integer) from public;
grant execute on function masking.carried_over(text, text, integer) to pipeline_owner;

-- A kind without any key gets one for each version, so that all kinds are rotated together. A kind that has lost a key
-- gets none: its values would have other tokens than before, in silence. So would those of all kinds where a boundary
-- is deployed, which has always had keys.
create or replace function masking.ensure_keys(kinds text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if to_regclass('masking.base_sqs__messages') is not null and not exists (select from masking.keys) then
        raise exception 'masking.keys is empty: restore it from a backup, as new keys would make other tokens'
            using hint = 'See deploy/README.md, Restore.';
    end if;
    insert into masking.keys (kind, version, key)
    select kind, version, extensions.gen_random_bytes(32)
    from unnest(kinds) as kind
    cross join generate_series(1, coalesce((select max(version) from masking.keys), 1)) as version
    where kind not in (select keys.kind from masking.keys);
end $$;

-- For masker, after it has added the new keys, in the same transaction.
create or replace function masking.open_rotation() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform from privacy.settings for update;  -- whoever is sealing under the old keys has finished
    update privacy.originals set
        token = masking.carried_over(kind, token, key_version), key_version = masking.key_version()
    where key_version < masking.key_version();
    grant execute on function masking.carried_over to transformer;
end $$;

create or replace function masking.close_rotation() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    revoke execute on function masking.carried_over from transformer;
end $$;
