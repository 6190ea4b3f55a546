-- migrate:up
-- raw: what SQS delivered, unchanged, and the ledgers of what came and what left.

set local role pipeline_owner;

create sequence raw.load_id_seq;  -- CACHE stays 1: safe_load_id() needs numbers handed out in order

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
    load_id bigint not null,
    loaded_at timestamptz not null default now(),
    constraint load_id_is_positive check (load_id > 0),  -- models begin above 0
    constraint sent_at_is_a_time check (sent_at >= '2000-01-01 00:00+00' and sent_at < '2200-01-01 00:00+00')
);
create index on raw.sqs_messages (load_id);  -- dbt reads a window of loads

-- A sample of these would be kept in pg_statistic.
alter table raw.sqs_messages
    alter column body set statistics 0,
    alter column attributes set statistics 0,
    alter column message_group_id set statistics 0;

create table raw.loads (
    load_id bigint primary key check (load_id > 0),
    loaded_at timestamptz not null default now(),
    loaded_by name not null default session_user,
    queue text not null,
    received integer not null check (received >= 0),
    landed integer not null check (landed >= 0),
    duplicates integer not null check (duplicates >= 0),
    constraint received_is_landed_or_duplicate check (received = landed + duplicates)
);
create index on raw.loads (loaded_at);  -- pipeline_health counts a day of loads, however long the ledger is

create table raw.purges (
    purged_at timestamptz not null default now(),
    purged_by name not null default session_user,
    keep_days integer not null,
    messages bigint not null,
    landed_before timestamptz not null
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
comment on column raw.loads.queue is 'The queue: a load is of one.';
comment on column raw.loads.received is 'Messages received from SQS: landed + duplicates.';
comment on column raw.loads.landed is 'Messages that were new and are now in raw.sqs_messages.';
comment on column raw.loads.duplicates is 'Messages that had landed before, or twice in this load.';
comment on table raw.purges is 'Ledger: one row per purge that removed messages from raw.sqs_messages.';
comment on column raw.purges.messages is 'Messages removed.';
comment on column raw.purges.landed_before is 'When the purge was, less keep_days: what landed later was kept.';

-- loader: adds messages, looks at none; reads the ledger. (loaded_at: Citus writes defaulted columns into a shard's
-- insert. Nothing trusts it: what is old enough to be purged is said by raw.loads, whose clock the loader cannot set.)
grant insert (
    message_id, queue, body, sent_at, receive_count, message_group_id, sequence_number, attributes, load_id, loaded_at
) on raw.sqs_messages to loader;
grant insert (load_id, queue, received, landed, duplicates), select on raw.loads to loader;
grant select on raw.load_id_seq to loader;

-- masker: owns the boundary, which reads the messages with its rights.
grant select on raw.sqs_messages to masker;

-- transformer (dbt): of raw it sees ids and counts, to prove that nothing is lost. Not message_group_id or attributes:
-- apps put what they like there.
grant select (message_id, queue, sent_at, load_id, loaded_at) on raw.sqs_messages to transformer;
grant select on raw.loads, raw.purges, raw.load_id_seq to transformer;

reset role;

-- migrate:down
-- none: the way back is a backup
