-- One row per landed message, accepted or rejected, already masked: the state that every other model starts from.
-- The originals of new tokens are sealed in the same transaction (migrations/routines/recovery.sql).
{{ config(
    indexes=[{'columns': ['load_id']}, {'columns': ['is_accepted', 'load_id']}],
    post_hook='select privacy.seal_originals()'
) }}
{{ refuse_to_forget_purged() }}
{%- set after, before = last_load_id(), safe_load_id() %}

with

logins as (

    select * from {{ as_owner(ref('stg_sqs__logins'), after, before) }}

),

new_logins as (

    select * from logins
    where load_id > {{ after }} and load_id < {{ before }}

)

select
    message_id,
    queue,
    load_id,
    sent_at,
    reason is null as is_accepted,
    reason,
    body_bytes,
    user_id::varchar(128) as user_id,
    device_type::varchar(32) as device_type,
    masked_ip::varchar(256) as masked_ip,
    masked_device_id::varchar(256) as masked_device_id,
    locale::varchar(32) as locale,
    app_version,
    mask_key_version
from new_logins
