-- migrate:up
-- Beyond one server: Citus. `CITUS=1 make migrate` spreads raw over its workers once (distribute, below), and from then
-- on the database says so itself. What differs there is here and in dbt_project/macros/citus.sql:
-- * A worker reads what lies on it, so it has the keys too (migrations/__main__.py), where masked() looks them up.
-- * Shards are read with the rights of the current role: a view's owner lends its reader nothing, a function's does.
--   That takes a login of each such role on the workers (deploy/bootstrap.sql).
-- * A distributed table has no trigger; who was erased and comes back is erased by dbt's next run (erase_returned).
-- * A subselect of a distributed table stands in FROM. That is why some functions are here again, otherwise unchanged.

set local role pipeline_owner;

create function raw.is_distributed() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    is_distributed boolean := false;
begin
    if to_regclass('pg_catalog.pg_dist_partition') is not null then
        execute $query$
            select exists (select from pg_dist_partition where logicalrelid = 'raw.sqs_messages'::regclass)
        $query$ into is_distributed;
    end if;
    return is_distributed;
end $$;
grant execute on function raw.is_distributed() to transformer, masker;

-- A table may be distributed with rows in it; the local ones are then hidden and have to be removed. Raw is not
-- colocated with dbt's tables: in one transaction, what one role has changed can be read by no other, nor what is
-- colocated with it.
create function raw.distribute() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    drop trigger erase_again on raw.sqs_messages;
    perform create_distributed_table('raw.sqs_messages', 'message_id', colocate_with => 'none');
    perform truncate_local_data_after_distributing_table('raw.sqs_messages');
    -- as in 0005_grants.sql, for the shards
    grant insert (
        message_id, queue, body, sent_at, receive_count, message_group_id, sequence_number, attributes, load_id
    ) on raw.sqs_messages to loader;
    grant select on raw.sqs_messages to masker;
    grant select (message_id, queue, sent_at, load_id, loaded_at) on raw.sqs_messages to transformer;
end $$;

-- A commit that a worker has prepared and not been told to finish hides rows of loads that are over. A worker that
-- comes back is told within a minute (citus.recover_2pc_interval). By name and not by time: clocks differ.
create function raw.await_workers() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    prepared constant text := $query$
        select array_agg(gid) from pg_prepared_xacts
        where
            database = current_database() and gid like 'citus\_%'
            and (pg_has_role(owner, 'loader', 'member') or pg_has_role(owner, 'pipeline_owner', 'member'))
    $query$;
    give_up_at constant timestamptz := clock_timestamp() + interval '90 seconds';
    in_doubt text[];
    waited_for text[];
    unreachable text;
begin
    loop
        select
            array_agg(gid) filter (where gid is not null),
            string_agg(nodename || ':' || nodeport, ', ') filter (where not success)
        into in_doubt, unreachable
        from run_command_on_workers(prepared)
        left join lateral unnest(case when success then nullif(result, '')::text[] end) as gid on true;
        if unreachable is not null then
            raise exception 'Citus cannot reach its workers at %', unreachable;
        end if;
        waited_for := coalesce(waited_for, in_doubt, '{}');  -- later ones are of later loads
        if not waited_for && coalesce(in_doubt, '{}') then
            return;
        end if;
        if clock_timestamp() > give_up_at then
            raise exception 'workers stay in doubt of a commit: select recover_prepared_transactions()';
        end if;
        perform pg_sleep(0.1);
    end loop;
end $$;
grant execute on function raw.await_workers() to transformer;

alter function raw.safe_load_id() rename to safe_load_id_here;

create function raw.safe_load_id() returns bigint
language plpgsql volatile as $$
declare
    load_id constant bigint := raw.safe_load_id_here();
begin
    if raw.is_distributed() then
        perform raw.await_workers();
    end if;
    return load_id;
end $$;
grant execute on function raw.safe_load_id() to transformer;

create or replace function privacy.seal_originals() returns bigint
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
    select sealed_to into strict last_sealed from privacy.settings for update;
    select mask_key_version into boundary_version from masking.base_sqs__logins limit 1;
    if boundary_version <> masking.key_version() then
        raise exception 'a key rotation is under way: finish it with `make rotate-key`';
    end if;
    if raw.is_distributed() then  -- first, or somebody erased who has come back would be sealed again
        perform privacy.erase_returned();
        select returned_to into strict last_load from privacy.settings;
    else
        last_load := raw.safe_load_id() - 1;
    end if;

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

