-- Each login beside the same user's login before it. Read it for one user: the window stays within them.
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
        masked_device_id,
        app_version,
        row_number() over by_time as login_number,
        logged_in_at - lag(logged_in_at) over by_time as since_previous,
        masked_ip != lag(masked_ip) over by_time as ip_changed,
        masked_device_id != lag(masked_device_id) over by_time as device_changed,
        app_version != lag(app_version) over by_time as version_changed
    from logins
    window by_time as (partition by user_id order by logged_in_at, message_id)

)

select * from in_order
