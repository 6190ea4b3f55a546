{# Lookups by user, token and time. Beside 100,000 logins, a window of 10,000 messages takes 1.2 times the server's CPU with
   the indexes, and no longer by the clock (benchmarks/dbt.py's increments, seven rounds, with and without them). #}
{{ config(indexes=[
    {'columns': ['load_id']},
    {'columns': ['user_id', 'logged_in_at']},
    {'columns': ['masked_device_id', 'user_id', 'device_id_is_placeholder']},
    {'columns': ['masked_ip', 'user_id', 'ip_is_placeholder']},
    {'columns': ['logged_in_at'], 'type': 'brin'}
]) }}

with

messages as (

    select * from {{ ref('int_messages__masked') }}

),

logins as (

    select
        user_id::varchar({{ longest('logins', 'user_id') }}) as user_id,
        device_type::varchar({{ longest('logins', 'device_type') }}) as device_type,
        masked_ip::varchar(256) as masked_ip,
        masked_device_id::varchar(256) as masked_device_id,
        locale::varchar({{ longest('logins', 'locale') }}) as locale,
        app_version,
        (sent_at at time zone 'utc')::date as create_date,
        message_id,
        mask_key_version,
        load_id,
        {{ logged_in_at('logins') }} as logged_in_at,
        ip_is_placeholder,
        device_id_is_placeholder
    from messages
    where is_accepted and event_type = 'logins' and {{ in_load_window('load_id') }}

)

select * from logins
