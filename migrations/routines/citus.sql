-- Beyond one server: Citus. `CITUS=1 make migrate` spreads raw over its workers once (distribute, below), and from then
-- on the database says so itself. What differs there is here and in dbt_project/macros/citus.sql:
-- * A worker reads what lies on it, so it has the keys too (migrations/__main__.py), where masked() looks them up.
-- * Shards are read with the rights of the current role: a view's owner lends its reader nothing, a function's does.
--   That takes a login of each such role on the workers (deploy/bootstrap.sql).
-- * A distributed table has no trigger; who was erased and comes back is erased by dbt's next run (erase_returned).

set local role pipeline_owner;

create or replace function raw.is_distributed() returns boolean
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

-- Four shards for each worker, unless the server is told otherwise: four times as many workers can take a share later.
-- Each load has a statement for each shard, and with Citus' own 32 it took ten times as long (`make bench-dbt`).
create or replace function raw.choose_shard_count() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if (select source from pg_settings where name = 'citus.shard_count') = 'default' then
        perform set_config('citus.shard_count', (4 * count(*))::text, true)
        from pg_dist_node where noderole = 'primary' and shouldhaveshards;
    end if;
end $$;
grant execute on function raw.choose_shard_count() to transformer;

-- A trigger that sees the messages of each statement that lands some. A distributed table has none.
create or replace function raw.call_after_landing(called regproc) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not raw.is_distributed() then
        execute format(
            'create or replace trigger %I after insert on raw.sqs_messages referencing new table as landed '
            'for each statement execute function %s()', (select proname from pg_proc where oid = called), called
        );
    end if;
end $$;

-- A table may be distributed with rows in it; the local ones are then hidden and have to be removed. Raw is not
-- colocated with dbt's tables: in one transaction, what one role has changed can be read by no other, nor what is
-- colocated with it.
create or replace function raw.distribute() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    drop trigger erase_again on raw.sqs_messages;
    drop trigger refuse_other_loads on raw.sqs_messages;
    perform raw.choose_shard_count();
    perform create_distributed_table('raw.sqs_messages', 'message_id', colocate_with => 'none');
    perform truncate_local_data_after_distributing_table('raw.sqs_messages');
    -- as in 0002_raw.sql, for the shards
    grant insert (
        message_id, queue, body, sent_at, receive_count, message_group_id, sequence_number, attributes, load_id, loaded_at
    ) on raw.sqs_messages to loader;
    grant select on raw.sqs_messages to masker;
    grant select (message_id, queue, sent_at, load_id, loaded_at) on raw.sqs_messages to transformer;
end $$;

-- A commit that a worker has prepared and not been told to finish hides rows of loads that are over. A worker that
-- comes back is told within a minute (citus.recover_2pc_interval). By name and not by time: clocks differ.
create or replace function raw.await_workers() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
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
    if not raw.is_distributed() then
        return;
    end if;
    loop
        select
            array_agg(gid) filter (where gid is not null),
            string_agg(nodename || ':' || nodeport, ', ') filter (where not success)
        into in_doubt, unreachable
        from run_command_on_workers(prepared)
        left join lateral unnest(case when success then nullif(result, '')::text[] end) as gid on true;
        if unreachable is not null then
            raise exception 'Citus cannot reach its workers at %', unreachable using errcode = 'connection_failure';
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

-- What the trigger erase_again does elsewhere, and by the same rules; dbt calls it in the transaction that has taken
-- the messages into staging, and removes them there too. Tells up to which load nobody who was erased is in raw.
create or replace function privacy.erase_returned() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$  -- reason: masking.sql
declare
    last_checked bigint;
    last_load bigint;
    landed record;
    returned text[] := '{}';
begin
    if not raw.is_distributed() then
        return raw.safe_load_id() - 1;
    end if;
    select returned_to into strict last_checked from privacy.settings for update;
    last_load := raw.safe_load_id() - 1;
    if exists (select from privacy.erased_messages) then
        for landed in execute format(
            'select message_id, load_id, loaded_at, masking.digest(body) as digest from raw.sqs_messages '
            'where load_id > %s and load_id <= %s', last_checked, last_load
        ) loop
            insert into privacy.erased_messages (message_id, load_id, body_mac, erased_at, erasure)
            select landed.message_id, landed.load_id, known.body_mac, known.erased_at, known.erasure
            from privacy.erased_messages as known
            where
                known.message_id = landed.message_id
                or known.body_mac = (select masking.token(landed.digest, key) from privacy.tombstone_key)
                and known.erased_at > landed.loaded_at - 28 * interval '24 hours'
            order by known.erased_at desc
            limit 1;
            if found then
                returned := returned || landed.message_id;
            end if;
        end loop;
        execute 'delete from raw.sqs_messages where message_id = any($1)' using returned;
    end if;
    update privacy.settings set returned_to = last_load;
    return last_load;
end $$;
grant execute on function privacy.erase_returned() to transformer;
