-- migrate:up
-- Every grant, by role. Whoever is not named has nothing; dbt grants the tables that it builds (dbt_project.yml).

set local role pipeline_owner;

-- loader: adds messages, looks at none; reads the ledger.
grant usage on schema raw to loader;
grant insert (
    message_id, queue, body, sent_at, receive_count, message_group_id, sequence_number, attributes, load_id
) on raw.sqs_messages to loader;
grant insert (load_id, received, landed, duplicates), select on raw.loads to loader;
grant usage, select on sequence raw.load_id_seq to loader;
grant execute on function raw.current_load_id() to loader;

-- masker: owns the boundary, which reads the messages with its rights.
grant usage on schema raw to masker;
grant select on raw.sqs_messages to masker;

-- transformer (dbt): builds staging and analytics from the boundary; of raw it sees ids and counts, to prove that
-- nothing is lost. Not message_group_id or attributes: apps put what they like there.
grant usage on schema raw to transformer;
grant select (message_id, queue, sent_at, load_id, loaded_at) on raw.sqs_messages to transformer;
grant select on raw.loads, raw.load_id_seq to transformer;
grant execute on function raw.safe_load_id() to transformer;
grant usage, create on schema staging, analytics to transformer;

-- analyst, privacy_officer: read what dbt publishes.
grant usage on schema analytics to analyst, privacy_officer;

set local role masker;

-- A view's tables are read with its owner's rights, its functions run with the caller's.
grant usage on schema masking to transformer;
grant execute on all functions in schema masking to transformer;

reset role;

-- migrate:down
-- none: the way back is a backup
