-- migrate:up
-- raw: what SQS delivered, unchanged, and the ledger of the transactions that landed it.

set local role pipeline_owner;

create sequence raw.load_id_seq;  -- CACHE stays 1: safe_load_id() needs numbers handed out in order

-- One number per landing transaction. A shared advisory lock on a number below it, taken before the number and held
-- until commit, tells safe_load_id() that this transaction may still bring rows. The number is remembered in a setting
-- local to the transaction, so that every row of it gets the same one. A writer that hangs in the middle of its
-- transaction holds back what dbt may read, so it is ended after a minute of silence.
create function raw.current_load_id() returns bigint
language plpgsql volatile as $$
declare
    remembered text := pg_catalog.current_setting('raw.load_id', true);
    xid text := pg_catalog.pg_current_xact_id()::text;
    load_id bigint;
begin
    if pg_catalog.split_part(remembered, ':', 1) = xid then
        return pg_catalog.split_part(remembered, ':', 2)::bigint;
    end if;
    perform pg_catalog.pg_advisory_xact_lock_shared(
        4611686018427387904 + (select last_value - (not is_called)::integer from raw.load_id_seq)
    );
    load_id := pg_catalog.nextval('raw.load_id_seq');
    perform pg_catalog.set_config('raw.load_id', xid || ':' || load_id, true);
    perform pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', true);
    return load_id;
end $$;

-- The first load_id that may still be in flight: every load below it has committed or rolled back, and a statement
-- begun after this one sees it. The sequence is read before the locks: a load that took its number before the first
-- reading and has no lock at the second is over. READ COMMITTED, because a later statement must see more.
-- Anybody may take an advisory lock; only those of sessions that can load count (no pid: a prepared transaction).
create function raw.safe_load_id() returns bigint
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
            held.pid is null
            or pg_catalog.pg_has_role(session.usesysid, 'loader', 'member')
            or pg_catalog.pg_has_role(session.usesysid, 'pipeline_owner', 'member')
        );
    return least(next_load_id, in_flight);
end $$;

-- Not partitioned by day of sent_at. A unique key of a partitioned table has to contain sent_at, and a FIFO queue's
-- dead-letter queue gives the same message a new one: it would land twice. And the models look up loads, not days: with
-- 365 partitions a read of the newest loads took 45 ms instead of 5, max(load_id) 56 instead of 1.5. What dropping a
-- partition would save is little: a purge of 200,000 messages takes under a second, with the vacuum, and the
-- space is used again.
create table raw.sqs_messages (
    message_id text primary key,  -- text: AWS promises a string of up to 100 characters, not a UUID
    queue text not null,
    body text not null,  -- text, not jsonb: jsonb would rewrite the message
    sent_at timestamptz,  -- null only where an emulator sends no SentTimestamp
    receive_count integer,
    message_group_id text,
    sequence_number text,
    attributes jsonb,
    load_id bigint not null default raw.current_load_id(),
    loaded_at timestamptz not null default now()
);
create index on raw.sqs_messages (load_id);  -- dbt reads a window of loads

-- A sample of these would be kept in pg_statistic.
alter table raw.sqs_messages
    alter column body set statistics 0,
    alter column attributes set statistics 0,
    alter column message_group_id set statistics 0;

create table raw.loads (
    load_id bigint primary key default raw.current_load_id(),
    loaded_at timestamptz not null default now(),
    loaded_by name not null default session_user,
    received integer not null check (received >= 0),
    landed integer not null check (landed >= 0),
    duplicates integer not null check (duplicates >= 0),
    constraint received_is_landed_or_duplicate check (received = landed + duplicates)
);

comment on table raw.sqs_messages is
'Messages as SQS delivered them, one row per message id. Plain personal data: readable by masker alone.';
comment on column raw.sqs_messages.queue is 'Name of the queue.';
comment on column raw.sqs_messages.body is 'The message, byte for byte.';
comment on column raw.sqs_messages.sent_at is 'SQS SentTimestamp: when the queue received the message.';
comment on column raw.sqs_messages.receive_count is 'SQS ApproximateReceiveCount at the delivery that landed.';
comment on column raw.sqs_messages.attributes is 'SQS message attributes, by name; binary values in base64.';
comment on column raw.sqs_messages.load_id is
'The landing transaction (raw.loads) that brought the message; the cursor of dbt''s models.';
comment on table raw.loads is 'Ledger: one row per landing transaction, written in that transaction.';
comment on column raw.loads.received is 'Messages received from SQS: landed + duplicates.';
comment on column raw.loads.landed is 'Messages that were new and are now in raw.sqs_messages.';
comment on column raw.loads.duplicates is 'Messages that had landed before, or twice in this load.';

reset role;

-- migrate:down
-- none: the way back is a backup
