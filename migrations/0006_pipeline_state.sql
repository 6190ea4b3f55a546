-- migrate:up
-- What loaders, dbt, health and attestation ask of the database's state, worked out in one place.

set local role pipeline_owner;

create view raw.pipeline_state as
select
    -- The ledger is read as of the statement's beginning and the sequence as it is, so that it can only be ahead.
    (select last_value - (not is_called)::integer from raw.load_id_seq) as last_load_id,
    (select coalesce(max(load_id), 0) from raw.loads) as newest_load_id,
    (select coalesce(max(load_id), 0) from raw.loads)
    > (select last_value - (not is_called)::integer from raw.load_id_seq) as sequence_is_behind,
    -- There is no state besides the grant itself (masking.open_rotation). Looked up by its oid: a reader may not use
    -- the schema that its name is in.
    (
        select coalesce(bool_or(has_function_privilege('transformer', oid, 'execute')), false) from pg_proc
        where pronamespace = 'masking'::regnamespace and proname = 'carried_over'
    ) as rotation_is_open;

comment on view raw.pipeline_state is
'One row: how far the numbers of loads have come, and whether a rotation is open.';
comment on column raw.pipeline_state.last_load_id is 'The last number that raw.load_id_seq has handed out.';
comment on column raw.pipeline_state.newest_load_id is 'The highest number in the ledger, raw.loads.';
comment on column raw.pipeline_state.sequence_is_behind is
'Whether numbers will come again, as after a restore without sequences: dbt would not read what they bring.';
comment on column raw.pipeline_state.rotation_is_open is
'Whether a key rotation is under way: transformer may carry tokens over.';

grant select on raw.pipeline_state to loader, transformer, monitor, masker;
revoke select on raw.load_id_seq from loader, transformer, monitor;

reset role;

-- migrate:down
-- none: the way back is a backup