create or replace function privacy.erase_messages(
    user_id text,
    reason text,
    message_ids text[],
    load_ids bigint[],
    out erasure bigint,
    out removed integer,
    out tokens text[]
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$  -- reason: 0012
declare
    from_raw text[];
    message record;
begin
    if length(btrim(reason)) < 10 is not false or strpos(reason, user_id) > 0 then
        raise exception 'a reason is needed that somebody else will understand and that does not name the person';
    end if;
    perform from privacy.settings for update;  -- whoever is sealing has finished

    select coalesce(array_agg(message_id), '{}') into from_raw
    from raw.sqs_messages
    cross join lateral unnest(array[masking.parse_json(body)]) as parsed (event)
    where
        event ->> 'user_id' = user_id
        or jsonb_typeof(event) is distinct from 'object' and strpos(body, to_json(user_id)::text) > 0
        or message_id = any(message_ids);
    select coalesce(array_agg(masked_ip) || array_agg(masked_device_id), '{}') into tokens
    from masking.base_sqs__logins as logins
    where message_id = any(from_raw) and logins.reason is null;
    erasure := privacy.record('person erased', reason => reason, removed => cardinality(from_raw));

    for message in select message_id, load_id, body from raw.sqs_messages where message_id = any(from_raw) loop
        insert into privacy.erased_messages (message_id, load_id, body_mac, erasure)
        select message.message_id, message.load_id, masking.token(message.body, key), erase_messages.erasure
        from privacy.tombstone_key;
    end loop;
    insert into privacy.erased_messages (message_id, load_id, erasure)
    select message_id, load_id, erase_messages.erasure
    from unnest(message_ids, load_ids) as purged (message_id, load_id)
    on conflict do nothing;  -- those in raw have theirs, and what dbt has not removed since an earlier erasure
    delete from raw.sqs_messages where message_id = any(from_raw);
    removed := cardinality(from_raw);
end $$;

create or replace function privacy.erase_originals(tokens text[], of_others text[], published_to bigint) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    of_later_logins text[];
    removed integer;
begin
    select coalesce(array_agg(masked_ip) || array_agg(masked_device_id), '{}') into of_later_logins
    from masking.base_sqs__logins
    where
        load_id > published_to and reason is null
        and (masked_ip = any(tokens) or masked_device_id = any(tokens));
    delete from privacy.originals
    where token = any(tokens) and token <> all(of_others) and token <> all(of_later_logins);
    get diagnostics removed = row_count;
    return removed;
end $$;

alter table privacy.settings add column returned_to bigint not null default 0;
comment on column privacy.settings.returned_to is
'On Citus: the last load in which erased messages that came back have been erased again.';

-- What the trigger erase_again does elsewhere, and by the same rules; dbt calls it in the transaction that has taken
-- the messages into staging, and removes them there too.
create function privacy.erase_returned() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$  -- reason: 0012
declare
    last_checked bigint;
    last_load bigint;
    landed record;
    returned text[] := '{}';
begin
    if not raw.is_distributed() then
        return 0;
    end if;
    select returned_to into strict last_checked from privacy.settings for update;
    last_load := raw.safe_load_id() - 1;
    if exists (select from privacy.erased_messages) then
        for landed in
            select message_id, load_id, loaded_at, body from raw.sqs_messages
            where load_id > last_checked and load_id <= last_load
        loop
            insert into privacy.erased_messages (message_id, load_id, body_mac, erased_at, erasure)
            select landed.message_id, landed.load_id, known.body_mac, known.erased_at, known.erasure
            from privacy.erased_messages as known
            where
                known.message_id = landed.message_id
                or known.body_mac = (select masking.token(landed.body, key) from privacy.tombstone_key)
                and known.erased_at > landed.loaded_at - interval '28 days'
            order by known.erased_at desc
            limit 1;
            if found then
                returned := returned || landed.message_id;
            end if;
        end loop;
        delete from raw.sqs_messages where message_id = any(returned);
    end if;
    update privacy.settings set returned_to = last_load;
    return cardinality(returned);
end $$;
grant execute on function privacy.erase_returned() to transformer;

set local role masker;

-- In quotes, or its dependence on the table of keys would keep Citus from taking it to the workers.
create or replace function masking.key_version() returns integer
language sql stable parallel safe security definer set search_path = pg_catalog, pg_temp
as 'select max(version) from masking.keys';

reset role;

-- migrate:down
-- none: the way back is a backup
