-- Retention: old messages leave raw, once dbt has taken them. Their tokens and counts stay.

set local role pipeline_owner;

-- For a privacy officer (`make purge`) or a timer with the role retention. Removes the loads that landed more than
-- keep_days ago, by the ledger's clock, and that dbt has taken whole. Not sooner than SQS can deliver a message again
-- (two weeks in the queue and, of a FIFO queue, two in the dead-letter queue): by then raw must know that it had it.
-- Hours, because a day of the calendar may have 23. Not before originals are sealed, where they are to be.
create or replace function privacy.purge(keep_days integer) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '1min' as $$
declare
    landed_before constant timestamptz := now() - keep_days * interval '24 hours';
    last_load bigint := raw.safe_load_id() - 1;
    missing bigint;
    purged bigint;
begin
    if keep_days < 28 is not false then
        raise exception 'raw is kept for 28 days or more: until then SQS may deliver a message again';
    end if;
    perform privacy.require_plain_table();
    if exists (select from privacy.public_keys) then
        last_load := least(last_load, (select sealed_to from privacy.settings));
    end if;
    last_load := least(last_load, (select min(load_id) - 1 from raw.loads where loaded_at >= landed_before));

    -- the first load of which raw has more than dbt has taken: from there on, everything stays
    execute $query$
        select min(in_raw.load_id)
        from (select load_id, count(*) as messages from raw.sqs_messages where load_id <= $1 group by load_id) as in_raw
        left join (
            select load_id, count(*) as messages from only staging.int_messages__masked
            where load_id <= $1 group by load_id
        ) as taken on taken.load_id = in_raw.load_id
        where in_raw.messages > coalesce(taken.messages, 0)
    $query$ into missing using last_load;
    last_load := least(last_load, missing - 1);

    execute 'delete from raw.sqs_messages where load_id <= $1' using last_load;
    get diagnostics purged = row_count;
    if purged > 0 then
        insert into raw.purges (keep_days, messages, landed_before) values (keep_days, purged, landed_before);
        perform privacy.record(
            'messages purged', reason => format('kept for %s days', keep_days), removed => purged
        );
    end if;
    return format(
        'Removed from raw: %s messages that landed more than %s days ago, of the loads that dbt has taken (up to %s).',
        purged, keep_days, greatest(last_load, 0)
    );
end $$;
grant execute on function privacy.purge(integer) to privacy_officer, retention;
