-- One row per landed message, accepted or rejected, already masked: the state that every other model starts from.
-- The originals of new tokens are sealed in the same transaction (migrations/routines/recovery.sql).
{{ config(
    indexes=[{'columns': ['message_id'], 'unique': true}, {'columns': ['load_id']}, {'columns': ['is_accepted', 'load_id']}],
    meta={'outlives_raw': true},
    post_hook='select privacy.seal_originals(anew => {{ should_full_refresh() | lower }})'
) }}
{%- set after, before = last_load_id(), safe_load_id() %}

with

messages as (

    select * from {{ as_owner(ref('stg_sqs__messages'), after, before) }}

),

new_messages as (

    select * from messages
    where load_id > {{ after }} and load_id < {{ before }}

)

select
    message_id,
    queue,
    load_id,
    sent_at,
    event_type,
    reason is null as is_accepted,
    reason,
    body_bytes,
    subject,
    {{ declared_columns() | join(',\n    ') }},
    mask_key_version
from new_messages
