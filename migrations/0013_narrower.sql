-- migrate:up
-- What one role could still have another do, taken away.

set local role pipeline_owner;

-- transformer owns what an officer reads here, and might put in its place what calls a function of transformer's, with
-- the officer's rights: a view, a policy, an index over an expression, a type with a cast of its own. So officers'
-- functions read plain tables of PostgreSQL's own types (without policies: row_security), or nothing.
create function privacy.require_tables() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    tables constant regclass[] := '{analytics.user_logins, analytics.rejected_messages}';
begin
    lock table analytics.user_logins, analytics.rejected_messages in access share mode;  -- they stay what they are
    if exists (
        select from pg_class where oid = any(tables) and (relkind <> 'r' or relhassubclass)
        union all
        select from pg_attribute inner join pg_type on pg_type.oid = atttypid
        where
            attrelid = any(tables) and attnum > 0
            and (typnamespace <> 'pg_catalog'::regnamespace or attgenerated <> '')
        union all
        select from pg_index where indrelid = any(tables) and (indexprs is not null or indpred is not null)
        union all
        select from pg_statistic_ext where stxrelid = any(tables) and stxexprs is not null
    ) then
        raise exception 'analytics.user_logins and rejected_messages are not as dbt makes them';
    end if;
end $$;

-- The last load that dbt has taken: both tables stem from staging, which has had every message of a load before either.
create function privacy.published_to() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    last_login bigint;
    last_rejected bigint;
begin
    perform privacy.require_tables();
    select max(load_id) into last_login from analytics.user_logins;
    select max(load_id) into last_rejected from analytics.rejected_messages;
    return greatest(last_login, last_rejected, 0);
end $$;

-- Of a person's logins, and up to which load anybody's are published.
create function privacy.published_of(
    person text, out message_ids text[], out load_ids bigint[], out tokens text[], out last_load bigint
)
language plpgsql set search_path = pg_catalog, pg_temp set row_security = off as $$
begin
    perform privacy.require_tables();
    select
        coalesce(array_agg(message_id), '{}'), coalesce(array_agg(load_id), '{}'),
        coalesce(array_agg(masked_ip::text) || array_agg(masked_device_id::text), '{}')
    into message_ids, load_ids, tokens
    from analytics.user_logins where user_id = person;
    select coalesce(max(load_id), 0) into last_load from analytics.user_logins;
end $$;

-- Those tokens among these, and some more, that somebody else's logins have.
create function privacy.tokens_of_others(person text, tokens text[]) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    of_others text[];
begin
    perform privacy.require_tables();
    select coalesce(array_agg(masked_ip::text) || array_agg(masked_device_id::text), '{}') into of_others
    from analytics.user_logins
    where user_id <> person and (masked_ip = any(tokens) or masked_device_id = any(tokens));
    return of_others;
end $$;

create or replace function privacy.purge(keep_days integer) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    transformed_to bigint := privacy.published_to();
    purged bigint := privacy.purge_raw(keep_days, transformed_to);
begin
    return format(
        'Removed from raw: %s messages that landed more than %s days ago, of the loads that dbt has taken (up to %s).',
        purged, keep_days, transformed_to
    );
end $$;

create or replace function privacy.forget_user(user_id text, reason text)
returns table (removed_from text, removed bigint)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    published record;
    erased record;
    tokens text[];
begin
    select * into published from privacy.published_of(user_id);
    erased := privacy.erase_messages(user_id, reason, published.message_ids, published.load_ids);
    tokens := published.tokens || erased.tokens;
    return query values
        ('raw.sqs_messages', erased.removed::bigint),
        (
            'privacy.originals',
            privacy.erase_originals(tokens, privacy.tokens_of_others(user_id, tokens), published.last_load)::bigint
        ),
        ('analytics.user_logins', cardinality(published.message_ids)::bigint);
end $$;

grant execute on function privacy.require_tables(), privacy.published_to() to privacy_officer, retention;
grant execute on function privacy.published_of(text), privacy.tokens_of_others(text, text[]) to privacy_officer;

-- What is on record is what happened: a token with nothing behind it gives nothing away.
create or replace function privacy.sealed_original(request bigint) returns table (kind text, sealed text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    requested privacy.audit;
    tokens text[];
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
        or exists (
            select from privacy.audit
            where about = request and action in ('original handed out', 'no original found')
        )
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

    tokens := array(  -- the token may stem from a report older than the newest key
        select masking.carried_over(kinds.kind, requested.token, version)
        from (values ('ip'), ('device_id')) as kinds (kind), generate_series(1, masking.key_version()) as version
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

-- A prepared transaction holds dbt back when it is of somebody who may load; anybody can prepare one.
create or replace function raw.safe_load_id() returns bigint
language plpgsql volatile as $$
declare
    next_load_id bigint;
    in_flight bigint;
begin
    if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'raw.safe_load_id() needs the isolation level READ COMMITTED';
    end if;
    select last_value + is_called::integer into next_load_id from raw.load_id_seq;
    select min((held.classid::bigint << 32 | held.objid::bigint) - 4611686018427387904) + 1
    into in_flight
    from pg_catalog.pg_locks as held
    left join pg_catalog.pg_stat_activity as session using (pid)
    where
        held.locktype = 'advisory'
        and held.objsubid = 1  -- a single 64-bit key, not two of 32 bits
        and held.classid::bigint >= 1073741824  -- at or above 2^62, where the keys of current_load_id() are
        and held.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
        and (
            held.pid is null and exists (
                select from pg_catalog.pg_prepared_xacts as prepared
                where
                    prepared.database = pg_catalog.current_database()
                    and (
                        pg_catalog.pg_has_role(prepared.owner, 'loader', 'member')
                        or pg_catalog.pg_has_role(prepared.owner, 'pipeline_owner', 'member')
                    )
            )
            or pg_catalog.pg_has_role(session.usesysid, 'loader', 'member')
            or pg_catalog.pg_has_role(session.usesysid, 'pipeline_owner', 'member')
        );
    return least(next_load_id, in_flight);
end $$;

set local role masker;

-- The token that the keys up to a version make of a canonical value, or of a token of an earlier version. Whoever may
-- call it can mask every address there is and compare: so nobody but owners may.
create function masking.masked(kind text, value text, to_version integer, from_version integer default 0) returns text
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

-- From version 0 it would mask: a device id that is 64 hexadecimal digits passes for a token.
create or replace function masking.carried_over(kind text, token text, from_version integer) returns text
language plpgsql stable strict parallel safe security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
    if from_version < 1 or token !~ '^[0-9a-f]{64}$' then
        raise exception 'masking.carried_over() takes tokens';
    end if;
    return masking.masked(kind, token, masking.key_version(), from_version);
end $$;

reset role;

-- migrate:down
-- none: the way back is a backup
