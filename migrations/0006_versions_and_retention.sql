-- migrate:up
-- For those who use what dbt publishes: analysts read versions back, privacy officers remove raw that is old enough.

set local role pipeline_owner;

create function analytics.decode_app_version(app_version integer) returns text
language sql immutable strict parallel safe
return app_version / 1000000 || '.' || app_version / 1000 % 1000 || '.' || app_version % 1000;
comment on function analytics.decode_app_version is
'The version behind user_logins.app_version, in three parts: 2003000 is 2.3.0.';
grant execute on function analytics.decode_app_version(integer) to analyst, privacy_officer, transformer;

-- The ledger of what left raw by its age; with raw.loads it says what must still be there.
create table raw.purges (
    purged_at timestamptz not null default now(),
    purged_by name not null default session_user,
    keep_days integer not null,
    messages bigint not null,
    landed_before timestamptz not null
);
comment on table raw.purges is 'Ledger: one row per purge that removed messages from raw.sqs_messages.';
comment on column raw.purges.messages is 'Messages removed.';
comment on column raw.purges.landed_before is 'When the purge was, less keep_days: what landed later was kept.';
grant select on raw.purges to transformer;

-- Removes what landed before keep_days and is in a load that dbt has taken. Not sooner than SQS can deliver it again
-- (two weeks in the queue and, of a FIFO queue, two in the dead-letter queue): by then raw must know that it had it.
create function privacy.purge_raw(keep_days integer, transformed_to bigint) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    landed_before timestamptz := now() - make_interval(days => keep_days);
    last_load bigint;
    purged bigint;
begin
    if keep_days < 28 is not false then
        raise exception 'raw is kept for 28 days or more: until then SQS may deliver a message again';
    end if;
    if exists (select from privacy.public_keys) then  -- originals are to be sealed before raw goes (0008)
        transformed_to := least(transformed_to, (select sealed_to from privacy.settings));
    end if;
    -- the ledger's last load that is old enough, so that the delete begins at an index and not with all of raw
    select max(load_id) into last_load from raw.loads
    where loaded_at < landed_before and load_id <= transformed_to;

    delete from raw.sqs_messages where load_id <= last_load and loaded_at < landed_before;
    get diagnostics purged = row_count;
    if purged > 0 then
        insert into raw.purges (keep_days, messages, landed_before) values (keep_days, purged, landed_before);
    end if;
    return purged;
end $$;

-- For a privacy officer, by `make purge`. Where dbt is, is read with the officer's rights and not with an owner's: the
-- tables are transformer's, who might put something else in their place. Both tables stem from staging, which has had
-- every message of a load before either has one.
create function privacy.purge(keep_days integer) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    transformed_to bigint;
    purged bigint;
begin
    select greatest(
        (select max(load_id) from analytics.user_logins), (select max(load_id) from analytics.rejected_messages), 0
    ) into transformed_to;
    purged := privacy.purge_raw(keep_days, transformed_to);
    return format(
        'Removed from raw: %s messages that landed more than %s days ago, of the loads that dbt has taken (up to %s).',
        purged, keep_days, transformed_to
    );
end $$;

grant usage on schema privacy to privacy_officer;
grant execute on function privacy.purge(integer), privacy.purge_raw(integer, bigint) to privacy_officer;

reset role;

-- migrate:down
-- none: the way back is a backup
