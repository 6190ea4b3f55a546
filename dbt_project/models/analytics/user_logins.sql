{{ config(indexes=[{'columns': ['load_id']}]) }}

with

messages as (

    select * from {{ ref('int_messages__masked') }}

),

logins as (

    select
        user_id,
        device_type,
        masked_ip,
        masked_device_id,
        locale,
        app_version,
        (sent_at at time zone 'utc')::date as create_date,
        message_id,
        mask_key_version,
        load_id
    from messages
    where is_accepted and {{ in_load_window('load_id') }}

)

select * from logins
