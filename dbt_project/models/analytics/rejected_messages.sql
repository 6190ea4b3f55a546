{{ config(indexes=[{'columns': ['load_id']}]) }}

with

messages as (

    select * from {{ ref('int_messages__masked') }}

),

rejected as (

    select
        message_id,
        queue,
        sent_at,
        load_id,
        reason,
        body_bytes
    from messages
    where not is_accepted and {{ in_load_window('load_id') }}

)

select * from rejected
