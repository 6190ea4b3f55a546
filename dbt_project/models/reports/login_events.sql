-- Each login beside the same user's login before it. Reading one user's takes an index: the window stays within them.
with

logins as (

    select * from {{ ref('user_logins') }}

),

in_order as (

    select
        message_id,
        user_id,
        logged_in_at,
        masked_ip,
        ip_is_placeholder,
        masked_device_id,
        device_id_is_placeholder,
        app_version,
        row_number() over by_time as login_number,
        logged_in_at - lag(logged_in_at) over by_time as since_previous,
        {{ changed('ip') }} as ip_changed,
        {{ changed('device_id') }} as device_changed,
        app_version != lag(app_version) over by_time as version_changed
    from logins
    window by_time as (partition by user_id order by logged_in_at, message_id)

)

select * from in_order
